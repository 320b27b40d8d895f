"""What an interface of the HTTP server is: how it asks, and the forms of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ...engine.wire.config import Completion
from ..settings import Settings
from .fields import Asked

# What both interfaces call an error, by its status.
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
}


class Piece(NamedTuple):
    """Text as the engine hands it out, as a rule a token's, and its tokens' joint probability."""

    text: str
    probability: float


class Dialect(Protocol):
    """One interface; objects are what becomes JSON."""

    # What a stream ends with, behind the last event.
    ends_with: bytes

    def asked(self, fields: Mapping[str, Any], settings: Settings) -> Asked:
        """Return what a request asks.

        Raises:
            BadRequest: a field is missing or not usable; the message names it.
        """
        ...

    def whole(self, asked: Asked, model: str, given: Completion, pieces: Sequence[Piece]) -> object:
        """Return the answer to a request that does not stream."""
        ...

    def part(self, asked: Asked, model: str, about: str, piece: Piece, at: int) -> object:
        """Return the event of one piece, which begins at so many characters of the completion.

        `about` names the completion.
        """
        ...

    def last(self, asked: Asked, model: str, about: str, given: Completion) -> list[object]:
        """Return the events behind the last piece."""
        ...

    def error(self, status: int, message: str) -> object:
        """Return what a request is refused with."""
        ...
