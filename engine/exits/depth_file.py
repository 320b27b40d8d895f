"""What `keyturn calibrate` has learnt of a model, in a file with a format version.

A file of the user's own, in $XDG_DATA_HOME/keyturn/depth, comes before the one that is shipped with
the embedded model.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..model.decoder import Decoder
from ..wire.errors import ModelLoadError
from .controller import ExitPoint, ExitRule

# What is written. Files of the first format, without what exits fill in, are read too.
FORMAT = 2
_READ = (1, FORMAT)
_SHIPPED = Path(__file__).parents[1] / "embedded" / "depth.npz"
_FILL = ("reduce", "expand")  # names of what an exit fills in by; its depth follows
REMEDY = "make it again with keyturn calibrate, or remove it"
# Values of the embedding that a model is known by.
_KNOWN_BY = 64


def fingerprint(decoder: Decoder) -> str:
    """Return what tells a model from others: a hash of its shape and some of its weights."""
    stack, config = decoder.stack, decoder.config
    rows = torch.arange(0, config.vocab_size, max(1, config.vocab_size // _KNOWN_BY))
    some = stack.embed(rows.to(stack.device), torch.float32)[:, :_KNOWN_BY]
    digest = hashlib.sha256(repr((config.num_layers, config.hidden_size)).encode())
    digest.update(some.cpu().bfloat16().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def own_file(decoder: Decoder) -> Path:
    """Return where the user's file of a model is, or would be."""
    home = os.environ.get("XDG_DATA_HOME", "")
    data = Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()
    return data / "keyturn" / "depth" / f"{fingerprint(decoder)}.npz"


def find(decoder: Decoder) -> ExitRule | None:
    """Return what is known of a model, None if nothing is.

    Raises:
        ModelLoadError: there is a file and it is damaged, of another format or another model's.
    """
    path = own_file(decoder)
    if path.is_file():
        return load(path, decoder)
    if _SHIPPED.is_file() and _model_of(_SHIPPED) == fingerprint(decoder):
        return load(_SHIPPED, decoder)
    return None


def save(path: Path, rule: ExitRule, decoder: Decoder) -> None:
    """Write a model's rule, in place of what is there.

    Raises:
        OSError: the file cannot be written.
    """
    points = rule.points
    width = decoder.config.hidden_size + 2
    weights = (
        torch.stack([point.weights for point in points]) if points else torch.empty(0, 2, width)
    )
    fills = {
        f"{name}_{point.depth}": part.numpy().astype(np.float16)
        for point in points
        for name, part in zip(_FILL, point.fill or (), strict=False)
    }
    write(
        *(path, FORMAT, decoder),
        **fills,
        token_ids=rule.token_ids.numpy().astype(np.uint32),
        last=rule.last,
        made_up=rule.made_up,
        depths=np.array([point.depth for point in points], dtype=np.int64),
        exit_at=np.array([point.exit_at for point in points]),
        weights=weights.numpy().astype(np.float32),
        bias=np.array([point.bias.tolist() for point in points], dtype=np.float32),
    )


def load(path: Path, decoder: Decoder) -> ExitRule:
    """Read a model's rule.

    Raises:
        ModelLoadError: the file is damaged, of another format or another model's.
    """
    with contents(path, _READ, decoder) as file:
        numbers = {name: torch.from_numpy(file[name]) for name in ("weights", "bias")}
        token_ids = torch.from_numpy(file["token_ids"].astype(np.int64))
        depths, exit_at = file["depths"].tolist(), file["exit_at"].tolist()
        last, made_up = int(file["last"]), int(file["made_up"])
        fills = [_fill_of(file, depth) for depth in depths]
    _check(path, decoder, depths, last, made_up, numbers, token_ids, fills)
    points = zip(depths, numbers["weights"], numbers["bias"], exit_at, fills, strict=True)
    return ExitRule(tuple(ExitPoint(*each) for each in points), token_ids, last, made_up)


def _fill_of(file: Mapping[str, NDArray[Any]], depth: int) -> tuple[Tensor, Tensor] | None:
    """Return what an exit fills in by, None if it has learnt nothing."""
    reduce, expand = (f"{name}_{depth}" for name in _FILL)
    if reduce not in file:
        return None
    return torch.from_numpy(file[reduce]).float(), torch.from_numpy(file[expand]).float()


def write(path: Path, version: int, decoder: Decoder, **arrays: ArrayLike) -> None:
    """Write arrays that were learnt of a model, in place of what is there.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.npz")
    whole: dict[str, Any] = {"format": version, "model": fingerprint(decoder), **arrays}
    np.savez_compressed(part, **whole)
    part.replace(path)


@contextmanager
def contents(
    path: Path, versions: tuple[int, ...], decoder: Decoder
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Read the arrays of a file that `write` wrote in one of these formats, in a `with` block.

    Raises:
        ModelLoadError: the file is of another format or another model's, or something is missing
            or of another kind than the block reads.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = int(file["format"])
            if found not in versions:
                raise ModelLoadError(f"{path} has format {found}, not {versions[-1]}; {REMEDY}")
            if str(file["model"]) != fingerprint(decoder):
                raise ModelLoadError(f"{path} was made for another model; {REMEDY}")
            yield file
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{path} is damaged ({error}); {REMEDY}") from None


def _model_of(path: Path) -> str:
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["model"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return ""


def _check(
    path: Path,
    decoder: Decoder,
    depths: list[int],
    last: int,
    made_up: int,
    numbers: dict[str, Tensor],
    token_ids: Tensor,
    fills: Sequence[tuple[Tensor, Tensor] | None],
) -> None:
    """Raise ModelLoadError if a file's figures do not fit the model."""
    config, count = decoder.config, len(depths)
    ascends = depths == sorted(set(depths)) and all(0 < at <= config.num_layers for at in depths)
    fits = (
        ascends
        and max([1, *depths]) <= last <= config.num_layers
        and 0 <= made_up <= last
        and numbers["weights"].shape == (count, 2, config.hidden_size + 2)
        and numbers["bias"].shape == (count, 2)
        and len(token_ids) > 0
        and bool((token_ids.diff() > 0).all())
        and int(token_ids[-1]) < config.vocab_size
    )
    num_made = 2 * config.num_kv_heads * config.head_dim
    for depth, fill in zip(depths, fills, strict=True):
        if fill is not None:
            reduce, expand = fill
            wanted = (num_made * (config.num_layers - depth), *reduce.shape[:1])
            fits &= reduce.shape[1:] == (config.hidden_size + 1,) and expand.shape == wanted
    parts = [*numbers.values(), *(part for fill in fills for part in fill or ())]
    if not fits or not all(bool(part.isfinite().all()) for part in parts):
        raise ModelLoadError(f"{path} is damaged: its figures do not fit the model; {REMEDY}")
