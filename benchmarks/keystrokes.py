"""What somebody gets who types: 5,000 keys of real code through the language server, in real time.

A file that the model was not trained on is open; a few lines of it are deleted and typed again, key
by key, with pauses to think; then the next lines, elsewhere. As an editor does, the client asks
after every key, and again when `keyturn/refresh` says so, and never shows what came for an earlier
text. In a pause the typist takes what is shown if it is what was to be typed: all of it, or word by
word as far as it is right.

    python benchmarks/keystrokes.py
    python benchmarks/keystrokes.py --confidence any      # without the gate
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from pathlib import Path
from typing import Any

import harness
from lsprotocol import types
from pygls.lsp.client import LanguageClient
from quality import fim_fetch
from quality.fim_ask import KEYTURN
from quality.typist import Pause, Typist, segment

from keyturn.engine.replay.scoring import percentile
from keyturn.server.settings import Settings

NUM_KEYS = 5000
# A file of some 2,000 tokens.
FILE_CHARS = (6500, 8500)
_URI = "file:///held-out/"
_OVER_ALL = {
    "num_keys": "keys",
    "num_chars": "characters written with them",
    "keys_saved": "keys saved",
    "replied": "long pauses with a suggestion or a reason",
    "shown": "long pauses with a suggestion",
    "calls_by_key": "calls of the model by key",
    "begun_by_key": "begun by key, before it was certain that it is a pause",
    "ahead_by_key": "computed ahead by key",
    "wrong_first_word": "suggestions wrong from the first word",
    "shown_chars": "characters shown",
    "wrong_chars": "of them wrong",
    "num_late": "suggestions for an earlier text, none of them shown",
}


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--keys", type=int, default=NUM_KEYS)
    parser.add_argument("--confidence", default=Settings().confidence)
    parser.add_argument("--no-speculate", action="store_true", help="nothing is begun early")
    parser.add_argument("--cache", type=Path, default=fim_fetch.CACHE, help="of fetched packages")
    parser.add_argument("--slowest", type=int, default=5, help="replies shown one by one")
    args = parser.parse_args()
    figures = asyncio.run(typed(args))
    found: list[dict[str, Any]] = figures["pauses"]
    harness.table(list(found[0]), [list(row.values()) for row in found])
    show_slowest(figures["slowest"])
    harness.table(["over all", ""], [[text, figures[name]] for name, text in _OVER_ALL.items()])
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
                experimental={"keyturn": {"refresh": True}},
            ),
            initialization_options=options,
        )
    )
    client.initialized(types.InitializedParams())
    typists: list[Typist] = []
    client.feature("keyturn/refresh")(lambda params: typists[-1].refresh(params))
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
    counts = await typists[0].counts()
    await client.shutdown_async(None)
    client.exit(None)
    await client.stop()
    return summarised(typists, counts, args.slowest)


def show_slowest(slowest: list[dict[str, Any]]) -> None:
    """Print where the time of the slowest replies went, in ms.

    Until the model was asked (the pause, and what hindered; below 0 if an earlier key asked), until
    the engine took it up, for rows until the first token, for the other tokens.
    """
    rows = [
        [
            *(f"{one['place']}, {one['stop_reason']}", one["ms"], one["waited_ms"]),
            one["answered_ms"] - one["total_ms"],
            *(one["ttft_ms"], one["total_ms"] - one["ttft_ms"]),
            *(one["num_computed"], one["num_tokens"], one["is_narrow"]),
        ]
        for one in slowest
    ]
    header = ("slowest replies", "ms", "asked", "queued", "rows", "tokens")
    harness.table([*header, "num rows", "num tokens", "narrow"], rows)


def summarised(
    typists: list[Typist], counts: dict[str, Any], num_slowest: int = 0
) -> dict[str, Any]:
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
    slowest = sorted((one for one in warm if one.work), key=lambda one: -(one.ms or 0.0))
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
        "shown_chars": sum(pause.shown for pause in shown),
        "wrong_chars": sum(pause.wrong for pause in shown),
        "wrong_chars_of_shown": sum(p.wrong for p in shown) / max(1, sum(p.shown for p in shown)),
        "num_late": sum(typist.num_stale for typist in typists),
        "reasons": reasons,
        "slowest": [
            {"place": one.place, "ms": one.ms, **(one.work or {})} for one in slowest[:num_slowest]
        ],
    }


def _share(pauses: list[Pause], holds: Any) -> float:  # noqa: ANN401 - a predicate
    return sum(map(holds, pauses)) / len(pauses) if pauses else 0.0


if __name__ == "__main__":
    main()
