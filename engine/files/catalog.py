"""Which model a name means, and which models are on this disk. No torch here, and no network.

Only `fetch` touches one, and `resolve(..., download=True)` through it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..wire.errors import ModelLoadError, ModelNotFound
from .hf_config import SUPPORTED, read_json
from .known_models import id_like

EMBEDDED = "embedded"

EMBEDDED_FILE = Path(__file__).parents[1] / "embedded" / "keyturn-135m-q4_1.gguf"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Told a file's name, its bytes that are here, and all of them.
Progress = Callable[[str, int, int], None]
# Weights as torch saves them. Reading them can run what somebody put in.
_PICKLE_ENDS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# What a clone has in a file's place if its contents were not fetched.
_POINTER_START = (b"version https://git-lfs",)
PICKLE = (
    "is a pickle, which may run any code when it is opened, and is never read; use the model's "
    "safetensors or a .gguf file, or convert it where that code may do no harm: "
    "huggingface.co/spaces/safetensors/convert"
)


def resolve(model: str, *, download: bool = False, progress: Progress | None = None) -> Path:
    """Return the file or folder of a model, for `weights.load_model`.

    Args:
        model: "embedded", a folder, a .gguf file, or a Hugging Face id that is in the local cache.
        download: fetch an id that is not in the cache.
        progress: of a download, as for `fetch`.

    Raises:
        ModelNotFound: there is no such model here.
        DownloadFailed: from `fetch`.
        ModelLoadError: its weights are a pickle, or were not fetched with their repository.
    """
    if model == EMBEDDED:
        if not EMBEDDED_FILE.is_file():
            raise ModelNotFound(f"the embedded model is not at {EMBEDDED_FILE}; install again")
        return EMBEDDED_FILE
    try:
        path = Path(model).expanduser()
        if model and path.is_dir():
            return _in_folder(model, path)
        if model and path.is_file():
            if _begins(path, _PICKLE_STARTS):
                raise ModelLoadError(f"model '{model}': {path.name} {PICKLE}")
            _refuse_pointer(model, path)
            return path
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise ModelLoadError(f"model '{model}' cannot be read ({reason}); make it so") from None
    if not _HUB_ID.fullmatch(model) or model.endswith(".gguf"):
        meant = id_like(model)
        use = (
            "use embedded, a folder, a .gguf file, or a Hugging Face id such as "
            "Qwen/Qwen2.5-Coder-0.5B"
        )
        raise ModelNotFound(
            f"model '{model}' is neither a file nor a folder here; "
            + (use if meant is None else f"give its Hugging Face id, {meant}")
        )
    snapshot = _snapshot(_hub_cache() / ("models--" + model.replace("/", "--")))
    if download and (snapshot is None or not any(_parts(snapshot))):
        snapshot = fetch(model, progress)
    if snapshot is None:
        raise ModelNotFound(
            f"model '{model}' is not in the local cache {_hub_cache()}; "
            f"keyturn models --download {model} fetches it"
        )
    return _in_folder(model, snapshot)


def on_disk() -> list[dict[str, Any]]:
    """Return the models here that can be loaded: name, path and size of the weights in bytes."""
    found: list[dict[str, Any]] = []
    if EMBEDDED_FILE.is_file():
        found.append(_entry(EMBEDDED, EMBEDDED_FILE, [EMBEDDED_FILE]))
    for repository in sorted(_hub_cache().glob("models--*--*")):
        with contextlib.suppress(OSError):  # of what cannot be read there is nothing to say
            found += _in_repository(repository)
    return found


def _in_repository(repository: Path) -> list[dict[str, Any]]:
    snapshot = _snapshot(repository)
    if snapshot is None:
        return []
    name = repository.name.removeprefix("models--").replace("--", "/")
    ggufs = sorted(path for path in snapshot.glob("*.gguf") if path.is_file())
    if _is_supported(snapshot):
        return [_entry(name, snapshot, snapshot.glob("*.safetensors"))]
    if len(ggufs) == 1:
        return [_entry(name, ggufs[0], ggufs)]
    return [_entry(str(path), path, [path]) for path in ggufs]


def _begins(path: Path, starts: tuple[bytes, ...]) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(max(map(len, starts))).startswith(starts)
    except OSError:
        return False  # who reads the file says what is wrong with it


def _refuse_pointer(model: str, path: Path) -> None:
    if _begins(path, _POINTER_START):
        raise ModelLoadError(
            f"model '{model}': {path} is Git LFS's pointer to the file, not the file itself; run "
            f"git lfs pull in {path.parent}"
        )


def _entry(name: str, path: Path, parts: Iterable[Path]) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(path),
        "num_bytes": sum(part.stat().st_size for part in parts if part.is_file()),
    }


def _in_folder(model: str, folder: Path) -> Path:
    """Return the folder itself, or the only .gguf file in it."""
    has_config = (folder / "config.json").is_file()
    weights, ggufs = (sorted(folder.glob(f"*.{kind}")) for kind in ("safetensors", "gguf"))
    for path in (*weights, *ggufs, folder / "tokenizer.json"):
        _refuse_pointer(model, path)
    if has_config and weights:
        return folder
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        names = ", ".join(path.name for path in ggufs)
        raise ModelNotFound(
            f"model '{model}': {folder} holds several .gguf files ({names}); give the path of one"
        )
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLE_ENDS)
    if pickles and has_config:
        raise ModelLoadError(f"model '{model}': {folder / pickles[0]} {PICKLE}")
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFound(
            f"model '{model}': {folder} is an adapter; give it as adapter, and as model the one "
            "that it was trained beside"
        )
    holds = "holds neither config.json with safetensors nor a .gguf file"
    if has_config or weights:
        holds = f"holds {'config.json' if has_config else weights[0].name}, but no "
        holds += "safetensors" if has_config else "config.json"
    remedy = "fetch the model again or give another folder"
    if model != str(folder) and _HUB_ID.fullmatch(model) and not Path(model).is_dir():
        remedy = f"keyturn models --download {model} fetches what is missing"
    raise ModelNotFound(f"model '{model}': {folder} {holds}; {remedy}")


def _is_supported(snapshot: Path) -> bool:
    """Whether a snapshot is complete and of a family that can be loaded."""
    try:
        return (
            read_json(snapshot / "config.json").get("model_type") in SUPPORTED
            and (snapshot / "tokenizer.json").is_file()
            and any(path.is_file() for path in snapshot.glob("*.safetensors"))
        )
    except (OSError, ModelLoadError):
        return False


def _parts(snapshot: Path) -> Iterator[Path]:
    yield from snapshot.glob("*.safetensors")
    yield from snapshot.glob("*.gguf")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _snapshot(repository: Path) -> Path | None:
    """Return the snapshot that a cached repository's main branch is at, else the newest."""
    reference = repository / "refs" / "main"
    commit = reference.read_text(errors="replace").strip() if reference.is_file() else ""
    if commit.isalnum() and (repository / "snapshots" / commit).is_dir():
        return repository / "snapshots" / commit
    snapshots = repository.glob("snapshots/*/")
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def fetch(model: str, progress: Progress | None = None) -> Path:
    """Fetch what is missing of a model into the cache; arguments and result as for `download`."""
    from .download import download  # the HTTP client takes a while to import

    return download(model, _hub_cache(), progress)
