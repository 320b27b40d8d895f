"""From the layers' output to logits: of all tokens, of some, and what picking reads of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.cpu.step import CpuStep
from ...kernels.weights.linear import Matrix
from ...kernels.weights.packed import QuantWeight, RowSource
from .attention import capped
from .kv_cache import Slots
from .layers import LayerStack

# On the CPU up to so many rows go to logits in one call.
_STEP_LOGITS = 64
# A vocabulary that was learnt by merging has the commonest tokens first. In held-out code these are
# 78 to 95 % of what is written; of the others nearly all stand in the prompt already.
_COMMONEST = 8192
# Of a log-probability, for the entropy: what was ruled out has -inf.
_LEAST_LOG = -1e9

Head = Callable[[Tensor], Tensor]


class Summary(NamedTuple):
    """What is read of the logits after a row.

    Attributes:
        best: the likeliest token.
        largest: its logit.
        log_sum: logarithm of the sum of all exponentials.
        entropy: of the distribution, in nats.
    """

    best: int
    largest: float
    log_sum: float
    entropy: float


class Logits(NamedTuple):
    """Logits after some rows.

    Attributes:
        rows: (n, vocab_size) float32; the next pass over the cache may overwrite them.
        summaries: (n, 4) float64 from `summarized`, where a GPU has made them: one copy then tells
            the host of all rows. None: whoever needs them finds them.
    """

    rows: Tensor
    summaries: Tensor | None = None

    def read(self) -> list[tuple[Tensor, Summary | None]]:
        """Wait for a GPU; return each row's logits, and what is known of them if it was made."""
        if self.summaries is None:
            return [(row, None) for row in self.rows]
        known = [Summary(int(best), *others) for best, *others in self.summaries.tolist()]
        return list(zip(self.rows, known, strict=True))


def summarized(logits: Tensor) -> Tensor:
    """Return the fields of `Summary` for (n, vocab_size) float32 logits, (n, 4) float64."""
    largest, best = logits.max(-1)
    log_sum = logits.logsumexp(-1)
    logs = logits - log_sum[:, None]
    entropy = -(logs.exp() * logs.clamp_min(_LEAST_LOG)).sum(-1)
    return torch.stack([part.double() for part in (best, largest, log_sum, entropy)], -1)


def head_of(stack: LayerStack, step: CpuStep | None) -> Head:
    """Return what turns (n, hidden_size) last-layer outputs into (n, vocab_size) float32 logits.

    The C library's logits are exact to float32; it has the quicker head for up to 64 rows.
    """
    if step is None or stack.head_bias is not None or stack.config.logit_cap is not None:
        return stack.logits
    few: Head = step.logits
    return lambda hidden: (few if len(hidden) <= _STEP_LOGITS else stack.logits)(hidden)


def head_over(stack: LayerStack, step: CpuStep | None, head: RowSource, token_ids: Tensor) -> Head:
    """Return what gives (n, m) float32 logits of (m,) int64 tokens alone; their rows are copied.

    Args:
        stack: the layers.
        step: the C library, where it is there.
        head: (vocab_size, hidden_size).
        token_ids: (m,) int64, on the host.
    """
    at = token_ids.to(stack.device)
    rows = _part(head, at)
    cap, bias = stack.config.logit_cap, stack.head_bias
    if step is not None and not isinstance(rows, QuantWeight) and cap is None and bias is None:
        return functools.partial(step.logits, head=rows)
    dense = rows if isinstance(rows, Tensor) else rows.values(stack.dtype)

    def logits(hidden: Tensor) -> Tensor:
        found = functional.linear(stack.norm(hidden.to(stack.dtype)), dense).float()
        if bias is not None:
            found += bias[at]
        return found if cap is None else capped(found, cap)

    return logits


class DraftHead:
    """Finds the likeliest token among the commonest ones and some more.

    The head is a fifth of the embedded model, and a draft may be wrong. Where the C library has not
    got the head, all of it is computed.

    Attributes:
        share: of the whole head's cost.
    """

    def __init__(
        self,
        whole: Head,
        step: CpuStep | None,
        head: RowSource,
        token_ids: Slots,
    ) -> None:
        """Choose the tokens.

        Args:
            whole: (n, hidden_size) hidden states to all logits.
            step: the C library with the head, if it has it.
            head: (vocab_size, hidden_size).
            token_ids: tokens besides the commonest.
        """
        self._whole, self._step = whole, step
        self._parts: list[tuple[Matrix, Slots | None]] = []
        vocab_size = head.shape[0]
        if step is None or isinstance(head, QuantWeight) or vocab_size <= _COMMONEST:
            self._step, self.share = None, 1.0
            return
        more = np.unique(token_ids[(token_ids >= _COMMONEST) & (token_ids < vocab_size)])
        self._parts.append((_part(head, slice(_COMMONEST)), None))
        if len(more):
            self._parts.append((_part(head, torch.from_numpy(more)), more))
        self.share = (_COMMONEST + len(more)) / vocab_size

    @torch.inference_mode()
    def best(self, hidden: Tensor) -> tuple[int, float]:
        """Return the likeliest token after (1, hidden_size) and its probability among these."""
        if self._step is None:
            logits = self._whole(hidden)[0]
            largest, at = logits.max(-1)
            return int(at), math.exp(float(largest - logits.logsumexp(-1)))
        found: list[tuple[float, int]] = []
        sums: list[float] = []
        for rows, token_ids in self._parts:
            logits = self._step.logits(hidden, rows)[0]
            largest, at = logits.max(-1)
            found.append((float(largest), int(at if token_ids is None else token_ids[int(at)])))
            sums.append(float(logits.logsumexp(-1)))
        largest, best = max(found)
        most = max(sums)
        log_sum = most + math.log(sum(math.exp(each - most) for each in sums))
        return best, math.exp(largest - log_sum)


@overload
def _part(matrix: Matrix, rows: slice | Tensor) -> Matrix: ...
@overload
def _part(matrix: RowSource, rows: slice | Tensor) -> RowSource: ...
def _part(matrix: RowSource, rows: slice | Tensor) -> RowSource:
    return matrix[rows] if isinstance(matrix, Tensor) else matrix.at(rows)
