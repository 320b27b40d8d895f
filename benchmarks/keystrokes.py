"""What somebody gets who types: 5,000 keys of real code through the language server, in real time.

A file that the model was not trained on is open; a few lines of it are deleted and typed again, key
by key, with pauses to think; then the next lines, elsewhere. As an editor does, the client asks
after every key and never shows what came for an earlier text. In a pause the typist takes what is
shown if it is what was to be typed: all of it, or word by word as far as it is right.

    python benchmarks/keystrokes.py
    python benchmarks/keystrokes.py --confidence any      # without the gate
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
from lsprotocol import types
from pygls.lsp.client import LanguageClient
from quality import fim_fetch
from quality.fim_ask import KEYTURN

from keyturn.engine.replay.scoring import percentile
from keyturn.server.settings import Settings

NUM_KEYS = 5000
# A file of some 2,000 tokens, and what is typed at once of it.
FILE_CHARS, SEGMENT_LINES = (6500, 8500), (3, 8)
# Pauses between keys are lognormal, with this median in seconds and this spread.
KEY_S, SPREAD = 0.12, 0.45
# Pauses to think: after these characters, so often, and so long.
THINKS_AFTER, THINKS, THINK_S = "\n =(,.:", 0.12, (0.4, 1.5)
LONG_PAUSE_S = 0.4
_REPLY_S = 60.0
# What one key writes: editors indent the next line by themselves.
_KEY = re.compile(r"\n *|[^\n]")
_URI = "file:///held-out/"


@dataclass
class Pause:
    """What came in one long pause.

    Attributes:
        place: "typing", "accepted" (right after that) or "jump".
        ms: from the last key to the reply; None if none came before the next key.
        calls: of the model, for it.
        reason: why there was nothing.
        shown, wrong: characters shown, and of those behind the first that is not to be typed.
        is_wrong_first: the first word is another.
    """

    place: str
    ms: float | None = None
    calls: int = 0
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
                taken = await self._think(place, asked_at, max(pause_s, 0.6), wanted[at - start :])
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

    def _ask(self, offset: int) -> None:
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

    async def _think(self, place: str, asked_at: float, pause_s: float, wanted: str) -> str:
        """Wait for what comes in a long pause; return what is taken of it."""
        pause = Pause(place)
        self.pauses.append(pause)
        before = await self._counts()
        asking = self._asking
        assert asking is not None
        limit = (
            _REPLY_S if place == "jump" else max(0.0, pause_s - (time.perf_counter() - asked_at))
        )
        await asyncio.wait({asking}, timeout=limit)
        if not asking.done():
            return ""
        shown, came_at = asking.result()
        after = await self._counts()
        pause.ms = (came_at - asked_at) * 1e3
        pause.calls = after["num_asked"] - before["num_asked"]
        if not shown:
            pause.reason = after["recent_reasons"][-1]
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

    async def _counts(self) -> dict[str, Any]:
        status = await self.client.protocol.send_request_async("keyturn/status", {})
        return plain(status)["completions"]


def plain(value: Any) -> Any:  # noqa: ANN401 - what pygls makes of JSON it has no type for
    """Return named tuples and objects that pygls made of JSON as dictionaries and lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--keys", type=int, default=NUM_KEYS)
    parser.add_argument("--confidence", default=Settings().confidence)
    parser.add_argument("--no-speculate", action="store_true", help="nothing is begun early")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    args = parser.parse_args()
    figures = asyncio.run(typed(args))
    found: list[dict[str, Any]] = figures["pauses"]
    harness.table(list(found[0]), [list(row.values()) for row in found])
    for name, value in figures.items():
        if name not in ("pauses", "reasons"):
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    for reason, count in figures["reasons"].items():
        print(f"nothing, {count} times: {reason}")
    typing = found[0]
    checks = [
        harness.check("pauses with a reply", figures["replied"], "", ">= 1"),
        harness.check("reply that needed the model, p50", typing["ms_p50"], "ms", "<= 300"),
        harness.check("reply that needed the model, p95", typing["ms_p95"], "ms", "<= 700"),
        harness.check("pauses with a suggestion", figures["shown"], "", ">= 0.4"),
        harness.check("model calls by key", figures["calls_by_key"], "", "<= 0.15"),
    ]
    asked = {"confidence": args.confidence, "speculate": not args.no_speculate}
    harness.finish("keystrokes", args, {**asked, **figures}, checks)


async def typed(args: argparse.Namespace) -> dict[str, Any]:
    """Type, and return what was measured."""
    rng = random.Random(args.seed)
    files = [
        (path, text)
        for _, path, text in fim_fetch.held_out_files(args.cache)
        if FILE_CHARS[0] <= len(text) <= FILE_CHARS[1] and path.endswith(".py")
    ]
    client = LanguageClient("keystrokes", "1")
    client.feature("keyturn/status")(lambda _: None)
    await client.start_io(KEYTURN, "serve", "--stdio")
    options = {"model": args.model, "num_threads": args.threads, "confidence": args.confidence}
    options["speculate"] = not args.no_speculate
    await client.initialize_async(
        types.InitializeParams(
            process_id=os.getpid(),
            root_uri="file:///held-out",
            capabilities=types.ClientCapabilities(
                general=types.GeneralClientCapabilities(
                    position_encodings=[types.PositionEncodingKind.Utf32]
                ),
                text_document=types.TextDocumentClientCapabilities(
                    inline_completion=types.InlineCompletionClientCapabilities()
                ),
            ),
            initialization_options=options,
        )
    )
    client.initialized(types.InitializedParams())
    typists: list[Typist] = []
    num_keys = 0
    while num_keys < args.keys:
        path, text = files[rng.randrange(len(files))]
        typist = Typist(client, f"{_URI}{len(typists)}/{Path(path).name}", text, rng)
        typists.append(typist)
        item = types.TextDocumentItem(uri=typist.uri, language_id="python", version=1, text=text)
        client.text_document_did_open(types.DidOpenTextDocumentParams(text_document=item))
        budget = min(args.keys - num_keys, args.keys // 5)
        while typist.num_keys < budget:
            await typist.retype(*segment(typist.text, rng), budget)
        num_keys += typist.num_keys
        print(f"{num_keys} keys, {sum(len(t.pauses) for t in typists)} pauses", flush=True)
        document = types.TextDocumentIdentifier(uri=typist.uri)
        client.text_document_did_close(types.DidCloseTextDocumentParams(text_document=document))
    counts = await typists[0]._counts()
    await client.shutdown_async(None)
    client.exit(None)
    await client.stop()
    return summarised(typists, counts)


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


def summarised(typists: list[Typist], counts: dict[str, Any]) -> dict[str, Any]:
    """Return the figures: by kind of pause, and over all."""
    pauses = [pause for typist in typists for pause in typist.pauses]
    rows: list[dict[str, Any]] = []
    for place in ("typing", "accepted", "jump"):
        some = [pause for pause in pauses if pause.place == place]
        times = [pause.ms for pause in some if pause.ms is not None and pause.calls] or [0.0]
        rows.append(
            {
                "pauses": place,
                "number": len(some),
                "replied": _share(some, lambda pause: pause.ms is not None),
                "shown": _share(some, lambda pause: pause.shown > 0),
                "by the model": len([pause for pause in some if pause.calls]),
                "ms_p50": percentile(times, 0.5),
                "ms_p95": percentile(times, 0.95),
            }
        )
    warm = [pause for pause in pauses if pause.place != "jump"]
    shown = [pause for pause in pauses if pause.shown]
    num_chars = sum(typist.num_chars for typist in typists)
    num_keys = sum(typist.num_keys for typist in typists)
    reasons: dict[str, int] = {}
    for pause in pauses:
        if pause.reason:
            reasons[pause.reason] = reasons.get(pause.reason, 0) + 1
    return {
        "pauses": rows,
        "num_keys": num_keys,
        "num_chars": num_chars,
        "keys_saved": 1 - num_keys / num_chars,
        "replied": _share(warm, lambda pause: pause.ms is not None),
        "shown": _share(warm, lambda pause: pause.shown > 0),
        "calls_by_key": counts["num_asked"] / num_keys,
        "begun_by_key": counts["num_begun"] / num_keys,
        "ahead_by_key": counts["num_asked_ahead"] / num_keys,
        "wrong_first_word": _share(shown, lambda pause: pause.is_wrong_first),
        "wrong_chars_of_shown": sum(p.wrong for p in shown) / max(1, sum(p.shown for p in shown)),
        "num_late": sum(typist.num_stale for typist in typists),
        "reasons": reasons,
    }


def _share(pauses: list[Pause], holds: Any) -> float:  # noqa: ANN401 - a predicate
    return sum(map(holds, pauses)) / len(pauses) if pauses else 0.0


if __name__ == "__main__":
    main()
