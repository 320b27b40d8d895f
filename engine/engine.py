"""The engine's front door: load models, open documents, keep all caches within one budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

from ..kernels import dispatch
from .exits import depth_file, skip_file, stop
from .exits.controller import Exits
from .files.adapter import AdapterFiles, find_adapter, read_adapter
from .files.catalog import resolve
from .files.packed_cache import user_cache
from .files.packing import Packing
from .files.weights import load_model
from .loaded_model import Model
from .model.config import ModelConfig
from .model.decoder import Decoder
from .model.step_timing import measure_steps
from .prompt.fim import UNKNOWN_CHARS_PER_TOKEN
from .prompt.growing_window import WHOLE, ColdLimit
from .prompt.repair import RepairLimit
from .session import Session
from .wire.config import PACKED, QUANTS, EngineConfig
from .wire.errors import BadRequest, OutOfMemory, memory_error

# Rows beyond the window: what may be generated or scored there.
_SPARE_TOKENS = 576
# What a model that does not say is shown; most code models were trained on far more.
_UNKNOWN_WINDOW_TOKENS = 2048

# Decode steps are timed with so many rows in the cache at most.
_MEASURED_SLOTS = 1024

# A GPU takes so many rows at once in the time of a processor's few hundred.
_GPU_CHUNK_TOKENS = 2048

_THROUGH = object()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """Models and open documents of one process; used from one thread.

    Attributes:
        config: how it runs.
        device: what it runs on.
        dtype: what it computes in.
        sessions: open documents, least recently used first.
    """

    def __init__(self, config: EngineConfig, *, finds_exits: bool = True) -> None:
        """Choose device and precision; no model is loaded yet.

        Args:
            config: how it runs.
            finds_exits: whether what was calibrated of models is loaded with them.

        Raises:
            BadRequest: the device or dtype does not exist here, or `quant` not on this device.
        """
        self.config, self._finds_exits = config, finds_exits
        self.device = choose_device(config.device)
        if self.device.type == "cuda":
            # Streams, events and captures are of the thread's device, wherever tensors are.
            torch.cuda.set_device(self.device.index or 0)
        self.dtype = choose_dtype(config.dtype, self.device)
        self._kernels = dispatch.choose(self.device)
        self._packing = Packing(config.quant, user_cache()) if config.quant in PACKED else None
        self._plane_bits = self._planes(config.quant)
        self._chunk_tokens = config.chunk_tokens
        if self.device.type == "cuda":
            self._chunk_tokens = max(config.chunk_tokens, _GPU_CHUNK_TOKENS)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.sessions: OrderedDict[Hashable, Session] = OrderedDict()
        self._models: dict[str, Model] = {}
        self._adapters: dict[str, AdapterFiles | None] = {}
        self._warming: list[Iterator[None]] = []  # what is left to be compiled

    def load(self, model: str, progress: Callable[[str, int], None] | None = None) -> Model:
        """Load a model, or return it if it is loaded.

        Args:
            model: "embedded", a directory, a .gguf file, or a Hugging Face id in the local cache.
            progress: receives what is being done and the percentage.

        Raises:
            ModelNotFound, ModelLoadError, OutOfMemory.
        """
        if model not in self._models:
            try:
                files = load_model(
                    *(resolve(model), self.dtype, progress),
                    packing=self._packing,
                    device=self.device,
                    streams=self.device.type != "cpu",
                )
                most = self._most_rows(files.config)
                spare = min(_SPARE_TOKENS, most // 2)
                own = (files.fim.window_tokens if files.fim else 0) or _UNKNOWN_WINDOW_TOKENS
                window = min(self.config.window_tokens or own, most - spare)
                config = files.config.within(window + spare)
                decoder = Decoder(config, files.tensors, self._plane_bits)
            except Exception as error:
                if memory_error(error) is None or isinstance(error, OutOfMemory):
                    raise
                raise OutOfMemory(
                    f"no memory to load model '{model}'; use a smaller one or dtype=bfloat16"
                ) from None
            # On a GPU layers that are launched one by one take longer than all of them at once.
            may_exit = self._finds_exits and self.device.type == "cpu"
            rule = depth_file.find(decoder) if may_exit else None
            sets = skip_file.find(decoder) if self._finds_exits else {}
            self._models[model] = Model(
                name=model,
                decoder=decoder,
                tokenizer=files.tokenizer,
                template=files.fim,
                window_tokens=window,
                chars_per_token=files.fim.chars_per_token if files.fim else UNKNOWN_CHARS_PER_TOKEN,
                capacity=window + spare,
                exits=None if rule is None else Exits(rule, decoder),
                skips={language: each.skipped for language, each in sets.items()},
                stop=stop.find(decoder),
            )
            if self.device.type == "cuda":
                self._warming.append(_warm_up(decoder, window + spare, window))
            else:
                measure_steps(decoder, min(window, _MEASURED_SLOTS))
        return self._models[model]

    def warm(self) -> bool:
        """Run one kind of pass that nothing has needed yet, so that it is compiled when it is.

        On a GPU that takes up to seconds, for each of some ten, when nothing is compiled yet, and
        less than a tenth of one for each graph of a document's decode steps. What a completion
        needs before is made as it is needed.

        Returns:
            Whether there was one.
        """
        while self._warming:
            if next(self._warming[0], _THROUGH) is not _THROUGH:
                return True
            self._warming.pop(0)
        return any(session.prompt.prepare() for session in self.sessions.values())

    def adapt(self, model: str, adapter: str | None) -> None:
        """Serve a LoRA adapter beside a model's weights, in place of the one before.

        The model is not loaded again; its documents' rows are taken for stale.

        Args:
            model: as for `load`; loaded already.
            adapter: a folder in PEFT's format; None: none.

        Raises:
            ModelNotFound: there is no such folder; the adapter before stays.
            ModelLoadError: it cannot be served beside this model; likewise.
        """
        wanted = None if adapter is None else find_adapter(adapter)
        if wanted == self._adapters.get(model):
            return
        decoder = self._models[model].decoder
        decoder.adapt({} if wanted is None else read_adapter(wanted.folder, decoder.config))
        self._adapters[model] = wanted
        for session in self.sessions.values():
            if session.model is self._models[model]:
                session.note_other_weights()

    def _planes(self, quant: str | None) -> int | None:
        """Return how many bit planes the layers' matrices are rounded to; None: not at all."""
        if quant is None or quant == "none" or quant in PACKED:
            return None
        if quant not in QUANTS:
            raise BadRequest(
                f"quant '{quant}' is not known; use none or one of {', '.join(QUANTS)}"
            )
        if self.device.type != "cuda" or self._kernels.to_planes is None:
            is_gpu = self.device.type == "cuda"
            why = f" ({self._kernels.why}); " if is_gpu else "; choose a GPU as the device, "
            raise BadRequest(
                f"quant '{quant}' needs an NVIDIA GPU with Triton, and this is {self.device}{why}"
                "use q4 or q8, or leave quant out"
            )
        if self.dtype == torch.float32:
            raise BadRequest(f"quant '{quant}' needs dtype bfloat16; use dtype auto or bfloat16")
        return int(quant[1:])

    def _most_rows(self, config: ModelConfig) -> int:
        """Return the rows of one document that the model's context and the byte budget allow."""
        affordable = self.config.cache_bytes // self._row_bytes(config)
        if affordable < min(config.max_positions, 2 * _SPARE_TOKENS):
            raise OutOfMemory(
                f"cache_bytes={self.config.cache_bytes} holds only {affordable} tokens of this "
                f"model; raise it to {4 * _SPARE_TOKENS * self._row_bytes(config)} or more"
            )
        return min(config.max_positions, affordable)

    def _row_bytes(self, config: ModelConfig) -> int:
        width = config.num_layers * config.num_kv_heads * config.head_dim
        return 3 * width * self.dtype.itemsize

    def open(
        self,
        key: Hashable,
        text: str,
        *,
        path: str,
        model: str,
        policy: str,
        layout: str | None = None,
    ) -> Session:
        """Open a document, or open it anew.

        Args:
            key: names the document from now on.
            text: its text.
            path: of its file, relative to the workspace where it is in one.
            model: as for `load`.
            policy: one of `config.POLICIES`.
            layout: "spm" or "psm"; None takes the model's own.

        Raises:
            BadRequest: the model has no such layout, or there is no such policy.
            ModelNotFound, ModelLoadError, OutOfMemory: from `load`.
        """
        loaded = self.load(model)
        if layout is not None:
            known = loaded.template.layouts if loaded.template else ()
            if layout not in known:
                raise BadRequest(
                    f"layout '{layout}' is not one of model '{model}'; it has: "
                    f"{', '.join(known) or 'none, it completes left to right'}"
                )
        session = Session(
            loaded,
            text,
            path=path,
            policy=policy,
            layout=layout,
            chunk_tokens=self._chunk_tokens,
            make_room=self._make_room,
            repair_limit=RepairLimit(self.config.repair_budget_ms),
            heals=self.config.heal,
            # A GPU computes the whole window in that time.
            cold_limit=WHOLE
            if self.device.type == "cuda"
            else ColdLimit(self.config.cold_budget_ms),
        )
        self.sessions[key] = session
        self.sessions.move_to_end(key)
        return session

    def close(self, key: Hashable) -> None:
        """Forget a document; closing one that is not open is no error."""
        self.sessions.pop(key, None)

    def _make_room(self, session: Session, num_rows: int) -> None:
        """Drop the least recently used caches until this session's rows fit the budget."""
        for key, other in self.sessions.items():
            if other is session:
                self.sessions.move_to_end(key)
                break
        if self.device.type == "cuda":
            num_rows = session.model.capacity  # reserved at once, see `KVCache.num_bytes`
        coming = num_rows * self._row_bytes(session.model.decoder.config)
        prompts = [other.prompt for other in self.sessions.values() if other is not session]
        own = session.prompt
        room = self.config.cache_bytes - max(coming, own.num_bytes - own.num_dropped_bytes)
        room -= sum(prompt.num_bytes for prompt in prompts)
        # What a document has dropped goes before what another one shows.
        for prompt in prompts:
            if room < 0:
                room += prompt.num_dropped_bytes
                prompt.bound_dropped(0)
        for prompt in prompts:
            if room < 0:
                room += prompt.num_bytes
                prompt.drop()
        own.bound_dropped(max(0, room))

    def status(self) -> dict[str, Any]:
        """Return what is loaded and held, as plain data."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kernels": {"backend": self._kernels.backend, "why": self._kernels.why},
            "models": sorted(self._models),
            # Of the others the depth "fast" is as "exact".
            "models_with_exits": sorted(
                name for name, model in self._models.items() if model.exits is not None
            ),
            "adapters": {
                model: str(files.folder) for model, files in self._adapters.items() if files
            },
            "repair_budget_ms": self.config.repair_budget_ms,
            "heal": self.config.heal,
            "cold_budget_ms": self.config.cold_budget_ms,
            "num_documents": len(self.sessions),
            "cache_bytes": sum(session.prompt.num_bytes for session in self.sessions.values()),
            "cache_budget_bytes": self.config.cache_bytes,
        }


def _warm_up(decoder: Decoder, capacity: int, window: int) -> Iterator[None]:
    """Compile what a decoder has, a piece at a time, and then measure it."""
    yield from decoder.warm_up(capacity)
    measure_steps(decoder, min(window, _MEASURED_SLOTS))


def choose_device(name: str) -> torch.device:
    """Return the torch device for "auto", "cpu" or a device name.

    Raises:
        BadRequest: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise BadRequest(f"device '{name}' cannot be used; try auto or cpu ({reason})") from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype for "auto", "float32" or "bfloat16".

    "auto" is bfloat16 where the hardware multiplies in it, else float32: elsewhere bfloat16 is
    emulated and slower than float32.

    Raises:
        BadRequest: the name is another.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise BadRequest(f"dtype '{name}' is not known; use auto, float32 or bfloat16")
    return _DTYPES[name]
