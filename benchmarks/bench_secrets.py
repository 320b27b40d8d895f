"""Whether secrets are hidden, and what that costs: planted ones, false alarms, ms an edit.

The code is that of installed packages. Secrets are made up in the forms of the rules' kinds, so
this measures whether code around a secret keeps it from being found; a form that no rule knows is
another matter.
"""

from __future__ import annotations

import importlib.util
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
from quality.planted import KINDS, planted

from keyturn.engine.replay.scoring import percentile
from keyturn.server.documents import Edit
from keyturn.server.secrets import Masked

PACKAGES = (
    "click",
    "filelock",
    "huggingface_hub",
    "jinja2",
    "networkx",
    "pygls",
    "requests",
    "rich",
)
NUM_LINES = 2000
# In the file that is edited.
NUM_HELD = 20


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--num-secrets", type=int, default=500)
    parser.add_argument("--num-edits", type=int, default=4000)
    args = parser.parse_args()
    files = [*sources(PACKAGES)]
    rng = random.Random(args.seed)
    hidden = hide(files, args.num_secrets, rng)
    alarms = false_alarms(files)
    edits = edit_ms(files, args.num_edits, rng)
    print(f"not hidden: {hidden['missed'] or 'none'}; false alarms: {alarms['found'] or 'none'}\n")
    rows = [(name, *times.values()) for name, times in edits.items()]
    harness.table(("2,000 lines", "p50 ms", "p95 ms", "most ms"), rows)
    share = 100 * hidden["num_hidden"] / hidden["num_secrets"]
    checks = [
        harness.check("planted secrets that are hidden", share, "%", ">= 99"),
        harness.check("false alarms", alarms["in_2000_lines"], "in 2,000 lines", "<= 1"),
    ]
    for name, times in edits.items():
        if name != "opened":
            check = harness.check(f"secrets: {name}, p95", times["p95_ms"], "ms an edit", "<= 1")
            checks.append(check)
    harness.finish("secrets", args, {"planted": hidden, "code": alarms, "edits": edits}, checks)


def sources(packages: Sequence[str]) -> Iterator[str]:
    """Yield the Python files of installed packages, but the shortest."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).rglob("*.py")):
                text = path.read_text(encoding="utf-8", errors="replace")
                if text.count("\n") >= 20:
                    yield text


def hide(files: Sequence[str], count: int, rng: random.Random) -> dict[str, Any]:
    """Plant secrets of all kinds in turn, each between two lines of a file; count what is hidden.

    Hidden is a secret of which no part is left, in a text where all else is as it was.
    """
    missed: Counter[str] = Counter()
    for number in range(count):
        kind = [*KINDS][number % len(KINDS)]
        lines, (code, secret, parts) = rng.choice(files).split("\n"), planted(kind, rng)
        at = rng.randrange(len(lines))
        before = "".join(f"{line}\n" for line in lines[:at]) + code[: code.index(secret)]
        behind = code[code.index(secret) + len(secret) :] + "\n" + "\n".join(lines[at:])
        shown = Masked(before + secret + behind, "python").text
        there = shown[len(before) : len(before) + len(secret)]
        if any(part in there for part in parts):
            missed[kind] += 1
    return {"num_secrets": count, "num_hidden": count - missed.total(), "missed": dict(missed)}


def false_alarms(files: Sequence[str]) -> dict[str, Any]:
    """Count what is taken for a secret in released code, where there is none."""
    num_lines = sum(text.count("\n") for text in files)
    found = [text[start:end] for text in files for start, end in Masked(text, "python").spans]
    return {
        "num_files": len(files),
        "num_lines": num_lines,
        "num_found": len(found),
        "in_2000_lines": len(found) / num_lines * 2000,
        "found": sorted(set(found)),
    }


def edit_ms(files: Sequence[str], count: int, rng: random.Random) -> dict[str, dict[str, float]]:
    """Time keys at random places of a long file with secrets in it, and in and around these."""
    lines = "\n".join(rng.sample(files, len(files))).split("\n")[:NUM_LINES]
    for number in range(NUM_HELD):
        code = planted([*KINDS][-1 - number % len(KINDS)], rng)[0]
        lines[rng.randrange(len(lines))] = code
    text = "\n".join("\n".join(lines).split("\n")[:NUM_LINES])
    opened = [timed(lambda: Masked(text, "python"))[0] for _ in range(20)]
    held = Masked(text, "python")
    times: dict[str, list[float]] = {"keys anywhere": [], "keys in secrets": []}
    for number in range(count):
        name = [*times][number % 2]
        at = rng.randrange(len(held.plain))
        if name == "keys in secrets":
            start, end = rng.choice(held.spans)
            at = rng.randrange(max(0, start - 4), min(len(held.plain), end + 4))
        key = rng.choice('abcdefgh0123456789 "=\n')
        for edit in (Edit(at, at, key), Edit(at, at + 1, "")):  # typed and taken back
            times[name].append(timed(lambda edit=edit: held.edit([edit]))[0])
    found = {name: quantiles(values) for name, values in times.items()}
    return {"opened": quantiles(opened), **found}


def timed(act: Any) -> tuple[float, Any]:  # noqa: ANN401
    """Return the milliseconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = act()
    return (time.perf_counter() - start) * 1e3, result


def quantiles(values: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and the most."""
    p50, p95 = (percentile(values, share) or 0.0 for share in (0.5, 0.95))
    return {"p50_ms": round(p50, 4), "p95_ms": round(p95, 4), "most_ms": round(max(values), 4)}


if __name__ == "__main__":
    main()
