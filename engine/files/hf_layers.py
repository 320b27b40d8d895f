"""What a `config.json` says of layers one by one: which slide, and how each is rotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..model.config import Rope
from ..wire.errors import ModelLoadError
from .architectures import ARCHITECTURES

_SLIDES, _FULL = "sliding_attention", "full_attention"
KINDS = (_SLIDES, _FULL, "attention")
_LONGEST_PERIOD = 1000
# Bases where a config names none.
_THETAS = {"gemma3_text": 1_000_000.0, "smollm3": 2_000_000.0}


def sliding_windows(given: dict[str, Any]) -> tuple[int | None, ...]:
    """Return the layers' windows, () if none is shorter than the model's context."""
    window = given.get("sliding_window")
    if window is None or window >= given.get("max_position_embeddings", 2048):
        return ()
    windows = tuple(window if kind == _SLIDES else None for kind in kinds(given))
    return windows if any(windows) else ()


def kinds(given: dict[str, Any]) -> list[str]:
    """Return "sliding_attention" or "full_attention" for the layers, over and over again."""
    listed = given.get("layer_types")
    if listed is not None:  # transformers 5 says it of every layer
        return _of_every_layer(given, listed)
    family = given["model_type"]
    if ARCHITECTURES[family].sliding_period:
        period = _period(given.get("sliding_window_pattern", ARCHITECTURES[family].sliding_period))
        return [*[_SLIDES] * (period - 1), _FULL]
    if family in ("mistral", "starcoder2"):
        return [_SLIDES]
    if given.get("use_sliding_window"):  # Qwen's: from a layer on
        num_full = min(given.get("max_window_layers", 0), given["num_hidden_layers"])
        return [*[_FULL] * num_full, *[_SLIDES] * (given["num_hidden_layers"] - num_full)]
    return [_FULL]


def ropes(path: Path, given: dict[str, Any], head_dim: int) -> tuple[Rope | None, ...]:
    """Return how the layers are rotated, over and over again; None of them not at all."""
    family = given["model_type"]
    one, parameters = ARCHITECTURES[family], given.get("rope_parameters") or {}
    if isinstance(parameters, dict) and (_FULL in parameters or _SLIDES in parameters):
        found = {
            kind: _rope(path, given | {"rope_parameters": each}, head_dim)
            for kind, each in parameters.items()
            if each
        }
        return tuple(found[kind] for kind in kinds(given))
    rope = _rope(path, given, head_dim)
    if one.local_theta is not None:
        local = float(given.get("rope_local_base_freq", one.local_theta))
        slides = Rope(local, rope.rotary_dim)
        return tuple(slides if kind == _SLIDES else rope for kind in kinds(given))
    if one.rotated_period:
        rotated = given.get("no_rope_layers")
        if rotated is None:
            period = _period(given.get("no_rope_layer_interval", one.rotated_period))
            rotated = [*[1] * (period - 1), 0]
        else:
            rotated = _of_every_layer(given, rotated)
        return tuple(rope if each else None for each in rotated)
    if family == "granitemoehybrid" and given.get("position_embedding_type") != "rope":
        return (None,)
    return (rope,)


def _of_every_layer(given: dict[str, Any], listed: object) -> list[Any]:
    """Return a list of something for every layer.

    Raises:
        ValueError: it is none, or has another length.
    """
    if not isinstance(listed, list) or len(listed) != given["num_hidden_layers"]:
        raise ValueError(f"{listed!r:.80} for {given['num_hidden_layers']!r:.20} layers")
    return listed


def _period(length: object) -> int:
    if type(length) is not int or not 0 < length <= _LONGEST_PERIOD:
        raise ValueError(f"a period of {length!r:.80} layers")
    return length


def _rope(path: Path, given: dict[str, Any], head_dim: int) -> Rope:
    """Return one set of rotary parameters."""
    family = given["model_type"]
    parameters = given.get("rope_parameters") or {}
    scaling = given.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise ModelLoadError(
            f"{path}: rotary parameters {parameters or scaling!r} are no object; "
            "fetch the model again"
        )
    share = given.get("partial_rotary_factor", ARCHITECTURES[family].rotary_share)
    found = {
        "rope_theta": given.get("rope_theta", _THETAS.get(family, 10000.0)),
        "partial_rotary_factor": share,
        **scaling,
        **parameters,
    }
    kind = found.pop("type", "default")
    kind = found.setdefault("rope_type", kind)
    theta = float(found.pop("rope_theta"))
    rotary_dim = int(head_dim * found.pop("partial_rotary_factor"))
    if kind == "default":
        return Rope(theta, rotary_dim)
    factor = found.get("factor", 1.0)
    if not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise ModelLoadError(
            f"{path}: a rotary scaling factor of {factor!r}; fetch the model again"
        )
    trained = given.get("original_max_position_embeddings")
    if trained is not None:
        found.setdefault("original_max_position_embeddings", trained)
    return Rope(theta, rotary_dim, found)
