"""The training loss: weighted cross-entropy of the last layer, and of two exits on the middles.

An exit's target mixes the true token with the last layer's distribution. Logits are never kept:
the forward pass makes the gradients as well, by chunks.
"""

from __future__ import annotations

import torch
from batches import Batch
from model import NUM_LAYERS, Model, rms_norm
from torch import Tensor
from torch.autograd.function import FunctionCtx

EXIT_WEIGHT = 0.5  # of all exits together
SOFT_SHARE = 0.5  # of the last layer's distribution in an exit's target
EXITS = (6, 10, 14, 18, 22, 26)
EXIT_PAIRS = ((14, 6), (22, 10), (14, 26), (22, 18), (14, 10), (22, 6), (14, 18), (22, 26))


def head_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihoods and the gradient of their weighted sum."""
    z = logits.float()
    lse = torch.logsumexp(z, -1, keepdim=True)
    hot = torch.arange(z.shape[1], device=z.device)[None] == targets[:, None]
    nll = lse[:, 0] - z.gather(1, targets[:, None])[:, 0]
    return nll, ((torch.exp(z - lse) - hot.float()) * weights[:, None]).to(logits.dtype)


def exit_gradient(
    logits: Tensor, teacher: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an exit's likelihoods, where it agrees with the last layer, and its gradient."""
    z, t = logits.float(), teacher.float()
    lse = torch.logsumexp(z, -1, keepdim=True)
    hot = (torch.arange(z.shape[1], device=z.device)[None] == targets[:, None]).float()
    goal = (1 - SOFT_SHARE) * hot + SOFT_SHARE * torch.exp(t - torch.logsumexp(t, -1, keepdim=True))
    same = (z.argmax(-1) == t.argmax(-1)).float()
    nll = lse[:, 0] - z.gather(1, targets[:, None])[:, 0]
    return nll, same, ((torch.exp(z - lse) - goal) * weights[:, None]).to(logits.dtype)


class _HeadLoss(torch.autograd.Function):
    """The loss of hidden states (K, width); the first `num_exit` rows have exits' states too."""

    gradients = head_gradient, exit_gradient  # train.py puts compiled forms here

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        h: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weights: Tensor,
        chunk: int,
        num_exit: int,
        *exits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, of_exit = _HeadLoss.gradients
        d_embedding = torch.zeros(embedding.shape, dtype=torch.float32, device=h.device)
        d_h, d_exits = torch.empty_like(h), [torch.empty_like(x) for x in exits]
        nll, stats = torch.empty(h.shape[0], device=h.device), []
        exit_weights = (
            weights[:num_exit] / weights[:num_exit].sum() * (EXIT_WEIGHT / max(1, len(exits)))
        )
        edges = [*range(0, num_exit, chunk), *range(num_exit, h.shape[0], chunk), h.shape[0]]
        for a, b in zip(edges, edges[1:], strict=False):
            logits = h[a:b] @ embedding.t()
            nll[a:b], d = head(logits, targets[a:b], weights[a:b])
            d_h[a:b] = d @ embedding
            d_embedding += d.t() @ h[a:b]
            if b <= num_exit:
                for x, g in zip(exits, d_exits, strict=False):
                    loss, same, d = of_exit(
                        x[a:b] @ embedding.t(), logits, targets[a:b], exit_weights[a:b]
                    )
                    g[a:b] = d @ embedding
                    d_embedding += d.t() @ x[a:b]
                    stats.append(torch.stack([loss.mean(), same.mean()]))
        stats = (
            torch.stack(stats).view(-1, max(1, len(exits)), 2).mean(0)
            if stats
            else torch.zeros(1, 2)
        )
        ctx.save_for_backward(d_h, d_embedding.to(embedding.dtype), *d_exits)
        ctx.mark_non_differentiable(nll, stats)
        return (nll * weights).sum(), nll, stats

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor, *_: Tensor) -> tuple:
        d_h, d_embedding, *d_exits = ctx.saved_tensors
        return (d_h * g, d_embedding * g, None, None, None, None, *[x * g for x in d_exits])


def losses(
    model: Model, batch: Batch, exits: tuple[int, ...], num_exit: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the likelihoods of the selected, and (loss, agreement) of each exit."""
    hidden = model.hidden(batch.token_ids, batch.positions, batch.bounds, {*exits, NUM_LAYERS})
    h = rms_norm(hidden[NUM_LAYERS][batch.selected], model.norm)
    states = [rms_norm(hidden[e][batch.selected[:num_exit]], model.norm) for e in exits]
    return _HeadLoss.apply(
        h, model.embedding, batch.targets, batch.weights, chunk, num_exit, *states
    )


def compile_losses() -> None:
    """Put compiled forms of the gradients in place."""
    _HeadLoss.gradients = tuple(
        torch.compile(f, dynamic=False) for f in (head_gradient, exit_gradient)
    )
