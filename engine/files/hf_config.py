"""Hugging Face's `config.json` to `ModelConfig`, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..model.config import GELU, GELU_TANH, Experts, ModelConfig, Rope
from ..wire.errors import ModelLoadError
from .architectures import ARCHITECTURES, INSTEAD, REFUSED, refusal
from .hf_layers import KINDS, ropes, sliding_windows

SUPPORTED = tuple(ARCHITECTURES)

_LAYER_NORM_EPS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
_PARALLEL = ("parallel_attn", "use_parallel_residual", "parallel_residual")
_QK_NORM = ("qk_layernorm", "use_qk_norm", "qk_norm")
# Of a file: the largest published list of tensors has a tenth of that.
_MOST_CHARS = 64 << 20
_MOST_LAYERS = 10_000
# Families without a bias of the output projection where queries, keys and values have one.
_NO_OUTPUT_BIAS = ("mistral", "qwen2", "stablelm")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelLoadError: there is none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(_MOST_CHARS))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object; fetch it again")
    return content


def read_config(path: Path) -> ModelConfig:
    """Read a `config.json`.

    Raises:
        ModelLoadError: it is malformed, or of a family or a variant that is not supported.
    """
    given = read_json(path)
    family = given.get("model_type")
    if family not in ARCHITECTURES:
        raise ModelLoadError(f"{path}: model type {refusal(family)}")
    _refuse_variants(path, given)
    try:
        config = _config(path, given)
    except KeyError as missing:
        raise ModelLoadError(f"{path} lacks {missing}; fetch the model again") from None
    except (AttributeError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelLoadError(f"{path} is malformed ({error}); fetch the model again") from None
    check_config(path, config)
    return config


def _config(path: Path, given: dict[str, Any]) -> ModelConfig:
    family = given["model_type"]
    one = ARCHITECTURES[family]
    layers = given["num_hidden_layers"]
    if type(layers) is int and layers > _MOST_LAYERS:  # before lists of so many are made
        raise ValueError(f"{layers} layers")
    heads, hidden = given["num_attention_heads"], given["hidden_size"]
    head_dim = given.get("head_dim") or hidden // heads
    by_layer = ropes(path, given, head_dim)
    rope = next((each for each in by_layer if each is not None), Rope(10000.0, head_dim))
    all_biases = family == "phi" or bool(given.get("use_bias", family == "starcoder2"))
    has_bias = all_biases or family == "qwen2"
    has_bias = has_bias or bool(given.get("attention_bias") or given.get("use_qkv_bias"))
    inner = "shared_intermediate_size" if family == "granitemoehybrid" else "intermediate_size"
    return ModelConfig(
        family=family,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=given[inner],
        num_heads=heads,
        num_kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        vocab_size=given["vocab_size"],
        max_positions=given.get("max_position_embeddings", 2048),
        norm_eps=_norm_eps(given),
        rope_theta=rope.theta,
        rotary_dim=rope.rotary_dim,
        rope_interleaved=False,
        rope_scaling=rope.scaling,
        tied_embeddings=bool(given.get("tie_word_embeddings", one.ties)),
        attention_bias=has_bias,
        output_bias=has_bias and family not in _NO_OUTPUT_BIAS,
        mlp_bias=all_biases or bool(given.get("mlp_bias")),
        # What configs, or ones made from theirs, say against the architecture is believed.
        norm="layer" if _epsilon_name(given) in _LAYER_NORM_EPS else one.norm,
        norm_bias=one.norm_bias or bool(given.get("norm_bias")),
        activation=_activation(given, one.activation),
        is_gated=one.is_gated,
        is_parallel=one.is_parallel or any(given.get(name) for name in _PARALLEL),
        qk_norm=one.qk_norm,
        post_norms=one.post_norms,
        experts=_experts(given),
        score_cap=_number(given.get("attn_logit_softcapping")),
        sliding_windows=sliding_windows(given),
        ropes=by_layer if any(each != rope for each in by_layer) else (),
        head_bias=family == "phi",
        embedding_multiplier=_embedding_multiplier(given, one.embeds_by_root),
        logit_cap=_number(given.get("final_logit_softcapping")),
        attention_multiplier=_attention_multiplier(given),
        residual_multiplier=_number(given.get("residual_multiplier")) or 1.0,
        logit_multiplier=1.0 / (_number(given.get("logits_scaling")) or 1.0),
    )


def check_config(path: Path, config: ModelConfig) -> None:
    """Raise ModelLoadError if a size is no positive whole number or sizes do not fit together."""
    sizes = (
        *("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads"),
        *("head_dim", "vocab_size", "max_positions", "rotary_dim"),
    )
    checked = [(name, getattr(config, name)) for name in sizes]
    checked += [("rotary_dim", rope.rotary_dim) for rope in config.ropes if rope is not None]
    checked += [("sliding_window", each) for each in config.sliding_windows if each is not None]
    if config.experts is not None:
        experts = config.experts
        checked += [("num_experts", experts.num), ("moe_intermediate_size", experts.inner)]
        checked += [("num_experts_per_tok", experts.num_used)]
    for name, value in checked:
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ModelLoadError(f"{path}: {name} is {value!r}; fetch the model again")
    factors = (
        *("norm_eps", "rope_theta", "embedding_multiplier", "residual_multiplier"),
        *("logit_multiplier", "attention_multiplier", "score_cap", "logit_cap"),
    )
    numbers = [(name, getattr(config, name)) for name in factors]
    numbers += [("rope_theta", rope.theta) for rope in config.ropes if rope is not None]
    for name, value in numbers:
        if value is not None and not (isinstance(value, float) and 0 < value < 1e15):
            raise ModelLoadError(f"{path}: {name} is {value!r}; fetch the model again")
    if config.num_heads % config.num_kv_heads:
        raise ModelLoadError(
            f"{path}: {config.num_heads} heads do not share {config.num_kv_heads} key-value heads; "
            "fetch the model again"
        )
    dims = [config.rotary_dim, *(rope.rotary_dim for rope in config.ropes if rope is not None)]
    if any(dim % 2 or dim > config.head_dim for dim in dims):
        raise ModelLoadError(
            f"{path}: {config.rotary_dim} of {config.head_dim} dimensions cannot be rotated; "
            "fetch the model again"
        )
    if config.experts is not None and config.experts.num_used > config.experts.num:
        raise ModelLoadError(
            f"{path}: {config.experts.num_used} of {config.experts.num} experts are used; "
            "fetch the model again"
        )


def _refuse_variants(path: Path, given: dict[str, Any]) -> None:
    family = given["model_type"]
    if given.get("quantization_config"):
        raise ModelLoadError(
            f"{path}: the weights are quantised for another runtime; use the model's original "
            "weights or a .gguf file"
        )
    kinds = given.get("layer_types") or given.get("layers_block_type") or []
    if any(kind in ("mamba", "linear_attention") for kind in kinds):
        raise ModelLoadError(f"{path}: {family!r} {REFUSED['granitehybrid']}; {INSTEAD}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ModelLoadError(
            f"{path}: layers of the kind {unknown[0]!r:.80} are not supported; {INSTEAD}"
        )
    if family == "granitemoehybrid" and (not kinds or given.get("num_local_experts")):
        raise ModelLoadError(
            f"{path}: mixtures of experts of {family!r} are not supported; {INSTEAD}"
        )
    if not ARCHITECTURES[family].qk_norm and any(given.get(name) for name in _QK_NORM):
        raise ModelLoadError(
            f"{path}: a {family!r} with normed queries and keys is not supported; {INSTEAD}"
        )
    if given.get("use_bidirectional_attention"):
        raise ModelLoadError(
            f"{path}: rows see what comes after them, so that nothing can be generated; {INSTEAD}"
        )
    is_partly = given.get("mlp_only_layers") or given.get("decoder_sparse_step", 1) != 1
    if is_partly or "dense" in (given.get("mlp_layer_types") or ()):
        raise ModelLoadError(
            f"{path}: layers with experts beside layers without are not supported; {INSTEAD}"
        )


def _epsilon_name(given: dict[str, Any]) -> str:
    names = ("rms_norm_eps", *_LAYER_NORM_EPS)
    return next((name for name in names if given.get(name) is not None), names[0])


def _norm_eps(given: dict[str, Any]) -> Any:  # noqa: ANN401 - checked with the other values
    return given.get(_epsilon_name(given), 1e-6)


def _activation(given: dict[str, Any], default: str) -> str:
    named = given.get("hidden_activation") or given.get("hidden_act") or default
    # Gemma's first configs say "gelu" and mean its approximation.
    is_gemma = given["model_type"].startswith("gemma")
    return GELU_TANH if is_gemma and named == GELU else str(named)


def _experts(given: dict[str, Any]) -> Experts | None:
    if not ARCHITECTURES[given["model_type"]].has_experts:
        return None
    return Experts(
        num=given.get("num_local_experts") or given.get("num_experts", 64),
        num_used=given.get("num_experts_per_tok", 8),
        inner=given["moe_intermediate_size"],
        normalises=bool(given.get("norm_topk_prob", True)),
    )


def _embedding_multiplier(given: dict[str, Any], by_root: bool) -> float:
    if by_root:
        return math.sqrt(given["hidden_size"])
    return _number(given.get("embedding_multiplier")) or 1.0


def _attention_multiplier(given: dict[str, Any]) -> float | None:
    if given["model_type"].startswith("granite"):
        return _number(given.get("attention_multiplier")) or 1.0
    scalar = _number(given.get("query_pre_attn_scalar"))
    return None if scalar is None else scalar**-0.5


def _number(value: Any) -> float | None:  # noqa: ANN401
    return None if value is None else float(value)
