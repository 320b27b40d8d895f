"""Stand-ins that need no model: an engine with the real one's facade, and a host that runs it."""

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from keyturn.engine.host.engine_protocol import Check, HostedEngine, OnText
from keyturn.engine.wire.config import Completion, CompletionParams, EngineConfig
from keyturn.engine.wire.errors import BadPosition, ModelNotFound

# What a completion is asked with, as it comes over the wire.
PARAMS = {**asdict(CompletionParams(8, 0.0, 1.0, 0, (), 0.0)), "stop": []}


class FakeSession:
    """Text as in a real session; the rows of its cache are its characters."""

    def __init__(self, engine: "FakeEngine", text: str, path: str, model: str, policy: str) -> None:
        self.engine, self.text, self.path = engine, text, path
        self.model, self.policy = model, policy
        self.cursor: int | None = None
        self.synced: str | None = None
        self.grown: str | None = None
        self.others: tuple[tuple[str, str], ...] = ()
        self.shown: tuple[tuple[str, str], ...] = ()
        self.num_stale = 0
        self.num_checks = 0

    @property
    def num_bytes(self) -> int:
        return len(self.synced or "")

    def edit(self, edits: Sequence[tuple[int, int, str]]) -> None:
        for start, end, text in sorted(edits, reverse=True):
            if not 0 <= start <= end <= len(self.text):
                raise BadPosition(f"edit [{start}, {end}) leaves the text")
            self.text = self.text[:start] + text + self.text[end:]

    def set_text(self, text: str) -> None:
        self.text = text

    def set_cursor(self, offset: int) -> None:
        if not 0 <= offset <= len(self.text):
            raise BadPosition(f"offset {offset} leaves the text")
        self.cursor = offset

    def _act(self, what: str) -> None:
        """Do what the text orders: fakes are steered by their documents."""
        for word in self.text.split():
            if word == f"kill-on-{what}":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == f"memory-on-{what}":
                raise MemoryError
            if word == f"fail-on-{what}":
                raise RuntimeError("a fake failure")

    def sync(self, check: Check) -> None:
        if self.synced == self.text or self.cursor is None:
            return
        self.engine.note("sync", self)
        self._act("sync")
        if "deaf-sync" in self.text.split():  # does not hear that something else came
            self.engine.go_on.wait(60)
        self._steps("sync", check)
        self.synced = self.text
        self.num_stale = 10

    @property
    def is_narrow(self) -> bool:
        return "narrow" in self.text.split() and self.grown != self.text

    @property
    def has_to_grow(self) -> bool:
        return self.is_narrow or self.others != self.shown

    @property
    def shows_others(self) -> bool:
        return bool(self.others or self.shown)

    def show_others(self, others: Sequence[tuple[str, str]]) -> None:
        self.others = tuple(others)

    def grow(self, check: Check) -> None:
        self.sync(check)
        if self.others != self.shown and not self.is_narrow:
            self.engine.note("show", self)
            self._act("show")
            self._steps("show", check)
            self.shown = self.others
        if self.is_narrow:
            self.engine.note("grow", self)
            self._steps("grow", check)
            self.grown = self.text

    def heal(self, max_rows: int, check: Check) -> int:
        self.engine.note("heal", self)
        self._steps("heal", check)
        done = min(self.num_stale, max_rows)
        self.num_stale -= done
        return done

    def drop_cache(self) -> None:
        self.synced, self.num_stale = None, 0

    def _steps(self, what: str, check: Check) -> None:
        """Check once; for two seconds where the text says slow-, until told where held-."""
        words = self.text.split()
        num_steps, is_held = 200 if f"slow-{what}" in words else 1, f"held-{what}" in words
        while num_steps > 0:
            self.num_checks += 1
            self.engine.num_checks += 1
            check()
            time.sleep(0.01 if num_steps > 1 or is_held else 0)
            num_steps -= 0 if is_held and not self.engine.go_on.is_set() else 1

    @property
    def anchor(self) -> int | None:
        return self.cursor

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.text)

    def complete(
        self,
        offset: int,
        params: CompletionParams,
        check: Check,
        on_text: OnText | None = None,
        heal: bool = False,
    ) -> Completion:
        self.engine.note("complete", self)
        self.set_cursor(offset)
        self.sync(check)
        self._act("complete")
        text = f"<{self.text[:offset]}|{self.text[offset:]}>"
        for word in {"slow", "endless", "held"} & {*self.text.split()}:
            if on_text is not None:
                on_text("", 1.0)  # who asked knows that it has begun
            while {
                "slow": self.num_checks < 100,
                "endless": True,
                "held": not self.engine.go_on.is_set(),
            }[word]:
                self._steps("complete", check)
                time.sleep(0.005)
        pieces = list("abc") if "stream" in self.text else []
        pieces += ["x" * 500] * (2000 if "flood" in self.text else 0)
        for piece in pieces:
            check()
            if on_text is not None:
                on_text(piece, 0.5)
        return Completion(text, (1, 2), len(self.text), 0, 1.5, 2.5, 1, "end", (0.5, 0.25))

    @property
    def num_to_heal(self) -> int:
        return self.num_stale


class FakeModel(NamedTuple):
    """What the engine gives for a loaded model."""

    languages: tuple[str, ...]


class FakeEngine:
    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.sessions: dict[Hashable, FakeSession] = {}
        self.loaded: list[str] = []
        self.num_opened = self.num_warmed = 0
        self.adapters: dict[str, str | None] = {}
        self.log: list[tuple[str, str]] = []
        self.num_checks = 0
        self.go_on = threading.Event()  # ends what a text holds

    def note(self, what: str, session: FakeSession) -> None:
        self.log.append((what, session.path))

    def load(self, model: str, progress: Callable[[str, int], None] | None = None) -> FakeModel:
        if model == "missing":
            raise ModelNotFound("model 'missing' is not here; try embedded")
        if model not in self.loaded:
            for percent in (0, 50, 100):
                if progress:
                    progress(f"loading {model}", percent)
            self.loaded.append(model)
        return FakeModel(("python",) if model == "python only" else ())

    def warm(self) -> bool:
        if self.num_warmed == 3:
            return False
        self.num_warmed += 1
        return True

    def adapt(self, model: str, adapter: str | None) -> None:
        if adapter is not None and adapter.endswith("missing"):
            raise ModelNotFound("adapter 'missing' is not here; give another")
        self.adapters[model] = adapter

    def open(
        self,
        key: Hashable,
        text: str,
        *,
        path: str,
        model: str,
        policy: str,
        layout: str | None = None,
    ) -> FakeSession:
        self.load(model)
        self.num_opened += 1
        self.sessions[key] = FakeSession(self, text, path, model, policy)
        return self.sessions[key]

    def close(self, key: Hashable) -> None:
        self.sessions.pop(key, None)

    def status(self) -> dict[str, Any]:
        return {
            "models": sorted(self.loaded),
            "adapters": {model: path for model, path in self.adapters.items() if path},
            "num_opened": self.num_opened,
            "num_documents": len(self.sessions),
            "num_checks": self.num_checks,
            "device": self.config.device,
            "texts": {_doc(key): session.text for key, session in self.sessions.items()},
            "log": self.log[-50:],
        }


def _doc(key: Hashable) -> Hashable:
    return key[1] if isinstance(key, tuple) else key


def make_engine(config: EngineConfig) -> HostedEngine:
    """Return a fake engine; a type checker sees here that it is one."""
    return FakeEngine(config)


def main():
    """Run an engine host with the fake engine."""
    from keyturn.engine.host.host import main as serve
    from keyturn.engine.wire.errors import EngineError

    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--idle-s", type=float)
    parser.add_argument("--note", type=Path, default=None)
    args = parser.parse_args()
    if args.note:
        with args.note.open("a") as file:
            file.write(f"{os.getpid()}\n")
    logging.basicConfig(level=logging.INFO)
    try:
        return serve(args.socket, args.idle_s, make_engine)
    except EngineError as error:
        logging.error("%s", error)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
