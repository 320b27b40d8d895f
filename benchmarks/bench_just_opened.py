"""Held-out files just opened: what an editor gets at once, against what the model would say.

A line is removed from a file that nothing here was trained on; the file is opened and a completion
is asked for where the line stood, automatically and at once, so that nothing is computed yet. Once
with the default settings, once without any limit on time: of the places where the second gives the
line, the first has to give it too. With --busy two processes keep the cores busy while the default
settings are tried. Held-out packages are fetched as by `fim_quality.py`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import harness
from quality import fim_fetch
from quality.fim_ask import KEYTURN, inserted_line
from quality.lsp_client import LspClient

from keyturn.engine.replay.scoring import percentile

NUM_FILES, NUM_BUSY = 44, 2
TARGET = ">= 0.95"
# Neither a computation's own time nor the cache's is bounded, and the window is whole.
UNLIMITED = {"time_budget_ms": 0, "cold_wait_ms": 0, "cold_budget_ms": 0}
# Short files need no window, and what is long enough to be guessed is no bracket.
_MIN_CHARS, _MIN_LINE, _MAX_LINE = 3000, 8, 60
_LANGUAGE_IDS = {"py": "python", "js": "javascript", "ts": "typescript"}
_AUTOMATIC = 2
_READY_SECONDS = 120


@dataclass(frozen=True)
class Place:
    """A file without one line.

    Attributes:
        path: of the file.
        language_id: as editors say it.
        text: without what stood behind the line's indentation.
        row, column: where that was; the column in code points.
        line: what stood there, without white space at its ends.
    """

    path: str
    language_id: str
    text: str
    row: int
    column: int
    line: str


@dataclass
class Answer:
    """The first line of what was inserted, stripped, and until it came."""

    line: str
    ms: float


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--busy", action="store_true", help=f"{NUM_BUSY} other processes compute")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    args = parser.parse_args()
    places = chosen(fim_fetch.held_out_files(args.cache), args.files, args.seed)
    # Only time is to make a difference.
    shared: dict[str, Any] = {"confidence": "any", "speculate": False}
    shared |= {"model": args.model, "num_threads": args.threads}
    shared = {key: value for key, value in shared.items() if value not in ("embedded", 0)}
    unlimited, _ = asked(places, shared | UNLIMITED)
    with busy(NUM_BUSY if args.busy else 0):
        default, reasons = asked(places, shared)
    rows = [
        [place.path[-48:], place.language_id, a.line == place.line, b.line == place.line]
        + [a.line == b.line, f"{a.ms:.0f}", f"{b.ms:.0f}"]
        for place, a, b in zip(places, default, unlimited, strict=True)
    ]
    header = ["file", "language", "exact", "without limit", "same", "ms", "ms without limit"]
    harness.table(header, rows)
    for reason, count in reasons.most_common():
        print(f"nothing, {count} times: {reason}")
    figures = compared(places, default, unlimited)
    share = figures["kept_share"]
    name = "lines exact in files just opened, of those without a limit"
    checks = [harness.check(name + (", busy" if args.busy else ""), share, "", TARGET)]
    saved: dict[str, Any] = {"busy": args.busy, **figures, "reasons": dict(reasons)}
    harness.finish("just_opened", args, saved, checks)


def chosen(
    files: list[fim_fetch.File], num_files: int, seed: int, min_chars: int = _MIN_CHARS
) -> list[Place]:
    """Return a place in each of that many files, the same ones for a seed, languages by turns."""
    rng = random.Random(seed)
    by_language: dict[str, list[tuple[str, str]]] = {}
    for _, path, text in files:
        if len(text) >= min_chars:
            language = fim_fetch.LANGUAGES[Path(path).suffix]
            by_language.setdefault(language, []).append((path, text))
    for some in by_language.values():
        rng.shuffle(some)
    places: list[Place] = []
    while len(places) < num_files and any(by_language.values()):
        for language in sorted(by_language):
            if by_language[language] and len(places) < num_files:
                path, text = by_language[language].pop()
                if (place := without_a_line(rng, path, language, text)) is not None:
                    places.append(place)
    return places


def without_a_line(rng: random.Random, path: str, language: str, text: str) -> Place | None:
    """Return a file without one of its lines, None if none is fit to be asked for."""
    lines = text.split("\n")
    fit = [
        row
        for row, line in enumerate(lines)
        if _MIN_LINE <= len(line.strip()) <= _MAX_LINE and any(map(str.isalpha, line))
    ]
    if not fit:
        return None
    row = rng.choice(fit)
    line = lines[row]
    column = len(line) - len(line.lstrip())
    lines[row] = line[:column]
    return Place(path, _LANGUAGE_IDS[language], "\n".join(lines), row, column, line.strip())


def asked(places: list[Place], options: dict[str, Any]) -> tuple[list[Answer], Counter[str]]:
    """Return what a server of its own answers, and its reasons for nothing."""
    answers = []
    reasons: Counter[str] = Counter()
    with server(options) as client:
        for number, place in enumerate(places):
            uri = f"file:///held-out/{number}/{place.path}"
            item = {"uri": uri, "languageId": place.language_id, "version": 1, "text": place.text}
            client.notify("textDocument/didOpen", {"textDocument": item})
            begin = time.perf_counter()
            answer = client.request(
                "textDocument/inlineCompletion",
                {
                    "textDocument": {"uri": uri},
                    "position": {"line": place.row, "character": place.column},
                    "context": {"triggerKind": _AUTOMATIC},
                },
            )
            ms = (time.perf_counter() - begin) * 1e3
            items = answer if isinstance(answer, list) else (answer or {}).get("items", [])
            line = inserted_line(items[0], place.column).strip() if items else ""
            if not items:
                told = client.request("keyturn/status", {})["completions"]["recent_reasons"]
                reasons[told[-1] if told else "no reason"] += 1
            answers.append(Answer(line, ms))
            client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
    return answers, reasons


@contextlib.contextmanager
def server(options: dict[str, Any]) -> Iterator[LspClient]:
    """Yield a server whose engine host is its own and has its model; both end behind it.

    Raises:
        SystemExit: the model is not there in time.
    """
    with tempfile.TemporaryDirectory(prefix="kt") as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        with LspClient([KEYTURN, "serve", "--stdio"], options, environment) as client:
            status = _ready(client)
            try:
                yield client
            finally:
                with contextlib.suppress(ProcessLookupError, KeyError):
                    os.kill(status["host_pid"], signal.SIGTERM)


def _ready(client: LspClient) -> dict[str, Any]:
    deadline = time.monotonic() + _READY_SECONDS
    while (status := client.request("keyturn/status", {"host": True}))["state"] != "ready":
        if time.monotonic() > deadline:
            raise SystemExit(f"the engine is not ready: {status}")
        time.sleep(0.1)
    return status


@contextlib.contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Keep that many cores busy."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def compared(places: list[Place], default: list[Answer], unlimited: list[Answer]) -> dict[str, Any]:
    """Return how many lines are exact under both settings, and the share that the first keeps."""
    right = [
        (a.line == place.line, b.line == place.line)
        for place, a, b in zip(places, default, unlimited, strict=True)
    ]
    num_unlimited = sum(b for _, b in right)
    figures: dict[str, Any] = {
        "num_places": len(places),
        "num_exact": sum(a for a, _ in right),
        "num_exact_unlimited": num_unlimited,
        "num_empty": sum(not answer.line for answer in default),
        "num_empty_unlimited": sum(not answer.line for answer in unlimited),
        "kept_share": sum(a and b for a, b in right) / num_unlimited if num_unlimited else None,
    }
    for name, answers in (("answer", default), ("answer_unlimited", unlimited)):
        times = [answer.ms for answer in answers]
        figures[f"{name}_ms_p50"] = median(times) if times else None
        figures[f"{name}_ms_p95"] = percentile(times, 0.95)
    return figures


if __name__ == "__main__":
    main()
