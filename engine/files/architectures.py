"""What models of one architecture have in common and their files do not say, as data. No torch.

The keys are `model_type` in Hugging Face's `config.json`. Sources: transformers' and llama.cpp's
code for each architecture (`modeling_*.py`; `conversion/` and `src/models/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..model.config import GELU_TANH, LayerKind


@dataclass(frozen=True, slots=True)
class Architecture(LayerKind):
    """One architecture; `activation` is that of files which do not name one.

    Attributes:
        gguf: its name in GGUF files; "" if llama.cpp has none that is read here.
        norm_offset: added to the weights of norms in Hugging Face's files; llama.cpp's converter
            adds it.
        rotary_share: of a head that is rotated, where the file does not say.
        ties: head and embedding are one, where the file does not say.
        is_permuted: llama.cpp rotates neighbouring dimensions, and so its converter interleaves
            the two halves of each head's query and key rows.
        embeds_by_root: embeddings are multiplied with the root of the hidden size.
        has_experts: the MLP is one of several.
        sliding_period: layers of which the last one sees everything, where the file does not list
            them; 0: they are all alike.
        local_theta: rotary base of the layers that slide, where the file does not say; None: that
            of the others.
        rotated_period: likewise, layers of which the last one is not rotated; 0: all are.
        names: what Hugging Face's files call a tensor that has another name here; a name of a part
            of a layer, or of a whole tensor.
        halves: tensors that are one half, the first or the second, of a tensor in those files.
    """

    gguf: str = ""
    norm_offset: float = 0.0
    rotary_share: float = 1.0
    ties: bool = False
    is_permuted: bool = False
    embeds_by_root: bool = False
    has_experts: bool = False
    sliding_period: int = 0
    local_theta: float | None = None
    rotated_period: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    halves: Mapping[str, int] = field(default_factory=dict)


_GEMMA_NAMES = {
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GEMMA = {"activation": GELU_TANH, "norm_offset": 1.0, "ties": True, "embeds_by_root": True}
_LAYER_NORM = {"norm": "layer", "norm_bias": True}
_ONE_INPUT = "shared_mlp.input_linear"

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", is_permuted=True),
    "mistral": Architecture("llama", is_permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", qk_norm=True),
    "granite": Architecture("granite", is_permuted=True),
    "granitemoehybrid": Architecture(
        "granite",
        is_permuted=True,
        names={
            "mlp.gate_proj": _ONE_INPUT,
            "mlp.up_proj": _ONE_INPUT,
            "mlp.down_proj": "shared_mlp.output_linear",
        },
        halves={"mlp.gate_proj": 0, "mlp.up_proj": 1},
    ),
    "starcoder2": Architecture(
        "starcoder2",
        **_LAYER_NORM,
        activation=GELU_TANH,
        is_gated=False,
        ties=True,
        names={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    ),
    "stablelm": Architecture("stablelm", **_LAYER_NORM, rotary_share=0.25),
    "phi": Architecture(
        "phi2",
        **_LAYER_NORM,
        activation=GELU_TANH,
        is_gated=False,
        is_parallel=True,
        rotary_share=0.5,
        names={
            "self_attn.o_proj": "self_attn.dense",
            "mlp.up_proj": "mlp.fc1",
            "mlp.down_proj": "mlp.fc2",
            "model.norm": "model.final_layernorm",
        },
    ),
    "smollm3": Architecture("smollm3", is_permuted=True, ties=True, rotated_period=4),
    "gemma": Architecture("gemma", **_GEMMA),
    "gemma2": Architecture(
        "gemma2", **_GEMMA, post_norms=True, sliding_period=2, names=_GEMMA_NAMES
    ),
    "gemma3_text": Architecture(
        "gemma3",
        **_GEMMA,
        post_norms=True,
        qk_norm=True,
        sliding_period=6,
        local_theta=10_000.0,
        names=_GEMMA_NAMES,
    ),
    "qwen3_moe": Architecture(
        "qwen3moe", qk_norm=True, has_experts=True, names={"mlp.router": "mlp.gate"}
    ),
    "mellum": Architecture(
        "mellum", qk_norm=True, has_experts=True, names={"mlp.router": "mlp.gate"}
    ),
}
# By the name in GGUF files.
GGUF_ARCHITECTURES = {one.gguf: one for one in reversed(ARCHITECTURES.values()) if one.gguf}


def architecture(family: str) -> Architecture:
    """Return the architecture of a model that was read, by its `ModelConfig.family`."""
    return ARCHITECTURES.get(family) or GGUF_ARCHITECTURES[family]


_NO_ROWS = "has layers that keep a state instead of a row for every token, which an edit in the \
middle cannot change"
_NO_ROTATION = "adds positions to {}, so that a cached row cannot be moved"
_ABSOLUTE = _NO_ROTATION.format("the embeddings")
_ALIBI = _NO_ROTATION.format("the scores (ALiBi) and not to the keys")
# Why models of an architecture are refused, by both kinds of name.
REFUSED = {
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_text", "qwen35", "qwen3_next", "qwen3next"),
        f"{_NO_ROWS} (gated delta net)",
    ),
    **dict.fromkeys(
        ("granitehybrid", "mamba", "mamba2", "bamba", "jamba", "falcon_h1", "nemotron_h"),
        f"{_NO_ROWS} (Mamba)",
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm2moe", "lfm3"), f"{_NO_ROWS} (short convolutions)"),
    **dict.fromkeys(("recurrent_gemma", "rwkv", "rwkv6", "rwkv7"), _NO_ROWS),
    **dict.fromkeys(("gpt_bigcode", "gpt2", "gpt_neo", "starcoder"), _ABSOLUTE),
    **dict.fromkeys(("gpt_refact", "refact", "mpt", "bloom"), _ALIBI),
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
        "has layers that share rows of others, and inputs of their own for each layer",
    ),
    **dict.fromkeys(
        ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava"),
        "is made for images as well as text, and only its text part could be served",
    ),
}
INSTEAD = "use one that fills in the middle, such as Qwen/Qwen2.5-Coder-0.5B; keyturn models has \
them all"


def refusal(family: object) -> str:
    """Return why models of a family are not served, and what to use instead."""
    if family in REFUSED:
        return f"{family!r} {REFUSED[str(family)]}; {INSTEAD}"
    return f"{family!r} is not supported; {INSTEAD}"
