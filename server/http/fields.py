"""A request's JSON object, field by field, and what both interfaces make of one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...engine.wire.config import CompletionParams
from ...engine.wire.errors import BadRequest
from ..settings import Settings

# What one request may ask. Tools name a round number of tokens that no completion needs: more is
# cut to this, as "length" says then. Each stop string is looked for after every token.
MOST_TOKENS = 4096
MOST_STOPS, MOST_STOP_CHARS = 32, 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, whatever its interface.

    Attributes:
        text: the document.
        offset: the cursor in it, in code points.
        params: how to decode; None asks for a warm cache and no completion.
        streams: the completion is wanted piece by piece.
        fields: the request itself, for what concerns the answer's form.
    """

    text: str
    offset: int
    params: CompletionParams | None
    streams: bool
    fields: Mapping[str, Any]


def object_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request's body.

    Raises:
        BadRequest: it is something else.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error) or 'nested too deeply'}") from None
    if not isinstance(found, dict):
        raise BadRequest(f"the body is {_shown(found)}, not a JSON object")
    return found


def text_of(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Return a field that is a string.

    Args:
        fields: the request.
        name: the field's.
        default: for an absent one or null; None demands it.

    Raises:
        BadRequest: it is no string, or it is missing.
    """
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if name not in fields:
        raise BadRequest(f"{name} is missing: it must be a string")
    if not isinstance(value, str):
        raise BadRequest(f"{name} is {_shown(value)}: it must be a string")
    return value


def number_of(
    fields: Mapping[str, Any], name: str, default: float, low: float, high: float
) -> float:
    """Return a field that is a number from `low` to `high`; absent or null it is `default`.

    Raises:
        BadRequest: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not low <= value <= high:
        bounds = f"up to {high:g}" if math.isinf(low) else f"from {low:g} to {high:g}"
        raise BadRequest(f"{name} is {_shown(value)}: it must be a number {bounds}")
    return value


def whole_of(fields: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """Return a field that is a whole number from `low` to `high`; absent or null: `default`.

    Raises:
        BadRequest: it is something else.
    """
    value = number_of(fields, name, default, low, high)
    if value != int(value):
        raise BadRequest(f"{name} is {value}: it must be a whole number")
    return int(value)


def flag_of(fields: Mapping[str, Any], name: str) -> bool:
    """Return a field that is true or false; absent or null it is false.

    Raises:
        BadRequest: it is something else.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} is {_shown(value)}: it must be true or false")
    return bool(value)


def texts_of(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a field that is a list of strings; absent or null it is empty, one string is one.

    Raises:
        BadRequest: it is something else.
    """
    value = fields.get(name)
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise BadRequest(f"{name} is {_shown(value)}: it must be a string or a list of strings")
    return tuple(values)


def params_of(
    fields: Mapping[str, Any], settings: Settings, max_tokens: int, time_budget_ms: float
) -> CompletionParams:
    """Return how to decode: what the request says, and for the rest the settings.

    Raises:
        BadRequest: a field is not usable.
    """
    stop = tuple(one for one in texts_of(fields, "stop") if one)
    if len(stop) > MOST_STOPS or any(len(one) > MOST_STOP_CHARS for one in stop):
        raise BadRequest(
            f"stop has {len(stop)} strings of up to {max(map(len, stop))} characters: at most "
            f"{MOST_STOPS} of {MOST_STOP_CHARS} are looked for"
        )
    temperature = number_of(fields, "temperature", settings.temperature, -math.inf, 10)
    top_p = number_of(fields, "top_p", settings.top_p, 0, 1)
    # What leaves the likeliest token alone is greedy; a seed below 0 leaves the choice to us.
    is_greedy = temperature <= 0 or top_p == 0 or fields.get("top_k") == 1
    seed = whole_of(fields, "seed", settings.seed, -(2**63), 2**63 - 1)
    return CompletionParams(
        max_tokens=min(max_tokens, MOST_TOKENS),
        temperature=0.0 if is_greedy else float(temperature),
        top_p=1.0 if is_greedy else float(top_p),
        seed=seed if seed >= 0 else settings.seed,
        stop=stop,
        time_budget_ms=time_budget_ms,
        depth=str(settings.depth),
    )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
