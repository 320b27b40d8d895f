"""Greedy decoding of many prompts at once, with any number of layers, for evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.layouts import END
from ..model.decoder import HEAD_DIM, Layer, Model, rms_norm, rotary_table, rotate


class Answers(NamedTuple):
    """What `greedy` wrote.

    Attributes:
        ids: the new ids of each prompt, without the stop token.
        logs: logarithm of their joint probability, the stop token's included.
        forks: of each prompt its likeliest other beginnings, the likelier first: the ids up to a
            place, and there the second likeliest token.
    """

    ids: list[list[int]]
    logs: list[float]
    forks: list[list[list[int]]]


class _Cache:
    """Keys and values of a batch of left-padded sequences."""

    def __init__(self, model: Model, depth: int, padding: Tensor, total: int) -> None:
        device, dtype = model.embedding.device, model.embedding.dtype
        self.shape, self.padding = model.shape, padding
        size = (depth, len(padding), self.shape.num_kv_heads, total, HEAD_DIM)
        self.keys = torch.zeros(*size, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.slots = torch.arange(total, device=device)
        self.table = rotary_table(total, device)
        self.start = 0

    def step(self, model: Model, ids: Tensor) -> Tensor:
        """Append ids (B, n); return the last position's logits (B, vocabulary)."""
        start, n = self.start, ids.shape[1]
        rows, columns = self.slots[start : start + n, None], self.slots[None, : start + n]
        places = (self.slots[start : start + n] - self.padding[:, None]).clamp(min=0)
        cos, sin = (table[places][:, None] for table in self.table)
        # A query sees the real keys up to itself (a padding query sees itself, to stay finite).
        mask = ((columns <= rows) & (columns >= self.padding[:, None, None])) | (columns == rows)
        x = F.embedding(ids, model.embedding)
        for number, layer in enumerate(model.stack[: len(self.keys)]):
            x = self._layer(layer, number, x, cos, sin, mask[:, None])
        self.start += n
        return model.logits(x[:, -1])

    def _layer(
        self, layer: Layer, number: int, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> Tensor:
        heads, kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        batch, n, _ = x.shape
        end = self.start + n
        qkv = F.linear(rms_norm(x, layer.norm1), layer.qkv)
        qkv = qkv.view(batch, n, heads + 2 * kv_heads, HEAD_DIM).transpose(1, 2)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)
        self.keys[number, :, :, self.start : end] = rotate(k, cos, sin)
        self.values[number, :, :, self.start : end] = v
        keys, values = (
            cache[number, :, :, :end].repeat_interleave(heads // kv_heads, 1)
            for cache in (self.keys, self.values)
        )
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), keys, values, attn_mask=mask)
        x = x + F.linear(y.transpose(1, 2).reshape(batch, n, -1), layer.o)
        gate, up = F.linear(rms_norm(x, layer.norm2), layer.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, layer.down)


@torch.inference_mode()
def greedy(
    model: Model,
    prompts: list[list[int]],
    max_new: int,
    depth: int,
    stop: int = END,
    halt: Tensor | None = None,
    num_forks: int = 0,
) -> Answers:
    """Decode a batch greedily.

    Args:
        model: whose first `depth` layers are used, then its norm and head.
        prompts: token ids.
        max_new: most tokens of an answer.
        depth: number of layers.
        stop: token that ends an answer.
        halt: (vocabulary,) bool, tokens after which an answer ends.
        num_forks: other beginnings to return of each.
    """
    device = model.embedding.device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = torch.tensor(prompt)
    ids = ids.to(device)
    padding = torch.tensor([longest - len(p) for p in prompts], device=device)
    cache = _Cache(model, depth, padding, longest + max_new)
    out = torch.full((len(prompts), max_new), stop, device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    logs = torch.zeros(len(prompts), device=device)
    others = torch.full_like(out, stop)
    other_logs = torch.full((len(prompts), max_new), -torch.inf, device=device)
    for step in range(max_new):
        best, two = cache.step(model, ids).float().log_softmax(-1).topk(2)
        others[:, step] = two[:, 1]
        other_logs[:, step] = torch.where(alive, logs + best[:, 1], -torch.inf)
        token = torch.where(alive, two[:, 0], stop)
        logs += torch.where(alive, best[:, 0], 0.0)
        out[:, step] = token
        alive &= token != stop
        if halt is not None:
            alive &= ~halt[token]
        ids = token[:, None]
        if step % 8 == 7 and not alive.any():  # asking makes the GPU wait
            break
    rows = [row[: row.index(stop)] if stop in row else row for row in out.tolist()]
    places = other_logs.topk(min(num_forks, max_new))
    second = others.tolist()
    forks = [
        [[*row[:at], second[i][at]] for at, log in zip(*found, strict=True) if log > -torch.inf]
        for i, (row, *found) in enumerate(
            zip(rows, places.indices.tolist(), places.values.tolist(), strict=True)
        )
    ]
    return Answers(rows, logs.tolist(), forks)
