"""OpenAI's `/v1/completions`: the fields that tools send, and the forms of its answers.

Source: OpenAI's API reference, "Completions (legacy)".
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ...engine.wire.config import Completion
from ...engine.wire.errors import BadRequest
from ..settings import Settings
from . import fim_marks
from .dialect import ERROR_TYPES, Piece
from .fields import Asked, flag_of, params_of, text_of, whole_of

_FINISH = {
    **{"end": "stop", "stop": "stop", "length": "length", "time": "length"},
    "low_confidence": "length",
}
_MOST_LOGPROBS = 5


class OpenAI:
    """The interface; its tools are minuet, cursortab, Zed and OpenAI's own libraries."""

    ends_with = b"data: [DONE]\n\n"

    def asked(self, fields: Mapping[str, Any], settings: Settings) -> Asked:
        """Return what a request asks; its document is prompt and suffix.

        Raises:
            BadRequest: a field is missing or not usable; the message names it.
        """
        for name in ("n", "best_of"):
            if whole_of(fields, name, 1, 0, 1000) != 1:
                raise BadRequest(f"{name} is {fields[name]}: one completion is made at a time")
        if flag_of(fields, "echo"):
            raise BadRequest("echo is true: the prompt is not sent back, set it to false")
        whole_of(fields, "logprobs", 0, 0, _MOST_LOGPROBS)
        prompt, suffix = _prompt_of(fields), text_of(fields, "suffix", "")
        if not suffix and (parts := fim_marks.split(prompt)) is not None:
            prompt, suffix = parts
        max_tokens = whole_of(fields, "max_tokens", settings.max_tokens, 1, 10**9)
        params = params_of(fields, settings, max_tokens, settings.time_budget_ms)
        return Asked(prompt + suffix, len(prompt), params, flag_of(fields, "stream"), fields)

    def whole(self, asked: Asked, model: str, given: Completion, pieces: Sequence[Piece]) -> object:
        """Return the answer to a request that does not stream."""
        starts = accumulate((len(piece.text) for piece in pieces), initial=0)
        logprobs = _logprobs(asked, list(zip(pieces, starts, strict=False)))
        choice = _choice(given.text, logprobs, _FINISH[given.stop_reason])
        return {**_head(model, _name()), "choices": [choice], "usage": _usage(given)}

    def part(self, asked: Asked, model: str, about: str, piece: Piece, at: int) -> object:
        """Return the event of one piece, which begins at so many characters of the completion."""
        return {
            **_head(model, about),
            "choices": [_choice(piece.text, _logprobs(asked, [(piece, at)]), None)],
        }

    def last(self, asked: Asked, model: str, about: str, given: Completion) -> list[object]:
        """Return the events behind the last piece: why it ended, and what it took if asked for."""
        head = _head(model, about)
        ended = {**head, "choices": [_choice("", None, _FINISH[given.stop_reason])]}
        options = asked.fields.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage") is True:
            return [ended, {**head, "choices": [], "usage": _usage(given)}]
        return [ended]

    def error(self, status: int, message: str) -> object:
        """Return what a request is refused with."""
        kind = ERROR_TYPES.get(status, "server_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def models(model: str) -> object:
    """Return the answer of `/v1/models`: the one model that completes."""
    return {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": 0, "owned_by": "keyturn"}],
    }


def _prompt_of(fields: Mapping[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise BadRequest("prompt is a list: it must be one text, as a string")
    return text_of({"prompt": prompt} if "prompt" in fields else {}, "prompt")


def _name() -> str:
    return f"cmpl-{time.time_ns():x}"


def _head(model: str, name: str) -> dict[str, object]:
    return {"id": name, "object": "text_completion", "created": int(time.time()), "model": model}


def _choice(text: str, logprobs: object, finish: str | None) -> dict[str, object]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(asked: Asked, pieces: Sequence[tuple[Piece, int]]) -> object:
    """Return each piece as a token; None if they were not asked for.

    Where a stop string may have begun, or a character has several tokens, a piece has several.
    """
    if asked.fields.get("logprobs") is None:
        return None
    texts = [piece.text for piece, _ in pieces]
    values = [math.log(max(piece.probability, 1e-300)) for piece, _ in pieces]
    return {
        "tokens": texts,
        "token_logprobs": values,
        "top_logprobs": [{text: value} for text, value in zip(texts, values, strict=True)],
        "text_offset": [asked.offset + at for _, at in pieces],
    }


def _usage(given: Completion) -> object:
    num_tokens = len(given.token_ids)
    return {
        "prompt_tokens": given.num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": given.num_prompt_tokens + num_tokens,
        "prompt_tokens_details": {"cached_tokens": given.num_reused_tokens},
    }
