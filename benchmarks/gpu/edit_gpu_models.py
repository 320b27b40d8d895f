"""The models of `bench_edit_gpu.py`: DeepSeek-Coder's shapes, random weights, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from keyturn.engine.model.config import ModelConfig
from keyturn.engine.model.decoder import Decoder
from keyturn.kernels.weights.linear import Matrix


def _config(
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int,
    intermediate_size: int,
    head_dim: int = 128,
    vocab_size: int = 32_256,
) -> ModelConfig:
    return ModelConfig(
        family="llama",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_positions=16_384,
        norm_eps=1e-6,
        rope_theta=1e5,
        rotary_dim=head_dim,
        rope_interleaved=False,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        tied_embeddings=False,
        attention_bias=False,
        output_bias=False,
        mlp_bias=False,
    )


MODELS = {
    "1.3b": _config(24, 2048, 16, 16, 5504),
    "6.7b": _config(32, 4096, 32, 32, 11_008),
    "33b": _config(62, 7168, 56, 8, 19_200),
}
TINY = _config(2, 64, 4, 2, 96, head_dim=16, vocab_size=256)


def random_decoder(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Return a decoder whose weights keep the size of what goes through them.

    Matrices that the decoder lays together come from one piece of memory: freed as one, it serves
    the next layer, and the largest model passes through with one layer to spare.
    """

    def matrix(num_out: int, num_in: int, std: float) -> Tensor:
        return torch.empty(num_out, num_in, dtype=dtype, device=device).normal_(std=std)

    hidden, inner = config.hidden_size, config.intermediate_size
    width, kv_width = (heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads))
    ones = torch.ones(hidden, dtype=dtype, device=device)
    tensors: dict[str, Matrix] = {
        "model.embed_tokens.weight": matrix(config.vocab_size, hidden, 1.0),
        "lm_head.weight": matrix(config.vocab_size, hidden, hidden**-0.5),
        "model.norm.weight": ones.clone(),
    }
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        qkv = matrix(width + 2 * kv_width, hidden, hidden**-0.5)
        for name, part in zip("qkv", qkv.split([width, kv_width, kv_width]), strict=True):
            tensors[f"{at}self_attn.{name}_proj.weight"] = part
        gate, up = matrix(2 * inner, hidden, hidden**-0.5).chunk(2)
        tensors |= {
            f"{at}mlp.gate_proj.weight": gate,
            f"{at}mlp.up_proj.weight": up,
            f"{at}self_attn.o_proj.weight": matrix(hidden, width, width**-0.5),
            f"{at}mlp.down_proj.weight": matrix(hidden, inner, inner**-0.5),
            f"{at}input_layernorm.weight": ones.clone(),
            f"{at}post_attention_layernorm.weight": ones.clone(),
        }
        del qkv, gate, up
    return Decoder(config, tensors)


def layer_weights(config: ModelConfig) -> int:
    """Return the number of weights in the matrices of all layers; the head is not in it."""
    width, kv_width = (heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads))
    attention = config.hidden_size * (2 * width + 2 * kv_width)
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def prefill_flops(config: ModelConfig, num_rows: int) -> float:
    """Return what a prefill has to compute: two operations a weight and row, and attention's half.

    Nobody sees the other half. The head, which runs for one row, is left out.
    """
    attention = 4 * config.num_heads * config.head_dim * num_rows**2 / 2
    return 2.0 * layer_weights(config) * num_rows + config.num_layers * attention


def floor_bytes(config: ModelConfig, num_rows: int, itemsize: int) -> dict[str, int]:
    """Return the bytes that a deletion and an insertion at the top have to move at the least.

    A deletion reads and writes every key, to turn it. An insertion does, and reads the weights
    once, the head too, and the cache once, for whatever number of new rows.
    """
    side = config.num_layers * config.num_kv_heads * num_rows * config.head_dim * itemsize
    weights = (layer_weights(config) + config.vocab_size * config.hidden_size) * itemsize
    return {"deletion": 2 * side, "insertion": 2 * side + weights + 2 * side}
