"""Write a report with plots from the saved runs: what each policy costs, and what it keeps.

python benchmarks/report.py build/report
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from readme import RESULTS, newest

Run = dict[str, Any]

FAMILIES = ("elsewhere", "dependent")
# One colour each, as far apart for the colour-blind as for others (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00")


def main() -> None:
    """Write `report.md` and its plots into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# What an edit costs, and what is kept of a full prefill\n"]
    for title, plot, text in sections():
        name = title.lower().replace(" ", "-").replace(",", "")
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        plot(axes)
        figure.savefig(folder / f"{name}.svg")
        plt.close(figure)
        parts.append(f"## {title}\n\n{text}\n\n![{title}]({name}.svg)\n")
    (folder / "report.md").write_text("\n".join(parts), encoding="utf-8")
    print(folder / "report.md")


def sections() -> Iterator[tuple[str, Callable[[Axes], None], str]]:
    """Yield title, plot and text of what there are saved runs for."""
    for run in map(json.loads, (RESULTS / "repair.jsonl").read_text(encoding="utf-8").splitlines()):
        found = {(row["kind"], row["ranking"]): row for row in run["runs"]}
        where, dtype = run["measured_on"], run["dtype"]
        share = f"{run['runs'][0]['share']:.0%} of the rows"
        num = "/".join(str(found[family, "ours"]["num_places"]) for family in FAMILIES)
        about = f"{where}, {dtype}, {share}, {num} places; commit {run['commit']}."
        about += "\n\n" + _table(found)
        kind = f"in {dtype}, {len({ranking for _, ranking in found})} ways"
        yield f"KL to a full prefill {kind}", _by_ranking(found, "kl_mean", "KL, nats"), about
        yield f"Top-1 agreement {kind}", _by_ranking(found, "top1_agreement", "share"), about
        if found["elsewhere", "ours"]["exact_match_full"] is not None:
            plot = _by_ranking(found, "exact_match_full", "share of 64-token completions")
            yield f"Completions equal {kind}", plot, about
    for name, run in newest(RESULTS / "edit_latency.jsonl"):
        about = f"{run['machine']['processor']}, {run['dtype']}; commit {run['commit']}."
        yield f"Ready after an edit {name}", _times(run), about
    for name, run in newest(RESULTS / "depth.jsonl"):
        about = f"{run['machine']['processor']}, {run['dtype']}; commit {run['commit']}. "
        about += "Bars are 95 % intervals over places, of either."
        for group in dict.fromkeys(row["group"] for row in run["runs"]):
            rows = [row for row in run["runs"] if row["group"] == group]
            if rows[0].get("edit similarity") is not None:
                yield f"Quality against time {group} {name}", _quality(rows), about
    for name, run in newest(RESULTS / "cold.jsonl"):
        about = f"{run['machine']['processor']}, {run['num_places']} places."
        yield f"A cold place {name}", _cold(run), about


def _by_ranking(
    found: dict[tuple[str, str], Run], figure: str, label: str
) -> Callable[[Axes], None]:
    rankings = list(dict.fromkeys(ranking for _, ranking in found))

    def plot(axes: Axes) -> None:
        for number, family in enumerate(FAMILIES):
            values = [found[family, ranking][figure] for ranking in rankings]
            at = [place + 0.4 * number for place in range(len(rankings))]
            axes.barh(at, values, 0.4, color=_COLOURS[number], label=f"edits {family}")
        _named(axes, rankings, 0.2)
        if figure == "kl_mean":
            axes.set_xscale("log")
        else:
            axes.set_xlim(min(found[f, r][figure] for f in FAMILIES for r in rankings) - 0.02, 1)
        axes.set_xlabel(label)
        axes.legend()

    return plot


def _table(found: dict[tuple[str, str], Run]) -> str:
    """Return all figures of the families and their parts."""
    rows = ["| edits | ranking | places | KL × 10⁻³ | top-1 | completions equal | rows |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for (kind, ranking), row in found.items():
        if kind.startswith(FAMILIES):
            same = row["exact_match_full"]
            cells = [kind, ranking, str(row["num_places"]), f"{row['kl_mean'] * 1e3:.2f}"]
            cells += [f"{row['top1_agreement']:.2%}", "" if same is None else f"{same:.0%}"]
            rows.append(f"| {' | '.join(cells)} | {row['num_rows']:.1%} |")
    return "\n".join(rows)


def _times(run: Run) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        times = run["ready_ms_p50"]
        axes.barh(range(len(times)), list(times.values()), color=_COLOURS[0], label="p50")
        axes.plot(list(run["ready_ms_p95"].values()), range(len(times)), "|k", ms=14, label="p95")
        _named(axes, list(times), 0)
        axes.set_xscale("log")
        axes.set_xlabel("ms to the first token")
        axes.legend()

    return plot


def _quality(rows: Sequence[Run]) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        plain = rows[0]["edit similarity"]
        for row in rows[1:]:
            speed, gained = row["times as fast"], 100 * (row["edit similarity"] / plain - 1)
            axes.errorbar(
                *(speed, gained),
                xerr=[[speed - row["low"]], [row["high"] - speed]],
                yerr=[[gained - row["change, low %"]], [row["change, high %"] - gained]],
                fmt="o",
                color=_COLOURS[0],
                elinewidth=0.5,
            )
            axes.annotate(f" {row['method']}", (speed, gained), fontsize="small")
        axes.set_xlabel("times as fast as a token at a time")
        axes.set_ylabel("change of edit similarity, %")

    return plot


def _cold(run: Run) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        narrow = [each for each in run["widths"] if each["width"] is not None]
        axes.plot(
            [each["times_sooner"] for each in narrow],
            [each["kept_share"] for each in narrow],
            "o-",
            color=_COLOURS[0],
        )
        for each in narrow:
            place = (each["times_sooner"], each["kept_share"])
            axes.annotate(f" {each['width']} tokens", place)
        axes.set_xlabel("times sooner than the whole window")
        axes.set_ylabel("of the whole window's exact lines")

    return plot


def _named(axes: Axes, names: Sequence[str], at: float) -> None:
    axes.set_yticks([place + at for place in range(len(names))], names)
    axes.invert_yaxis()


if __name__ == "__main__":
    main()
