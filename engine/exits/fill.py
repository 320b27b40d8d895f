"""What a token that left would have had in the layers it was not put through: learnt, not computed.

Keys and values that a layer makes of the state that a token left with (SEC, arXiv 2401.09964,
section 4; CALM, arXiv 2207.07061, section 3.2) are far from what it would have made: the stream
turns from layer to layer. A linear map from that state to the keys and values of all deeper layers,
by least squares, is nearer, and one product is less work than those layers' own projections.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..model.kv_cache import KVCache, Slots


def normalised(hidden: Tensor) -> Tensor:
    """Return rows of (n, hidden_size) divided by the root of their mean square, in float32."""
    hidden = hidden.float()
    return hidden * hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


def with_one(hidden: Tensor) -> Tensor:
    """Return what keys and values are made of: (n, hidden_size + 1) float32."""
    return functional.pad(normalised(hidden), (0, 1), value=1.0)


class Fill:
    """Writes keys and values of deeper layers for rows that left at an exit."""

    def __init__(
        self, first: int, reduce: Tensor, expand: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Copy the map to where the model is.

        Args:
            first: the layer that the states would have gone through next.
            reduce: (rank, hidden_size + 1), its first factor, over what `with_one` returns.
            expand: (2 * layers * num_kv_heads * head_dim, rank), the second: unrotated keys of all
                layers from `first` on, then their values.
            dtype: to compute in.
            device: the model's.
        """
        self._first = first
        self._reduce, self._expand = reduce.to(device, dtype), expand.to(device, dtype)

    @torch.inference_mode()
    def __call__(self, cache: KVCache, slots: Slots, hidden: Tensor) -> None:
        """Write the rows' keys and values of all layers from the exit on.

        Args:
            cache: holds the rows' positions.
            slots: (n,) the rows.
            hidden: (n, hidden_size) the states that they left with.
        """
        looked_at = with_one(hidden).to(self._reduce.dtype)
        made = functional.linear(functional.linear(looked_at, self._reduce), self._expand)
        cache.write_made(self._first, slots, made)
