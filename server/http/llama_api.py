"""llama.cpp's `/infill`: the fields that llama.vim and llama.vscode send, and its answers' forms.

Source: tools/server/README.md of llama.cpp, and what its server answers. One thing differs:
`t_max_predict_ms` ends an answer wherever it is, and there only once it has a line end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine.wire.config import Completion
from ...engine.wire.errors import BadRequest
from ..settings import Settings
from .dialect import ERROR_TYPES, Piece
from .fields import MOST_TOKENS, Asked, flag_of, number_of, params_of, text_of, texts_of, whole_of

log = logging.getLogger(__name__)

_STOP_TYPES = {
    **{"end": "eos", "stop": "word", "length": "limit", "time": "limit"},
    "low_confidence": "limit",
}
_TYPES = {**ERROR_TYPES, 503: "unavailable_error"}
# What a warm cache, which no token was asked of, is answered with.
NOTHING = Completion("", (), 0, 0, 0.0, 0.0, 0, "length", ())


class Infill:
    """The interface. Samplers, slots and llama.cpp's cache options have no meaning here."""

    ends_with = b""

    def __init__(self) -> None:
        """Start without anybody having sent other files' text."""
        self._has_told_of_extra = False

    def asked(self, fields: Mapping[str, Any], settings: Settings) -> Asked:
        """Return what a request asks; its document is prefix, prompt and suffix.

        Raises:
            BadRequest: a field is missing or not usable; the message names it.
        """
        before = text_of(fields, "input_prefix") + text_of(fields, "prompt", "")
        text = before + text_of(fields, "input_suffix")
        self._note_extra(fields.get("input_extra"))
        texts_of(fields, "response_fields")
        flag_of(fields, "return_tokens")
        num_tokens = whole_of(fields, "n_predict", settings.max_tokens, -(10**9), 10**9)
        budget_ms = number_of(fields, "t_max_predict_ms", settings.time_budget_ms, -1e9, 600_000)
        params = None
        if num_tokens:
            params = params_of(
                fields,
                settings,
                num_tokens if num_tokens > 0 else MOST_TOKENS,
                max(0.0, float(budget_ms)),
            )
        return Asked(text, len(before), params, flag_of(fields, "stream"), fields)

    def whole(self, asked: Asked, model: str, given: Completion, pieces: Sequence[Piece]) -> object:
        """Return the answer to a request that does not stream."""
        return _chosen(self._answer(asked, model, given, given.text), asked)

    def part(self, asked: Asked, model: str, about: str, piece: Piece, at: int) -> object:
        """Return the event of one piece."""
        return {"index": 0, "content": piece.text, "tokens": [], "stop": False, "id_slot": -1}

    def last(self, asked: Asked, model: str, about: str, given: Completion) -> list[object]:
        """Return the event behind the last piece."""
        return [_chosen(self._answer(asked, model, given, ""), asked)]

    def error(self, status: int, message: str) -> object:
        """Return what a request is refused with."""
        kind = _TYPES.get(status, "server_error")
        return {"error": {"code": status, "message": message, "type": kind}}

    def _answer(
        self, asked: Asked, model: str, given: Completion, content: str
    ) -> dict[str, object]:
        wants_tokens = flag_of(asked.fields, "return_tokens")
        return {
            "index": 0,
            "content": content,
            "tokens": list(given.token_ids) if wants_tokens else [],
            "id_slot": 0,
            "stop": True,
            "model": model,
            "tokens_predicted": len(given.token_ids),
            "tokens_evaluated": given.num_prompt_tokens,
            "generation_settings": _generation_settings(asked),
            "has_new_line": "\n" in given.text,
            "truncated": False,
            "stop_type": _STOP_TYPES[given.stop_reason],
            "stopping_word": _stopping_word(asked, given),
            "tokens_cached": given.num_prompt_tokens + len(given.token_ids),
            "timings": _timings(given),
        }

    def _note_extra(self, extra: object) -> None:
        if extra is None or extra == []:
            return
        is_list = isinstance(extra, list)
        if not is_list or not all(
            isinstance(one, dict) and isinstance(one.get("text"), str) for one in extra
        ):
            raise BadRequest('input_extra must be a list of objects with a "text" that is a string')
        message = "input_extra (%d texts) is left out: suggestions come from one file"
        # Llama.vim sends it with every request.
        log.log(logging.DEBUG if self._has_told_of_extra else logging.WARNING, message, len(extra))
        self._has_told_of_extra = True


def _chosen(answer: dict[str, object], asked: Asked) -> dict[str, object]:
    """Return the answer, or of it what `response_fields` names, by paths such as "timings/x"."""
    if asked.fields.get("response_fields") is None:
        return answer
    chosen: dict[str, object] = {}
    for path in texts_of(asked.fields, "response_fields"):
        value: object = answer
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            chosen[path] = value
    return chosen


def _generation_settings(asked: Asked) -> dict[str, object]:
    params = asked.params
    if params is None:
        return {"n_predict": 0}
    return {
        "n_predict": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "stop": list(params.stop),
        "t_max_predict_ms": params.time_budget_ms,
        "stream": asked.streams,
    }


def _stopping_word(asked: Asked, given: Completion) -> str:
    """Return the stop string, as far as it is known: the engine says that there was one."""
    stop = asked.params.stop if asked.params else ()
    return stop[0] if given.stop_reason == "stop" and len(stop) == 1 else ""


def _timings(given: Completion) -> dict[str, float]:
    num_computed = given.num_prompt_tokens - given.num_reused_tokens
    return {
        "cache_n": given.num_reused_tokens,
        **_pace("prompt", num_computed, given.ttft_ms),
        **_pace("predicted", len(given.token_ids), given.total_ms - given.ttft_ms),
    }


def _pace(what: str, num_tokens: int, ms: float) -> dict[str, float]:
    return {
        f"{what}_n": num_tokens,
        f"{what}_ms": ms,
        f"{what}_per_token_ms": ms / num_tokens if num_tokens else 0.0,
        f"{what}_per_second": num_tokens / ms * 1e3 if ms else 0.0,
    }
