"""The training loss: weighted cross-entropy of the last layer, and of exits on the middles.

An exit is a layer whose state the shared norm and head read too, as in LayerSkip (arXiv
2404.16710, section 4.1). Its target mixes the true token with the last layer's distribution.
Logits are never kept: the forward pass makes the gradients as well, by chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..data.batches import Batch
from .decoder import Model, rms_norm

EXITS = (6, 10, 14, 18, 22, 26)  # layers, counted from 1
# Two a step, in turn: 14 and 22 most often, which the product may use.
EXIT_PAIRS = ((14, 22), (22, 10), (14, 26), (22, 18), (14, 22), (22, 6), (14, 18), (14, 10))


def head_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's negative log-likelihood and the gradient of their weighted sum.

    Args:
        logits: (n, vocabulary).
        targets: (n,) int64.
        weights: (n,) float32.

    Returns:
        (n,) float32 and (n, vocabulary) in the logits' dtype.
    """
    z = logits.float()
    lse = torch.logsumexp(z, -1, keepdim=True)
    hot = torch.arange(z.shape[1], device=z.device)[None] == targets[:, None]
    nll = lse[:, 0] - z.gather(1, targets[:, None])[:, 0]
    return nll, ((torch.exp(z - lse) - hot.float()) * weights[:, None]).to(logits.dtype)


def exit_gradient(
    logits: Tensor, teacher: Tensor, targets: Tensor, weights: Tensor, soft: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an exit's likelihoods, where it agrees with the last layer, and its gradient.

    Args:
        logits: (n, vocabulary) of the exit.
        teacher: (n, vocabulary) of the last layer; no gradient reaches it.
        targets: (n,) int64.
        weights: (n,) float32.
        soft: share of the teacher's distribution in the target.

    Returns:
        Negative log-likelihoods of the true tokens (n,), 1.0 where both find the same token
        likeliest (n,), and (n, vocabulary) in the logits' dtype.
    """
    z, t = logits.float(), teacher.float()
    lse = torch.logsumexp(z, -1, keepdim=True)
    hot = (torch.arange(z.shape[1], device=z.device)[None] == targets[:, None]).float()
    goal = (1 - soft) * hot + soft * torch.exp(t - torch.logsumexp(t, -1, keepdim=True))
    same = (z.argmax(-1) == t.argmax(-1)).float()
    nll = lse[:, 0] - z.gather(1, targets[:, None])[:, 0]
    return nll, same, ((torch.exp(z - lse) - goal) * weights[:, None]).to(logits.dtype)


@dataclass
class LossOptions:
    """How the loss is made.

    Attributes:
        num_exit: how many of the selected positions the exits see, the first ones.
        chunk: positions whose logits exist at a time.
        exit_weight: of all exits together; the last layer's is 1.
        soft_share: of the last layer's distribution in an exit's target.
        of_head: `head_gradient`, or a compiled form of it.
        of_exit: `exit_gradient`, likewise.
    """

    num_exit: int
    chunk: int = 8192
    exit_weight: float = 1.0
    soft_share: float = 0.85
    of_head: Callable[..., tuple[Tensor, Tensor]] = head_gradient
    of_exit: Callable[..., tuple[Tensor, Tensor, Tensor]] = exit_gradient

    def compile(self) -> None:
        """Put compiled forms of the gradients in place."""
        self.of_head = torch.compile(head_gradient, dynamic=False)
        self.of_exit = torch.compile(exit_gradient, dynamic=False)


class _HeadLoss(torch.autograd.Function):
    """The loss of states (K, width); the first `num_exit` rows have exits' states too."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        options: LossOptions,
        h: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weights: Tensor,
        *exits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_exit, num = options.num_exit, h.shape[0]
        d_embedding = torch.zeros(embedding.shape, dtype=torch.float32, device=h.device)
        d_h, d_exits = torch.empty_like(h), [torch.empty_like(x) for x in exits]
        nll = torch.empty(num, device=h.device)
        share = options.exit_weight / max(1, len(exits))
        exit_weights = weights[:num_exit] / weights[:num_exit].sum() * share
        figures = []
        edges = [*range(0, num_exit, options.chunk), *range(num_exit, num, options.chunk), num]
        for a, b in zip(edges, edges[1:], strict=False):
            logits = h[a:b] @ embedding.t()
            nll[a:b], d = options.of_head(logits, targets[a:b], weights[a:b])
            d_h[a:b] = d @ embedding
            d_embedding += d.t() @ h[a:b]
            for x, d_exit in zip(exits, d_exits, strict=True) if b <= num_exit else ():
                loss, same, d = options.of_exit(
                    x[a:b] @ embedding.t(),
                    logits,
                    targets[a:b],
                    exit_weights[a:b],
                    options.soft_share,
                )
                d_exit[a:b] = d @ embedding
                d_embedding += d.t() @ x[a:b]
                figures.append(torch.stack([loss.mean(), same.mean()]))
        stats = torch.zeros(0, 2)
        if figures:
            stats = torch.stack(figures).view(-1, len(exits), 2).mean(0)
        ctx.save_for_backward(d_h, d_embedding.to(embedding.dtype), *d_exits)
        ctx.mark_non_differentiable(nll, stats)
        return (nll * weights).sum(), nll, stats

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, g: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved: list[Tensor] = list(ctx.saved_tensors)  # pyright: ignore
        d_h, d_embedding, *d_exits = saved
        return (None, d_h * g, d_embedding * g, None, None, *[x * g for x in d_exits])


def losses(
    model: Model, batch: Batch, exits: tuple[int, ...], options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of a batch and what it is made of.

    Args:
        model: the model.
        batch: the samples.
        exits: layers that are trained as exits in this step; () for none.
        options: see `LossOptions`.

    Returns:
        The loss; (K,) likelihoods of the selected; (exits, 2) loss and agreement of each exit.
    """
    last = model.shape.num_layers
    hidden = model.hidden(batch.token_ids, batch.positions, batch.bounds, {*exits, last})
    h = rms_norm(hidden[last][batch.selected], model.norm)
    seen = batch.selected[: options.num_exit]
    states = [rms_norm(hidden[layer][seen], model.norm) for layer in exits]
    return _HeadLoss.apply(  # pyright: ignore
        options, h, model.embedding, batch.targets, batch.weights, *states
    )
