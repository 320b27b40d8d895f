"""The open documents as the engine gets them: with placeholders where secrets are hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...engine.syntax.languages import language_of
from ...engine.wire.config import Completion
from ..documents import Document, Edit
from .masked import Masked, without_placeholders


class HiddenSecrets:
    """Masks of all documents of one language server.

    Args:
        is_on: whether secrets are hidden.
    """

    def __init__(self, is_on: Callable[[], bool]) -> None:
        """Hold no document."""
        self._is_on = is_on
        self._masked: dict[str, Masked] = {}

    def whole(self, document: Document) -> str:
        """Return a document's whole text for the engine, looked at anew."""
        self._masked.pop(document.uri, None)
        if not self._is_on():
            return document.text
        language = language_of(document.language_id, document.uri)
        masked = self._masked[document.uri] = Masked(document.text, language)
        return masked.text

    def held(self, document: Document) -> str:
        """Return the text that the engine was told of, edits and all."""
        masked = self._masked.get(document.uri)
        return document.text if masked is None else masked.text

    def edited(self, uri: str, edits: Sequence[Edit]) -> Sequence[Edit]:
        """Return a document's edits for the engine, each in the text after the one before."""
        masked = self._masked.get(uri)
        return edits if masked is None else masked.edit(edits)

    def offered(self, uri: str, completion: Completion) -> Completion:
        """Return a completion without what holds a placeholder.

        Raises:
            HoldsSecret: nothing is left.
        """
        masked = self._masked.get(uri)
        if masked is None:
            return completion
        text = without_placeholders(completion.text, masked)
        # What is kept are whole lines: nothing of it was broken off.
        return (
            completion
            if text == completion.text
            else replace(completion, text=text, stop_reason="end")
        )

    def closed(self, uri: str) -> None:
        """Forget a document."""
        self._masked.pop(uri, None)
