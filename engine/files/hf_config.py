"""Hugging Face's `config.json` to `ModelConfig`, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..model.config import ModelConfig
from ..wire.errors import ModelLoadError

SUPPORTED = ("llama", "mistral", "qwen2")

# How configs spell what a layer of these families as a rule is not.
_LAYER_NORM_EPS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
_PARALLEL = ("parallel_attn", "use_parallel_residual", "parallel_residual")
_QK_NORM = ("qk_layernorm", "use_qk_norm", "qk_norm")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelLoadError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
    if family not in SUPPORTED:
        raise ModelLoadError(
            f"{path}: model type {family!r} is not supported; use one of {', '.join(SUPPORTED)}"
        )
    _refuse_variants(path, given)
    rope = _rope(path, given)
    try:
        heads, hidden = given["num_attention_heads"], given["hidden_size"]
        head_dim = given.get("head_dim") or hidden // heads
        has_bias = family == "qwen2" or bool(given.get("attention_bias"))
        config = ModelConfig(
            family=family,
            num_layers=given["num_hidden_layers"],
            hidden_size=hidden,
            intermediate_size=given["intermediate_size"],
            num_heads=heads,
            num_kv_heads=given.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            vocab_size=given["vocab_size"],
            max_positions=given.get("max_position_embeddings", 2048),
            norm_eps=_norm_eps(given),
            rope_theta=float(rope.pop("rope_theta")),
            rotary_dim=int(head_dim * rope.pop("partial_rotary_factor")),
            rope_interleaved=False,
            rope_scaling=rope or None,
            tied_embeddings=bool(given.get("tie_word_embeddings", False)),
            attention_bias=has_bias,
            output_bias=family == "llama" and has_bias,
            mlp_bias=bool(given.get("mlp_bias")),
            **_block(given),
        )
    except KeyError as missing:
        raise ModelLoadError(f"{path} lacks {missing}; fetch the model again") from None
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelLoadError(f"{path} is malformed ({error}); fetch the model again") from None
    check_config(path, config)
    return config


def check_config(path: Path, config: ModelConfig) -> None:
    """Raise ModelLoadError if a size is no positive whole number or sizes do not fit together."""
    for name in (
        "num_layers",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "max_positions",
        "rotary_dim",
    ):
        value = getattr(config, name)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ModelLoadError(f"{path}: {name} is {value!r}; fetch the model again")
    for name in ("norm_eps", "rope_theta"):
        value = getattr(config, name)
        if not isinstance(value, float) or not 0 < value < 1e15:
            raise ModelLoadError(f"{path}: {name} is {value!r}; fetch the model again")
    if config.num_heads % config.num_kv_heads:
        raise ModelLoadError(
            f"{path}: {config.num_heads} heads do not share {config.num_kv_heads} key-value heads; "
            "fetch the model again"
        )
    if config.rotary_dim % 2 or config.rotary_dim > config.head_dim:
        raise ModelLoadError(
            f"{path}: {config.rotary_dim} of {config.head_dim} dimensions cannot be rotated; "
            "fetch the model again"
        )


def _refuse_variants(path: Path, given: dict[str, Any]) -> None:
    if given.get("quantization_config"):
        raise ModelLoadError(
            f"{path}: the weights are quantised for another runtime; use the model's original "
            "weights or a .gguf file"
        )


def _norm_eps(given: dict[str, Any]) -> Any:  # noqa: ANN401 - checked with the other values
    names = ("rms_norm_eps", *_LAYER_NORM_EPS)
    return next((given[name] for name in names if given.get(name) is not None), 1e-6)


def _block(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the config says of a layer, whether any pass computes it or not.

    These families are RMSNorm, silu and a gate, one after another; what their configs, or ones
    made from theirs, say against it is believed.
    """
    names = ("rms_norm_eps", *_LAYER_NORM_EPS)
    epsilon = next((name for name in names if given.get(name) is not None), names[0])
    return {
        "norm": "rms" if epsilon == names[0] else "layer",
        "norm_bias": bool(given.get("norm_bias")),
        "activation": str(given.get("hidden_act", "silu")),
        "is_gated": True,
        "is_parallel": any(given.get(name) for name in _PARALLEL),
        "qk_norm": any(given.get(name) for name in _QK_NORM),
        "sliding_windows": _sliding_windows(given),
        "rope_thetas": (),
    }


def _sliding_windows(given: dict[str, Any]) -> tuple[int | None, ...]:
    """Return the layers' windows, () if none is shorter than the model's context."""
    window = given.get("sliding_window")
    slides = given["model_type"] == "mistral" or given.get("use_sliding_window")
    kinds = given.get("layer_types")
    if isinstance(kinds, list):  # transformers 5 says it of every layer
        slides = "sliding_attention" in kinds
    if not slides or window is None or window >= given.get("max_position_embeddings", 2048):
        return ()
    if not isinstance(kinds, list):
        return (window,)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters as transformers 5 writes them, the base always among them."""
    parameters = given.get("rope_parameters") or {}
    scaling = given.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise ModelLoadError(
            f"{path}: rotary parameters {parameters or scaling!r} are no object; "
            "fetch the model again"
        )
    rope = {
        "rope_theta": given.get("rope_theta", 10000.0),
        "partial_rotary_factor": given.get("partial_rotary_factor", 1.0),
        **scaling,
        **parameters,
    }
    kind = rope.pop("type", "default")
    kind = rope.setdefault("rope_type", kind)
    if kind == "default":
        del rope["rope_type"]
        return {key: rope[key] for key in ("rope_theta", "partial_rotary_factor")}
    factor = rope.get("factor", 1.0)
    if not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise ModelLoadError(
            f"{path}: a rotary scaling factor of {factor!r}; fetch the model again"
        )
    trained = given.get("original_max_position_embeddings")
    if trained is not None:
        rope.setdefault("original_max_position_embeddings", trained)
    return rope
