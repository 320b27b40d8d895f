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
from ..model.kv_cache import KVCache
from ..model.passes import refuse_unsupported
from ..model.tensors import expected_shapes, gguf_name
from ..prompt.fim import SIDECAR, FimTemplate, find_template
from ..tokens.tokenizer import Tokenizer
from ..wire.errors import EngineError, ModelLoadError, memory_error
from . import gguf_config, hf_config
from .gguf_file import GGUFFile
from .tokenizer_files import gguf_tokenizer, hf_tokenizer

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
    try:
        if path.is_dir():
            return _load_folder(path, dtype, progress)
        return _load_gguf(path, dtype, progress)
    except EngineError:
        raise
    except Exception as error:  # a header can put any value anywhere: text for a number, a list
        if memory_error(error) is not None:
            raise
        reason = f"{type(error).__name__}: {error!s:.200}".splitlines()[0]
        raise ModelLoadError(f"{path} is malformed ({reason}); fetch it again") from error


def _load_gguf(path: Path, dtype: torch.dtype, progress: Progress | None) -> ModelFiles:
    file = GGUFFile(path)
    config = gguf_config.read_config(file)
    refuse_unsupported(config, path)
    found = {name: info.shape for name, info in file.tensors.items()}
    wanted = _checked_shapes(path, config, found, gguf_name)
    _try_rotary(config)
    tokenizer, raw = gguf_tokenizer(file, config.vocab_size)
    fim = find_template(
        raw.token_to_id,
        sidecar=path.with_name(SIDECAR),
        marks=gguf_config.fim_marks(file),
        end_ids=tokenizer.end_ids,
        vocab_size=config.vocab_size,
    )

    def read(name: str) -> Matrix:
        stored, order = gguf_name(name), gguf_config.row_order(config, name)
        return file.blocks(stored, order) or file.tensor(stored, dtype, order)

    return ModelFiles(config, _read_all(wanted, read, progress), tokenizer, fim)


def _load_folder(path: Path, dtype: torch.dtype, progress: Progress | None) -> ModelFiles:
    config = hf_config.read_config(path / "config.json")
    refuse_unsupported(config, path)
    shards = _open_shards(path)
    places = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118
    found = {name: tuple(at.get_slice(name).get_shape()) for name, at in places.items()}
    wanted = _checked_shapes(path, config, found, str)
    _try_rotary(config)
    tokenizer, raw = hf_tokenizer(path, config.vocab_size)
    fim = find_template(
        raw.token_to_id,
        sidecar=path / SIDECAR,
        end_ids=tokenizer.end_ids,
        vocab_size=config.vocab_size,
    )

    def read(name: str) -> Tensor:
        tensor = places[name].get_tensor(name)
        if not tensor.is_floating_point():
            raise ModelLoadError(
                f"{path}: tensor '{name}' holds {tensor.dtype}; use the model's original weights "
                "or a .gguf file"
            )
        return tensor.to(dtype, copy=True)  # not a view of the mapped file

    return ModelFiles(config, _read_all(wanted, read, progress), tokenizer, fim)


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
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelLoadError(
                    f"{index} names {name!r:.80}, which is no safetensors file beside it; fetch "
                    "the model again"
                )
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


def _try_rotary(config: ModelConfig) -> None:
    """Raise whatever a cache's rotary table raises, now and not at the first document."""
    KVCache(config, 1, torch.float32, torch.device("cpu"))


def _checked_shapes(
    path: Path,
    config: ModelConfig,
    found: dict[str, tuple[int, ...]],
    stored_name: Callable[[str], str],
) -> Iterable[str]:
    """Return the names of the tensors to read, after checking that all are there as expected."""
    if config.num_layers > len(found):  # before as many names are made up
        raise ModelLoadError(
            f"{path} holds {len(found)} tensors for {config.num_layers} layers; fetch it again"
        )
    wanted = expected_shapes(config)
    for name, shape in wanted.items():
        stored = stored_name(name)
        if stored not in found:
            raise ModelLoadError(f"{path} lacks the tensor '{stored}'; fetch the model again")
        if found[stored] != shape:
            raise ModelLoadError(
                f"{path}: tensor '{stored}' has the shape {list(found[stored])} instead of "
                f"{list(shape)}; fetch the model again"
            )
    stored = set(map(stored_name, wanted))
    for name in found:
        of_layer = name.startswith(("model.layers.", "blk."))
        if of_layer and name.endswith((".weight", ".bias")) and name not in stored:
            raise ModelLoadError(
                f"{path}: the tensor '{name}' is of no layer that is supported; use a model whose "
                "layers are those of Llama, Mistral or Qwen2"
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
