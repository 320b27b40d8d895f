"""What became of suggestions: a local log, off by default, with figures and never any source text.

One line is written when a suggestion has ended, and one at each check whether accepted text is
still there. What clients do not say is inferred from their edits. `stats` reads the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ..engine.wire.address import open_private
from .documents import Edit

log = logging.getLogger(__name__)

# Seconds after which accepted text is looked at: the first sight of it, and work gone on.
PERSISTENCE_S = (30, 300)
_MAX_LOG_BYTES = 4_000_000
# Accepted texts that are followed at the same time; the oldest are let go.
_MAX_FOLLOWED = 64
# Similarity of longer texts would take milliseconds.
_MAX_FOLLOWED_CHARS = 2000
_FIRST_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+|\Z)")


def log_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the log is: with what this user's programs keep, one for all versions."""
    given = environ.get("XDG_STATE_HOME", "")
    folder = Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state"
    return folder / "keyturn" / "events.jsonl"


def older(path: Path) -> Path:
    """Return where a full log goes, in place of the one before."""
    return path.with_name(path.name + ".1")


@dataclass
class _Suggestion:
    """A suggestion and what the user has made of it so far.

    Attributes:
        offset: where `text` begins, or will, in the document.
        num_typed: its characters that the document has.
        base: `num_typed` when it was shown last; a client counts what it accepts from there.
        last_edit: `num_typed` before the edit that came last.
        num_accepted: characters that came by accepting and not by typing.
        num_acceptances: keys spent on that.
        accepted_until: end of the last accepted part.
        wrong: the user typed something else before the first word was complete; None: not known.
        outcome: how it ended, once that is known. It is written later: a client may say that it
            was accepted after all, with other white space for instance.
        accepted_at: when something of it was accepted last.
    """

    id: str
    offset: int
    text: str
    about: dict[str, Any]
    num_typed: int
    base: int
    shown: bool = False
    last_edit: int = 0
    num_accepted: int = 0
    num_acceptances: int = 0
    accepted_until: int = 0
    wrong: bool | None = None
    outcome: str | None = None
    accepted_at: float = 0.0

    @property
    def cursor(self) -> int:
        return self.offset + self.num_typed

    def accept(self, until: int, now: float) -> None:
        """Note that the text up to `until` came by accepting."""
        begun = self.last_edit if self.num_typed >= until else self.num_typed
        begun = max(begun, self.accepted_until)
        if until > begun:
            self.num_accepted += until - begun
            self.num_acceptances += 1
            self.accepted_until = until
            self.accepted_at = now
            self.wrong = False

    def follow(self, edit: Edit, now: float) -> None:
        """Follow an edit of its document; sets `outcome` when that ends it."""
        start, end, new = edit
        if end != self.cursor:
            if end <= self.offset:
                self.offset += len(new) - (end - start)
            elif start < self.cursor:
                self.outcome = "dismissed"
            return
        # A menu's entry replaces the word before the cursor by itself and what follows.
        before = max(0, self.offset - start)
        if len(new) < before:
            self.outcome = "dismissed"
            return
        typed = self.text[: max(0, start - self.offset)] + new[before:]
        if self.text.startswith(typed):
            self.last_edit, self.num_typed = self.num_typed, len(typed)
            # Nobody types several characters at once that happen to be all that is left.
            if self.num_typed == len(self.text) and self.num_typed - self.last_edit > 1:
                self.accept(self.num_typed, now)
            return
        self.num_typed = len(os.path.commonprefix([typed, self.text]))
        self.wrong = self.num_typed < _first_word_end(self.text)
        self.outcome = "dismissed"


@dataclass
class _Followed:
    """Accepted text in its document: `now` is what stands at `start` in its place."""

    id: str
    start: int
    text: str
    about: dict[str, Any]
    accepted_at: float
    now: str = field(init=False)
    due: list[int] = field(default_factory=lambda: [*PERSISTENCE_S])

    def __post_init__(self) -> None:
        self.now = self.text

    def follow(self, edit: Edit) -> None:
        start, end, new = edit
        stop = self.start + len(self.now)
        if end <= self.start and start < stop:
            self.start += len(new) - (end - start)
        elif start < stop:
            if start >= self.start and end <= stop:
                here = start - self.start
                self.now = self.now[:here] + new + self.now[here + end - start :]
                return
            # A formatter replaces more than it changes: the text may be in what came.
            left = self.now[: max(0, start - self.start)] + self.now[max(0, end - self.start) :]
            at = new.find(self.text)
            self.now = self.text if at >= 0 else left
            self.start = start + at if at >= 0 else min(start, self.start)

    @property
    def share(self) -> float:
        """Share of the accepted characters that are still there, in order."""
        blocks = SequenceMatcher(None, self.text, self.now, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks) / len(self.text)


class Events:
    """Follows what becomes of suggestions in all documents of one language server.

    Args:
        is_on: whether anything is followed and written.
        path: returns where the log is.
        clock: seconds.
    """

    def __init__(
        self,
        is_on: Callable[[], bool],
        path: Callable[[], Path],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Follow nothing yet."""
        self._is_on, self._path, self._clock = is_on, path, clock
        # Logs of several sessions are one file.
        self._session = f"{os.getpid():x}-{time.time_ns() // 1_000_000:x}"
        self._num_suggested = 0
        self._says_shown = False
        self._live: dict[str, _Suggestion] = {}
        self._followed: dict[str, deque[_Followed]] = {}

    def suggested(
        self,
        uri: str,
        offset: int,
        text: str,
        *,
        language: str,
        invoked: bool,
        num_candidates: int = 1,
        num_typed: int = 0,
    ) -> str:
        """Note a suggestion that goes to the client, and return its id.

        What is left of one that is being typed through keeps the id.

        Args:
            uri: the document.
            offset: where the text begins, in code points.
            text: what is suggested.
            language: an LSP identifier.
            invoked: the user asked for it.
            num_candidates: how many there are to choose from.
            num_typed: characters of `text` that are in the document already.
        """
        live = self._live.get(uri)
        rest = text[num_typed:]
        if live is not None and live.cursor == offset + num_typed and live.outcome is None:
            if rest and live.text[live.num_typed :] == rest:
                live.base = live.num_typed - num_typed
                return live.id
            if live.num_accepted == 0 and live.num_typed < len(live.text):
                live.outcome = "replaced"
        self._end(uri)
        self._num_suggested += 1
        name = f"{self._session}-{self._num_suggested}"
        if self._is_on() and rest:
            about = {
                "language": language,
                "trigger": "invoked" if invoked else "automatic",
                "kind": "block" if "\n" in text.strip("\r\n") else "line",
                "num_chars": len(rest),
                "num_candidates": num_candidates,
            }
            # What the editor's menu would insert is not ours.
            self._live[uri] = _Suggestion(name, offset + num_typed, rest, about, 0, -num_typed)
        return name

    def shown(self, name: str) -> None:
        """Note that the user sees it."""
        self._says_shown = True
        found = self._named(name)
        if found is not None:
            found.shown = True

    def accepted(self, name: str) -> None:
        """Note that the user took the whole, or all that was left."""
        found = self._named(name)
        if found is not None:
            found.accept(len(found.text), self._clock())

    def partly_accepted(self, name: str, num_chars: int) -> None:
        """Note that the user took the text up to `num_chars` characters, as it was shown last."""
        found = self._named(name)
        if found is not None:
            until = max(0, min(found.base + num_chars, len(found.text)))
            found.accept(until, self._clock())

    def edited(self, uri: str, edits: Sequence[Edit] | None) -> None:
        """Follow edits of a document, each in the text after the one before; None: all is new."""
        live = self._live.get(uri)
        is_over = live is not None and (live.outcome or live.num_typed == len(live.text))
        if is_over or (live is not None and edits is None):
            self._end(uri)
            live = None
        self._check()
        if edits is None:
            self._followed.pop(uri, None)
            return
        now = self._clock()
        for edit in edits:
            for one in self._followed.get(uri, ()):
                one.follow(edit)
            if live is not None and live.outcome is None:
                live.follow(edit, now)

    def closed(self, uri: str) -> None:
        """Write what is known of a document that was closed, and forget it."""
        self._end(uri)
        self._check()
        self._followed.pop(uri, None)

    def close(self) -> None:
        """Write what is known of all documents."""
        for uri in [*self._live, *self._followed]:
            self.closed(uri)

    def _named(self, name: str) -> _Suggestion | None:
        return next((one for one in self._live.values() if one.id == name), None)

    def _end(self, uri: str) -> None:
        live = self._live.pop(uri, None)
        if live is None:
            return
        is_whole = live.num_typed == len(live.text)
        if live.num_accepted:
            outcome = "accepted" if live.accepted_until == len(live.text) else "partly"
            self._follow(uri, live)
        else:
            outcome = "typed" if is_whole else live.outcome or "dismissed"
        if live.wrong is None and live.num_typed >= _first_word_end(live.text):
            live.wrong = False
        self._write(
            {
                "event": "suggestion",
                "id": live.id,
                **live.about,
                "shown": live.shown if self._says_shown else None,
                "outcome": outcome,
                "num_typed": max(0, live.num_typed - live.num_accepted),
                "num_accepted": live.num_accepted,
                "keys_saved": live.num_accepted - live.num_acceptances,
                "first_word_wrong": live.wrong,
            }
        )

    def _follow(self, uri: str, live: _Suggestion) -> None:
        text = live.text[: min(live.num_typed, _MAX_FOLLOWED_CHARS)]
        if not text:
            return
        one = _Followed(live.id, live.offset, text, live.about, live.accepted_at)
        self._followed.setdefault(uri, deque()).append(one)
        if sum(map(len, self._followed.values())) > _MAX_FOLLOWED:
            oldest = min(self._followed.values(), key=lambda held: held[0].accepted_at)
            oldest.popleft()
            self._followed = {key: held for key, held in self._followed.items() if held}

    def _check(self) -> None:
        """Write how much of each accepted text is there, where that is due."""
        if not self._followed:
            return
        now = self._clock()
        for uri, held in [*self._followed.items()]:
            for one in held:
                # Nothing has changed since it was due, or there would have been a check before.
                while one.due and one.accepted_at + one.due[0] <= now:
                    line = {"event": "persistence", "id": one.id, "after_s": one.due.pop(0)}
                    groups = {name: one.about[name] for name in ("language", "trigger", "kind")}
                    self._write({**line, **groups, "share": round(one.share, 3)})
            left = deque(one for one in held if one.due)
            if left:
                self._followed[uri] = left
            else:
                del self._followed[uri]

    def _write(self, line: dict[str, Any]) -> None:
        if not self._is_on():
            return
        path = self._path()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > _MAX_LOG_BYTES:
                    path.replace(older(path))
            # One write for a line: other servers append to the same file.
            file = open_private(path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(
                    file, (json.dumps({"time": round(self._clock(), 1), **line}) + "\n").encode()
                )
            finally:
                os.close(file)
        except OSError as error:
            log.warning("cannot write %s: %s", path, error)


def _first_word_end(text: str) -> int:
    match = _FIRST_WORD.match(text)
    return match.end() if match else len(text)
