"""Muon for matrices, AdamW for embedding and norms; fp32 masters, bf16 working copies."""

from __future__ import annotations

import quants
import torch
import torch.distributed as dist
from model import FF_WIDTH, NUM_LAYERS, QKV_SPLIT, VOCABULARY, WIDTH, Model
from torch import Tensor

NORM_LR = 1e-3
ADAMW_STEP = 0.2  # Muon's update has an AdamW step's size (root mean square)


def orthogonal(x: Tensor) -> Tensor:
    """Orthogonalise a batch of matrices with rows <= columns: Muon's five Newton-Schulz steps."""
    x = x.bfloat16()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(5):
        g = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(g, g, g, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


class Optimiser:
    """Own the masters (one flat fp32 tensor) and the gradients; publish working copies.

    With `on_grid`, working copies of all matrices, the embedding's too, are the masters rounded to
    Q4_1: gradients pass straight through.
    """

    def __init__(
        self, model: Model, lr: float, embedding_lr: float, decay: float, world: int = 1
    ) -> None:
        """Take the masters from the model, whose parameters become bf16 working copies."""
        self.lr, self.embedding_lr, self.decay, self.world = lr, embedding_lr, decay, world
        self.steps, self.round = 0, quants.q4_1
        device = model.embedding.device
        shapes = [getattr(model.layers[0], name).shape for name in Model.MATRICES]
        sizes = [NUM_LAYERS * s.numel() for s in shapes] + [VOCABULARY * WIDTH]
        self.master = torch.empty(sum(sizes), device=device)
        self.gradient = torch.zeros(sum(sizes), device=device, dtype=torch.bfloat16)
        self.momentum = torch.zeros(sum(sizes[:-1]), device=device)

        def cut(flat: Tensor) -> list[Tensor]:
            parts = flat[: sum(sizes[:-1])].split(sizes[:-1])
            return [
                part.view(NUM_LAYERS, *shape) for part, shape in zip(parts, shapes, strict=False)
            ]

        self.masters, self.gradients, self.momenta = (
            cut(self.master),
            cut(self.gradient),
            cut(self.momentum),
        )
        self.master_embedding = self.master[-VOCABULARY * WIDTH :].view(VOCABULARY, WIDTH)
        self.gradient_embedding = self.gradient[-VOCABULARY * WIDTH :].view(VOCABULARY, WIDTH)
        matrices = [[getattr(layer, name) for layer in model.layers] for name in Model.MATRICES]
        with torch.no_grad():
            for master, part in zip(self.masters, matrices, strict=False):
                master.copy_(torch.stack([p.float() for p in part]))
            self.master_embedding.copy_(model.embedding.float())
        self.parameters = [p for part in matrices for p in part] + [model.embedding]
        self.flat_gradients = [g for part in self.gradients for g in part.unbind()] + [
            self.gradient_embedding
        ]
        for p in self.parameters:
            p.data = p.data.to(torch.bfloat16)
        self.norms = [p for p in model.parameters() if p.dim() == 1]
        self.embedding = torch.nn.Parameter(self.master_embedding)
        groups = [
            {"params": [self.embedding], "lr": embedding_lr, "base": embedding_lr},
            {"params": self.norms, "lr": NORM_LR, "base": NORM_LR},
        ]
        fused = device.type == "cuda"
        self.adamw = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=fused
        )
        self.model = model

    @torch.no_grad()
    def collect(self) -> None:
        """Take the gradients off the parameters, averaged over the ranks."""
        torch._foreach_copy_(self.flat_gradients, [p.grad for p in self.parameters])
        small = torch.cat([p.grad for p in self.norms])
        if self.world > 1:
            dist.all_reduce(self.gradient)
            dist.all_reduce(small)
            self.gradient /= self.world
            small /= self.world
        small.nan_to_num_(0.0, 0.0, 0.0)
        for p, g in zip(self.norms, small.split(WIDTH), strict=False):
            p.grad = g
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, scale: float, on_grid: bool) -> Tensor:
        """Update the masters at `scale` times the rates; return the embedding gradient's norm."""
        self.steps += 1
        self.gradient.nan_to_num_(0.0, 0.0, 0.0)
        mu = 0.85 + 0.1 * min(1, self.steps / 200)
        lr = self.lr * scale
        self.momentum.lerp_(self.gradient[: len(self.momentum)].float(), 1 - mu)
        ahead = [
            g.float().lerp(m, mu) for g, m in zip(self.gradients, self.momenta, strict=False)
        ]  # Nesterov
        q, k, v = ahead[0].split(QKV_SPLIT, 1)
        gate, up = ahead[2].chunk(2, 1)
        n = NUM_LAYERS
        square = orthogonal(torch.cat([q, ahead[1]])) * WIDTH**0.5
        narrow = orthogonal(torch.cat([k, v])) * WIDTH**0.5
        wide = orthogonal(torch.cat([gate.mT, up.mT, ahead[3]])) * FF_WIDTH**0.5
        updates = [
            torch.cat([square[:n], narrow[:n], narrow[n:]], 1),
            square[n:],
            torch.cat([wide[:n].mT, wide[n : 2 * n].mT], 1),
            wide[2 * n :],
        ]
        for master, update in zip(self.masters, updates, strict=False):
            master.mul_(1 - lr * self.decay).add_(update.float(), alpha=-ADAMW_STEP * lr)
        g = self.gradient_embedding.float()
        norm = g.norm()
        self.embedding.grad = g * (1.0 / norm.clamp(min=1.0))
        for group in self.adamw.param_groups:
            group["lr"] = group["base"] * scale
        self.adamw.step()
        self.publish(on_grid)
        return norm

    @torch.no_grad()
    def publish(self, on_grid: bool) -> None:
        """Copy the masters, rounded or not, into the model's working copies."""
        sources = [
            m for part in self.masters for m in (self.round(part) if on_grid else part).unbind()
        ]
        embedding = self.round(self.master_embedding) if on_grid else self.master_embedding
        torch._foreach_copy_(self.parameters, [*sources, embedding])

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Return the masters under the model's parameter names, on the CPU."""
        by_id = {id(p): m for p, m in zip(self.parameters, self._flat_masters(), strict=False)}
        out = {}
        for name, p in self.model.named_parameters():
            out[name] = by_id.get(id(p), p).detach().float().cpu().clone()
        return out

    def _flat_masters(self) -> list[Tensor]:
        return [m for part in self.masters for m in part.unbind()] + [self.master_embedding]
