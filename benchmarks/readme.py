"""Write the README's generated parts: figures from the newest saved runs, settings from the code.

They stand between marks such as `<!-- figures -->` and `<!-- /figures -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

from keyturn.server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def main() -> None:
    """Replace what stands between the README's marks."""
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")


def written(readme: str) -> str:
    """Return the README's text with its generated parts as they should be."""
    for name, part in (("headline", headline), ("settings", settings), ("figures", figures)):
        marks = re.compile(f"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
        readme = marks.sub(lambda found, part=part: f"{found[1]}{part()}\n{found[2]}", readme)
    return readme


def settings() -> str:
    """Return the table of all settings."""
    rows = ["| setting | default | accepts | what it is |", "| --- | --- | --- | --- |"]
    for item in fields(Settings):
        accepts, doc = item.metadata["check"].accepts, item.metadata["doc"]
        rows.append(f"| `{item.name}` | `{json.dumps(item.default)}` | {accepts} | {doc} |")
    return "\n".join(rows)


def figures() -> str:
    """Return the tables of checks and of traces."""
    runs = {key: run for path in sorted(RESULTS.glob("*.jsonl")) for key, run in newest(path)}
    rows = ["| promise | target | measured | with |", "| --- | --- | --- | --- |"]
    for name, run in runs.items():
        for check in run["checks"]:
            measured = f"{shown(check['value'])} {check['unit']}".strip()
            measured += "" if check["met"] else " (missed)"
            target, commit = check["target"], run["commit"]
            rows.append(f"| {check['name']} | {target} | {measured} | `{name}`, {commit} |")
    rows += ["", "| trace | policy | ready, median | top-1 | KL | turned | recomputed |"]
    rows += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for run in runs["replay"]["runs"] if "replay" in runs else ():
        agreement, kl = run["top1_agreement"], run["kl_mean"]
        compared = "| |" if agreement is None else f"{100 * agreement:.1f} % | {kl:.4f} |"
        rows.append(
            f"| {run['trace']} | `{run['policy']}` | {run['ready_ms_p50']:.0f} ms | {compared} "
            f"{run['num_tokens_turned']} | {run['num_tokens_recomputed']} |"
        )
    machines = sorted({described(run) for run in runs.values()})
    return "\n".join([*rows, "", f"Measured on {'; '.join(machines)}."])


def headline() -> str:
    """Return the sentence with the one figure."""
    run = dict(newest(RESULTS / "edit_latency.jsonl")).get("edit_latency")
    if run is None:
        return "No run of `benchmarks/bench_edit_latency.py --save` is recorded yet."
    ready = {policy: median(times) for policy, times in run["ready_ms"].items()}
    return (
        f"After an edit 1,000 tokens before the cursor in a 2,000-token context, a completion's "
        f"first token is ready in {ready['turn']:.0f} ms instead of {ready['full']:.0f} ms "
        f"({described(run)}, the embedded model)."
    )


def newest(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the last run in a file, for each layout or section if it names some."""
    runs: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        run = json.loads(line)
        layout = f" --layout {run['layout']}" if "layout" in run else ""
        sections = ("rope_shift", "matmul", "slot_attention", "dependency_record")
        found = [name for name in sections if name in run]
        only = f" --only {' '.join(found)}" if found else ""
        runs[run["benchmark"] + layout + only] = run
    yield from runs.items()


def described(run: dict[str, Any]) -> str:
    """Return the machine in words."""
    machine = run["machine"]
    return machine["gpu"] or f"{machine['num_cores']} cores of {machine['processor']}"


def shown(value: float | None) -> str:
    """Return a figure with as many digits as mean something."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    main()
