"""What the decode benchmark runs on: model shapes, random weights and a full cache, on the device.

Nothing passes through the host: 15 GB would take longer than all measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyturn.engine.model.config import ModelConfig
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.model.mlp import DenseMlp
from keyturn.engine.model.tensors import expected_shapes
from keyturn.kernels.weights.blocks import GGUF_BLOCKS, BlockMatrix
from keyturn.kernels.weights.packed import QuantWeight

# Precision to how projections and head are stored; the embedding, of which one row is read, and
# the norms are bf16.
PRECISIONS = {"bf16": None, "q8": "Q8_0", "q4": "Q4_0"}
# Rows that steps and the changes of the correctness test may add.
ROOM = 128


def shape_of(
    hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, layers: int, vocab: int
) -> ModelConfig:
    """Return a configuration of the Qwen2 family; up to 1.5B the head is tied."""
    return ModelConfig(
        family="qwen2",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_positions=32_768,
        norm_eps=1e-6,
        rope_theta=1e6,
        rotary_dim=head_dim,
        rope_interleaved=False,
        rope_scaling=None,
        tied_embeddings=hidden <= 1536,
        attention_bias=True,
        output_bias=False,
        mlp_bias=False,
    )


SHAPES = {
    "1.5b": shape_of(1536, 8960, 12, 2, 128, 28, 151_936),
    "7b": shape_of(3584, 18_944, 28, 4, 128, 28, 152_064),
    "tiny": shape_of(32, 32, 2, 1, 16, 1, 32),
}


def random_decoder(config: ModelConfig, precision: str, device: torch.device) -> Decoder:
    """Return a decoder of random weights, in bf16 or in GGUF blocks as a file has them."""
    kind = PRECISIONS[precision]
    tensors: dict[str, Any] = {}
    for name, shape in expected_shapes(config).items():
        is_matrix = len(shape) == 2 and "embed" not in name
        if kind and is_matrix:
            tensors[name] = random_blocks(shape, kind, device)
        else:
            tensors[name] = _random(name, shape, device)
    if kind and config.tied_embeddings:
        shape = (config.vocab_size, config.hidden_size)
        tensors["lm_head.weight"] = random_blocks(shape, kind, device)
    return Decoder(config, tensors)


def _random(name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    values = torch.empty(shape, dtype=torch.bfloat16, device=device)
    if "norm" in name:
        return values.fill_(1.0)
    return values.normal_(0, 1.0 if "embed" in name else shape[-1] ** -0.5)


def random_blocks(shape: tuple[int, ...], kind: str, device: torch.device) -> BlockMatrix:
    """Return blocks of random codes whose values have about the size of `_random`'s."""
    (num_out, num_in), (size, head) = shape, GGUF_BLOCKS[kind]
    parts = (num_out, num_in // 32, size)
    # Zero on average: biased weights make a random model bistable, and a rounding flips its logits.
    if kind == "Q8_0":
        blocks = torch.randint(-127, 128, parts, dtype=torch.int8, device=device).view(torch.uint8)
    else:
        low, high = torch.randint(1, 16, (2, *parts), dtype=torch.uint8, device=device)
        blocks = low | high << 4
    spread = 73.3 if kind == "Q8_0" else 4.3  # of evenly distributed codes
    scale = torch.full((num_out, num_in // 32, 1), num_in**-0.5 / spread, device=device).half()
    blocks[..., :head] = scale.view(torch.uint8)
    return BlockMatrix(blocks.flatten(1), kind)


def full_cache(decoder: Decoder, context: int) -> KVCache:
    """Return a cache of random rows, the last one of them still to be computed."""
    cache = KVCache(decoder.config, context + ROOM, decoder.dtype, decoder.device)
    token_ids = np.random.default_rng(0).integers(0, decoder.config.vocab_size, context)
    cache.append(token_ids, np.arange(context))
    for layer in range(decoder.config.num_layers):
        keys, values = cache.layer(layer)
        for part in (keys, values, cache.unrotated(layer)):
            part.normal_()
    return cache


def num_weight_bytes(decoder: Decoder) -> int:
    """Return what a step reads of the weights: projections, head, norms."""
    total = decoder.stack.norm.weight.nbytes
    linears: list[Any] = [decoder.stack.head]
    for layer in decoder.stack.layers:
        mlp, norms = layer.mlp, (layer.attention_norm, layer.mlp_norm)
        assert isinstance(mlp, DenseMlp)
        linears += [layer.qkv, layer.output, mlp.gate_up, mlp.down]
        total += sum(norm.weight.nbytes for norm in norms if norm is not None)
    for linear in linears:
        weight = linear.weight
        total += weight.num_bytes if isinstance(weight, QuantWeight) else weight.nbytes
        total += 0 if linear.bias is None else linear.bias.nbytes
    return total


def num_cache_bytes(decoder: Decoder, num_rows: int) -> int:
    """Return what a step reads of the cache: rotated keys and values."""
    config = decoder.config
    row = config.num_layers * config.num_kv_heads * config.head_dim
    return 2 * row * num_rows * decoder.dtype.itemsize
