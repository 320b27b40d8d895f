"""When to ask the engine, what to reuse, and what to return; no LSP types and no engine here.

Every empty answer carries its reason: silence is the chief complaint about completion servers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from ..engine.syntax.languages import language_of
from ..engine.syntax.region import unified
from ..engine.wire.config import Completion, CompletionParams
from ..engine.wire.errors import Cancelled, EngineError
from .activity import Pace
from .answers import Answer, Begun, KnownAnswers, OnText, Selected, Shown, continuing, heard_out
from .documents import Document, Edit
from .settings import Settings
from .suggestion import (
    ONE_KEY,
    asked,
    is_inside_word,
    is_one_key,
    offered,
    others_offered,
    untrained,
)
from .trim.cut_off import DOUBT

log = logging.getLogger(__name__)

_NUM_RECENT = 20
_UNSURE = (DOUBT, "low_confidence")
_REPLACED = "a newer request or edit took its place"
_CANCELLED = "cancelled by the editor"
_DOUBTFUL = "shown as it was asked for, though its first line is likely to be wrong"

Ask = Callable[[Document, int, CompletionParams, bool, OnText | None], Awaitable[Completion]]
AskOfWhole = Callable[[Document, int, int, CompletionParams], Awaitable[Completion]]
Warm = Callable[[Document, int], None]


class Completions:
    """Decide and answer, for all documents of one language server.

    Args:
        ask: asks the engine: document, offset, parameters, whether the user asked for it, what
            hears the text as it comes. When the task that awaits it is cancelled, the engine stops.
        ask_of_whole: asks the engine of the whole window, automatically: document, the version that
            the offset is of, offset, parameters; raises WarmingUp.
        warm: tells the engine where the cursor is, so that the cache is there after the pause.
        settings: returns the settings in force.
        model_languages: returns what the model was trained on, as LSP identifiers; nothing while
            that is not known, or of a model that does not say.
        on_change: called when a request begins or has ended.
        clock: seconds, of what somebody types.
    """

    def __init__(
        self,
        ask: Ask,
        ask_of_whole: AskOfWhole,
        warm: Warm,
        settings: Callable[[], Settings],
        model_languages: Callable[[], Sequence[str]] = tuple,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing asked."""
        self._on_change = on_change
        self._model_languages = model_languages
        self._ask = ask
        self._ask_of_whole = ask_of_whole
        self._warm = warm
        self._settings = settings
        self._running: dict[str, asyncio.Task[Answer]] = {}
        self._ahead: dict[str, asyncio.Task[None]] = {}
        self._begun: dict[str, Begun] = {}
        self._shown: dict[str, Shown] = {}
        self._paces: defaultdict[str, Pace] = defaultdict(lambda: Pace(clock))
        self._known = KnownAnswers()
        self._paused: set[str | None] = set()  # None: everywhere
        self._counts: Counter[str] = Counter()
        self._recent_reasons: deque[str] = deque(maxlen=_NUM_RECENT)
        self._last_reason: str | None = None
        self._latest: dict[str, object] | None = None
        self._num_asking = 0

    @property
    def is_busy(self) -> bool:
        """Whether the engine is computing an answer."""
        return self._num_asking > 0

    @property
    def last_reason(self) -> str | None:
        """Why the last request that ran its course gave nothing; None if it gave something."""
        return self._last_reason

    def edited(self, uri: str, edits: Sequence[Edit] | None, before: str = "") -> None:
        """Note that a document changed: by `edits` of the text `before`, or as a whole (None)."""
        shown = self._shown.get(uri)
        if shown is not None and (edits is None or not shown.follow(edits)):
            del self._shown[uri]
        begun = self._begun.get(uri)
        if begun is not None and (edits is None or not begun.follow(edits)):
            self._drop_begun(uri)
        self._paces[uri].edited(edits, before)
        self._stop(uri)

    def closed(self, uri: str) -> None:
        """Forget a document."""
        self._shown.pop(uri, None)
        self._paces.pop(uri, None)
        self._drop_begun(uri)
        self._stop(uri)

    def reconfigured(self) -> None:
        """Forget what other settings have given."""
        self._known.clear()
        self._shown.clear()
        for uri in [*self._begun]:
            self._drop_begun(uri)

    def pause(self, uri: str | None, paused: bool) -> None:
        """Suggest nothing in a document, or anywhere (None), until that is taken back."""
        if paused:
            self._paused.add(uri)
        else:
            self._paused.discard(uri)
            if uri is None:
                self._paused.clear()

    def is_paused(self, uri: str | None) -> bool:
        """Whether nothing is suggested in a document because somebody said so."""
        return not self._paused.isdisjoint((None, uri))

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
            self._count(_CANCELLED)
            raise
        finally:
            if self._running.get(document.uri) is task:
                del self._running[document.uri]
        if task.cancelled():
            answer = Answer("", offset, offset, _REPLACED)
        else:
            answer = task.result()
        self._count(answer.reason)
        self._on_change()
        return answer

    def status(self) -> dict[str, object]:
        """Return how requests ended, as plain data; latest reasons for none, and doubts, last.

        `latest` is the last completion of the engine, None before the first: when it was asked for
        after the last key then, when its answer was there after that, and the engine's own figures.
        """
        names = ("requests", "suggested", "asked", "begun", "asked_ahead", "typed_through", "known")
        return {
            **{f"num_{name}": self._counts[name] for name in names},
            "recent_reasons": list(self._recent_reasons),
            "latest": self._latest,
        }

    def _count(self, reason: str | None) -> None:
        self._counts["requests"] += 1
        if reason not in (_REPLACED, _CANCELLED):  # of those nobody sees that nothing came
            self._last_reason = reason
        if reason is None:
            self._counts["suggested"] += 1
        else:
            self._recent_reasons.append(reason)

    def _stop(self, uri: str) -> None:
        for tasks in (self._running, self._ahead):
            task = tasks.pop(uri, None)
            if task is not None:
                task.cancel()

    def _drop_begun(self, uri: str) -> None:
        begun = self._begun.pop(uri, None)
        if begun is not None:
            begun.stop()

    async def _answer(
        self, document: Document, offset: int, invoked: bool, selected: Selected | None
    ) -> Answer:
        settings, uri, text = self._settings(), document.uri, document.text
        pace = self._paces[uri]
        reason = _reason_not_to_ask(document, offset, invoked, selected, settings)
        if reason is None and self.is_paused(uri):
            reason = "suggestions are paused here"
        if reason is None and pace.is_deleting and not invoked:
            reason = "text is being deleted"
        reason = reason or self._untrained(document, settings)
        if reason is not None:
            return Answer("", offset, offset, reason)
        # Answered as what is asked for is, once: by what the gate withheld, if there is more.
        insists = not invoked and pace.insists(offset)
        answer = None if invoked or insists else self._reused(uri, text, offset)
        if answer is None:
            try:
                if invoked or insists:
                    self._drop_begun(uri)
                    answer = await self._wanted(self._asked(document, offset, True, settings))
                else:
                    answer = await self._after_pause(document, offset, settings, pace)
            except EngineError as error:
                return Answer("", offset, offset, str(error))
            if not invoked:
                self._known.put(uri, text, answer)
        is_fresh = not invoked and answer.origin != "typed through"
        if is_fresh and pace.was_deleted(offset, answer.text):
            return Answer("", offset, offset, "it was just deleted here")
        if not invoked and (not answer.text or (insists and not answer.is_cut)):
            pace.offered_nothing(offset)
        if answer.text:
            if answer.origin != "typed through":
                self._keep_shown(uri, text)
                self._shown[uri] = Shown(answer.text, offset, answer.is_cut)
            if settings.speculate and not answer.is_cut:
                ahead = asyncio.ensure_future(self._look_ahead(document, answer, settings))
                self._ahead[uri] = ahead
        return continuing(selected, text, answer)

    def _keep_shown(self, uri: str, text: str) -> None:
        """Remember what is left of the last suggestion, whose place the cursor has left."""
        shown = self._shown.get(uri)
        at = 0 if shown is None else shown.offset + shown.num_typed
        rest = None if shown is None else shown.rest(at)
        if rest is not None:
            self._known.put(uri, text, Answer(rest, at, at))

    def _reused(self, uri: str, text: str, offset: int) -> Answer | None:
        """Return what needs no model: what is left of the last suggestion, or a known answer."""
        shown = self._shown.get(uri)
        rest = None if shown is None else shown.rest(offset)
        if rest is not None:
            self._counts["typed_through"] += 1
            return Answer(rest, offset, offset, origin="typed through")
        known = self._known.get(uri, text, offset)
        self._counts["known"] += known is not None
        return known

    async def _after_pause(
        self, document: Document, offset: int, settings: Settings, pace: Pace
    ) -> Answer:
        """Answer when it is certain that this is a pause; the model may begin before that."""
        shortest_s = settings.debounce_ms / 1000
        pause_s = pace.pause_s(shortest_s)
        before_s = pace.left_s(shortest_s if settings.speculate else pause_s, offset)
        found = asyncio.ensure_future(self._begin(document, offset, settings, before_s))
        found.add_done_callback(heard_out)
        try:
            await asyncio.sleep(pace.left_s(pause_s, offset))
            answer = await self._wanted(found)
        except EngineError:
            self._drop_begun(document.uri)
            raise
        finally:
            found.cancel()
        self._drop_begun(document.uri)
        return answer

    async def _begin(
        self, document: Document, offset: int, settings: Settings, before_s: float
    ) -> Answer:
        """Return what is left of what was begun before this place, or begin here after a while."""
        now = asyncio.get_running_loop().time
        begin_at = now() + before_s
        begun = self._begun.get(document.uri)
        answer = await begun.rest() if begun is not None and begun.is_at(offset) else None
        if answer is not None and is_one_key(answer.text):  # what is left of more
            return Answer("", offset, offset, ONE_KEY)
        if answer is not None:
            return answer
        self._drop_begun(document.uri)
        if settings.debounce_ms:
            self._warm(document, offset)
            await asyncio.sleep(begin_at - now())
        self._counts["begun"] += 1
        begun = Begun(offset, lambda hear: self._asked(document, offset, False, settings, hear))
        self._begun[document.uri] = begun
        answer = await begun.rest()
        if answer is None:
            raise Cancelled(_REPLACED)
        return answer

    async def _wanted(self, answer: Awaitable[Answer]) -> Answer:
        """Await what the engine computes, and what nobody's next key is going to end."""
        self._counts["asked"] += 1
        self._num_asking += 1
        self._on_change()
        try:
            return await answer
        finally:
            self._num_asking -= 1
            self._on_change()

    async def _asked(
        self,
        document: Document,
        offset: int,
        invoked: bool,
        settings: Settings,
        on_text: OnText | None = None,
    ) -> Answer:
        text, version = document.text, document.version
        confidence = "any" if invoked else settings.confidence
        language = language_of(document.language_id, document.uri)
        params = asked(text, offset, settings.completion_params(), confidence, language)
        if invoked:
            params = replace(params, num_candidates=settings.num_candidates)
        pace, now = self._paces[document.uri], asyncio.get_running_loop().time
        waited_s, asked_at = pace.since_key_s(), now()
        raw = await self._ask(document, offset, params, invoked, on_text)
        self._latest = _figures(raw, waited_s, now() - asked_at)
        # The model's languages may have come with it.
        reason = self._untrained(document, settings)
        if reason is not None:
            return Answer("", offset, offset, reason)
        kept = offered(raw, text, offset, language, invoked=invoked)
        if not kept.text and not invoked and raw.is_narrow and raw.stop_reason in _UNSURE:
            # What a narrow window is sure of is right as often; where it is of nothing, the whole
            # one may be.
            raw = await self._ask_of_whole(document, version, offset, params)
            kept = offered(raw, text, offset, language, invoked=False)
        if invoked and raw.is_doubtful and kept.text:
            self._recent_reasons.append(_DOUBTFUL)
        others = others_offered(raw, text, offset, language, kept.text)
        is_cut = raw.stop_reason == "time" or raw.is_narrow
        if not kept.text and others:
            return Answer(others[0], offset, offset, is_cut=is_cut, others=others[1:])
        return Answer(kept.text, offset, offset, kept.reason, is_cut, others=others)

    async def _look_ahead(self, document: Document, answer: Answer, settings: Settings) -> None:
        """Compute what will be suggested once a suggestion has been accepted, and remember it."""
        uri, offset = document.uri, answer.start
        text = document.text[:offset] + answer.text + document.text[answer.end :]
        after = offset + len(answer.text)
        if self._known.get(uri, text, after) is not None:
            return
        try:
            if answer.origin == "typed through":
                # Who types on ends this before it costs anything.
                await asyncio.sleep(self._paces[uri].pause_s(settings.debounce_ms / 1000))
            language = language_of(document.language_id, uri)
            params = asked(text, after, settings.completion_params(), settings.confidence, language)
            self._counts["asked_ahead"] += 1
            params = replace(params, assumed=unified(answer.text))
            raw = await self._ask(document, offset, params, False, None)
        except EngineError as error:
            log.debug("nothing is computed ahead in %s: %s", uri, error)
            return
        kept = offered(raw, text, after, language, invoked=False)
        is_cut = raw.stop_reason == "time" or raw.is_narrow
        self._known.put(uri, text, Answer(kept.text, after, after, kept.reason, is_cut))

    def _untrained(self, document: Document, settings: Settings) -> str | None:
        return untrained(
            document.language_id, document.uri, self._model_languages(), settings.languages
        )


def _figures(raw: Completion, waited_s: float, answered_s: float) -> dict[str, object]:
    return {
        "waited_ms": waited_s * 1e3,
        "answered_ms": answered_s * 1e3,
        "ttft_ms": raw.ttft_ms,
        "total_ms": raw.total_ms,
        "num_tokens": len(raw.token_ids),
        "num_computed": raw.num_prompt_tokens - raw.num_reused_tokens,
        "stop_reason": raw.stop_reason,
        "is_narrow": raw.is_narrow,
    }


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
    if selected is not None and not selected.ends_at(document.text, offset):
        return "the selected menu entry does not replace text of this line that ends at the cursor"
    if invoked:
        return None
    if is_inside_word(document.text, offset):
        return "the cursor is inside a word"
    if len(document.text) < 1000 and not document.text.strip():
        return "the document is empty"
    return None
