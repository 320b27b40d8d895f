"""Downloads from a hub of our own on this machine, with every fault that a hub can have."""

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from keyturn.engine.files import download as module
from keyturn.engine.files.catalog import on_disk, resolve
from keyturn.engine.files.download import download
from keyturn.engine.files.weights import load_model
from keyturn.engine.wire.errors import DownloadFailed
from keyturn.server.cli import main

COMMIT = "c0ffee" + "0" * 34
NAME = "owner/tiny"


class Hub:
    """A server with one repository; faults are set by the tests.

    Attributes:
        files: name to content.
        commit: of the main branch.
        cuts: connections that are cut after a third of what they were asked for.
        pause_s: between two pieces of what is sent.
        status: answered instead of a file's content.
        ranges: what was asked for, by file.
        asked: headers of every request.
    """

    def __init__(self, files):
        self.files, self.commit = dict(files), COMMIT
        self.cuts, self.status, self.ignores_range = 0, 200, False
        self.pause_s = 0.0
        self.listed, self.ranges, self.asked = {}, [], []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.path, dict(self.headers)))
                hub.answer(self)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def listing(self):
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": name, "size": len(content), "blobId": blob}
            if not name.endswith(".json"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 1}
            siblings.append(entry | self.listed.get(name, {}))
        return json.dumps({"sha": self.commit, "siblings": siblings}).encode()

    def answer(self, request):
        path = request.path.partition("?")[0]
        if path == f"/api/models/{NAME}/revision/main":
            return self.send(request, self.listing())
        place = f"/{NAME}/resolve/{self.commit}/"
        content = self.files.get(path.removeprefix(place))
        if not path.startswith(place) or content is None:
            return request.send_error(404)
        if self.status != 200:
            return request.send_error(self.status)
        start = int((re.findall(r"bytes=(\d+)-", request.headers.get("Range", "")) or [0])[0])
        self.ranges.append((path.removeprefix(place), start))
        if self.ignores_range:
            start = 0
        return self.send(request, content[start:], 206 if start else 200)

    def send(self, request, content, status=200):
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if status in (200, 206) and self.cuts and len(content) > 10_000:
            self.cuts -= 1
            content = content[: len(content) // 3]
            request.close_connection = True
        piece = len(content) if not self.pause_s else 1 << 16
        with contextlib.suppress(ConnectionError):  # who asked was killed
            for at in range(0, len(content), max(piece, 1)):
                request.wfile.write(content[at : at + piece])
                time.sleep(self.pause_s)
        return None


@pytest.fixture
def hub(tiny_model, monkeypatch, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    files |= {"README.md": b"x", "pytorch_model.bin": b"x", "original/model.safetensors": b"x"}
    made = Hub(files)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    yield made
    made.server.shutdown()
    made.server.server_close()


def left(cache, suffix=".part"):
    return sorted(path.name for path in cache.rglob(f"*{suffix}"))


def test_a_model_is_fetched_checked_and_found(hub, tmp_path, tiny_model):
    seen = []
    folder = download(NAME, tmp_path / "hub", lambda *each: seen.append(each))
    names = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    size = len(hub.files["model.safetensors"])
    assert ("model.safetensors", size, size) in seen
    assert resolve(NAME) == folder and NAME in [model["name"] for model in on_disk()]
    load_model(folder, torch.float32)
    num_asked = len(hub.ranges)
    assert download(NAME, tmp_path / "hub") == folder and len(hub.ranges) == num_asked
    assert all(headers["Authorization"] == "Bearer hf_test" for _, headers in hub.asked)


def test_a_cut_connection_goes_on_where_it_was_cut(hub, tmp_path):
    hub.cuts = 2
    folder = download(NAME, tmp_path)
    starts = [start for name, start in hub.ranges if name == "model.safetensors"]
    assert len(starts) > 1 and starts == sorted(starts) and starts[0] == 0 < starts[1]
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_the_next_attempt_goes_on_where_the_last_stopped(hub, tmp_path):
    hub.files = {"config.json": b"{}", "model.safetensors": os.urandom(300_000)}
    digest = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    blobs = tmp_path / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.part").write_bytes(hub.files["model.safetensors"][:123_456])
    folder = download(NAME, tmp_path)
    assert ("model.safetensors", 123_456) in hub.ranges
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_server_without_ranges_sends_all_again(hub, tmp_path):
    hub.cuts, hub.ignores_range = 1, True
    folder = download(NAME, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_dead_server_is_one_line_and_nothing_appears(hub, tmp_path):
    hub.status = 503
    with pytest.raises(DownloadFailed, match="answers 503") as error:
        download(NAME, tmp_path)
    assert "\n" not in str(error.value)
    assert not any((tmp_path / "models--owner--tiny" / "snapshots" / COMMIT).iterdir())
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(DownloadFailed, match="check the network"):
        download(NAME, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_is_removed_and_never_appears(hub, tmp_path, name):
    wrong = "ab" * (32 if name.endswith("safetensors") else 20)
    key = {"lfs": {"sha256": wrong, "size": len(hub.files[name])}, "blobId": wrong}
    hub.listed[name] = key if len(wrong) == 64 else {"blobId": wrong}
    with pytest.raises(DownloadFailed, match=f"{name}.*checksum"):
        download(NAME, tmp_path)
    assert left(tmp_path) == []
    assert not any((tmp_path / "models--owner--tiny" / "snapshots" / COMMIT).iterdir())
    hub.listed = {}
    assert (download(NAME, tmp_path) / name).read_bytes() == hub.files[name]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("owner/absent", "is not there"),
        ("../../etc", "is no Hugging Face id"),
        ("owner/tiny/none.gguf", "has no file none.gguf"),
        ("owner", "is no Hugging Face id"),
    ],
)
def test_what_is_not_there_is_one_line(hub, tmp_path, model, reason):
    with pytest.raises(DownloadFailed, match=reason) as error:
        download(model, tmp_path)
    assert "\n" not in str(error.value)


def test_a_closed_model_names_the_token(hub, tmp_path):
    hub.status = 403
    with pytest.raises(DownloadFailed, match="accept its licence.*HF_TOKEN"):
        download(NAME, tmp_path)


@pytest.mark.parametrize(
    "listed",
    [
        {"blobId": "../../../x"},
        {"size": -1},
        {"size": "9"},
        {"rfilename": 7},
    ],
)
def test_a_list_of_files_that_lies_is_one_line(hub, tmp_path, listed):
    hub.listed["config.json"] = listed
    with pytest.raises(DownloadFailed, match="not understood"):
        download(NAME, tmp_path)


def test_a_commit_that_is_a_path_is_refused(hub, tmp_path):
    hub.commit = "../../x"
    with pytest.raises(DownloadFailed, match="not understood"):
        download(NAME, tmp_path)


def test_one_of_several_ggufs_is_chosen_by_name(hub, tmp_path):
    hub.files = {"a-q4.gguf": b"GGUF1", "a-q8.gguf": b"GGUF2"}
    with pytest.raises(DownloadFailed, match=r"owner/tiny/ONE of a-q4.gguf, a-q8.gguf"):
        download(NAME, tmp_path)
    assert (download(f"{NAME}/a-q8.gguf", tmp_path) / "a-q8.gguf").read_bytes() == b"GGUF2"


def test_no_room_is_said_before_anything_is_fetched(hub, tmp_path):
    huge = {"size": 1 << 60, "lfs": {"sha256": "ab" * 32, "size": 1 << 60}}
    hub.listed["model.safetensors"] = huge
    with pytest.raises(DownloadFailed, match="GB are needed.*HF_HOME"):
        download(NAME, tmp_path)
    assert hub.ranges == []


def test_a_full_disk_is_one_line_and_the_rest_comes_later(hub, tmp_path):
    hub.files["model.safetensors"] = os.urandom(3_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        with pytest.raises(DownloadFailed, match="not downloaded.*make room"):
            download(NAME, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(left(tmp_path)) == 1
    download(NAME, tmp_path)
    assert [start for name, start in hub.ranges if name == "model.safetensors"][1] > 0


def test_a_folder_that_cannot_be_written_is_one_line(hub, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match="not downloaded.*HF_HOME"):
        download(NAME, tmp_path / "file")


def test_another_process_is_waited_for(hub, tmp_path):
    folder = tmp_path / "models--owner--tiny"
    folder.mkdir()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / "keyturn.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(DownloadFailed, match="another process"):
            download(NAME, tmp_path)
        other.stdin.close()
    download(NAME, tmp_path)


def test_offline_means_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE is set"):
        download(NAME, tmp_path)
    assert hub.asked == []


def test_a_file_that_was_cut_since_is_fetched_again(hub, tmp_path):
    folder = download(NAME, tmp_path)
    os.truncate((folder / "model.safetensors").resolve(), 1000)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("mine")  # the user's own stays
    assert download(NAME, tmp_path) == folder
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert (folder / "config.json").read_text() == "mine"


def test_a_process_that_is_stopped_or_killed_leaves_what_the_next_goes_on_from(hub, tmp_path):
    hub.files["model.safetensors"] = content = os.urandom(4_000_000)
    blob = tmp_path / "hub" / "models--owner--tiny" / "blobs" / hashlib.sha256(content).hexdigest()
    part = blob.with_name(blob.name + ".part")
    command = [sys.executable, "-m", "keyturn.server", "models", "--download", NAME]
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")}
    hub.pause_s, here = 0.02, 0
    for stop in (signal.SIGKILL, signal.SIGINT, None):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            until = time.monotonic() + 120
            while stop is not None and time.monotonic() < until:
                if part.exists() and part.stat().st_size > here:
                    process.send_signal(stop)
                    break
                time.sleep(0.005)
            out, err = process.communicate(timeout=120)
        if stop is None:
            assert process.returncode == 0 and out.strip().endswith(COMMIT)
            assert blob.read_bytes() == content and not part.exists()
        else:
            assert process.returncode == (130 if stop == signal.SIGINT else -stop) and out == ""
            assert ("goes on from here" in err) == (stop == signal.SIGINT)
            assert not blob.exists() and not any(blob.parents[1].glob("snapshots/*/model*"))
            here, hub.pause_s = part.stat().st_size, hub.pause_s if stop == signal.SIGKILL else 0.0
    starts = [start for name, start in hub.ranges if name == "model.safetensors"]
    assert starts[0] == 0 < starts[1] <= starts[2] == here


def test_the_command_fetches_and_the_list_shows_it(hub, capfd):
    assert main(["models", "--download", NAME]) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(resolve(NAME)) and "model.safetensors: 100 %" in err
    assert main(["models", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert NAME in [model["name"] for model in found["on_disk"]]
    assert main(["models", "--download", "owner/absent"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("keyturn: model 'owner/absent'") and err.count("\n") == 1
