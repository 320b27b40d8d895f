"""One document's cached keys and values: slots, positions, turning, freshness.

A slot is a row of the cache. Rows stay dense and lie in any order: positions are in the keys, so an
inserted token takes the next free row and a removed one is filled from the end. Whatever is known
per slot is a record, and all records are renumbered in one place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ...kernels import dispatch
from ..wire.errors import ContextTooLong, OutOfMemory, memory_error
from .config import ModelConfig
from .device_memory import Uploads
from .rope import RotaryTable, RotaryTables

Slots = NDArray[np.int64]


class KVCache:
    """Keys (unrotated and rotated) and values of up to `capacity` tokens, over all layers.

    The whole capacity is reserved at once and never copied: on the CPU that is address space, and
    the operating system commits pages as rows are first written (vAttention, arXiv 2405.04437);
    on CUDA it is the window's memory.

    Attributes:
        num_rows: rows in use; slots are 0 .. num_rows - 1.
        num_fresh: rows at positions below this are fresh, all others stale. A row is fresh only if
            every earlier one was when it was computed and none has changed since, or all are again
            what they were then; so the fresh rows are always the first ones and one number tells
            them all.
        generation: raised by every change of rows that a later row may have seen: those that were
            turned, recomputed, removed or put in before another. What is appended or removed at
            the end leaves it.
        copied_row_bytes: memory of one row in what `copied` returns.
        copied_dtype: of what it returns.
        tables: what each layer's keys are rotated by.
        graphs: passes that a decoder captured over this cache, by their shape, and what they share;
            they go with it.
    """

    def __init__(
        self, config: ModelConfig, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Reserve room for `capacity` tokens.

        Raises:
            OutOfMemory: the memory (on CPU: the address space) is not to be had.
        """
        shape = (3, config.num_layers, config.num_kv_heads, capacity, config.head_dim)
        try:
            everything = torch.empty(shape, dtype=dtype, device=device)
        except Exception as error:
            if memory_error(error) is None:
                raise
            raise OutOfMemory(
                f"no memory for a cache of {capacity} tokens; close documents or lower "
                f"window_tokens or cache_bytes ({str(error).splitlines()[0]})"
            ) from None
        self._unrotated, self._keys, self._values = everything
        # All that moves with a slot, (tensors * layers * heads, capacity, words). To copy whole
        # words is quicker than element by element.
        self._moved = everything.view(-1, capacity, config.head_dim)
        if config.head_dim * dtype.itemsize % torch.int64.itemsize == 0:
            self._moved = self._moved.view(torch.int64)
        # Of these the keys of a row at any position can be made again, likewise in words.
        self._sources = self._moved.unflatten(0, (3, -1))[::2]
        self.copied_row_bytes = self._sources[:, :, 0].nbytes
        self.copied_dtype = self._sources.dtype
        self.capacity = capacity
        self.tables = RotaryTables(config, capacity, device)
        self.graphs: dict[object, object] = {}
        self._kernels = dispatch.choose(device)
        self._uploads = None if device.type == "cpu" else Uploads(2 * capacity + 2, device)
        if device.type == "cuda":
            # Compiled now, on a row that nobody uses yet, and not at the first keystroke.
            row = np.zeros(1, dtype=np.int64)
            self._turn(row, row)
            self._move(row, row)
        self.num_rows = 0
        self.num_fresh = 0
        self.generation = 0
        self._num_touched = 0
        self._fills: dict[str, float] = {}
        self._slot_records: set[str] = set()
        self._records: dict[str, NDArray] = {}
        self._order: Slots | None = None
        self.add_record("token_ids", np.int64, -1)
        self.add_record("positions", np.int64, -1)

    # Per-slot records

    def add_record(
        self,
        name: str,
        dtype: DTypeLike,
        fill: float,
        *,
        width: int | None = None,
        holds_slots: bool = False,
    ) -> None:
        """Keep one more value per slot, or a row of them; a new slot starts with `fill`.

        Args:
            name: of the record.
            dtype: of its values.
            fill: what a new slot has.
            width: values per slot, which makes the record (capacity, width); None is one, and
                (capacity,).
            holds_slots: its values are numbers of slots. They follow those rows when they are
                renumbered, and become `fill`, which must be -1, when they are removed.
        """
        shape = self.capacity if width is None else (self.capacity, width)
        self._records[name] = np.full(shape, fill, dtype=dtype)
        self._fills[name] = fill
        if holds_slots:
            if fill != -1:
                raise ValueError(f"record '{name}' holds slots: its fill is {fill}, it must be -1")
            self._slot_records.add(name)

    def record(self, name: str) -> NDArray:
        """Return a record's values, (num_rows,) or (num_rows, width); a view, also to be written.

        It is good until rows come or go.
        """
        return self._records[name][: self.num_rows]

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Token of each slot, (num_rows,)."""
        return self.record("token_ids")

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each slot, (num_rows,), all different."""
        return self.record("positions")

    def by_position(self) -> Slots:
        """Return the slots in the order of their positions, (num_rows,), only to be read.

        It is kept until rows come, go or turn.
        """
        if self._order is None:
            self._order = _ascending(self.positions, 2 * self.capacity)
        return self._order

    # Rows

    def append(self, token_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> Slots:
        """Take the next free rows for these tokens; the caller computes them before anyone looks.

        Raises:
            ContextTooLong: the capacity is used up; nothing was changed.
        """
        start, end = self.num_rows, self.num_rows + len(token_ids)
        self._check_fits(end)
        if start and len(positions) and positions.min() < self.positions.max():
            self.mark_changed()
        self.num_rows, self._order = end, None
        self._num_touched = max(self._num_touched, end)
        for name, values in self._records.items():
            values[start:end] = self._fills[name]
        self.token_ids[start:end] = token_ids
        self.positions[start:end] = positions
        return np.arange(start, end)

    def copied(self, *slots: Slots, take: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Return copies of rows, some at a time, for `insert`: unrotated keys, and values.

        They are of all layers, (2, num_layers * num_kv_heads, n, words); nothing else reads them.

        Args:
            slots: (n,) of each copy.
            take: returns memory of a shape, of `copied_dtype`; None: it is newly taken.
        """
        (together,) = self.on_device(np.concatenate(slots))
        copies = []
        for at in together.split([*map(len, slots)]):
            shape = (*self._sources.shape[:2], len(at), self._sources.shape[3])
            out = None if take is None else take(*shape)
            copies.append(torch.index_select(self._sources, 2, at, out=out))
        return copies

    def insert(
        self, token_ids: NDArray[np.int64], positions: NDArray[np.int64], rows: Tensor
    ) -> Slots:
        """Put copied rows back: keys are rotated once, from the unrotated ones, as in a turn.

        They are stale, and so are the rows at later positions.

        Args:
            token_ids: (n,) theirs.
            positions: (n,) that no other row has.
            rows: from `copied`, or a part of it: (2, num_layers * num_kv_heads, n, words).

        Raises:
            ContextTooLong: the capacity is used up; nothing was changed.
        """
        slots = self.append(token_ids, positions)
        self._sources[:, :, slots[0] : slots[-1] + 1] = rows
        self._turn(slots, positions)
        self.mark_changed()
        self.num_fresh = min(self.num_fresh, int(positions.min()))
        return slots

    def _check_fits(self, num_tokens: int) -> None:
        if num_tokens > self.capacity:
            raise ContextTooLong(
                f"{num_tokens} tokens do not fit the cache's {self.capacity}; lower max_tokens or "
                "window_tokens"
            )

    def remove(self, slots: Slots) -> None:
        """Drop rows; the last rows move into the holes. Rows at later positions become stale."""
        if not len(slots):
            return
        lowest = int(self.positions[slots].min())
        self.num_fresh = min(self.num_fresh, lowest)
        kept = self.num_rows - len(slots)
        if np.count_nonzero(self.positions > lowest) >= len(slots):
            self.mark_changed()  # a later row stays
        stays = np.ones(len(slots), dtype=bool)  # of the last rows, as many as are dropped
        stays[slots[slots >= kept] - kept] = False
        source, target = np.flatnonzero(stays) + kept, np.sort(slots[slots < kept])
        if self._slot_records and (len(source) or self._is_held_from(kept)):
            self._renumber_held(slots, source, target)
        self._renumber(source, target)
        self.num_rows, self._order = kept, None

    def clear(self) -> None:
        """Drop every row."""
        self.num_rows = self.num_fresh = 0
        self._order = None
        self.mark_changed()

    def mark_changed(self) -> None:
        """Note that rows are about to change under those that have seen them."""
        self.generation += 1

    def _renumber(self, source: Slots, target: Slots) -> None:
        """Move rows to other slots: the one place where a slot's number changes."""
        if not len(source):
            return
        self._move(source, target)
        for values in self._records.values():
            values[target] = values[source]

    def _renumber_held(self, removed: Slots, source: Slots, target: Slots) -> None:
        """Give the slot numbers that records hold their new values; `num_rows` is the old one."""
        # One place more than there are slots: -1 is the last.
        number = np.arange(self.num_rows + 1)
        number[source] = target
        for name in self._slot_records:
            held = self.record(name)
            number[removed] = number[-1] = self._fills[name]
            np.take(number.astype(held.dtype), held, out=held, mode="wrap")

    def _is_held_from(self, slot: int) -> bool:
        """Return whether a record holds the number of this slot or of one behind it."""
        return any(self.record(name).max(initial=-1) >= slot for name in self._slot_records)

    def _move(self, source: Slots, target: Slots) -> None:
        from_, to = self.on_device(source, target)
        self._moved.index_copy_(1, to, self._moved.index_select(1, from_))

    def turn(self, slots: Slots, positions: NDArray[np.int64]) -> None:
        """Give rows new positions: a pure rotation of their unrotated keys.

        Rows from the lowest old or new position on become stale.

        Raises:
            ContextTooLong: a position is past the capacity; nothing was changed.
        """
        if not len(slots):
            return
        self._check_fits(int(positions.max()) + 1)
        self.mark_changed()
        self._turn(slots, positions)  # first: a GPU works while the rest is noted here
        lowest = min(int(self.positions.take(slots).min()), int(positions.min()))
        self.num_fresh = min(self.num_fresh, lowest)
        self.positions[slots] = positions
        self._order = None

    def _turn(self, slots: Slots, positions: NDArray[np.int64]) -> None:
        at, index = self.on_device(positions, slots)
        for layers, table in self.tables.runs:
            unrotated, keys = (
                part[layers.start : layers.stop] for part in (self._unrotated, self._keys)
            )
            self._kernels.rope_shift(
                unrotated, keys, index, at, table.cos, table.sin, table.interleaved
            )

    # The forward pass

    def write(self, layer: int, slots: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate one layer's rows, store their keys and values, and return the rotated queries.

        Args:
            layer: which one.
            slots: (n,) int64.
            qkv: (n, num_heads + 2 * num_kv_heads, head_dim), contiguous: queries, keys, values.
            cos: (n, rotary_dim / 2) float32, from the layer's table at the rows' positions.
            sin: like `cos`.

        Returns:
            (n, num_heads, head_dim).
        """
        return self._kernels.write_rows(
            qkv,
            self._unrotated[layer],
            self._keys[layer],
            self._values[layer],
            slots,
            cos,
            sin,
            self.table.interleaved,
        )

    def write_made(self, first_layer: int, slots: Slots, made: Tensor) -> None:
        """Store keys and values of all layers from one on that were made without these layers.

        Args:
            first_layer: the first one.
            slots: (n,) rows, all different.
            made: (n, 2 * layers * num_kv_heads * head_dim): the unrotated keys of all these layers,
                then their values.
        """
        _, num_heads, _, head_dim = self._keys.shape
        index = torch.from_numpy(slots).to(made.device)
        positions = torch.from_numpy(self.positions[slots]).to(made.device)
        parts = made.to(self._keys.dtype).view(len(slots), 2, -1, num_heads, head_dim)
        for run, table in self.tables.runs:
            layers = slice(max(run.start, first_layer), run.stop)
            if layers.start >= layers.stop:
                continue
            some = parts[:, :, layers.start - first_layer : layers.stop - first_layer]
            self._kernels.write_rows(
                some.reshape(len(slots), -1, head_dim),
                self._unrotated[layers].flatten(0, 1),
                self._keys[layers].flatten(0, 1),
                self._values[layers].flatten(0, 1),
                index,
                *table.at(positions),
                table.interleaved,
            )

    @property
    def table(self) -> RotaryTable:
        """The first layer's table; every layer's in models that rotate all alike."""
        return self.tables.tables[0]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the rotated keys and the values of a layer, (num_kv_heads, num_rows, head_dim)."""
        rows = self.num_rows
        return self._keys[layer, :, :rows], self._values[layer, :, :rows]

    @property
    def storage(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated and rotated keys, and values, of all layers, rows not in use included.

        Each is (num_layers, num_kv_heads, capacity, head_dim) and stays where it is as long as the
        cache.
        """
        return self._unrotated, self._keys, self._values

    def unrotated(self, layer: int) -> Tensor:
        """Return the unrotated keys of a layer, (num_kv_heads, num_rows, head_dim)."""
        return self._unrotated[layer, :, : self.num_rows]

    def mark_computed(self, slots: Slots) -> None:
        """Note that rows were just computed together over the cache as it is.

        Those that follow the fresh rows without a gap are now fresh themselves.
        """
        positions = np.sort(self.positions[slots])
        positions = positions[positions >= self.num_fresh]
        in_sequence = positions == self.num_fresh + np.arange(len(positions))
        self.num_fresh += int(in_sequence.sum())

    # Memory

    @property
    def num_bytes(self) -> int:
        """Memory in use: rows ever written on the CPU, the whole reservation on CUDA."""
        total = 3 * self._keys.numel() * self._keys.element_size()
        if self._keys.is_cuda:
            return total
        return total // self.capacity * self._num_touched

    def on_device(self, *numbers: NDArray[np.int64]) -> list[Tensor]:
        """Return arrays of numbers, (n,) each, in one copy that the host does not wait for.

        On a CPU they are the arrays themselves, elsewhere good until more are uploaded.
        """
        if self._uploads is None:
            return [torch.from_numpy(each) for each in numbers]
        return self._uploads.send(numbers)


def _ascending(positions: NDArray[np.int64], limit: int) -> Slots:
    """Return where positions, all different, lie in ascending order."""
    count = len(positions)
    if not count or (end := int(positions.max()) + 1) > limit:
        return np.argsort(positions)
    # They hardly have gaps: ten times faster than to sort them.
    slots = np.empty(count, dtype=np.int64) if end == count else np.full(end, -1)
    slots[positions] = np.arange(count)
    return slots if end == count else slots[slots >= 0]
