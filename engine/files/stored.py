"""Where a tensor is in a file, and what is done to it on the way into memory.

In memory every model's tensors have Llama's names, and are such that a layer of Llama with them,
and with what its `Block` names, computes what the family computes: factors of Granite and Gemma
are in the weights, so that no pass has to know them.
"""

from __future__ import annotations

from collections.abc import Container
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
    "mlp.router": "ffn_gate_inp",
}
# Files of some converters, phi-2's first ones for instance, have these in one tensor.
_GGUF_FUSED = "attn_qkv"
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_EXPERTS = "mlp.experts."


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as a file has it.

    Attributes:
        name: in the file.
        scale: what its values are multiplied with.
        offset: what is added to them first.
        order: where its rows lie in the file; None: in order.
        whole: shape of the tensor in the file, where that holds others as well.
        first: row of `whole` that it begins with; those of several matrices are counted on.
    """

    name: str
    scale: float
    offset: float = 0.0
    order: NDArray[np.int64] | None = None
    whole: tuple[int, ...] | None = None
    first: int = 0

    def rows(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the first and the last row, that one excluded; None: all that the file has.

        Args:
            shape: of the tensor in memory.
        """
        return None if self.whole is None else (self.first, self.first + shape[0])

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


def in_safetensors(config: ModelConfig, name: str, names: Container[str] = ()) -> Stored:
    """Return where a tensor is in Hugging Face's files.

    Args:
        config: the model's shape.
        name: in memory.
        names: of the file's tensors, which are not looked at here.
    """
    one = architecture(config.family)
    at, part, kind = _split(name)
    stored = f"{at}{one.names.get(part, part)}.{kind}"
    offset = one.norm_offset if part.endswith("norm") and kind == "weight" else 0.0
    scale, half = _scale(config, part), one.halves.get(part)
    if half is None:
        return Stored(stored, scale, offset)
    num_rows = config.intermediate_size
    whole = (2 * num_rows, config.hidden_size)
    return Stored(stored, scale, offset, whole=whole, first=half * num_rows)


def in_gguf(config: ModelConfig, name: str, names: Container[str] = ()) -> Stored:
    """Return where a tensor is in llama.cpp's files.

    Args:
        config: the model's shape.
        name: in memory.
        names: of the file's tensors: some may be part of another.
    """
    at, part, kind = _split(name)
    scale, order = _scale(config, part), _row_order(config, name)
    if not at:
        return Stored(f"{_GGUF_WHOLE[part]}.{kind}", scale)
    layer = f"blk.{at.split('.')[2]}."
    if part.startswith(_EXPERTS) and config.experts is not None:
        number, which = part.removeprefix(_EXPERTS).split(".")
        rows, columns = config.experts.inner, config.hidden_size
        if which == "down_proj":
            rows, columns = columns, rows
        stored = f"{layer}{_GGUF_PARTS[f'mlp.{which}']}_exps.{kind}"
        whole = (config.experts.num, rows, columns)
        return Stored(stored, scale, whole=whole, first=int(number) * rows)
    fused = f"{layer}{_GGUF_FUSED}.{kind}"
    if part in _QKV and fused in names:
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        starts = np.cumsum([0, *sizes]) * config.head_dim
        whole = (int(starts[-1]),) if kind == "bias" else (int(starts[-1]), config.hidden_size)
        first = int(starts[_QKV.index(part)])
        return Stored(fused, scale, order=order, whole=whole, first=first)
    return Stored(f"{layer}{_GGUF_PARTS[part]}.{kind}", scale, order=order)


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
