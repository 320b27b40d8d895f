"""The open documents as the engine gets them: with placeholders where secrets are hidden."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...engine.syntax.languages import language_of
from ...engine.wire.config import Completion
from ..documents import Document, Edit
from .masked import Masked, masked_in_slices, without_placeholders

if TYPE_CHECKING:
    from ..engine_client import EngineClient

# A longer text is not looked at all at once.
_AT_ONCE_CHARS = 100_000


class HiddenSecrets:
    """Masks of all documents of one language server.

    Args:
        is_on: whether secrets are hidden.
    """

    def __init__(self, is_on: Callable[[], bool]) -> None:
        """Hold no document."""
        self._is_on = is_on
        self._masked: dict[str, Masked] = {}
        self._meanwhile: dict[str, list[Edit]] = {}

    def takes_long(self, document: Document) -> bool:
        """Whether everybody would wait for `whole`: then `whole_in_slices` is for it."""
        return self._is_on() and len(document.text) > _AT_ONCE_CHARS

    async def whole_in_slices(self, document: Document) -> str:
        """Return what `whole` does for the text as it is in the end, edits meanwhile and all.

        Until then the engine must not have the document: its edits are not hidden.
        """
        uri = document.uri
        edits: list[Edit] = []
        self._meanwhile[uri] = edits
        try:
            language = language_of(document.language_id, uri)
            masked = await masked_in_slices(document.text, language)
        finally:
            if self._meanwhile.get(uri) is edits:
                del self._meanwhile[uri]
        masked.edit(edits)
        self._masked[uri] = masked
        return masked.text

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
        self._meanwhile.get(uri, []).extend(edits)
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
        reasons = zip(completion.other_texts, completion.other_stop_reasons, strict=True)
        others = [each for each in reasons if masked.num_safe(each[0]) == len(each[0])]
        return replace(
            completion,
            text=text,
            # What is kept are whole lines: nothing of it was broken off.
            stop_reason=completion.stop_reason if text == completion.text else "end",
            other_texts=tuple(other for other, _ in others),
            other_stop_reasons=tuple(reason for _, reason in others),
        )

    def closed(self, uri: str) -> None:
        """Forget a document."""
        self._masked.pop(uri, None)


class EngineTexts:
    """What the engine has of one language server's documents.

    Args:
        engine: gets the texts.
        hides_secrets: whether it gets placeholders instead of credentials.
        path_of: returns the path that the model is shown of a document.
        is_visible: whether somebody looks at a document.
    """

    def __init__(
        self,
        engine: EngineClient,
        hides_secrets: Callable[[], bool],
        path_of: Callable[[Document], str],
        is_visible: Callable[[str], bool],
    ) -> None:
        """Hold no document."""
        self._engine = engine
        self._secrets = HiddenSecrets(hides_secrets)
        self._path_of, self._is_visible = path_of, is_visible
        self._opening: dict[str, asyncio.Task[None]] = {}

    def submit(self, document: Document) -> None:
        """Send a whole text; of a long one the engine hears when its secrets are found."""
        self._stop_opening(document.uri)
        if self._secrets.takes_long(document):
            self.close(document.uri)
            self._opening[document.uri] = asyncio.ensure_future(self._open_later(document))
        else:
            self._open(document, self._secrets.whole(document))

    def hidden(self, uri: str, edits: Sequence[Edit]) -> Sequence[Edit] | None:
        """Return a document's edits for the engine; None if it has not been told of it yet."""
        hidden = self._secrets.edited(uri, edits)
        return None if uri in self._opening else hidden

    def close(self, uri: str) -> None:
        """Let the engine forget a document."""
        self._stop_opening(uri)
        self._secrets.closed(uri)
        self._engine.close(uri)

    async def sent(self, uri: str) -> None:
        """Wait until the engine has been told of a document."""
        opening = self._opening.get(uri)
        if opening is not None:
            await asyncio.wait({opening})

    def held(self, document: Document) -> str | None:
        """Return the text that the engine was told of, edits and all; None if it was not yet."""
        return None if document.uri in self._opening else self._secrets.held(document)

    def offered(self, uri: str, completion: Completion) -> Completion:
        """Return a completion without what holds a placeholder; see `HiddenSecrets.offered`."""
        return self._secrets.offered(uri, completion)

    async def _open_later(self, document: Document) -> None:
        text = await self._secrets.whole_in_slices(document)
        del self._opening[document.uri]
        self._open(document, text)

    def _open(self, document: Document, text: str) -> None:
        self._engine.open(
            document.uri,
            document.version,
            text,
            self._path_of(document),
            visible=self._is_visible(document.uri),
        )

    def _stop_opening(self, uri: str) -> None:
        task = self._opening.pop(uri, None)
        if task is not None:
            task.cancel()
