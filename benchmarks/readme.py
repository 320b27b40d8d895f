"""Write the generated parts of the two READMEs: figures of the newest saved runs, settings, models.

They stand between marks such as `<!-- figures -->` and `<!-- /figures -->`: in the project's README
the headline, ten figures, the settings and the families of models, in the benchmarks' README every
check and every time.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

from keyturn.engine.replay.scoring import percentile
from keyturn.server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
CHECKS = ROOT / "benchmarks" / "README.md"
# The contenders of `bench_cpu.py`: what the product chooses by itself, and the peer's name.
_OWN, _PEER = "4-bit", "llama.cpp"
_TRANSFORMERS = "transformers"

Run = dict[str, Any]


def main() -> None:
    """Replace what stands between the marks of both files."""
    for path in (README, CHECKS):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


def written(text: str) -> str:
    """Return a README's text with its generated parts as they should be."""
    for name, part in PARTS.items():
        marks = re.compile(f"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
        text = marks.sub(lambda found, part=part: f"{found[1]}{part()}\n{found[2]}", text)
    return text


def newest(path: Path) -> Iterator[tuple[str, Run]]:
    """Yield the last run in a file, for each layout, section, device or shape if it names some."""
    runs: dict[str, Run] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        run = json.loads(line)
        layout = f" --layout {run['layout']}" if "layout" in run else ""
        sections = ("rope_shift", "matmul", "slot_attention", "dependency_record")
        found = [name for name in sections if name in run]
        only = f" --only {' '.join(found)}" if found else ""
        busy = " --busy" if run.get("busy") else ""
        device = " --device cuda" if run.get("device") == "cuda" else ""
        device += " --shape none" if run.get("shape") == "none" else ""
        runs[run["benchmark"] + layout + only + busy + device] = run
    yield from runs.items()


def newest_runs() -> dict[str, Run]:
    """Return the last run of every benchmark, by its name and what it was asked for."""
    return {key: run for path in sorted(RESULTS.glob("*.jsonl")) for key, run in newest(path)}


# The project's README.


def settings() -> str:
    """Return the table of all settings."""
    rows = []
    for item in fields(Settings):
        accepts, doc = item.metadata["check"].accepts, item.metadata["doc"]
        rows.append((f"`{item.name}`", f"`{json.dumps(item.default)}`", accepts, doc))
    return _table(("setting", "default", "accepts", "what it is"), rows)


def families() -> str:
    """Return the table of families: what computes each, and what of that the tests compare."""
    from keyturn.engine.files.hf_config import read_config
    from keyturn.engine.model.passes import EagerPass, GraphPass, StepPass

    ways = {"C step": StepPass, "graphs": GraphPass, "launches": EagerPass}
    rows = []
    for case in _cases():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(case.config), encoding="utf-8")
            blocks = read_config(path).blocks()
        served = [
            name for name, way in ways.items() if not any(way.lacks(block) for block in blocks)
        ]
        against = "transformers" if case.is_there else "untested"
        rows.append(
            (
                case.name,
                f"`{case.models}`",
                ", ".join(served),
                "yes" if case.gguf else "-",
                case.fim or "left to right",
                against,
            )
        )
    head = ("family", "for instance", "computed by", "GGUF", "fills in the middle as", "compared")
    return _table(head, rows)


def _cases() -> Sequence[Any]:
    """Return the families that are tested; the tests are no package that a script could import."""
    where = ROOT / "tests" / "engine" / "families.py"
    spec = importlib.util.spec_from_file_location("tested_families", where)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def headline() -> str:
    """Return the sentence with the one figure."""
    run = newest_runs().get("edit_latency")
    if run is None:
        return "No run of `benchmarks/bench_edit_latency.py --save` is recorded yet."
    ours, full = (_both(run["ready_ms"][policy]) for policy in (_policy(run["ready_ms"]), "full"))
    return (
        f"After an edit 1,000 tokens before the cursor in a 2,000-token context, a completion's\n"
        f"first token is ready in {ours} ms instead of {full} ms (p50 / p95; {described(run)},\n"
        f"the embedded model)."
    )


def figures() -> str:
    """Return the ten figures that say most, of those that are recorded."""
    runs = newest_runs()
    rows: list[tuple[str, ...]] = []
    for name, found in _TEN:
        if name in runs and (row := found(runs[name])):
            rows.append((*row, described(runs[name])))
    note = "Times are p50 / p95. GPU figures are of random weights in published shapes."
    return f"{_table(('figure', 'here', 'against', 'on'), rows)}\n\n{note}"


def _policy(measured: Container[str]) -> str:
    """Return the default policy, or what was the default when it was not measured yet."""
    default = Settings().policy
    return default if default in measured else "turn"


def _edit(run: Run) -> tuple[str, ...]:
    ready = {policy: _both(times) for policy, times in run["ready_ms"].items()}
    against = f"{ready['full']} ms full prefill, {ready['prefix']} ms common prefix kept"
    return (
        "first token after an edit 1,000 of 2,000 tokens back",
        f"{ready[_policy(ready)]} ms",
        against,
    )


def _traces(run: Run) -> tuple[str, ...] | None:
    served = _served(run)
    if not served:
        return None
    spans = [_span([one[key] for one in served]) for key in ("ready_ms_p50", "ready_ms_p95")]
    name = f"first token among edits and jumps, {len(served)} traces"
    return name, f"{' / '.join(spans)} ms", f"{_span([one['open_ms'] for one in served])} ms cold"


def _closeness(run: Run) -> tuple[str, ...] | None:
    served = _served(run)
    if not served:
        return None
    sizes = [one["num_tokens_scored"] for one in served]

    def mean(key: str) -> float:
        return sum(one[key] * size for one, size in zip(served, sizes, strict=True)) / sum(sizes)

    here = f"{100 * mean('top1_agreement'):.1f} % same likeliest token, KL {mean('kl_mean'):.4f}"
    return (
        f"closeness of caches ({served[0]['policy']}) in those traces",
        here,
        "a full prefill of every prompt",
    )


def _cpu(key: str, label: str) -> Callable[[Run], tuple[str, ...] | None]:
    """Return a row: the product beside the fastest peer, at the longest context."""

    def found(run: Run) -> tuple[str, ...] | None:
        context = max(one["context"] for one in run["runs"])
        here = {one["contender"]: one[key] for one in run["runs"] if one["context"] == context}
        peers = {name: times for name, times in here.items() if name.startswith(_PEER)}
        if _OWN not in here or not peers:
            return None
        best = min(peers, key=lambda name: median(peers[name]))
        unit, times = key.split("_")[1], median(peers[best]) / median(here[_OWN])
        own = f"{_both(here[_OWN])} {unit}, {times:.2f} times as fast"
        return label.format(context), own, f"{_both(peers[best])} {unit} {best}"

    return found


def _saved(run: Run) -> tuple[str, ...]:
    models = run["models"]
    found = [one["edits"]["insertion, 5 lines"]["saved_percent"] for one in models.values()]
    shares = [f"{share:.1f}" for share in found]
    sizes = " / ".join(models).upper()
    full = " / ".join(f"{one['full']['p50_ms']:.0f}" for one in models.values())
    tokens = next(iter(models.values()))["num_tokens"]
    name = f"time that inserting 5 lines saves, {tokens:,} tokens, {sizes}"
    return name, f"{' / '.join(shares)} %", f"{full} ms (p50) full recomputation"


def _gpu_step(run: Run) -> tuple[str, ...] | None:
    steps = {one["precision"]: one["step_us"] / 1e3 for one in run["runs"] if one["model"] == "7b"}
    if not {"bf16", "q4", _TRANSFORMERS} <= steps.keys():
        return None
    here = f"{steps['bf16']:.2f} ms bf16, {steps['q4']:.2f} ms 4 bits (p50)"
    return "decode step, 7B", here, f"{steps[_TRANSFORMERS]:.2f} ms transformers, bf16 (p50)"


def _human_eval(run: Run) -> tuple[str, ...] | None:
    part = run.get("language_server") or run.get("engine_alone")
    if part is None:
        return None
    here = f"{part['exact_percent']:.1f} ± {part['standard_error']:.1f} %"
    return "HumanEval single lines, exact", here, f"{part['num_tasks']} tasks"


def _held_out(run: Run) -> tuple[str, ...] | None:
    part = run.get("held-out")
    if part is None:
        return None
    here = f"{part['exact_percent']:.1f} ± {part['standard_error']:.1f} %"
    return "middles in held-out packages, exact", here, f"{part['num_tasks']} of every kind"


def _load(run: Run) -> tuple[str, ...]:
    times = run["seconds"]
    cold = next(name for name in times if name.startswith("first token"))
    here = f"{_both(times['load the model'])} s"
    return "load the model", here, f"{_both(times[cold])} s {cold}"


_TEN: tuple[tuple[str, Callable[[Run], tuple[str, ...] | None]], ...] = (
    ("edit_latency", _edit),
    ("replay", _traces),
    ("replay", _closeness),
    ("cpu", _cpu("prefill_s", "prefill of {:,} tokens")),
    ("cpu", _cpu("step_ms", "decode step after {:,} tokens")),
    ("load", _load),
    ("fim_quality --layout spm", _human_eval),
    ("fim_quality --layout spm", _held_out),
    ("edit_gpu", _saved),
    ("decode_gpu", _gpu_step),
)


# The benchmarks' README.


def checks() -> str:
    """Return the table of all checks."""
    runs = newest_runs()
    rows = []
    for name, run in runs.items():
        # A comparison of two checkouts is about one change, not about the product.
        for check in () if name.startswith("compare") else run["checks"]:
            measured = f"{shown(check['value'])} {check['unit']}".strip()
            measured += "" if check["met"] else " (missed)"
            rows.append((check["name"], check["target"], measured, f"`{name}`, {run['commit']}"))
    machines = sorted({described(run) for run in runs.values()})
    table = _table(("promise", "target", "measured", "with"), rows)
    return f"{table}\n\nMeasured on {'; '.join(machines)}."


def times() -> str:
    """Return the table of everything that was timed more than once, in full or by quantiles."""
    runs = newest_runs()
    rows: list[tuple[str, ...]] = []

    def add(name: str, what: str, unit: str, values: Sequence[float]) -> None:
        p50, p95 = _quantiles(values)
        rows.append((what, p50, p95, unit, str(len(values)), f"`{name}`"))

    for name, run in runs.items():
        for policy, values in run.get("ready_ms", {}).items() if name == "edit_latency" else ():
            add(name, f"first token after an edit, `{policy}`", "ms", values)
        for what, values in run.get("seconds", {}).items() if name == "load" else ():
            add(name, what, "s", values)
        for one in run["runs"] if name == "cpu" else ():
            what = f"{one['contender']}, {one['context']:,} tokens"
            add(name, f"prefill, {what}", "s", one["prefill_s"])
            add(name, f"decode step, {what}", "ms", one["step_ms"])
        for model, one in run.get("models", {}).items() if name == "edit_gpu" else ():
            edits = {"full recomputation": one["full"], **one["edits"]}
            for what, found in edits.items():
                p95 = shown(found.get("p95_ms"))
                p50 = shown(found["p50_ms"])
                rows.append((f"{model} {what}", p50, p95, "ms", "-", f"`{name}`"))
    head = ("time", "p50", "p95", "unit", "samples", "with")
    return f"{_table(head, rows)}\n\n`-`: the saved run does not say."


def traces() -> str:
    """Return the table of replayed traces."""
    rows = []
    for run in newest_runs().get("replay", {"runs": ()})["runs"]:
        agreement, kl = run["top1_agreement"], run["kl_mean"]
        compared = ("", "") if agreement is None else (f"{100 * agreement:.1f} %", f"{kl:.4f}")
        ready = [f"{run[key]:.0f} ms" for key in ("ready_ms_p50", "ready_ms_p95")]
        tokens = [str(run[f"num_tokens_{key}"]) for key in ("kept", "turned", "recomputed")]
        rows.append((run["trace"], f"`{run['policy']}`", *ready, *compared, *tokens))
    head = ("trace", "policy", "ready, p50", "p95", "top-1", "KL", "kept", "turned", "recomputed")
    return _table(head, rows)


# How figures are written.


def described(run: Run) -> str:
    """Return the machine in words."""
    machine = run["machine"]
    return machine["gpu"] or f"{machine['num_cores']} cores of {machine['processor']}"


def shown(value: float | None) -> str:
    """Return a figure with as many digits as mean something."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _quantiles(values: Sequence[float]) -> tuple[str, str]:
    return shown(median(values)), shown(percentile(list(values), 0.95))


def _both(values: Sequence[float]) -> str:
    return " / ".join(_quantiles(values))


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def _served(run: Run) -> list[Run]:
    served = _policy([one["policy"] for one in run["runs"]])
    return [one for one in run["runs"] if one["policy"] == served]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "settings": settings,
    "families": families,
    "figures": figures,
    "checks": checks,
    "times": times,
    "traces": traces,
}


if __name__ == "__main__":
    main()
