"""Muon for matrices, AdamW for embedding and norms; fp32 masters, bf16 working copies.

Muon (K. Jordan et al., 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of each
matrix; scaled to an AdamW step's size after arXiv 2502.16982, section 2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .decoder import Model
from .rounding import q4_1

NORM_LR = 1e-3
ADAMW_STEP = 0.2  # root mean square of an AdamW step at a rate of 1
MOMENTUM = (0.85, 0.95, 200)  # first, last, steps between
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's coefficients


def orthogonal(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Orthogonalise a batch of matrices (..., rows, columns), rows <= columns.

    Five Newton-Schulz steps: singular values come out between about 0.7 and 1.2.

    Args:
        x: the matrices.
        dtype: of the steps and the result; None is bf16 on a GPU, and float32 on a CPU, where
            batches in bf16 take ten times as long.
    """
    x = x.to(dtype or (torch.bfloat16 if x.is_cuda else torch.float32))
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    first, third, fifth = NEWTON_SCHULZ
    for _ in range(5):
        g = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(g, g, g, beta=third, alpha=fifth), x, beta=first)
    return x


class Optimiser:
    """Own the masters (one flat fp32 tensor) and the gradients; publish working copies.

    With `on_grid`, working copies of all matrices, the embedding's too, are the masters rounded to
    Q4_1: gradients pass straight through (arXiv 1308.3432).

    Attributes:
        round: the rounding: `train.py` puts a compiled form there.
    """

    def __init__(
        self, model: Model, lr: float, embedding_lr: float, decay: float, world: int = 1
    ) -> None:
        """Take the masters from the model, whose parameters become bf16 working copies.

        Args:
            model: the model, on its device.
            lr: peak rate of the matrices, an AdamW step's size.
            embedding_lr: peak rate of the embedding.
            decay: weight decay of the matrices.
            world: number of processes whose gradients are averaged.
        """
        self.round = q4_1
        self._model, self._lr, self._decay, self._world = model, lr, decay, world
        self._steps = 0
        device, shape = model.embedding.device, model.shape
        self._sizes = [(shape.num_layers, *self._size(name)) for name in Model.MATRICES]
        num_matrix = sum(layers * rows * columns for layers, rows, columns in self._sizes)
        num_all = num_matrix + model.embedding.numel()
        master = torch.empty(num_all, device=device)
        self._gradient = torch.zeros(num_all, device=device, dtype=torch.bfloat16)
        self._momentum = torch.zeros(num_matrix, device=device)
        self._masters, self._gradients = self._cut(master), self._cut(self._gradient)
        self._momenta = self._cut(self._momentum)
        self._master_embedding = master[num_matrix:].view_as(model.embedding)
        self._gradient_embedding = self._gradient[num_matrix:].view_as(model.embedding)
        matrices = [[getattr(layer, name) for layer in model.stack] for name in Model.MATRICES]
        with torch.no_grad():
            for target, part in zip(self._masters, matrices, strict=True):
                target.copy_(torch.stack([p.float() for p in part]))
            self._master_embedding.copy_(model.embedding.float())
        self._parameters = [*(p for part in matrices for p in part), model.embedding]
        self._flat_gradients = [g for part in self._gradients for g in part.unbind()]
        self._flat_gradients.append(self._gradient_embedding)
        for p in self._parameters:
            p.data = p.data.to(torch.bfloat16)
        self._norms = [p for p in model.parameters() if p.dim() == 1]
        self._embedding = torch.nn.Parameter(self._master_embedding)
        groups = [
            {"params": [self._embedding], "lr": embedding_lr, "base": embedding_lr},
            {"params": self._norms, "lr": NORM_LR, "base": NORM_LR},
        ]
        self._adamw = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=device.type == "cuda"
        )

    def _size(self, name: str) -> torch.Size:
        return getattr(self._model.stack[0], name).shape

    def _cut(self, flat: Tensor) -> list[Tensor]:
        """Return views (layers, rows, columns) of each kind of matrix."""
        parts, at = [], 0
        for layers, rows, columns in self._sizes:
            size = layers * rows * columns
            parts.append(flat[at : at + size].view(layers, rows, columns))
            at += size
        return parts

    @torch.no_grad()
    def collect(self) -> None:
        """Take the gradients off the parameters, averaged over the processes."""
        _copy_all(self._flat_gradients, [p.grad for p in self._parameters if p.grad is not None])
        small = torch.cat([p.grad for p in self._norms if p.grad is not None])
        if self._world > 1:
            dist.all_reduce(self._gradient)
            dist.all_reduce(small)
            self._gradient /= self._world
            small /= self._world
        small.nan_to_num_(0.0, 0.0, 0.0)
        for p, g in zip(self._norms, small.split(self._model.shape.width), strict=True):
            p.grad = g
        for p in self._parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, scale: float, on_grid: bool) -> Tensor:
        """Update the masters and publish them.

        Args:
            scale: share of the peak rates.
            on_grid: whether working copies are rounded.

        Returns:
            The norm of the embedding's gradient, on the device.
        """
        self._steps += 1
        self._gradient.nan_to_num_(0.0, 0.0, 0.0)
        lr = self._lr * scale
        for master, update in zip(self._masters, self._muon(), strict=True):
            master.mul_(1 - lr * self._decay).add_(update.float(), alpha=-ADAMW_STEP * lr)
        g = self._gradient_embedding.float()
        norm = g.norm()
        self._embedding.grad = g * (1.0 / norm.clamp(min=1.0))
        for group in self._adamw.param_groups:
            group["lr"] = group["base"] * scale
        self._adamw.step()
        self.publish(on_grid)
        return norm

    def _muon(self) -> list[Tensor]:
        """Return the updates of all matrices, kind by kind.

        Matrices of one shape are orthogonalised together, wide side last, and scaled to the size
        that `ADAMW_STEP` takes to that of an AdamW step.
        """
        first, last, steps = MOMENTUM
        mu = first + (last - first) * min(1, self._steps / steps)
        self._momentum.lerp_(self._gradient[: len(self._momentum)].float(), 1 - mu)
        qkv, o, gate_up, down = (  # Nesterov's look ahead
            g.float().lerp(m, mu) for g, m in zip(self._gradients, self._momenta, strict=True)
        )
        shape, n = self._model.shape, self._model.shape.num_layers
        q, k, v = qkv.split(shape.qkv_split, 1)
        gate, up = gate_up.chunk(2, 1)
        square = orthogonal(torch.cat([q, o])) * shape.width**0.5
        narrow = orthogonal(torch.cat([k, v])) * shape.width**0.5
        wide = orthogonal(torch.cat([gate.mT, up.mT, down])) * shape.ff_width**0.5
        return [
            torch.cat([square[:n], narrow[:n], narrow[n:]], 1),
            square[n:],
            torch.cat([wide[:n].mT, wide[n : 2 * n].mT], 1),
            wide[2 * n :],
        ]

    @torch.no_grad()
    def publish(self, on_grid: bool) -> None:
        """Copy the masters, rounded or not, into the model's working copies."""
        parts = [*self._masters, self._master_embedding]
        sources = [self.round(part) if on_grid else part for part in parts]
        matrices = [m for part in sources[:-1] for m in part.unbind()]
        _copy_all(self._parameters, [*matrices, sources[-1]])

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Return the masters under the model's parameter names, float32 on the CPU."""
        masters = [m for part in self._masters for m in part.unbind()] + [self._master_embedding]
        by_id = {id(p): m for p, m in zip(self._parameters, masters, strict=True)}
        return {
            name: by_id.get(id(p), p).detach().float().cpu().clone()
            for name, p in self._model.named_parameters()
        }

    def momenta(self) -> dict[str, Any]:
        """Return what `load_momenta` takes: 0.65 GB for 135M parameters."""
        return {
            "steps": self._steps,
            "momentum": self._momentum.cpu(),
            "adamw": self._adamw.state_dict(),
        }

    def load_momenta(self, saved: dict[str, Any]) -> None:
        """Go on with the momenta of an earlier run of the same model and rates."""
        self._steps = saved["steps"]
        self._momentum.copy_(saved["momentum"])
        self._adamw.load_state_dict(saved["adamw"])


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target, with few launches on a GPU."""
    assert len(targets) == len(sources), "a parameter got no gradient"
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
