"""The families of models that are tested, as data: a small random model of each, as transformers'.

`benchmarks/readme.py` makes the README's table of them; nothing here imports torch or transformers
before it is called.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
WINDOW = 12  # of sliding layers, shorter than what is tested
TRAINED = 32


@dataclass(frozen=True)
class Case:
    """A family.

    Attributes:
        name: of the row in the table.
        models: published ones, for people.
        kind: transformers' class before "ForCausalLM", and the module that has it.
        changes: what its config has beside `SIZES`.
        gguf: the architecture that llama.cpp's converter writes; "" where none is read.
        fim: the format that its models fill in the middle with; "" if they only continue a text.
    """

    name: str
    models: str
    kind: tuple[str, str]
    changes: dict[str, Any] = field(default_factory=dict)
    gguf: str = ""
    fim: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """Its `config.json`, as far as a layer is concerned."""
        kinds = {"gemma3": "gemma3_text"}
        return {"model_type": kinds.get(self.kind[1], self.kind[1]), **SIZES, **self.changes}

    @property
    def is_there(self) -> bool:
        """Whether the transformers that is installed has it."""
        return importlib.util.find_spec(f"transformers.models.{self.kind[1]}") is not None


_HEADS = {"head_dim": 16}
_GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}
_BY_LAYER = {
    "full_attention": {**_YARN, "rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_LAYERS = ["sliding_attention"] * 3 + ["full_attention"]

CASES = (
    Case(
        "Qwen2.5-Coder, Sweep Next-Edit",
        "Qwen/Qwen2.5-Coder-1.5B",
        ("Qwen2", "qwen2"),
        {"tie_word_embeddings": True},
        gguf="qwen2",
        fim="Qwen2.5-Coder",
    ),
    Case("Qwen3", "Qwen/Qwen3-1.7B-Base", ("Qwen3", "qwen3"), _HEADS, "qwen3", "Qwen2.5-Coder"),
    Case(
        "Granite 4.1",
        "ibm-granite/granite-4.1-3b",
        ("Granite", "granite"),
        _GRANITE,
        "granite",
        "Granite",
    ),
    Case(
        "Granite 4.0, dense",
        "ibm-granite/granite-4.0-350m-base",
        ("GraniteMoeHybrid", "granitemoehybrid"),
        {
            **_GRANITE,
            "layer_types": ["full_attention"] * 4,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
        gguf="granite",
        fim="Granite",
    ),
    Case(
        "Mellum, Code Llama, Seed-Coder, Zeta-2",
        "JetBrains/Mellum-4b-base",
        ("Llama", "llama"),
        gguf="llama",
        fim="each its own",
    ),
    Case(
        "DeepSeek-Coder (linear scaling)",
        "deepseek-ai/deepseek-coder-1.3b-base",
        ("Llama", "llama"),
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}},
        gguf="llama",
        fim="DeepSeek-Coder",
    ),
    Case(
        "Llama 3 (bands)",
        "meta-llama/Llama-3.2-1B",
        ("Llama", "llama"),
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": TRAINED,
            }
        },
        gguf="llama",
    ),
    Case(
        "StarCoder2",
        "bigcode/starcoder2-3b",
        ("Starcoder2", "starcoder2"),
        {"sliding_window": WINDOW},
        fim="StarCoder2",
    ),
    Case(
        "StarCoder2, its window not reached",
        "bigcode/starcoder2-3b",
        ("Starcoder2", "starcoder2"),
        {"sliding_window": None},
        gguf="starcoder2",
        fim="StarCoder2",
    ),
    Case(
        "Mistral, Codestral",
        "mistralai/Codestral-22B-v0.1",
        ("Mistral", "mistral"),
        {"sliding_window": None},
        gguf="llama",
        fim="Codestral",
    ),
    Case(
        "Mistral 7B (sliding)",
        "mistralai/Mistral-7B-v0.1",
        ("Mistral", "mistral"),
        {"sliding_window": WINDOW},
    ),
    Case(
        "StableLM",
        "stabilityai/stable-code-3b",
        ("StableLm", "stablelm"),
        {"use_qkv_bias": True},
        gguf="stablelm",
        fim="StarCoder",
    ),
    Case(
        "StableLM, side by side",
        "stabilityai/stablelm-2-1_6b",
        ("StableLm", "stablelm"),
        {"use_parallel_residual": True},
        gguf="stablelm",
    ),
    Case("Phi", "microsoft/phi-2", ("Phi", "phi"), {}, gguf="phi2"),
    Case("SmolLM3", "HuggingFaceTB/SmolLM3-3B-Base", ("SmolLM3", "smollm3"), {}, gguf="smollm3"),
    Case(
        "CodeGemma, Gemma", "google/codegemma-2b", ("Gemma", "gemma"), _HEADS, "gemma", "CodeGemma"
    ),
    Case(
        "Gemma 2",
        "google/gemma-2-2b",
        ("Gemma2", "gemma2"),
        {
            **_HEADS,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        gguf="gemma2",
    ),
    Case(
        "Gemma 3",
        "google/gemma-3-1b-pt",
        ("Gemma3", "gemma3"),
        {
            **_HEADS,
            "num_hidden_layers": 7,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1000000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        gguf="gemma3",
    ),
    Case(
        "Qwen3, experts",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        ("Qwen3Moe", "qwen3_moe"),
        {
            **_HEADS,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        gguf="qwen3moe",
        fim="Qwen2.5-Coder",
    ),
    Case(
        "Mellum2",
        "JetBrains/Mellum2-12B-A2.5B-Base",
        ("Mellum", "mellum"),
        {
            **_HEADS,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "sliding_window": WINDOW,
            "layer_types": _LAYERS,
            "rope_parameters": _BY_LAYER,
        },
        gguf="mellum",
        fim="Mellum",
    ),
)


def make_model(case: Case) -> Any:
    """Return transformers' model of a case, every weight of it random."""
    import torch
    import transformers

    kind = case.kind[0]
    config_kind = getattr(transformers, f"{kind}TextConfig", None) if kind == "Gemma3" else None
    config_kind = config_kind or getattr(transformers, f"{kind}Config")
    config = config_kind(**SIZES | case.changes, attn_implementation="eager")
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    random = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases; transformers begins with ones and zeros
            noise = torch.randn(parameter.shape, generator=random) * 0.2
            parameter.data += noise
        elif "gate" in name.split(".")[-2] or "experts" in name:
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.2
    return model
