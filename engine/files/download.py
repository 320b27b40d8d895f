"""Fetch a model into the Hugging Face cache: the only thing here that touches a network.

A file is written beside its place and goes on where it stopped, also in another process; it moves
there when its checksum, which the hub's list of files gives, is right; the model appears when all
its files are there. No torch here.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..wire.address import FileLock
from ..wire.errors import DownloadFailed
from .known_models import id_like

# Receives a file's name, its bytes that are here, and all of them.
Progress = Callable[[str, int, int], None]

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
# Attempts without a byte; one that brought some begins the count anew.
_ATTEMPTS, PAUSE_S = 3, 1.0
_MAX_LIST_BYTES = 64 << 20
# Repositories often hold the same weights in other formats, too.
_OF_FOLDERS = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|fim)\.json"
    r"|model[\w.-]*\.safetensors(\.index\.json)?"
)
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class _Remote:
    """One file of a repository.

    Attributes:
        name: in it.
        num_bytes: its size.
        digest: SHA-256 of its content, or, 40 digits, SHA-1 of it as a git blob; the hub's ETag.
    """

    name: str
    num_bytes: int
    digest: str


def download(model: str, cache: Path, progress: Progress | None = None) -> Path:
    """Fetch what is missing of a model; return its folder.

    Args:
        model: `owner/name`, or `owner/name/file.gguf` for one of several files.
        cache: the hub's cache folder.
        progress: told how much of a file is here.

    Raises:
        DownloadFailed: there is no such model, its files cannot be had, written, or are not what
            the hub says; what was fetched stays for the next attempt.
    """
    owner, _, rest = model.partition("/")
    name, _, wanted = rest.partition("/")
    repository = f"{owner}/{name}"
    if not _NAME.fullmatch(repository) or ".." in repository:
        meant = id_like(model) or "owner/name"
        raise DownloadFailed(f"'{model}' is no Hugging Face id; give {meant}")
    folder = cache / ("models--" + repository.replace("/", "--"))
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadFailed(f"model '{model}' is not downloaded: HF_HUB_OFFLINE is set; unset it")
    with _failures_of(model):
        commit, files = _list_of(repository, wanted)
        for part in ("blobs", "refs", f"snapshots/{commit}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "keyturn.lock")
        if not lock.acquire():
            raise DownloadFailed(f"another process downloads '{model}'; wait for it")
        try:
            missing = [file for file in files if not _is_here(folder, file)]
            _check_room(folder, missing)
            for file in missing:
                _fetch(_url(repository, commit, file.name), file, folder / "blobs", progress)
            for file in files:
                _appear(folder, commit, file)
            reference = folder / "refs" / "main.part"
            reference.write_text(commit)
            reference.replace(folder / "refs" / "main")
        finally:
            lock.release()
    return folder / "snapshots" / commit


@contextmanager
def _failures_of(model: str):  # noqa: ANN202 - a context manager
    """Turn what networks and disks raise into one line."""
    try:
        yield
    except DownloadFailed:
        raise
    except urllib.error.HTTPError as error:
        remedies = {
            401: "is not public: accept its licence on the hub and set HF_TOKEN",
            403: "is not public: accept its licence on the hub and set HF_TOKEN",
            404: "is not there; check the name",
        }
        what = remedies.get(error.code, f"answers {error.code} {error.reason}; try again later")
        raise DownloadFailed(f"model '{model}': {_endpoint()} says that it {what}") from None
    except OSError as error:  # URLError, timeouts and lost connections are ones too
        is_network = isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError)
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        remedy = (
            "check the network; the next attempt goes on from here"
            if is_network
            else f"make room or set HF_HOME; {error.filename or 'the cache'} is not writable"
        )
        raise DownloadFailed(f"model '{model}' is not downloaded ({reason}); {remedy}") from None
    except (ValueError, http.client.HTTPException) as error:
        raise DownloadFailed(
            f"model '{model}': what {_endpoint()} says is not understood ({error!s:.80}); "
            "check HF_ENDPOINT"
        ) from None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or _ENDPOINT


def _url(repository: str, commit: str, name: str) -> str:
    return f"{_endpoint()}/{repository}/resolve/{commit}/{urllib.parse.quote(name)}"


def _open(url: str, start: int = 0) -> http.client.HTTPResponse:
    from huggingface_hub import get_token

    request = urllib.request.Request(url, headers={"User-Agent": "keyturn"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token := get_token():  # never sent on to where a redirect leads
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def _list_of(repository: str, wanted: str) -> tuple[str, list[_Remote]]:
    """Return the commit of a repository's main branch and which of its files are a model."""
    with _open(f"{_endpoint()}/api/models/{repository}/revision/main?blobs=true") as reply:
        found = json.loads(reply.read(_MAX_LIST_BYTES))
    try:
        commit = found["sha"]
        files = [_remote(each) for each in found["siblings"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error!r} in the list of files") from None
    if not (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit)):
        raise ValueError(f"the commit {commit!r:.60}")
    if wanted:
        chosen = [file for file in files if file.name == wanted]
        if not chosen:
            raise DownloadFailed(f"model '{repository}' has no file {wanted}; check the name")
        return commit, chosen
    chosen = [file for file in files if _OF_FOLDERS.fullmatch(file.name)]
    if any(file.name.endswith(".safetensors") for file in chosen):
        return commit, chosen
    ggufs = [file for file in files if file.name.endswith(".gguf") and "/" not in file.name]
    if len(ggufs) == 1:
        return commit, ggufs
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise DownloadFailed(
            f"'{repository}' holds several files; give {repository}/ONE of {names}"
        )
    raise DownloadFailed(
        f"'{repository}' holds neither safetensors nor a .gguf file; choose another model"
    )


def _remote(listed: dict[str, Any]) -> _Remote:
    lfs = listed.get("lfs") or {}
    name, digest = listed["rfilename"], lfs.get("sha256") or listed["blobId"]
    num_bytes = lfs.get("size", listed["size"])
    is_sound = isinstance(name, str) and type(num_bytes) is int and num_bytes >= 0
    if not is_sound or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(digest)):
        raise ValueError(f"the file {listed!r:.80}")
    return _Remote(name, num_bytes, digest)


def _is_here(folder: Path, file: _Remote) -> bool:
    """Whether a file was fetched, and has not been cut since."""
    blob = folder / "blobs" / file.digest
    return blob.is_file() and blob.stat().st_size == file.num_bytes


def _check_room(folder: Path, missing: list[_Remote]) -> None:
    def here(file: _Remote) -> int:
        part = folder / "blobs" / f"{file.digest}.part"
        return part.stat().st_size if part.exists() else 0

    needed = sum(file.num_bytes - here(file) for file in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadFailed(
            f"{needed / 1e9:.1f} GB are needed in {folder}, and {free / 1e9:.1f} GB are free; make "
            "room or set HF_HOME"
        )


def _fetch(url: str, file: _Remote, blobs: Path, progress: Progress | None) -> None:
    """Bring one file to its place, on from where it is."""
    part, failures = blobs / f"{file.digest}.part", 0
    with part.open("ab") as out:
        while out.tell() < file.num_bytes:
            before = out.tell()
            try:
                _receive(url, file, out, progress)
                problem: Exception = ConnectionError("the connection was cut")
            except urllib.error.HTTPError as error:
                if error.code not in (408, 429, 500, 502, 503, 504):
                    raise
                problem = error
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                problem = error
            except http.client.HTTPException as error:
                problem = ConnectionError(str(error) or type(error).__name__)
            failures = failures + 1 if out.tell() == before else 0
            if failures == _ATTEMPTS:
                raise problem
            if out.tell() < file.num_bytes:
                time.sleep(PAUSE_S)
        out.flush()
        os.fsync(out.fileno())
    if _digest(part, file) != file.digest:
        part.unlink()
        raise DownloadFailed(
            f"{file.name} is not what the hub says: its checksum is wrong; it is removed, try again"
        )
    part.replace(blobs / file.digest)


def _receive(url: str, file: _Remote, out: BinaryIO, progress: Progress | None) -> None:
    """Append what the server sends; a connection that is cut ends it without an error."""
    with _open(url, out.tell()) as reply:
        if out.tell() and reply.status != 206:  # it sends all of it again
            out.seek(0)
            out.truncate()
        while data := reply.read1(_CHUNK_BYTES):
            out.write(data[: file.num_bytes - out.tell()])
            if progress is not None:
                progress(file.name, out.tell(), file.num_bytes)
            if out.tell() == file.num_bytes:
                return


def _digest(path: Path, file: _Remote) -> str:
    with path.open("rb") as content:
        if len(file.digest) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest()
        blob = hashlib.sha1(f"blob {file.num_bytes}\0".encode(), usedforsecurity=False)
        while data := content.read(_CHUNK_BYTES):
            blob.update(data)
        return blob.hexdigest()


def _appear(folder: Path, commit: str, file: _Remote) -> None:
    """Link a file into the snapshot, as the hub's own library does."""
    place = folder / "snapshots" / commit / file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        return
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(os.path.relpath(folder / "blobs" / file.digest, place.parent))
    except OSError:  # Windows without the right to make links
        shutil.copyfile(folder / "blobs" / file.digest, place)
