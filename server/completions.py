"""When to ask the engine, what to reuse, and what to return; no LSP types and no engine here.

Every empty answer carries its reason: silence is the chief complaint about completion servers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..engine.syntax.languages import language_of
from ..engine.wire.config import Completion, CompletionParams
from ..engine.wire.errors import EngineError
from .documents import Document, Edit
from .settings import Settings
from .suggestion import asked, is_inside_word, offered, untrained
from .trim import first_line

_NUM_RECENT = 20

Ask = Callable[[Document, int, CompletionParams, bool], Awaitable[Completion]]
Warm = Callable[[Document, int], None]


@dataclass(frozen=True, slots=True)
class Selected:
    """What the editor's own menu would insert: `text` for `start:end` of the document."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` replaces `start:end` of the document; when it is empty, `reason` says why.

    `is_cut`: there would have been more, had there been time.
    """

    text: str
    start: int
    end: int
    reason: str | None = None
    is_cut: bool = False


@dataclass
class _Suggestion:
    """The last suggestion of a document, and how much of it has been typed since."""

    text: str
    offset: int
    is_cut: bool
    num_typed: int = 0

    def follow(self, edits: Sequence[Edit]) -> bool:
        """Follow edits; False when the text is no longer what the suggestion was made for."""
        for start, end, text in edits:
            cursor = self.offset + self.num_typed
            if start == end == cursor and self.text.startswith(text, self.num_typed):
                self.num_typed += len(text)
            elif text == "" and self.offset <= start and end == cursor:
                self.num_typed = start - self.offset
            else:
                return False
        return True


class Completions:
    """Decide and answer, for all documents of one language server.

    Args:
        ask: asks the engine: document, offset, parameters, whether the user asked for it. When the
            task that awaits it is cancelled, the engine stops.
        warm: tells the engine where the cursor is, so that the cache is there after the pause.
        settings: returns the settings in force.
        model_languages: returns what the model was trained on, as LSP identifiers; nothing while
            that is not known, or of a model that does not say.
    """

    def __init__(
        self,
        ask: Ask,
        warm: Warm,
        settings: Callable[[], Settings],
        model_languages: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Start with nothing asked."""
        self._model_languages = model_languages
        self._ask = ask
        self._warm = warm
        self._settings = settings
        self._running: dict[str, asyncio.Task[Answer]] = {}
        self._suggestions: dict[str, _Suggestion] = {}
        self._num_requests = 0
        self._num_suggested = 0
        self._recent_reasons: deque[str] = deque(maxlen=_NUM_RECENT)

    def edited(self, uri: str, edits: Sequence[Edit] | None) -> None:
        """Note that a document changed: by `edits`, or as a whole (None)."""
        suggestion = self._suggestions.get(uri)
        if suggestion is not None and (edits is None or not suggestion.follow(edits)):
            del self._suggestions[uri]
        self._stop(uri)

    def closed(self, uri: str) -> None:
        """Forget a document."""
        self._suggestions.pop(uri, None)
        self._stop(uri)

    async def complete(
        self, document: Document, offset: int, *, invoked: bool, selected: Selected | None = None
    ) -> Answer:
        """Return what to insert at `offset`; never raises but CancelledError.

        Args:
            document: the text as it is now; a change ends this request with an empty answer.
            offset: the cursor.
            invoked: the user asked for it: no pause, no reuse, and the engine takes it first.
            selected: the entry selected in the editor's menu, which the answer must continue.
        """
        self._stop(document.uri)
        task = asyncio.ensure_future(self._answer(document, offset, invoked, selected))
        self._running[document.uri] = task
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            self._count("cancelled by the editor")
            raise
        finally:
            if self._running.get(document.uri) is task:
                del self._running[document.uri]
        if task.cancelled():
            answer = Answer("", offset, offset, "a newer request or edit took its place")
        else:
            answer = task.result()
        self._count(answer.reason)
        return answer

    def status(self) -> dict[str, object]:
        """Return how requests ended, the latest reasons for none last, as plain data."""
        return {
            "num_requests": self._num_requests,
            "num_suggested": self._num_suggested,
            "recent_reasons": list(self._recent_reasons),
        }

    def _count(self, reason: str | None) -> None:
        self._num_requests += 1
        if reason is None:
            self._num_suggested += 1
        else:
            self._recent_reasons.append(reason)

    def _stop(self, uri: str) -> None:
        task = self._running.pop(uri, None)
        if task is not None:
            task.cancel()

    async def _answer(
        self, document: Document, offset: int, invoked: bool, selected: Selected | None
    ) -> Answer:
        settings = self._settings()
        reason = _reason_not_to_ask(document, offset, invoked, selected, settings)
        reason = reason or self._untrained(document, settings)
        if reason is not None:
            return Answer("", offset, offset, reason)
        typed_through = None if invoked else self._typed_through(document.uri, offset)
        if typed_through is not None:
            return _continue(selected, document.text, Answer(typed_through, offset, offset))
        if not invoked and settings.debounce_ms:
            self._warm(document, offset)
            await asyncio.sleep(settings.debounce_ms / 1000)
        try:
            answer = await self._asked(document, offset, invoked, settings)
        except EngineError as error:
            return Answer("", offset, offset, str(error))
        if answer.text:
            self._suggestions[document.uri] = _Suggestion(answer.text, offset, answer.is_cut)
        return _continue(selected, document.text, answer)

    def _typed_through(self, uri: str, offset: int) -> str | None:
        """Return what is left of the last suggestion if the cursor stands behind its typed part."""
        suggestion = self._suggestions.get(uri)
        if suggestion is None or offset != suggestion.offset + suggestion.num_typed:
            return None
        if suggestion.is_cut and not suggestion.num_typed:
            return None  # nobody has begun to take it: there may be more now
        return suggestion.text[suggestion.num_typed :] or None

    async def _asked(
        self, document: Document, offset: int, invoked: bool, settings: Settings
    ) -> Answer:
        text = document.text
        params = asked(text, offset, settings.completion_params())
        raw = await self._ask(document, offset, params, invoked)
        # The model's languages may have come with it.
        reason = self._untrained(document, settings)
        if reason is not None:
            return Answer("", offset, offset, reason)
        language = language_of(document.language_id, document.uri)
        kept = offered(raw, text, offset, language)
        return Answer(kept.text, offset, offset, kept.reason, raw.stop_reason == "time")

    def _untrained(self, document: Document, settings: Settings) -> str | None:
        return untrained(
            document.language_id, document.uri, self._model_languages(), settings.languages
        )


def _reason_not_to_ask(
    document: Document,
    offset: int,
    invoked: bool,
    selected: Selected | None,
    settings: Settings,
) -> str | None:
    if not settings.enabled:
        return "completions are turned off (setting enabled)"
    if document.refusal is not None:
        return f"the document was refused: {document.refusal}"
    if selected is not None and not _ends_at(selected, document.text, offset):
        return "the selected menu entry does not replace text of this line that ends at the cursor"
    if invoked:
        return None
    if is_inside_word(document.text, offset):
        return "the cursor is inside a word"
    if len(document.text) < 1000 and not document.text.strip():
        return "the document is empty"
    return None


def _ends_at(selected: Selected, text: str, offset: int) -> bool:
    replaced = text[selected.start : selected.end]
    return selected.start <= offset == selected.end and first_line(replaced) == replaced


def _continue(selected: Selected | None, text: str, answer: Answer) -> Answer:
    """Return `answer` widened to the menu's range, or nothing when it does not continue it."""
    if selected is None or not answer.text:
        return answer
    whole = text[selected.start : answer.start] + answer.text
    if not whole.startswith(selected.text):
        reason = f"the completion does not continue the selected entry {selected.text!r}"
        return Answer("", answer.start, answer.end, reason)
    return Answer(whole, selected.start, answer.end, is_cut=answer.is_cut)
