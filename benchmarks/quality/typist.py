"""Somebody who types a stretch of a file again, and takes what is right of what is shown."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from lsprotocol import types
from pygls.lsp.client import LanguageClient

# What is typed at once of a file.
SEGMENT_LINES = (3, 8)
# Pauses between keys are lognormal, with this median in seconds and this spread.
KEY_S, SPREAD = 0.12, 0.45
# Pauses to think: after these characters, so often, and so long.
THINKS_AFTER, THINKS, THINK_S = "\n =(,.:", 0.12, (0.4, 1.5)
LONG_PAUSE_S = 0.4
_REPLY_S = 60.0
_WARMING = "warming up"
# What one key writes: editors indent the next line by themselves.
_KEY = re.compile(r"\n *|[^\n]")


@dataclass
class Pause:
    """What came in one long pause.

    Attributes:
        place: "typing", "accepted" (right after that) or "jump".
        ms: from the last key to the last reply; None if none came before the next key.
        calls: of the model, for it; 0 while "warming up" is all that came.
        work: the model's for it, as `keyturn/status` has it: `latest` of its completions.
        reason: why there was nothing.
        shown, wrong: characters shown, and of those behind the first that is not to be typed.
        is_wrong_first: the first word is another.
    """

    place: str
    ms: float | None = None
    calls: int = 0
    work: dict[str, Any] | None = None
    reason: str | None = None
    shown: int = 0
    wrong: int = 0
    is_wrong_first: bool = False


@dataclass
class Typist:
    """One document in one language server, and who types in it."""

    client: LanguageClient
    uri: str
    text: str
    rng: random.Random
    version: int = 1
    num_chars: int = 0
    num_keys: int = 0
    num_stale: int = 0
    pauses: list[Pause] = field(default_factory=list)
    _asking: asyncio.Task[Any] | None = None
    _refreshed: asyncio.Event = field(default_factory=asyncio.Event)

    async def retype(self, start: int, end: int, budget: int) -> None:
        """Have a stretch of the text gone, and type it again."""
        wanted = self.text[start:end]
        self.replace(self.text[:start] + self.text[end:])
        at, place = start, "jump"
        while at < end and self.num_keys < budget:
            asked_at = time.perf_counter()
            self._ask(at)
            pause_s = self._pause_s(wanted[at - start - 1 : at - start])
            if pause_s < LONG_PAUSE_S and place != "jump":
                await asyncio.sleep(pause_s)
            else:
                rest = wanted[at - start :]
                taken = await self._think(at, place, asked_at, max(pause_s, 0.6), rest)
                place = "typing"
                if taken:
                    self.change(at, at, taken)
                    at += len(taken)
                    place = "accepted"
                    continue
            key = _KEY.match(wanted, at - start)
            assert key is not None, "every character is one"
            self.change(at, at, key[0])
            self.num_keys += 1
            self.num_chars += 1
            at += len(key[0])
        if at < end:
            self.change(at, at, wanted[at - start :])

    def _pause_s(self, last: str) -> float:
        if last in THINKS_AFTER and self.rng.random() < THINKS:
            return self.rng.uniform(*THINK_S)
        return KEY_S * self.rng.lognormvariate(0, SPREAD)

    def change(self, start: int, end: int, text: str) -> None:
        """Edit, here and there."""
        where = types.Range(start=self.position(start), end=self.position(end))
        self._send(types.TextDocumentContentChangePartial(range=where, text=text))
        self.text = self.text[:start] + text + self.text[end:]

    def replace(self, text: str) -> None:
        """Have another text: one that was never there is not what was just deleted."""
        self._send(types.TextDocumentContentChangeWholeDocument(text=text))
        self.text = text

    def _send(self, event: types.TextDocumentContentChangeEvent) -> None:
        self.version += 1
        document = types.VersionedTextDocumentIdentifier(uri=self.uri, version=self.version)
        self.client.text_document_did_change(
            types.DidChangeTextDocumentParams(text_document=document, content_changes=[event])
        )

    def position(self, offset: int) -> types.Position:
        """Return an offset as line and character, in code points."""
        line = self.text.count("\n", 0, offset)
        return types.Position(line=line, character=offset - self.text.rfind("\n", 0, offset) - 1)

    def refresh(self, params: Any) -> None:  # noqa: ANN401 - as pygls makes it of JSON
        """Hear of `keyturn/refresh`: asking again is worth it."""
        if params.textDocument.uri == self.uri:
            self._refreshed.set()

    def _ask(self, offset: int) -> None:
        self._refreshed.clear()
        self._asking = asyncio.ensure_future(self._reply(offset, self.version))

    async def _reply(self, offset: int, version: int) -> tuple[str, float]:
        """Return the suggestion for a place and when it came; nothing if the text is another."""
        reply = await self.client.text_document_inline_completion_async(
            types.InlineCompletionParams(
                text_document=types.TextDocumentIdentifier(uri=self.uri),
                position=self.position(offset),
                context=types.InlineCompletionContext(
                    trigger_kind=types.InlineCompletionTriggerKind.Automatic
                ),
            )
        )
        now = time.perf_counter()
        items = reply.items if isinstance(reply, types.InlineCompletionList) else reply or []
        if not items:
            return "", now
        item = items[0]
        if version != self.version:
            self.num_stale += 1  # never shown: an editor sees that it is for an earlier text
            return "", now
        at = self.position(offset)
        assert item.range is not None and item.range.start == item.range.end == at, item
        assert isinstance(item.insert_text, str)
        return item.insert_text, now

    async def _think(
        self, at: int, place: str, asked_at: float, pause_s: float, wanted: str
    ) -> str:
        """Wait for what comes in a long pause; return what is taken of it."""
        pause = Pause(place)
        self.pauses.append(pause)
        before = await self.counts()
        until = asked_at + (_REPLY_S if place == "jump" else pause_s)
        shown, after = "", before
        while True:
            asking = self._asking
            assert asking is not None
            await asyncio.wait({asking}, timeout=max(0.0, until - time.perf_counter()))
            if not asking.done():
                break
            shown, came_at = asking.result()
            after = await self.counts()
            pause.ms = (came_at - asked_at) * 1e3
            if shown or not after["recent_reasons"][-1].startswith(_WARMING):
                break
            # As an editor does: it asks again when it is told that the cache is there.
            try:
                await asyncio.wait_for(self._refreshed.wait(), until - time.perf_counter())
            except TimeoutError:
                break
            self._ask(at)
        if pause.ms is None:
            return ""
        pause.reason = None if shown else after["recent_reasons"][-1]
        if pause.reason is None or not pause.reason.startswith(_WARMING):
            pause.calls = after["num_asked"] - before["num_asked"]
            pause.work = after["latest"] if pause.calls else None
        if not shown:
            return ""
        right = len(os.path.commonprefix([shown, wanted]))
        pause.shown, pause.wrong = len(shown), len(shown) - right
        word = re.match(r"\s*(?:\w+|.)", wanted)
        pause.is_wrong_first = right < len(word[0] if word else wanted)
        await asyncio.sleep(0.2)  # it is read
        return self._taken(shown, wanted, right)

    def _taken(self, shown: str, wanted: str, right: int) -> str:
        """Return what is taken, and count the keys for it."""
        words = re.findall(r"\s*(?:\w+|[^\w\s]+)", shown)
        taken, num_words = "", 0
        for word in words:
            if len(taken + word) > right:
                break
            taken += word
            num_words += 1
        if right == len(shown):
            taken, num_words = shown, 1
        if len(taken) <= num_words + 1:
            return ""
        self.num_keys += num_words
        self.num_chars += len(_KEY.findall(taken))
        return taken

    async def counts(self) -> dict[str, Any]:
        """Return what the server counts of its completions."""
        status = await self.client.protocol.send_request_async("keyturn/status", {})
        return plain(status)["completions"]


def plain(value: Any) -> Any:  # noqa: ANN401 - what pygls makes of JSON it has no type for
    """Return named tuples and objects that pygls made of JSON as dictionaries and lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def segment(text: str, rng: random.Random) -> tuple[int, int]:
    """Return where some lines begin, behind their indentation, and end."""
    starts = [0, *(at.end() for at in re.finditer("\n", text))]
    while True:
        number = rng.randrange(len(starts) - SEGMENT_LINES[1] - 1)
        last = starts[number + rng.randint(*SEGMENT_LINES)] - 1
        start = starts[number]
        start += len(text[start:]) - len(text[start:].lstrip(" "))
        if last - start > 60 and text[start] != "\n":
            return start, last
