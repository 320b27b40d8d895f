"""Where a tensor is in a file, and what is done to it on the way into memory.

In memory every model's tensors have Llama's names, and are such that a layer of Llama with them,
and with what its `Block` names, computes what the family computes: factors of Granite and Gemma
are in the weights, so that no pass has to know them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.weights.blocks import BlockMatrix
from ..model.config import ModelConfig
from .architectures import architecture

# Of a product with a root.
_ROUNDING = 1e-9
_GGUF_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_post_norm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as a file has it.

    Attributes:
        name: in the file.
        half: which half of that tensor's rows it is; None: all of them.
        order: where its rows lie in the file; None: in order.
        scale: what its values are multiplied with.
        offset: what is added to them first.
    """

    name: str
    half: int | None
    order: NDArray[np.int64] | None
    scale: float
    offset: float

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that the tensor in the file has, by that which it has in memory."""
        return shape if self.half is None else (2 * shape[0], *shape[1:])

    def rows(self, num_rows: int) -> tuple[int, int]:
        """Return the first and the last row, that one excluded, of so many in the file."""
        middle = num_rows // 2
        return ((0, num_rows), (0, middle), (middle, num_rows))[
            0 if self.half is None else self.half + 1
        ]

    @property
    def is_changed(self) -> bool:
        """Whether the values in memory are others than those in the file."""
        return (self.scale, self.offset) != (1.0, 0.0)

    def changed(self, values: Tensor) -> Tensor:
        """Return values of the file as they are in memory, in float32 if they are others."""
        return (values.float() + self.offset) * self.scale if self.is_changed else values

    def changed_blocks(self, matrix: BlockMatrix) -> BlockMatrix:
        """Return a matrix in blocks as it is in memory; their scales are rounded once more."""
        return matrix if self.scale == 1 else matrix.scaled(self.scale)


def in_safetensors(config: ModelConfig, name: str) -> Stored:
    """Return where a tensor is in Hugging Face's files."""
    one = architecture(config.family)
    at, part, kind = _split(name)
    stored = f"{at}{one.names.get(part, part)}.{kind}"
    offset = one.norm_offset if part.endswith("norm") and kind == "weight" else 0.0
    return Stored(stored, one.halves.get(part), None, _scale(config, part), offset)


def in_gguf(config: ModelConfig, name: str) -> Stored:
    """Return where a tensor is in llama.cpp's files."""
    at, part, kind = _split(name)
    if at:
        stored = f"blk.{at.split('.')[2]}.{_GGUF_PARTS[part]}"
    else:
        stored = _GGUF_WHOLE[part]
    return Stored(f"{stored}.{kind}", None, _row_order(config, name), _scale(config, part), 0.0)


def _row_order(config: ModelConfig, name: str) -> NDArray[np.int64] | None:
    """Return where a tensor's rows lie in a GGUF file, None where they lie as they should.

    Args:
        config: the model's shape.
        name: in memory.
    """
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None or not architecture(config.family).is_permuted:
        return None
    rows = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
    return rows.swapaxes(1, 2).ravel()


def _split(name: str) -> tuple[str, str, str]:
    """Return the layer, "model.layers.3." or "", the part, and "weight" or "bias"."""
    whole, kind = name.rsplit(".", 1)
    if not whole.startswith("model.layers."):
        return "", whole, kind
    *at, part = whole.split(".", 3)
    return ".".join(at) + ".", part, kind


def _scale(config: ModelConfig, part: str) -> float:
    """Return what weights and bias of a part are multiplied with."""
    if part == ("self_attn.q_norm" if config.qk_norm else "self_attn.q_proj"):
        multiplier = config.attention_multiplier
        scale = 1.0 if multiplier is None else multiplier * config.head_dim**0.5
        return 1.0 if abs(scale - 1) < _ROUNDING else scale
    if part in ("self_attn.o_proj", "mlp.down_proj"):
        return config.residual_multiplier
    if part == "model.norm":
        return config.logit_multiplier
    return 1.0
