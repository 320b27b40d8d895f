"""SmolLM2-135M (Llama family) in plain PyTorch, for training on packed samples and greedy decoding.

Training runs on a flat stream of tokens: samples lie end to end, `bounds` holds where they begin,
and attention never crosses one (variable-length flash attention on a GPU, a loop elsewhere).
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

NUM_LAYERS, WIDTH, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, FF_WIDTH = 30, 576, 9, 3, 64, 1536
VOCABULARY, THETA, EPSILON = 49152, 1e5, 1e-5
MAX_TOKENS = 2048  # in a sample
if os.environ.get("KEYTURN_TINY"):  # for a test on a CPU
    WIDTH, NUM_HEADS, NUM_KV_HEADS, FF_WIDTH = 64, 1, 1, 128
QKV_SPLIT = [NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Normalise by the root mean square, in fp32."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPSILON)
    return y.to(x.dtype) * weight.to(x.dtype)


def rotary_table(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, HEAD_DIM) of the rotary positions."""
    frequency = 1.0 / THETA ** (torch.arange(0, HEAD_DIM, 2, device=device).float() / HEAD_DIM)
    angle = torch.arange(length, device=device).float()[:, None] * frequency
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys (..., HEAD_DIM), half-split pairs."""
    y = x.float()
    a, b = y[..., : HEAD_DIM // 2], y[..., HEAD_DIM // 2 :]
    return (y * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """Attend causally inside each sample; q (N, heads, dim), k and v (N, kv heads, dim)."""
    if q.is_cuda:
        return varlen_attn(q, k, v, bounds, bounds, MAX_TOKENS, MAX_TOKENS, window_size=(-1, 0))
    out = []
    for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        if b > a:
            part = [t[a:b].transpose(0, 1)[None] for t in (q, k, v)]
            y = F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
            out.append(y[0].transpose(0, 1))
    return torch.cat(out)


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
) -> Tensor:
    """Run one layer over x (N, WIDTH)."""
    qkv = F.linear(rms_norm(x, norm1), w_qkv).view(-1, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM)
    q, k, v = qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], 1)
    y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous(), bounds)
    x = x + F.linear(y.reshape(-1, NUM_HEADS * HEAD_DIM), w_o)
    gate, up = F.linear(rms_norm(x, norm2), w_gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, w_down)


class Layer(nn.Module):
    """The weights of one layer."""

    def __init__(self) -> None:
        """Start at random."""
        super().__init__()
        self.norm1, self.norm2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.qkv = nn.Parameter(torch.randn(sum(QKV_SPLIT), WIDTH) * 0.02)
        self.o = nn.Parameter(torch.randn(WIDTH, NUM_HEADS * HEAD_DIM) * 0.02)
        self.gate_up = nn.Parameter(torch.randn(2 * FF_WIDTH, WIDTH) * 0.02)
        self.down = nn.Parameter(torch.randn(WIDTH, FF_WIDTH) * 0.02)


class Model(nn.Module):
    """`run` is the function that runs a layer: `train.py` puts a compiled form there."""

    MATRICES = ("qkv", "o", "gate_up", "down")

    def __init__(self) -> None:
        """Start at random."""
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.02)
        self.norm = nn.Parameter(torch.ones(WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.run = run_layer

    def hidden(
        self, token_ids: Tensor, positions: Tensor, bounds: Tensor, taps: set[int]
    ) -> dict[int, Tensor]:
        """Return the hidden states (N, WIDTH) after the layers in `taps` (counts from 1)."""
        cos, sin = (t[positions][:, None] for t in rotary_table(MAX_TOKENS, token_ids.device))
        x = F.embedding(token_ids, self.embedding)
        out = {}
        for i, layer in enumerate(self.layers, 1):
            weights = (layer.norm1, layer.norm2, layer.qkv, layer.o, layer.gate_up, layer.down)
            x = self.run(x, cos, sin, bounds, *weights)
            if i in taps:
                out[i] = x
        return out

    # ---- names of transformers' Llama <-> the fused weights here

    def load_named(self, weights: dict) -> Model:
        """Load weights under transformers' names."""

        def tensor(name: str) -> Tensor:
            return torch.as_tensor(weights[name + ".weight"]).float()

        state = {"embedding": tensor("model.embed_tokens"), "norm": tensor("model.norm")}
        for i in range(NUM_LAYERS):
            theirs, ours = f"model.layers.{i}.", f"layers.{i}."
            state[ours + "norm1"] = tensor(theirs + "input_layernorm")
            state[ours + "norm2"] = tensor(theirs + "post_attention_layernorm")
            state[ours + "qkv"] = torch.cat([tensor(theirs + f"self_attn.{c}_proj") for c in "qkv"])
            state[ours + "o"] = tensor(theirs + "self_attn.o_proj")
            state[ours + "gate_up"] = torch.cat(
                [tensor(theirs + "mlp.gate_proj"), tensor(theirs + "mlp.up_proj")]
            )
            state[ours + "down"] = tensor(theirs + "mlp.down_proj")
        self.load_state_dict(state)
        return self

    def named(self) -> dict[str, Tensor]:
        """Return the weights under transformers' names."""
        out = {"model.embed_tokens": self.embedding, "model.norm": self.norm}
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            out[p + "input_layernorm"], out[p + "post_attention_layernorm"] = (
                layer.norm1,
                layer.norm2,
            )
            for c, part in zip("qkv", layer.qkv.split(QKV_SPLIT), strict=False):
                out[p + f"self_attn.{c}_proj"] = part
            out[p + "self_attn.o_proj"] = layer.o
            out[p + "mlp.gate_proj"], out[p + "mlp.up_proj"] = layer.gate_up.chunk(2)
            out[p + "mlp.down_proj"] = layer.down
        return {k + ".weight": v.detach() for k, v in out.items()}


@torch.inference_mode()
def greedy(
    model: Model,
    prompts: list[list[int]],
    max_new: int,
    depth: int = NUM_LAYERS,
    stop: int = 0,
    halt: Tensor | None = None,
) -> list[list[int]]:
    """Decode a batch greedily with left padding, using the first `depth` layers.

    `halt` (bool per token id) ends a sample after such a token. Returns the new ids of each
    prompt, without the stop token.
    """
    device, dtype = model.embedding.device, model.embedding.dtype
    batch, longest = len(prompts), max(map(len, prompts))
    total = longest + max_new
    ids = torch.zeros(batch, longest, dtype=torch.long)
    padding = torch.tensor([longest - len(p) for p in prompts])
    for row, prompt in zip(ids, prompts, strict=False):
        row[longest - len(prompt) :] = torch.tensor(prompt)
    ids, padding = ids.to(device), padding.to(device)
    cos_table, sin_table = rotary_table(total, device)
    slots = torch.arange(total, device=device)
    keys = torch.zeros(depth, batch, NUM_KV_HEADS, total, HEAD_DIM, device=device, dtype=dtype)
    values = torch.zeros_like(keys)
    out = torch.zeros(batch, max_new, dtype=torch.long, device=device)
    alive = torch.ones(batch, dtype=torch.bool, device=device)
    start = 0
    for step in range(max_new):
        n = ids.shape[1]
        rows, columns = slots[start : start + n, None], slots[None, : start + n]
        where = (slots[start : start + n] - padding[:, None]).clamp(min=0)
        cos, sin = cos_table[where][:, None], sin_table[where][:, None]
        # a query sees the real keys up to itself (a padding query sees itself, to stay finite)
        mask = ((columns <= rows) & (columns >= padding[:, None, None])) | (columns == rows)
        x = F.embedding(ids, model.embedding)
        for i in range(depth):
            layer = model.layers[i]
            qkv = F.linear(rms_norm(x, layer.norm1), layer.qkv)
            qkv = qkv.view(batch, n, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM).transpose(1, 2)
            q, k, v = qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], 1)
            keys[i, :, :, start : start + n] = rotate(k, cos, sin)
            values[i, :, :, start : start + n] = v
            kk, vv = (
                c[i, :, :, : start + n].repeat_interleave(NUM_HEADS // NUM_KV_HEADS, 1)
                for c in (keys, values)
            )
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), kk, vv, attn_mask=mask[:, None])
            x = x + F.linear(y.transpose(1, 2).reshape(batch, n, -1), layer.o)
            gate, up = F.linear(rms_norm(x, layer.norm2), layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        logits = F.linear(rms_norm(x[:, -1], model.norm), model.embedding)
        token = torch.where(alive, logits.argmax(-1), stop)
        out[:, step] = token
        alive &= token != stop
        if halt is not None:
            alive &= ~halt[token]
        start += n
        ids = token[:, None]
        if step % 8 == 7 and not alive.any():
            break
    return [row[: row.index(stop)] if stop in row else row for row in out.tolist()]
