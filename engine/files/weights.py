"""Model files, GGUF or safetensors, to tensors, config, tokenizer and prompt format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...kernels.weights.linear import Matrix
from ..model.config import ModelConfig
from ..model.passes import refuse_unsupported
from ..model.tensors import expected_shapes
from ..prompt.fim import SIDECAR, FimTemplate, find_template
from ..tokens.tokenizer import Tokenizer
from ..wire.errors import ModelLoadError
from . import gguf_config, gguf_vocabulary, hf_config
from .architectures import INSTEAD
from .gguf_file import GGUFFile
from .stored import Stored, in_gguf, in_safetensors
from .tokenizer_files import gguf_tokenizer, hf_tokenizer, is_chat_tuned

Progress = Callable[[str, int], None]


@dataclass(slots=True)
class ModelFiles:
    """What a model's files hold.

    Attributes:
        config: its shape.
        tensors: Hugging Face names to weights on the CPU: tensors of one dtype, and matrices in
            blocks as the file has them.
        tokenizer: its tokenizer.
        fim: its fill-in-the-middle format, None if it only continues text.
    """

    config: ModelConfig
    tensors: dict[str, Matrix]
    tokenizer: Tokenizer
    fim: FimTemplate | None


def load_model(path: Path, dtype: torch.dtype, progress: Progress | None = None) -> ModelFiles:
    """Load a model.

    Args:
        path: a .gguf file, or a folder with `config.json`, `tokenizer.json` and safetensors.
        dtype: what the weights are converted to, tensor by tensor; matrices in blocks are not.
        progress: receives what is being done and the percentage.

    Raises:
        ModelLoadError: files are missing, damaged or of a kind that is not supported.
    """
    if path.is_dir():
        return _load_folder(path, dtype, progress)
    return _load_gguf(path, dtype, progress)


def _load_gguf(path: Path, dtype: torch.dtype, progress: Progress | None) -> ModelFiles:
    file = GGUFFile(path)
    config = gguf_config.read_config(file)
    refuse_unsupported(config, path)
    found = {name: info.shape for name, info in file.tensors.items()}
    wanted = _checked_shapes(path, config, found, in_gguf)
    tokenizer, raw = gguf_tokenizer(file, config.vocab_size)
    fim = find_template(
        raw.token_to_id,
        sidecar=path.with_name(SIDECAR),
        marks=gguf_vocabulary.fim_marks(file),
        end_ids=tokenizer.end_ids,
        vocab_size=config.vocab_size,
        names=f"{path.name} {file.metadata.get('general.name')} {config.family}",
    )

    if fim is None and file.metadata.get("tokenizer.chat_template"):
        raise _chat_only(path)

    def read(name: str) -> Matrix:
        stored = wanted[name]
        blocks = file.blocks(stored.name, stored.order)
        if blocks is not None:
            return stored.changed_blocks(blocks)
        first = torch.float32 if stored.is_changed else dtype
        return stored.changed(file.tensor(stored.name, first, stored.order)).to(dtype)

    return ModelFiles(config, _read_all(wanted, read, progress), tokenizer, fim)


def _load_folder(path: Path, dtype: torch.dtype, progress: Progress | None) -> ModelFiles:
    config = hf_config.read_config(path / "config.json")
    refuse_unsupported(config, path)
    shards = _open_shards(path)
    places = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118
    found = {name: tuple(at.get_slice(name).get_shape()) for name, at in places.items()}
    wanted = _checked_shapes(path, config, found, in_safetensors)
    tokenizer, raw = hf_tokenizer(path, config.vocab_size)
    fim = find_template(
        raw.token_to_id,
        sidecar=path / SIDECAR,
        end_ids=tokenizer.end_ids,
        vocab_size=config.vocab_size,
        # In a cache the folder's name is that of a commit, two below the model's.
        names=f"{'/'.join(path.parts[-3:])} {config.family}",
    )

    if fim is None and is_chat_tuned(path):
        raise _chat_only(path)

    def read(name: str) -> Tensor:
        stored = wanted[name]
        at = places[stored.name].get_slice(stored.name)
        start, end = stored.rows(at.get_shape()[0])
        tensor = at[start:end]
        if not tensor.is_floating_point():
            raise ModelLoadError(
                f"{path}: tensor '{name}' holds {tensor.dtype}; use the model's original weights "
                "or a .gguf file"
            )
        # Not a view of the mapped file.
        return stored.changed(tensor).to(dtype, copy=not stored.is_changed)

    return ModelFiles(config, _read_all(wanted, read, progress), tokenizer, fim)


def _chat_only(path: Path) -> ModelLoadError:
    return ModelLoadError(
        f"{path} is tuned to answer in a chat and has no marks to fill in the middle with; "
        f"{INSTEAD}, or put a {SIDECAR} with its marks beside it"
    )


def _open_shards(path: Path) -> list[Any]:
    """Open a folder's safetensors; only headers are read."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        names = [single.name]
    else:
        weight_map = hf_config.read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelLoadError(f"{index} names no files; fetch the model again")
        names = sorted({str(name) for name in weight_map.values()})
    shards = []
    for name in names:
        if not (path / name).is_file():
            raise ModelLoadError(
                f"{path} has no {name}; fetch the model again (weights as safetensors)"
            )
        try:
            shards.append(safe_open(path / name, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{path / name} is damaged or incomplete ({error}); fetch it again"
            ) from None
    return shards


def _checked_shapes(
    path: Path,
    config: ModelConfig,
    found: dict[str, tuple[int, ...]],
    place: Callable[[ModelConfig, str], Stored],
) -> dict[str, Stored]:
    """Return where all tensors to read are, after checking that they are there as expected."""
    if config.num_layers > len(found):  # before as many names are made up
        raise ModelLoadError(
            f"{path} holds {len(found)} tensors for {config.num_layers} layers; fetch it again"
        )
    shapes = expected_shapes(config)
    wanted = {name: place(config, name) for name in shapes}
    for name, stored in wanted.items():
        if stored.name not in found:
            raise ModelLoadError(f"{path} lacks the tensor '{stored.name}'; fetch the model again")
        shape = stored.shape(shapes[name])
        if found[stored.name] != shape:
            raise ModelLoadError(
                f"{path}: tensor '{stored.name}' has the shape {list(found[stored.name])} instead "
                f"of {list(shape)}; fetch the model again"
            )
    known = {stored.name for stored in wanted.values()}
    for name in found:
        of_layer = name.startswith(("model.layers.", "blk."))
        if of_layer and name.endswith((".weight", ".bias")) and name not in known:
            raise ModelLoadError(
                f"{path}: the tensor '{name}' is of no layer of the architecture "
                f"'{config.family}'; use another model, see keyturn models"
            )
    return wanted


def _read_all(
    names: Iterable[str], read: Callable[[str], Matrix], progress: Progress | None
) -> dict[str, Matrix]:
    tensors: dict[str, Matrix] = {}
    names, percent = list(names), -1
    for number, name in enumerate(names):
        if progress is not None and number * 100 // len(names) > percent:
            percent = number * 100 // len(names)
            progress("reading weights", percent)
        tensors[name] = read(name)
    if progress is not None:
        progress("reading weights", 100)
    return tensors
