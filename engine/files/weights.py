"""Model files, GGUF or safetensors, to tensors, config, tokenizer and prompt format."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, MutableMapping
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
from ..model.tensors import expected_shapes
from ..prompt.fim import SIDECAR, FimTemplate, find_template
from ..tokens.tokenizer import Tokenizer
from ..wire.errors import EngineError, ModelLoadError, memory_error
from . import gguf_config, gguf_vocabulary, hf_config
from .architectures import INSTEAD
from .gguf_file import GGUFFile
from .packed_cache import key_of
from .packing import Packing
from .stored import Stored, in_gguf, in_safetensors
from .streamed import StreamedTensors
from .tokenizer_files import gguf_tokenizer, hf_tokenizer, is_chat_tuned

Progress = Callable[[str, int], None]
# Of a message: its beginning names the file, its end the remedy.
_MOST_CHARS, _LAST_CHARS = 700, 150


@dataclass(slots=True)
class ModelFiles:
    """What a model's files hold.

    Attributes:
        config: its shape.
        tensors: Hugging Face names to weights: tensors of one dtype, and matrices in blocks as the
            file has them.
        tokenizer: its tokenizer.
        fim: its fill-in-the-middle format, None if it only continues text.
    """

    config: ModelConfig
    tensors: MutableMapping[str, Matrix]
    tokenizer: Tokenizer
    fim: FimTemplate | None


@dataclass(frozen=True, slots=True)
class _Load:
    """What is asked for beside the model; as for `load_model`."""

    dtype: torch.dtype
    progress: Progress | None
    packing: Packing | None
    device: torch.device
    streams: bool


def load_model(
    path: Path,
    dtype: torch.dtype,
    progress: Progress | None = None,
    *,
    packing: Packing | None = None,
    device: torch.device | None = None,
    streams: bool = False,
) -> ModelFiles:
    """Load a model.

    One tensor after another goes to its device, so that no model is in memory twice.

    Args:
        path: a .gguf file, or a folder with `config.json`, `tokenizer.json` and safetensors.
        dtype: what the weights are converted to, tensor by tensor; matrices in blocks are not.
        progress: receives what is being done and the percentage.
        packing: how matrices are rounded; None: not at all.
        device: where the tensors go; None: the CPU.
        streams: read each tensor when it is taken, with what this raises, and not before; for those
            who make something else of it, as on a GPU.

    Raises:
        ModelLoadError: files are missing, damaged or of a kind that is not supported.
    """
    how = _Load(dtype, progress, packing, device or torch.device("cpu"), streams)
    with _named_errors(path):
        return _load_folder(path, how) if path.is_dir() else _load_gguf(path, how)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into one line that names it."""
    try:
        yield
    except EngineError as error:
        raise type(error)(_one_line(str(error))) from error
    except Exception as error:  # a header can put any value anywhere: text for a number, a list
        if memory_error(error) is not None:
            raise
        reason = _one_line(f"{type(error).__name__}: {error!s:.200}")
        raise ModelLoadError(f"{path} is malformed ({reason}); fetch it again") from error


def _one_line(message: str) -> str:
    """Return a message that may quote anything a file says, on one line and not too long."""
    line = " ".join(message.split())
    return line if len(line) <= _MOST_CHARS else f"{line[:_MOST_CHARS]}… {line[-_LAST_CHARS:]}"


def _load_gguf(path: Path, how: _Load) -> ModelFiles:
    file = GGUFFile(path)
    config = gguf_config.read_config(file)
    refuse_unsupported(config, path)
    found = {name: info.shape for name, info in file.tensors.items()}
    wanted = _checked_shapes(path, config, found, in_gguf)
    shapes = expected_shapes(config)
    _try_rotary(path, config)
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
        stored, rows = wanted[name], wanted[name].rows(shapes[name])
        blocks = file.blocks(stored.name, stored.order, rows)
        if blocks is not None:
            return stored.changed_blocks(blocks)
        first = torch.float32 if stored.is_changed else how.dtype
        return stored.changed(file.tensor(stored.name, first, stored.order, rows)).to(how.dtype)

    return ModelFiles(config, _tensors([path], config, read, how), tokenizer, fim)


def _load_folder(path: Path, how: _Load) -> ModelFiles:
    config = hf_config.read_config(path / "config.json")
    refuse_unsupported(config, path)
    shards, places = _open_shards(path)
    found = {name: tuple(at.get_slice(name).get_shape()) for name, at in places.items()}
    wanted = _checked_shapes(path, config, found, in_safetensors)
    shapes = expected_shapes(config)
    _try_rotary(path, config)
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
        stored, rows = wanted[name], wanted[name].rows(shapes[name])
        at = places[stored.name].get_slice(stored.name)
        tensor = at[:] if rows is None else at[slice(*rows)]
        if not tensor.is_floating_point():
            raise ModelLoadError(
                f"{path}: tensor '{name}' holds {tensor.dtype}; use the model's original weights "
                "or a .gguf file"
            )
        # Not a view of the mapped file, unless it is going to be rounded, or copied to a GPU.
        copies = how.packing is None and not stored.is_changed and how.device.type == "cpu"
        return stored.changed(tensor).to(how.dtype, copy=copies)

    return ModelFiles(config, _tensors(shards, config, read, how), tokenizer, fim)


def _chat_only(path: Path) -> ModelLoadError:
    return ModelLoadError(
        f"{path} is tuned to answer in a chat and has no marks to fill in the middle with; "
        f"{INSTEAD}, or put a {SIDECAR} with its marks beside it"
    )


def _open_shards(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """Open a folder's safetensors, of which only headers are read.

    Returns:
        The files, and by a tensor's name the open one that it is in.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    weight_map: Any = {}
    if single.exists() or not index.is_file():
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
    places: dict[str, Any] = {}
    files: dict[str, str] = {}
    for name in names:
        if not (path / name).is_file():
            raise ModelLoadError(
                f"{path} has no {name}; fetch the model again (weights as safetensors)"
            )
        try:
            shard = safe_open(path / name, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{path / name} is damaged or incomplete ({error}); fetch it again"
            ) from None
        for tensor in shard.keys():  # noqa: SIM118
            said = weight_map.get(tensor, name)
            if tensor in files or said != name:
                other = files.get(tensor, said)
                raise ModelLoadError(
                    f"{path}: the tensor '{tensor!s:.80}' is in {name}, and in {other!s:.80} or "
                    "said to be; fetch the model again"
                )
            files[tensor], places[tensor] = name, shard
    return [path / name for name in names], places


def _try_rotary(path: Path, config: ModelConfig) -> None:
    """Raise whatever a cache's rotary table raises, now and not at the first document."""
    try:
        KVCache(config, 1, torch.float32, torch.device("cpu"))
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}; use another model") from None


def _checked_shapes(
    path: Path,
    config: ModelConfig,
    found: dict[str, tuple[int, ...]],
    place: Callable[[ModelConfig, str, Container[str]], Stored],
) -> dict[str, Stored]:
    """Return where all tensors to read are, after checking that they are there as expected."""
    # Before as many names are made up; GGUF files have all experts of a layer in one tensor.
    num_matrices = sum(shape[0] if len(shape) == 3 else 1 for shape in found.values())
    num_experts = 1 if config.experts is None else config.experts.num
    if config.num_layers > len(found) or config.num_layers * num_experts > num_matrices:
        raise ModelLoadError(
            f"{path} holds {len(found)} tensors, too few for {config.num_layers} layers"
            f"{f' of {num_experts} experts' if num_experts > 1 else ''}; fetch it again"
        )
    shapes = expected_shapes(config)
    wanted = {name: place(config, name, found) for name in shapes}
    for name, stored in wanted.items():
        if stored.name not in found:
            raise ModelLoadError(f"{path} lacks the tensor '{stored.name}'; fetch the model again")
        shape = stored.whole or shapes[name]
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


def _tensors(
    files: list[Path],
    config: ModelConfig,
    read: Callable[[str], Matrix],
    how: _Load,
) -> MutableMapping[str, Matrix]:
    """Return the tensors on their device, rounded if asked for and then, if they can be, mapped.

    Args:
        files: that they are in.
        config: which there are, and what is done to them on the way.
        read: returns one of them by its name; it may be a view of its file.
        how: what is asked for.
    """
    packing, wanted = how.packing, expected_shapes(config)
    if packing is not None and packing.cache is not None:
        cache = packing.cache
        key = key_of(files, packing.quant, str(how.dtype), repr(config))
        found = cache.load(key, wanted)
        if found is None and cache.keep(key, _each(wanted, read, how)):
            found = cache.load(key, wanted)
        if found is not None:
            read, how = found.__getitem__, dataclasses.replace(how, packing=None)
    if how.streams:
        return _streamed(files[0], wanted, read, how)
    return dict(_each(wanted, read, how))


def _each(
    names: Iterable[str], read: Callable[[str], Matrix], how: _Load
) -> Iterator[tuple[str, Matrix]]:
    """Yield name and tensor, one after another, rounded if asked for."""
    names, percent, what = list(names), -1, _doing(how)
    for number, name in enumerate(names):
        if how.progress is not None and number * 100 // len(names) > percent:
            percent = number * 100 // len(names)
            how.progress(what, percent)
        tensor = read(name).to(how.device)
        yield name, tensor if how.packing is None else _packed(how.packing, name, tensor)
    if how.progress is not None:
        how.progress(what, 100)


def _streamed(
    path: Path, names: Iterable[str], read: Callable[[str], Matrix], how: _Load
) -> StreamedTensors:
    names, left, what = list(names), set(names), _doing(how)

    def read_one(name: str) -> Matrix:
        before = 100 - len(left) * 100 // len(names)
        left.discard(name)
        percent = 100 - len(left) * 100 // len(names)
        if how.progress is not None and percent > before:
            how.progress(what, percent)
        with _named_errors(path):
            tensor = read(name).to(how.device)
            return tensor if how.packing is None else _packed(how.packing, name, tensor)

    return StreamedTensors(names, read_one)


def _doing(how: _Load) -> str:
    return "reading weights" if how.packing is None else "packing weights"


def _packed(packing: Packing, name: str, tensor: Matrix) -> Matrix:
    try:
        packed = packing.packed(name, tensor)
    except ValueError as error:
        raise ModelLoadError(
            f"tensor '{name}' holds {error}; use another model, or leave quant out"
        ) from None
    # What is left as it is must not stay a view of its file.
    return tensor.clone() if isinstance(tensor, Tensor) and packed is tensor else packed
