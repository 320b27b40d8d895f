"""Replay the shipped traces: how close each policy stays to a full prefill, and what it costs.

`full` and `prefix` are measured for their times only: both compute every row that they use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness

from keyturn.engine.engine import Engine
from keyturn.engine.replay import replay
from keyturn.server.settings import Settings

TRACES = sorted((harness.ROOT / "examples" / "traces").glob("*.jsonl"))
COMPARED = ("turn", "repair", "heal")
COLUMNS = {
    "top1_agreement": "top-1",
    "kl_mean": "KL",
    "exact_match_full": "exact",
    "ready_ms_p50": "ready ms p50",
    "ready_ms_p95": "ready ms p95",
    "num_tokens_wanted": "wanted",
    "num_tokens_kept": "kept",
    "num_tokens_turned": "turned",
    "num_tokens_repaired": "repaired",
    "num_tokens_recomputed": "recomputed",
    "num_rows_forwarded": "forwarded",
}


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("traces", nargs="*", type=Path, default=TRACES)
    parser.add_argument("--policies", default="full,prefix,turn,repair", help="names, with commas")
    parser.add_argument("--layout", choices=("spm", "psm"))
    args = parser.parse_args()
    settings = Settings(num_threads=args.threads)
    engine = Engine(settings.engine_config())
    summaries: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for trace in args.traces:
        for policy in args.policies.split(","):
            *completions, summary = replay.run(
                trace,
                engine=engine,
                model=args.model,
                policy=policy,
                oracle=policy in COMPARED,
                heal_tokens_per_ms=None,
                layout=args.layout,
            )
            rows += completions
            summaries.append({"trace": trace.stem, **summary})
            print(f"{trace.stem}, {policy}: {len(completions)} completions", flush=True)
    harness.table(
        ["trace", "policy", *COLUMNS.values()],
        [[s["trace"], s["policy"], *(s[column] for column in COLUMNS)] for s in summaries],
    )
    off = sum(
        row["num_tokens_wanted"]
        != sum(row[f"num_tokens_{name}"] for name in ("kept", "turned", "repaired", "recomputed"))
        for row in rows
    )
    checks = [harness.check("completions whose counts do not add up", off, "", "<= 0")]
    turned = [s for s in summaries if s["policy"] == "turn"]
    if turned:
        scored = sum(s["num_tokens_scored"] for s in turned)
        agreed = sum(s["top1_agreement"] * s["num_tokens_scored"] for s in turned) / scored
        name = "top-1 agreement of turn with full, all traces"
        checks.append(harness.check(name, agreed, f"of {scored} tokens", ">= 0.97"))
    harness.finish("replay", args, {"runs": summaries}, checks)


if __name__ == "__main__":
    main()
