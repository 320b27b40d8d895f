"""What follows attention in a layer: gated, plain, or one of several experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.dispatch import Kernels
from ...kernels.weights.linear import Linear
from .config import ALIASES, GELU, GELU_TANH, SILU, ModelConfig
from .tensors import LayerTensors, Projection

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    SILU: functional.silu,
    GELU: functional.gelu,
    GELU_TANH: functools.partial(functional.gelu, approximate="tanh"),
}


@dataclass(slots=True)
class DenseMlp:
    """An MLP that every row takes.

    Attributes:
        gate_up: the projections into it: the gate and what passes it, or one alone.
        down: the projection out of it.
        activate: (n, outputs of `gate_up`) to (n, inner).
    """

    gate_up: Linear
    down: Linear
    activate: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Return (n, hidden_size) of (n, hidden_size)."""
        return self.down(self.activate(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class ExpertMlp:
    """An MLP of which every row takes a few of many, by what a router says.

    Attributes:
        router: the projection to one figure for each expert.
        experts: all of them.
        num_used: how many a row takes.
        normalises: their shares add up to 1.

    Source: Switch Transformers, arXiv 2101.03961, section 2; shares of several as in Mixtral,
    arXiv 2401.04088, section 2.1.
    """

    router: Linear
    experts: list[DenseMlp]
    num_used: int
    normalises: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return (n, hidden_size) of (n, hidden_size)."""
        shares = self.router(x).float().softmax(-1)
        share, chosen = shares.topk(self.num_used, dim=-1)
        if self.normalises:
            share = share / share.sum(-1, keepdim=True)
        total = torch.zeros(x.shape, device=x.device)
        for number in chosen.unique().tolist():
            rows, rank = (chosen == number).nonzero(as_tuple=True)
            given = self.experts[number](x[rows]).float()
            total.index_add_(0, rows, given * share[rows, rank, None])
        return total.to(x.dtype)


Mlp = DenseMlp | ExpertMlp


def make_mlp(
    config: ModelConfig,
    kernels: Kernels,
    tensors: LayerTensors,
    made: Callable[[Projection], Linear],
) -> Mlp:
    """Make a layer's MLP.

    Args:
        config: the model's shape.
        kernels: the ops of the device.
        tensors: of the layer.
        made: makes a projection.
    """
    name = ALIASES.get(config.activation, config.activation)
    activate = kernels.silu_mul if name == SILU and config.is_gated else None
    if activate is None:
        activate = functools.partial(_activated, _ACTIVATIONS[name], config.is_gated)

    def dense(gate_up: Projection, down: Projection) -> DenseMlp:
        return DenseMlp(made(gate_up), made(down), activate)

    parts = tensors.projections
    if config.experts is None:
        return dense(parts["gate_up"], parts["down"])
    return ExpertMlp(
        made(parts["router"]),
        [dense(parts[f"gate_up.{at}"], parts[f"down.{at}"]) for at in range(config.experts.num)],
        config.experts.num_used,
        config.experts.normalises,
    )


def _activated(activation: Callable[[Tensor], Tensor], is_gated: bool, x: Tensor) -> Tensor:
    """Return the activation of rows, times what passes the gate; rounded once from float32."""
    if not is_gated:
        return activation(x.float()).to(x.dtype)
    gate, passing = x.float().chunk(2, -1)
    return (activation(gate) * passing).to(x.dtype)
