"""SmolLM2-135M (Llama family) in plain PyTorch, for training on packed samples.

Samples lie end to end in a flat stream of tokens, `bounds` holds where they begin, and attention
never crosses one (variable-length flash attention on a GPU, a loop elsewhere). Rows may see a cache
that an edit has turned instead, see `data.turned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyturn.engine.model.config import ModelConfig

from ..data.layouts import MAX_TOKENS, VOCABULARY
from ..data.turned import Turned

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # only a GPU needs it
    varlen_attn = None

HEAD_DIM, THETA, EPSILON = 64, 1e5, 1e-5
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are SmolLM2-135M's."""

    num_layers: int = 30
    width: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3
    ff_width: int = 1536
    vocabulary: int = VOCABULARY

    @property
    def qkv_split(self) -> list[int]:
        """Rows of queries, keys and values."""
        return [n * HEAD_DIM for n in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]

    @classmethod
    def of_config(cls, config: ModelConfig) -> Shape:
        """Return the shape that the engine read from a model's files.

        Raises:
            ValueError: the model is none of SmolLM2's kind.
        """
        kind = (config.family, config.head_dim, config.rope_theta, config.tied_embeddings)
        if kind != ("llama", HEAD_DIM, THETA, True) or abs(config.norm_eps - EPSILON) > 1e-9:
            raise ValueError(
                f"a model of the kind {kind} with epsilon {config.norm_eps} cannot be trained here;"
                " use SmolLM2-135M or the embedded model"
            )
        return cls(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.intermediate_size,
            config.vocab_size,
        )

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Shape:
        """Return the shape of a checkpoint's weights."""
        num_heads = state["layers.0.o"].shape[1] // HEAD_DIM
        return cls(
            num_layers=sum(name.endswith(".qkv") for name in state),
            width=state["norm"].shape[0],
            num_heads=num_heads,
            num_kv_heads=(state["layers.0.qkv"].shape[0] // HEAD_DIM - num_heads) // 2,
            ff_width=state["layers.0.down"].shape[1],
            vocabulary=state["embedding"].shape[0],
        )


Turn = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # see `turn_of`
TINY = Shape(width=64, num_heads=1, num_kv_heads=1, ff_width=128)  # for tests on a CPU


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Normalise (..., width) by the root mean square, in float32."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPSILON)
    return y.to(x.dtype) * weight.to(x.dtype)


def rotary_table(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, HEAD_DIM) float32 of the rotary positions."""
    frequency = 1.0 / THETA ** (torch.arange(0, HEAD_DIM, 2, device=device).float() / HEAD_DIM)
    angle = torch.arange(length, device=device).float()[:, None] * frequency
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys (..., HEAD_DIM), half-split pairs."""
    y = x.float()
    a, b = y[..., : HEAD_DIM // 2], y[..., HEAD_DIM // 2 :]
    return (y * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """Attend causally inside of each sample.

    Args:
        q: (N, heads, HEAD_DIM).
        k: (N, kv heads, HEAD_DIM).
        v: the same.
        bounds: (samples + 1,) int32, where samples begin; none is longer than MAX_TOKENS.

    Returns:
        (N, heads, HEAD_DIM).
    """
    if q.is_cuda:
        assert varlen_attn is not None, "torch 2.10 or newer is needed on a GPU"
        y = varlen_attn(q, k, v, bounds, bounds, MAX_TOKENS, MAX_TOKENS, window_size=(-1, 0))
        assert isinstance(y, Tensor), "no log-sums were asked for"
        return y
    out = []
    for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        if b > a:
            own_q, own_k, own_v = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
            y = F.scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, enable_gqa=True)
            out.append(y[0].transpose(0, 1))
    return torch.cat(out)


def turn_of(turned: Turned, table: tuple[Tensor, Tensor]) -> Turn:
    """Return what `run_layer` needs of turned rows: their gathering, rotation, bounds, and use."""
    cos, sin = (t[turned.positions][:, None] for t in table)
    return turned.gather, cos, sin, turned.bounds, turned.source


def run_layer(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    bounds: Tensor,
    norm1: Tensor,
    norm2: Tensor,
    w_qkv: Tensor,
    w_o: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    turn: Turn | None = None,
) -> Tensor:
    """Run one layer over x (N, width); sizes of the heads follow from the weights.

    With a `turn`, keys and values are gathered once more, in the order that an edit gave them. Keys
    are rotated from the unrotated ones to their new places, as the engine's cache does it, and
    gradients reach the stale rows through them.
    """
    num_heads = w_o.shape[1] // HEAD_DIM
    num_kv_heads = (w_qkv.shape[0] // HEAD_DIM - num_heads) // 2
    qkv = F.linear(rms_norm(x, norm1), w_qkv).view(-1, num_heads + 2 * num_kv_heads, HEAD_DIM)
    q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], 1)
    y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous(), bounds)
    if turn is not None:
        gather, cos, sin, bounds, source = turn
        q, k, v = (t.index_select(0, gather) for t in (q, k, v))
        again = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, bounds)
        y = torch.cat([y, again]).index_select(0, source)
    x = x + F.linear(y.reshape(-1, num_heads * HEAD_DIM), w_o)
    gate, up = F.linear(rms_norm(x, norm2), w_gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, w_down)


class Layer(nn.Module):
    """The weights of one layer; what shares an input is one matrix."""

    def __init__(self, shape: Shape) -> None:
        """Start at random."""
        super().__init__()

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) * INIT_STD)

        width, heads_width = shape.width, shape.num_heads * HEAD_DIM
        self.norm1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.Parameter(torch.ones(width))
        self.qkv = matrix(sum(shape.qkv_split), width)
        self.o = matrix(width, heads_width)
        self.gate_up = matrix(2 * shape.ff_width, width)
        self.down = matrix(width, shape.ff_width)


class Model(nn.Module):
    """The decoder.

    Attributes:
        shape: its sizes.
        embedding: (vocabulary, width), the head's weights too.
        norm: (width,) before the head.
        layers: its layers.
        run: the function that runs a layer: `train.py` puts a compiled form there.
    """

    MATRICES = ("qkv", "o", "gate_up", "down")

    def __init__(self, shape: Shape | None = None) -> None:
        """Start at random."""
        super().__init__()
        self.shape = shape = shape or Shape()
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.width) * INIT_STD)
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.run = run_layer

    @property
    def stack(self) -> list[Layer]:
        """The layers, for those who want to know their type."""
        return cast("list[Layer]", list(self.layers))

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        bounds: Tensor,
        taps: set[int],
        turned: Turned | None = None,
    ) -> dict[int, Tensor]:
        """Return the hidden states (N, width) after the layers in `taps` (counted from 1).

        Args:
            token_ids: (N,) int64.
            positions: (N,) int64.
            bounds: (samples + 1,) int32, where samples begin.
            taps: numbers of layers.
            turned: rows that see a turned cache; None if there are none.
        """
        table = rotary_table(MAX_TOKENS, token_ids.device)
        cos, sin = (t[positions][:, None] for t in table)
        turn = None if turned is None else turn_of(turned, table)
        x = F.embedding(token_ids, self.embedding)
        out = {}
        for i, layer in enumerate(self.stack, 1):
            weights = (layer.norm1, layer.norm2, layer.qkv, layer.o, layer.gate_up, layer.down)
            x = self.run(x, cos, sin, bounds, *weights, turn)
            if i in taps:
                out[i] = x
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (N, vocabulary) logits of hidden states (N, width) of any layer."""
        return F.linear(rms_norm(hidden, self.norm), self.embedding)
