"""What a GGUF file says of its model's shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..model.config import Experts, ModelConfig, Rope
from ..wire.errors import ModelLoadError
from .architectures import GGUF_ARCHITECTURES, INSTEAD, Architecture, refusal
from .gguf_file import GGUFFile
from .hf_config import check_config

SUPPORTED = tuple(GGUF_ARCHITECTURES)

_ROPE_FACTORS = "rope_freqs.weight"
# What llama.cpp alone knows of an architecture, and writes down nowhere: layers of which the last
# one sees everything; whose layers are not scaled where they slide; the number of layers of the one
# size whose scores are divided by the root of hidden size / heads.
_PERIODS = {"mellum": 4}
_UNSCALED = ("mellum",)
_LARGEST = {"gemma2": 46, "gemma3": 62}


def read_config(file: GGUFFile) -> ModelConfig:
    """Read the metadata.

    Raises:
        ModelLoadError: it is incomplete, or of an architecture or variant that is not supported.
    """
    family = file.metadata.get("general.architecture")
    one = GGUF_ARCHITECTURES.get(family) if isinstance(family, str) else None
    if one is None:
        raise ModelLoadError(f"{file.path}: architecture {refusal(family)}")
    num_parts = file.metadata.get("split.count", 1)
    if num_parts != 1:
        raise ModelLoadError(
            f"{file.path} is one of {num_parts!r:.20} parts; join them with llama.cpp's "
            "llama-gguf-split --merge"
        )
    if file.metadata.get(f"{family}.expert_count") and not one.has_experts:
        raise ModelLoadError(f"{file.path}: mixtures of experts are not supported; use another")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise file.damaged("tensor 'token_embd.weight' is missing")

    def value(key: str, default: Any = None) -> Any:  # noqa: ANN401
        found = file.metadata.get(f"{family}.{key}", default)
        if isinstance(found, np.ndarray) and len(set(found.tolist())) == 1:
            found = found.tolist()[0]
        if found is None:
            raise file.damaged(f"'{family}.{key}' is missing")
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ModelLoadError(
                f"{file.path}: '{family}.{key}' is not one number; use another model"
            )
        return found

    def factor(key: str) -> float | None:
        return float(value(key)) if f"{family}.{key}" in file.metadata else None

    def has(*names: str) -> bool:
        return any(f"blk.0.{name}" in file.tensors for name in names)

    hidden, heads = value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length", hidden // heads if heads else 0)
    norm, epsilon = "rms", "attention.layer_norm_rms_epsilon"
    if f"{family}.{epsilon}" not in file.metadata:
        if f"{family}.attention.layer_norm_epsilon" in file.metadata:
            norm, epsilon = "layer", "attention.layer_norm_epsilon"
    if has("attn_q_norm.weight") and not one.qk_norm:
        raise ModelLoadError(
            f"{file.path}: a {family!r} with normed queries and keys is not supported; {INSTEAD}"
        )
    num_layers = value("block_count")
    scale = factor("attention.scale")
    if num_layers == _LARGEST.get(one.gguf) and heads:
        scale = (hidden // heads) ** -0.5
    rope = Rope(
        float(value("rope.freq_base", 10000.0)),
        value("rope.dimension_count", head_dim),
        _rope_scaling(file, one.gguf),
    )
    experts = None
    if one.has_experts:  # whose shares llama.cpp makes add up to 1
        num, num_used = value("expert_count"), value("expert_used_count")
        experts = Experts(num, num_used, value("expert_feed_forward_length"), normalises=True)
    slides = _slides(file, one, value("attention.sliding_window", 0), value("context_length"))
    config = ModelConfig(
        family=one.gguf,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=value("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        max_positions=value("context_length"),
        norm_eps=float(value(epsilon)),
        rope_theta=rope.theta,
        rotary_dim=rope.rotary_dim,
        rope_interleaved=False,
        rope_scaling=rope.scaling,
        tied_embeddings="output.weight" not in file.tensors,
        attention_bias=has("attn_q.bias", "attn_qkv.bias"),
        output_bias=has("attn_output.bias"),
        mlp_bias=has("ffn_up.bias"),
        norm=norm,
        norm_bias=has("attn_norm.bias"),
        activation=one.activation,  # what the architecture means; files do not say it
        is_gated=one.is_gated,
        is_parallel=one.is_parallel or bool(file.metadata.get(f"{family}.use_parallel_residual")),
        qk_norm=one.qk_norm,
        post_norms=one.post_norms,
        experts=experts,
        score_cap=factor("attn_logit_softcapping"),
        sliding_windows=tuple(
            value("attention.sliding_window") if each else None for each in slides
        ),
        ropes=_ropes(one, rope, factor("rope.freq_base_swa"), slides),
        head_bias="output.bias" in file.tensors,
        embedding_multiplier=(
            math.sqrt(hidden) if one.embeds_by_root else factor("embedding_scale") or 1.0
        ),
        logit_cap=factor("final_logit_softcapping"),
        attention_multiplier=scale,
        residual_multiplier=factor("residual_scale") or 1.0,
        logit_multiplier=1.0 / (factor("logit_scale") or 1.0),
    )
    check_config(file.path, config)
    if one.is_permuted and config.rotary_dim != config.head_dim:
        raise ModelLoadError(
            f"{file.path}: partial rotation ({config.rotary_dim} of {config.head_dim}) is not "
            f"supported in GGUF of {family!r}; use the model's safetensors"
        )
    return config


def _slides(file: GGUFFile, one: Architecture, window: int, context: int) -> tuple[bool, ...]:
    """Return which layers slide, over and over again; () if none does."""
    if not 0 < window < context:
        return ()
    period = one.sliding_period or _PERIODS.get(one.gguf)
    pattern = file.metadata.get(f"{one.gguf}.attention.sliding_window_pattern", period)
    if pattern is None:
        return (True,)
    if isinstance(pattern, np.ndarray) and pattern.size:
        return tuple(bool(each) for each in pattern.tolist())
    if not isinstance(pattern, int) or not 0 < pattern < 1000:
        raise file.damaged(f"a pattern of sliding windows of {pattern!r:.80}")
    return (*[True] * (pattern - 1), False)


def _ropes(
    one: Architecture, rope: Rope, local_theta: float | None, slides: tuple[bool, ...]
) -> tuple[Rope | None, ...]:
    """Return how layers are rotated, over and over again; () where all are alike."""
    theta = local_theta or one.local_theta
    if theta is None and one.gguf in _UNSCALED:
        theta = rope.theta
    if slides and theta is not None:
        local = Rope(theta, rope.rotary_dim)
        return tuple(local if each else rope for each in slides)
    if one.rotated_period:
        return (*[rope] * (one.rotated_period - 1), None)
    return ()


def _rope_scaling(file: GGUFFile, family: str) -> dict[str, Any] | None:
    """Return the rotary scaling as Hugging Face spells it."""
    prefix = f"{family}.rope.scaling."
    given = {key[len(prefix) :]: v for key, v in file.metadata.items() if key.startswith(prefix)}
    kind = given.get("type", "none")
    factor = given.get("factor", file.metadata.get(f"{family}.rope.scale_linear", 1.0))
    if "type" not in given and factor != 1.0:
        kind = "linear"  # files made before the type was written down
    factors = file.tensors.get(_ROPE_FACTORS)
    if kind == "none":
        if factors is None:
            return None
        if len(factors.shape) != 1:
            raise file.damaged(f"tensor '{_ROPE_FACTORS}' has the shape {list(factors.shape)}")
        divisors = file.tensor(_ROPE_FACTORS, torch.float32).tolist()
        return {"rope_type": "gguf_factors", "factors": divisors}
    if kind not in ("linear", "yarn") or factors is not None:
        raise ModelLoadError(
            f"{file.path}: rotary scaling {kind!r} is not supported here; use the model's "
            "safetensors"
        )
    if not isinstance(factor, float | int) or not 0 < factor < 1e6:
        raise file.damaged(f"a rotary scaling factor of {factor!r}")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        trained = given.get("original_context_length")
        if trained is not None:
            scaling["original_max_position_embeddings"] = trained
        attention = given.get("attn_factor", 1.0)
        if "yarn_attn_factor" in given:  # as the model's own config has it
            scaling["attention_factor"] = given["yarn_attn_factor"]
        elif attention != 1.0:  # llama.cpp multiplies it into YaRN's own factor
            scaling["attention_factor"] = attention * (1 + 0.1 * math.log(factor))
        for key in ("beta_fast", "beta_slow"):
            if f"yarn_{key}" in given:
                scaling[key] = given[f"yarn_{key}"]
    return scaling
