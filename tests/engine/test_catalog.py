"""Which model a name means, with a made-up cache and without the network."""

import json
import subprocess
import sys

import pytest
from huggingface_hub import constants

from keyturn.engine.files import catalog
from keyturn.engine.files import download as download_module
from keyturn.engine.files.catalog import on_disk, resolve
from keyturn.engine.wire.errors import DownloadFailed, ModelLoadError, ModelNotFound


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def no_network(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return tmp_path / "hub"


def put(cache, name, files, commit="c0ffee", ref: str | None = "c0ffee"):
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    if ref is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(ref)
    return snapshot


LLAMA = {
    "config.json": json.dumps({"model_type": "llama"}).encode(),
    "model.safetensors": b"12345",
    "tokenizer.json": b"{}",
}


def test_embedded_is_the_file_in_the_package():
    assert resolve("embedded").name.endswith(".gguf")
    assert resolve("embedded").parent.name == "embedded"


def test_missing_embedded_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "EMBEDDED_FILE", tmp_path / "none.gguf")
    with pytest.raises(ModelNotFound, match="install again"):
        resolve("embedded")
    assert on_disk() == []


def test_file_and_folder_are_taken_as_they_are(tmp_path, tiny_model):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(str(file)) == file
    assert resolve(str(tiny_model)) == tiny_model


def test_folder_with_one_gguf_means_that_file(tmp_path):
    (tmp_path / "a.gguf").touch()
    assert resolve(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelNotFound, match="a.gguf, b.gguf"):
        resolve(str(tmp_path))


def test_folder_without_model_is_one_line(tmp_path):
    with pytest.raises(ModelNotFound, match="neither") as error:
        resolve(str(tmp_path))
    assert "\n" not in str(error.value)


def test_half_a_model_says_which_half_is_missing(tmp_path, cache):
    (tmp_path / "config.json").write_bytes(LLAMA["config.json"])
    with pytest.raises(ModelNotFound, match=r"holds config.json, but no safetensors; fetch"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "model.safetensors")
    with pytest.raises(ModelNotFound, match=r"holds model.safetensors, but no config.json; fetch"):
        resolve(str(tmp_path))
    put(cache, "org/half", {"config.json": LLAMA["config.json"]})
    with pytest.raises(ModelNotFound, match="; keyturn models --download org/half fetches"):
        resolve("org/half")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "m.gguf"])
def test_a_clone_without_its_files_names_the_command(tmp_path, name):
    files = {"m.gguf": b"GGUF"} if name == "m.gguf" else LLAMA
    for each, content in files.items():
        (tmp_path / each).write_bytes(content)
    assert resolve(str(tmp_path)) in (tmp_path, tmp_path / name)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for given in (tmp_path, tmp_path / "m.gguf" if name == "m.gguf" else tmp_path):
        with pytest.raises(ModelLoadError, match=f"{name} is Git LFS.*git lfs pull in {tmp_path}"):
            resolve(str(given))


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ModelNotFound, match="is an adapter; give it as adapter"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Qwen2.5-Coder-0.5B", "Qwen/Qwen2.5-Coder-0.5B"),
        ("qwen2.5-coder:1.5b", "Qwen/Qwen2.5-Coder-1.5B"),
        ("starcoder2:3b", "bigcode/starcoder2-3b"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_the_id(name, meant):
    with pytest.raises(ModelNotFound, match=f"give its Hugging Face id, {meant}$"):
        resolve(name)
    with pytest.raises(DownloadFailed, match=f"give {meant}$"):
        catalog.fetch(name)


@pytest.mark.parametrize(
    "name", ["", "nothing", "no/such/file", "./org/name", "org/name.gguf", "/x", "a b/c", "../../x"]
)
def test_unknown_name_says_what_can_be_used(name):
    with pytest.raises(ModelNotFound, match="embedded, a folder") as error:
        resolve(name)
    assert f"'{name}'" in str(error.value)


def test_cached_id_is_its_snapshot(cache):
    snapshot = put(cache, "org/some-model", LLAMA)
    assert resolve("org/some-model") == snapshot


def test_newest_snapshot_is_taken_where_main_is_not_known(cache):
    import os

    old = put(cache, "org/m", LLAMA, commit="aaa", ref=None)
    new = put(cache, "org/m", LLAMA, commit="bbb", ref=None)
    os.utime(old, (1, 1))
    assert resolve("org/m") == new
    put(cache, "org/m", {}, commit="ccc", ref="aaa")
    assert resolve("org/m") == old


def test_id_that_is_not_cached_names_the_command(cache):
    with pytest.raises(ModelNotFound, match="keyturn models --download org/absent"):
        resolve("org/absent")


def test_download_only_when_asked_for(cache, monkeypatch):
    asked = []

    def download(model, into, progress):
        asked.append((model, into))
        return put(cache, model, LLAMA)

    monkeypatch.setattr(download_module, "download", download)
    assert resolve("org/far", download=True).name == "c0ffee"
    assert resolve("org/far", download=True).name == "c0ffee"
    assert asked == [("org/far", cache)]


def test_on_disk_lists_what_can_be_loaded(cache):
    snapshot = put(cache, "org/good", LLAMA)
    put(cache, "org/other", LLAMA | {"config.json": b'{"model_type": "bert"}'})
    put(cache, "org/broken", LLAMA | {"config.json": b"{"})
    put(cache, "org/partial", {"config.json": LLAMA["config.json"]})
    gguf = put(cache, "org/quantised", {"m.gguf": b"123"}) / "m.gguf"
    several = put(cache, "org/several", {"q4.gguf": b"1", "q8.gguf": b"12"})
    (cache / "models--org--empty").mkdir()
    (put(cache, "org/gone", {}) / "m.gguf").symlink_to(cache / "no-blob")
    embedded, *others = on_disk()
    assert embedded["name"] == "embedded" and embedded["num_bytes"] > 1e7
    assert others == [
        {"name": "org/good", "path": str(snapshot), "num_bytes": 5},
        {"name": "org/quantised", "path": str(gguf), "num_bytes": 3},
        {"name": str(several / "q4.gguf"), "path": str(several / "q4.gguf"), "num_bytes": 1},
        {"name": str(several / "q8.gguf"), "path": str(several / "q8.gguf"), "num_bytes": 2},
    ]
    for model in others:
        assert str(resolve(model["name"])) == model["path"]


def test_catalog_leaves_torch_alone():
    code = (
        "import sys; from keyturn.engine.files import catalog; import keyturn.engine.prompt.fim;"
        "catalog.on_disk();"
        "catalog.resolve('embedded'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
