"""The training loss: weighted cross-entropy of the last layer, and of exits on the middles.

An exit is a layer whose state the shared norm and head read too, as in LayerSkip (arXiv
2404.16710, section 4.1). Its target mixes the true token with the last layer's distribution. Rows
over a cache that an edit has turned are learned the same way: their target mixes the true token
with the distribution over the fresh cache. With `candidates` the cross-entropy of a middle fades
where the model is sure of the whole of it. Logits are never kept: the forward pass makes the
gradients as well, by chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..data.batches import MAX_SAMPLES, Batch
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


def confidence_limit(nll: Tensor, candidates: int) -> Tensor:
    """Return what each middle's cross-entropy is multiplied by, (n,) in 0..1.

    The gradient of -log(1 - (1 - p)^N), the coverage of N samples, is this factor times that of
    -log p: 1 where p is small, 0 where the answer comes anyway (arXiv 2502.07154, section 4.2).

    Args:
        nll: (n,) negative log-likelihood of each middle as a whole.
        candidates: N; 1 gives 1.
    """
    log_p, n = -nll.double().clamp(min=1e-9), candidates
    log_q = torch.log(-torch.expm1(log_p))  # of 1 - p
    missed = n * log_q
    factor = n * torch.exp((n - 1) * log_q + log_p) / -torch.expm1(missed)
    return factor.clamp(0, 1).float()


@dataclass
class LossOptions:
    """How the loss is made.

    Attributes:
        num_exit: how many of the selected positions the exits see, the first ones.
        chunk: positions whose logits exist at a time.
        exit_weight: of all exits together; the last layer's is 1.
        soft_share: of the last layer's distribution in an exit's target.
        turned_weight: of rows over a turned cache together.
        turned_soft_share: of the distribution over the fresh cache in their target.
        candidates: how many samples of a middle may be wrong but one; 1 is plain cross-entropy.
        of_head: `head_gradient`, or a compiled form of it.
        of_exit: `exit_gradient`, likewise.
    """

    num_exit: int
    chunk: int = 8192
    exit_weight: float = 1.0
    soft_share: float = 0.85
    turned_weight: float = 1.0
    turned_soft_share: float = 0.85
    candidates: int = 1
    of_head: Callable[..., tuple[Tensor, Tensor]] = head_gradient
    of_exit: Callable[..., tuple[Tensor, Tensor, Tensor]] = exit_gradient

    def compile(self) -> None:
        """Put compiled forms of the gradients in place."""
        self.of_head = torch.compile(head_gradient, dynamic=False)
        self.of_exit = torch.compile(exit_gradient, dynamic=False)


class _Pupil(NamedTuple):
    """States that are to say what the last layer does at the first selected places.

    Attributes:
        states: (n, width).
        weights: (n,) float32.
        soft: share of the last layer's distribution in their target.
    """

    states: Tensor
    weights: Tensor
    soft: float


class _HeadLoss(torch.autograd.Function):
    """The loss of states (K, width); of the first rows there are pupils' states too."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        options: LossOptions,
        h: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weights: Tensor,
        about: Sequence[tuple[Tensor, float]],
        *states: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pupils = [_Pupil(x, *more) for x, more in zip(states, about, strict=True)]
        num = h.shape[0]
        d_embedding = torch.zeros(embedding.shape, dtype=torch.float32, device=h.device)
        d_h, d_states = torch.empty_like(h), [torch.empty_like(x) for x in states]
        nll = torch.empty(num, device=h.device)
        figures = torch.zeros(len(states), 3, device=h.device)
        for a, b in _chunks(num, {len(x) for x in states}, options.chunk):
            logits = h[a:b] @ embedding.t()
            nll[a:b], d = options.of_head(logits, targets[a:b], weights[a:b])
            d_h[a:b] = d @ embedding
            d_embedding += d.t() @ h[a:b]
            for i, pupil in enumerate(pupils):
                if b > len(pupil.states):
                    continue
                x, w = pupil.states[a:b], pupil.weights[a:b]
                own = x @ embedding.t()
                loss, same, d = options.of_exit(own, logits, targets[a:b], w, pupil.soft)
                d_states[i][a:b] = d @ embedding
                d_embedding += d.t() @ x
                live = (w > 0).float()
                figures[i] += torch.stack([(loss * live).sum(), (same * live).sum(), live.sum()])
        stats = figures[:, :2] / figures[:, 2:].clamp(min=1)
        ctx.save_for_backward(d_h, d_embedding.to(embedding.dtype), *d_states)
        ctx.mark_non_differentiable(nll, stats)
        return (nll * weights).sum(), nll, stats

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, g: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved: list[Tensor] = list(ctx.saved_tensors)  # pyright: ignore
        d_h, d_embedding, *d_states = saved
        return (None, d_h * g, d_embedding * g, None, None, None, *[x * g for x in d_states])


def _chunks(num: int, edges: set[int], size: int) -> list[tuple[int, int]]:
    """Return stretches of 0 .. num, none longer than `size` and none across an edge."""
    marks = sorted({0, num, *edges})
    starts = [at for a, b in zip(marks, marks[1:], strict=False) for at in range(a, b, size)]
    return list(zip(starts, [*starts[1:], num], strict=True))


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
        The loss; (K,) likelihoods of the selected; loss and agreement of each exit, (exits, 2), and
        behind them of the rows over a turned cache, if the batch has any.
    """
    last, turned = model.shape.num_layers, batch.turned
    place = (batch.token_ids, batch.positions, batch.bounds)
    hidden = model.hidden(*place, {*exits, last}, turned)
    h = rms_norm(hidden[last][batch.selected], model.norm)
    seen = batch.selected[: options.num_exit]
    states = [rms_norm(hidden[layer][seen], model.norm) for layer in exits]
    weights = batch.weights
    if options.candidates > 1:
        weights = weights * _limits(model, h, batch, options)
    of_exits = weights[: options.num_exit]
    of_exits = (
        of_exits / of_exits.sum().clamp(min=1e-9) * (options.exit_weight / max(1, len(exits)))
    )
    about = [(of_exits, options.soft_share)] * len(exits)
    if turned is not None:
        states.append(rms_norm(hidden[last][turned.rows], model.norm))
        about.append((turned.weights * options.turned_weight, options.turned_soft_share))
    return _HeadLoss.apply(  # pyright: ignore
        options, h, model.embedding, batch.targets, weights, about, *states
    )


@torch.no_grad()
def _limits(model: Model, h: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """Return each selected place's factor, see `confidence_limit`: 1 for what is no middle."""
    num = batch.num_middle
    nll = torch.zeros(len(h), device=h.device)
    for a, b in _chunks(num, set(), options.chunk):
        logits = (h[a:b] @ model.embedding.t()).float()
        nll[a:b] = F.cross_entropy(logits, batch.targets[a:b], reduction="none")
    whole = torch.zeros(MAX_SAMPLES + 1, device=h.device)
    whole.index_add_(0, batch.sample[:num], nll[:num])
    factor = confidence_limit(whole, options.candidates)[batch.sample]
    return torch.where(torch.arange(len(h), device=h.device) < num, factor, 1.0)
