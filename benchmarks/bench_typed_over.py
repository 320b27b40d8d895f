"""A body in a file just opened is deleted and typed anew: how soon is anything there?

As an editor does that says `refresh`: a request after every key, a pause after every twelfth. The
files are held-out packages', of more text than the first window holds; what is typed is what was
deleted. As on a machine without AVX-512:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
        python benchmarks/bench_typed_over.py --dtype float32
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import harness
from quality import fim_fetch
from quality.fim_ask import KEYTURN
from quality.lsp_client import LspClient

from keyturn.engine.replay.scoring import percentile

NUM_FILES, SECONDS, NUM_LINES = 4, 30.0, 20
KEY_S, PAUSE_S, PAUSE_EVERY = 0.15, 0.8, 12
_MIN_CHARS, _MAX_CHARS = 12_000, 60_000
_LANGUAGE_IDS = {"py": "python", "js": "javascript", "ts": "typescript"}
_REFRESH = {"experimental": {"keyturn": {"refresh": True}}}


class Session(NamedTuple):
    """What came of one file: requests, how many were answered so, and when all of it was there."""

    num_requests: int
    num_shown: int
    num_warming: int
    whole_after_s: float
    answer_ms_p50: float
    answer_ms_p90: float | None


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--dtype", default="auto", help="as the setting")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    args = parser.parse_args()
    files = [
        (path, text)
        for _, path, text in fim_fetch.held_out_files(args.cache)
        if _MIN_CHARS <= len(text) <= _MAX_CHARS and "\r" not in text
    ]
    chosen = random.Random(args.seed).sample(files, args.files)
    sessions = [typed_over(path, text, args) for path, text in chosen]
    rows = [[path[-40:], *session] for (path, _), session in zip(chosen, sessions, strict=True)]
    harness.table(["file", *Session._fields], rows)
    total = [sum(column) for column in zip(*(one[:3] for one in sessions), strict=True)]
    result = {
        "shown": total[1] / total[0],
        "warming up": total[2] / total[0],
        "whole after, median s": median(one.whole_after_s for one in sessions),
        "sessions": [one._asdict() for one in sessions],
    }
    sys.stdout.write(f"shown {result['shown']:.0%}, warming up {result['warming up']:.0%}\n")
    harness.finish("typed_over", args, result, [])


def typed_over(path: str, text: str, args: Any) -> Session:  # noqa: ANN401 - a namespace
    """Open a file, delete lines in its middle and type them; `whole_after_s` is at most SECONDS."""
    lines = text.split("\n")
    row = len(lines) // 2
    while not lines[row].strip():
        row += 1
    code = "\n".join(lines[row : row + NUM_LINES])
    suffix = Path(path).suffix[1:]
    document = {"uri": f"file:///held-out/{path}", "version": 1}
    options = {"model": args.model, "num_threads": args.threads, "dtype": args.dtype}
    num_requests = num_shown = num_warming = 0
    took_ms: list[float] = []
    whole_at: float | None = None
    with LspClient([KEYTURN, "serve"], options, capabilities=_REFRESH) as client:
        opened = {**document, "languageId": _LANGUAGE_IDS.get(suffix, suffix), "text": text}
        client.notify("textDocument/didOpen", {"textDocument": opened})
        position = {"line": row, "character": 0}
        here = {"textDocument": {"uri": document["uri"]}, "position": position}
        automatic = here | {"context": {"triggerKind": 2}}
        client.request("textDocument/inlineCompletion", automatic)

        def change(end: dict[str, int], text: str) -> None:
            document["version"] += 1
            changes = [{"range": {"start": dict(position), "end": end}, "text": text}]
            params = {"textDocument": document, "contentChanges": changes}
            client.notify("textDocument/didChange", params)

        change({"line": row + NUM_LINES, "character": 0}, "\n")
        began_at = time.monotonic()
        for number, key in enumerate(code, 1):
            change(dict(position), key)
            if key == "\n":
                position.update(line=position["line"] + 1, character=0)
            else:
                position["character"] += 1
            time.sleep(PAUSE_S if number % PAUSE_EVERY == 0 else KEY_S)
            asked_at = time.perf_counter()
            items = client.request("textDocument/inlineCompletion", automatic)
            took_ms.append((time.perf_counter() - asked_at) * 1e3)
            status = client.request("keyturn/status", {"host": True})
            num_requests += 1
            num_shown += bool(items)
            reasons = status["completions"]["recent_reasons"]
            num_warming += not items and bool(reasons) and reasons[-1].startswith("warming up")
            if whole_at is None and not status["host"]["num_narrow"]:
                whole_at = time.monotonic() - began_at
            if time.monotonic() - began_at >= SECONDS:
                break
    whole_after_s = SECONDS if whole_at is None else whole_at
    times = median(took_ms), percentile(took_ms, 0.9)
    return Session(num_requests, num_shown, num_warming, whole_after_s, *times)


if __name__ == "__main__":
    main()
