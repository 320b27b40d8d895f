"""Sub-layers that drafts leave out, by language, in a file with a format version.

They are searched for by `keyturn calibrate --skip`, as SWIFT does (arXiv 2410.06916, section 4).
The file lies beside that of the exits, `depth_file.own_file`, and is bound to a model like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..wire.errors import ModelLoadError
from .depth_file import REMEDY, contents, own_file, write

FORMAT = 1
_WHOLE = SKIP_ATTENTION | SKIP_MLP


@dataclass(frozen=True, slots=True)
class SkipSet:
    """What rows are not put through.

    Attributes:
        skipped: of each of the model's layers, as for `CpuStep.forward`.
        agreement: of tokens that were kept from the search, the share whose likeliest is that of
            all layers.
    """

    skipped: bytes
    agreement: float


def share_of(skipped: bytes, config: ModelConfig) -> float:
    """Return which share of the layers' weights a row that skips these goes through."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    mlp = (3 if config.is_gated else 2) * config.intermediate_size
    spared = 0
    for each in skipped:
        if each & SKIP_ATTENTION:  # keys and values are made all the same
            spared += attention - 2 * config.num_kv_heads * config.head_dim
        if each & SKIP_MLP:
            spared += mlp
    return 1 - spared / (config.num_layers * (attention + mlp))


def path_of(decoder: Decoder) -> Path:
    """Return where a model's file is, or would be."""
    return own_file(decoder).with_suffix(".skips.npz")


def find(decoder: Decoder) -> dict[str, SkipSet]:
    """Return what is known of a model, by language; nothing if there is no file.

    Raises:
        ModelLoadError: there is a file and it is damaged, of another format or another model's.
    """
    path = path_of(decoder)
    return load(path, decoder) if path.is_file() else {}


def save(path: Path, sets: Mapping[str, SkipSet], decoder: Decoder) -> None:
    """Write a model's sets, by language, in place of what is there.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [np.frombuffer(each.skipped, dtype=np.uint8) for each in sets.values()]
    write(
        *(path, FORMAT, decoder),
        languages=np.array(list(sets), dtype=np.str_),
        skipped=np.stack(rows),
        agreement=np.array([each.agreement for each in sets.values()]),
    )


def load(path: Path, decoder: Decoder) -> dict[str, SkipSet]:
    """Read a model's sets, by language.

    Raises:
        ModelLoadError: the file is damaged, of another format or another model's.
    """
    with contents(path, (FORMAT,), decoder) as file:
        languages = [str(each) for each in file["languages"].tolist()]
        skipped, agreement = file["skipped"], file["agreement"]
        fits = (
            skipped.dtype == np.uint8
            and skipped.shape == (len(languages), decoder.config.num_layers)
            and bool((skipped <= _WHOLE).all())
            and agreement.shape == (len(languages),)
            and bool(((agreement >= 0) & (agreement <= 1)).all())
        )
        if not fits:
            raise ModelLoadError(f"{path} is damaged: its figures do not fit the model; {REMEDY}")
        sets = zip(skipped, agreement.tolist(), strict=True)
        return {
            language: SkipSet(row.tobytes(), share)
            for language, (row, share) in zip(languages, sets, strict=True)
        }
