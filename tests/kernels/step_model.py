"""A small random model for the C step, and the same computed in float64."""

import copy
import itertools
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from keyturn.kernels.cpu import library
from keyturn.kernels.cpu.step import SKIP_ATTENTION, SKIP_MLP, CpuStep
from keyturn.kernels.cpu.step_weights import ACTIVATIONS, StepLayer, StepWeights
from keyturn.kernels.weights.blocks import GGUF_BLOCKS, BlockMatrix
from keyturn.kernels.weights.low_rank import FusedUpdate, LowRank


@dataclass
class Shape:
    hidden: int = 96
    heads: int = 3
    kv_heads: int = 1
    dim: int = 32
    inner: int = 160
    rotary: int = 32
    interleaved: bool = False
    kind: object = "Q4_1"
    bias: bool = False
    dtype: torch.dtype = torch.float32
    layers: int = 2
    vocab: int = 301
    head_norms: bool = False
    window: int = 0
    layer_norm: bool = False
    gelu: bool = False
    gated: bool = True


class Model:
    """A small random model: its CpuStep, and the same in float64."""

    def __init__(self, shape, isa="auto"):
        self.shape, self.random = shape, torch.Generator().manual_seed(3)
        width, kv_width = shape.heads * shape.dim, shape.kv_heads * shape.dim
        self.layers = [
            StepLayer(
                1 + self.normal(shape.hidden) / 5,
                [self.linear(rows, shape.hidden) for rows in (width, kv_width, kv_width)],
                self.linear(shape.hidden, width),
                1 + self.normal(shape.hidden) / 5,
                [self.linear((1 + shape.gated) * shape.inner, shape.hidden)],
                self.linear(shape.hidden, shape.inner),
                *(2 * [1 + self.normal(shape.dim) / 5] if shape.head_norms else (None, None)),
                shape.window * (number % 2),  # every other layer slides
                *(
                    (self.normal(shape.hidden) / 5, self.normal(shape.hidden) / 5)
                    if shape.layer_norm
                    else (None, None)
                ),
            )
            for number in range(shape.layers)
        ]
        self.norm = 1 + self.normal(shape.hidden) / 5
        self.norm_bias = self.normal(shape.hidden) if shape.layer_norm else None
        self.head = self.linear(shape.vocab, shape.hidden)[0]
        self.step = self.build(isa)

    def build(self, isa):
        loaded = library.load(isa)
        assert not isinstance(loaded, str), loaded
        weights = StepWeights(
            self.layers,
            self.norm,
            self.head,
            num_heads=self.shape.heads,
            num_kv_heads=self.shape.kv_heads,
            eps=1e-5,
            interleaved=self.shape.interleaved,
            norm_bias=self.norm_bias,
            layer_norm=self.shape.layer_norm,
            activation=ACTIVATIONS[self.shape.gelu],
            is_gated=self.shape.gated,
        )
        return CpuStep(loaded, weights)

    def updates(self, dtype, ranks, fields=("qkv", "output", "gate_up", "down")):
        """Random low-rank updates; the ranks are those of the matrices, in turn, 0 for none."""
        shape, found, ranks = self.shape, [], itertools.cycle(ranks)
        width, kv_width = shape.heads * shape.dim, shape.kv_heads * shape.dim
        rows = {
            "qkv": (width, kv_width, kv_width),
            "output": (shape.hidden,),
            "gate_up": (1 + shape.gated) * (shape.inner,),
            "down": (shape.hidden,),
        }
        columns = dict.fromkeys(rows, shape.hidden) | {"output": width, "down": shape.inner}
        for _ in range(shape.layers):
            of_layer = {}
            for field in fields:
                given = [
                    LowRank(self.normal(rank, columns[field]) / 9, self.normal(count, rank) / 9)
                    if rank
                    else None
                    for count, rank in zip(rows[field], ranks, strict=False)
                ]
                update = FusedUpdate.of(given, rows[field], torch.device("cpu"), dtype)
                if update is not None:
                    of_layer[field] = update
            found.append(of_layer)
        return found

    def merged(self, updates):
        """Return the model with its updates in its matrices, for `expect`."""
        other = copy.copy(self)
        other.layers = [
            replace(
                layer,
                qkv=with_update(layer.qkv, of_layer.get("qkv")),
                output=with_update([layer.output], of_layer.get("output"))[0],
                gate_up=with_update(layer.gate_up, of_layer.get("gate_up")),
                down=with_update([layer.down], of_layer.get("down"))[0],
            )
            for layer, of_layer in zip(self.layers, updates, strict=True)
        ]
        return other

    def normal(self, *size):
        return torch.randn(*size, generator=self.random)

    def linear(self, rows, columns):
        bias = self.normal(rows) if self.shape.bias else None
        kind = self.shape.kind
        if isinstance(kind, torch.dtype):
            return (self.normal(rows, columns) / columns**0.5).to(kind), bias
        size, head = GGUF_BLOCKS[kind]
        blocks = torch.randint(0, 256, (rows, columns // 32, size), generator=self.random)
        blocks = blocks.to(torch.uint8)
        spread = {"Q4_0": 4.6, "Q4_1": 4.6, "Q8_0": 74}[kind] * columns**0.5
        scales = (1 + torch.rand(rows, columns // 32, 1, generator=self.random)) / spread
        parts = [scales.half()] + ([(-7.5 * scales).half()] if kind == "Q4_1" else [])
        blocks[..., :head] = torch.cat(parts, -1).contiguous().view(torch.uint8)
        return BlockMatrix(blocks.flatten(1), kind), bias

    def inputs(self, rows, slots, capacity=None):
        """Random arguments of `CpuStep.forward`: slots in any order, rows anywhere among them."""
        shape = self.shape
        size = (shape.layers, shape.kv_heads, capacity or slots + 3, shape.dim)
        order = torch.randperm(slots, generator=self.random)
        chosen = torch.randperm(slots, generator=self.random)[:rows]
        angles = order[chosen][:, None] * 0.37 ** torch.arange(shape.rotary // 2)
        return {
            "hidden": self.normal(rows, shape.hidden),
            "unrotated": self.normal(*size).to(shape.dtype),
            "rotated": self.normal(*size).to(shape.dtype),
            "values": self.normal(*size).to(shape.dtype),
            "slots": chosen,
            "num_rows": slots,
            "row_positions": order[chosen],
            "slot_positions": order,
            "cos": angles.cos(),
            "sin": angles.sin(),
        }

    def expect(self, inputs, skipped=bytes(9), unseen=None):
        """The layers in float64; returns hidden, caches and weights per layer."""
        shape, slots, count = self.shape, inputs["slots"], inputs["num_rows"]
        caches = [inputs[name].clone() for name in ("unrotated", "rotated", "values")]
        hidden, recorded = inputs["hidden"].double(), []
        cos, sin = inputs["cos"].double()[:, None], inputs["sin"].double()[:, None]
        hides = inputs["row_positions"][:, None] < inputs["slot_positions"][None]
        if unseen is not None:
            hides[:, count - unseen.shape[1] :] |= unseen
        for number, layer in enumerate(self.layers):
            normed = self.normed(hidden, layer.attention_norm, layer.attention_norm_bias)
            qkv = torch.cat([product(normed, linear) for linear in layer.qkv], -1)
            qkv = qkv.view(len(hidden), -1, shape.dim)
            queries, keys, values = qkv.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
            if layer.query_norm is not None:
                queries, keys = norm(queries, layer.query_norm), norm(keys, layer.key_norm)
            keys, values = (new.transpose(0, 1).to(shape.dtype) for new in (keys, values))
            caches[0][number][:, slots] = keys
            turned = rotate(keys.transpose(0, 1).double(), cos, sin, shape.interleaved)
            caches[1][number][:, slots] = turned.transpose(0, 1).to(shape.dtype)
            caches[2][number][:, slots] = values
            queries = rotate(queries, cos, sin, shape.interleaved).transpose(0, 1)
            keys, values = (
                cache[number, :, :count]
                .double()
                .repeat_interleave(shape.heads // shape.kv_heads, 0)
                for cache in caches[1:]
            )
            scores = queries @ keys.transpose(1, 2) * shape.dim**-0.5
            apart = inputs["row_positions"][:, None] - inputs["slot_positions"][None]
            hidden_ones = hides | (apart >= layer.window) if layer.window else hides
            shares = scores.masked_fill(hidden_ones, float("-inf")).softmax(-1)
            recorded.append(shares.mean(0))
            mixed = (shares @ values).transpose(0, 1).flatten(1)
            if not skipped[number] & SKIP_ATTENTION:
                hidden = hidden + product(mixed, layer.output)
            if skipped[number] & SKIP_MLP:
                continue
            normed = self.normed(hidden, layer.mlp_norm, layer.mlp_norm_bias)
            gate, up = product(normed, layer.gate_up[0]), 1
            if shape.gated:
                gate, up = gate.chunk(2, -1)
            gelu = functional.gelu(gate, approximate="tanh")
            active = gelu if shape.gelu else functional.silu(gate)
            hidden = hidden + product(active * up, layer.down)
        return hidden, caches, recorded

    def normed(self, x, weight, bias):
        if not self.shape.layer_norm:
            return norm(x, weight)
        return functional.layer_norm(x, x.shape[-1:], weight.double(), bias.double(), 1e-5)


def norm(x, weight):
    return functional.rms_norm(x, (x.shape[-1],), weight.double(), 1e-5)


def values_of(matrix):
    if isinstance(matrix, BlockMatrix):
        return matrix.values(torch.float32).double()
    return matrix.double()


def with_update(linears, update):
    """Matrices with what an update adds to them, in float64."""
    if update is None:
        return linears
    downs = update.down.double().split([up.shape[1] for up in update.ups])
    added = [up.double() @ down for up, down in zip(update.ups, downs, strict=True)]
    if len(linears) == 1:
        added = [torch.cat(added)]
    return [(values_of(m) + more, b) for (m, b), more in zip(linears, added, strict=True)]


def product(x, linear):
    matrix, bias = linear
    return functional.linear(x, values_of(matrix), None if bias is None else bias.double())


def rotate(x, cos, sin, interleaved):
    half = cos.shape[-1]
    out, part = x.clone(), x[..., : 2 * half]
    pairs = part.unflatten(-1, (half, 2) if interleaved else (2, half))
    first, second = pairs.unbind(-1 if interleaved else -2)
    turned = [first * cos - second * sin, second * cos + first * sin]
    out[..., : 2 * half] = torch.stack(turned, -1 if interleaved else -2).flatten(-2)
    return out


def run(step, inputs, **more):
    """Run on copies of the caches; returns hidden and caches."""
    own = dict(inputs)
    for name in ("unrotated", "rotated", "values"):
        own[name] = inputs[name].clone()
    hidden = step.forward(**own, **more)
    return hidden, [own[name] for name in ("unrotated", "rotated", "values")]
