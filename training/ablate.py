#!/usr/bin/env python3
r"""Run a queue of short trainings, one per GPU, and keep their figures only.

    python -m training.ablate training/ablations.json OUT --minutes 20 --devices 0,1
    python -m training.ablate training/ablations.json OUT --report

Each variant mixes its shards, trains, is evaluated on the spot on its weights as the file would
round them, and is deleted. OUT/results.jsonl gets a line as soon as one is done; started again, the
driver does what is missing. None is begun that would not end in time, and at the end of the time
whatever runs is stopped. The configuration is JSON, see the file; "start" evaluates the weights
that all begin from. --report prints each variant against the first trained one, place by place, and
writes OUT/runs.json for `mix_fit`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from .mix import Share, mix

Variant = dict[str, Any]
RESULTS = "results.jsonl"
_MARGIN = 1.15  # of the longest variant so far, for one more


class Queue:
    """The variants that are still to be run, for several workers."""

    def __init__(self, args: argparse.Namespace, config: dict[str, Any]) -> None:
        """Leave out what is done."""
        self.args, self.config = args, config
        self.end_s = time.time() + 60 * args.minutes
        done = {row["name"] for row in read_results(args.out)}
        self._left = [v for v in config["variants"] if v["name"] not in done]
        self._longest_s = 60 * config.get("minutes_each", 3)
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()

    def next(self) -> Variant | None:
        """Return the next variant that can end in time."""
        with self._lock:
            enough = self.end_s - time.time() > _MARGIN * self._longest_s
            return self._left.pop(0) if self._left and enough else None

    def work(self, device: str) -> None:
        """Run variants on a device until there is none, or no time."""
        while (variant := self.next()) is not None:
            began = time.time()
            folder = self.args.out / variant["name"]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            log = (self.args.out / f"{variant['name']}.log").open("wb")
            environment = dict(os.environ, CUDA_VISIBLE_DEVICES="" if device == "cpu" else device)
            try:
                for command in self.commands(variant, folder):
                    self.execute(command, environment, log)
                self._note(variant, folder, device, time.time() - began)
            except (subprocess.CalledProcessError, OSError, ValueError, KeyError) as error:
                print(f"{variant['name']}: {error!r}; see {log.name}", flush=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def commands(self, variant: Variant, folder: Path) -> list[list[str]]:
        """Mix a variant's shards; return the command lines that train and evaluate it."""
        config, name = self.config, variant["name"]
        weights, python = config["weights"], [sys.executable, "-m"]
        found = []
        if not variant.get("start"):
            shares = {k: Share(*v) for k, v in variant.get("mix", config["mix"]).items()}
            tokens = float(variant.get("tokens", config["tokens"]))
            shards = Path(variant.get("shards", config["shards"]))
            units = mix(shards, folder / "shards", shares, tokens, variant.get("seed", 0))
            steps = max(1, round(tokens / config["tokens_a_step"]))
            train = [*python, "training.train", "--weights", weights, "--out", str(folder)]
            train += ["--shards", str(folder / "shards"), "--passes", f"0:{units}"]
            train += ["--steps", str(steps), "--tokens", str(config["tokens_a_step"])]
            train += ["--seed", str(variant.get("seed", 0)), "--save-every", "1e9"]
            found.append([*train, *config.get("train", []), *variant.get("train", [])])
            weights = str(folder / "final.pt")
        evaluate = [*python, "training.evaluate", name, weights, "--out", str(self.args.out)]
        evaluate += ["--round", "q4_1", "--round-embedding", "q4_1"]
        held = variant.get("held", config["held"])
        evaluate += ["--held", held, "--edited", config["edited"]]
        evaluate += ["--tokenizer", config["tokenizer"], *config.get("evaluate", [])]
        evaluate += variant.get("evaluate", [])
        return [*found, evaluate]

    def execute(self, command: list[str], environment: dict[str, str], log: Any) -> None:  # noqa: ANN401
        """Run a command line, to the end of the queue's time at most.

        Raises:
            CalledProcessError: it failed, or was stopped.
        """
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._children.add(child)
        try:
            code = child.wait(max(1.0, self.end_s - time.time()))
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        self._children.discard(child)
        if code:
            raise subprocess.CalledProcessError(code, command[2])

    def _note(self, variant: Variant, folder: Path, device: str, seconds: float) -> None:
        log = folder / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        figures = json.loads((self.args.out / f"{variant['name']}.json").read_text())
        trained = next((line for line in lines if "done" in line), {})
        row = {**variant, "seconds": round(seconds, 1), "device": device, "trained": trained}
        with self._lock, (self.args.out / RESULTS).open("a") as file:
            file.write(json.dumps({**row, "figures": figures}) + "\n")
            self._longest_s = max(seconds, self._longest_s if trained else 0.0)
        print(f"{variant['name']}: {seconds:.0f} s", flush=True)


def read_results(out: Path) -> list[dict[str, Any]]:
    """Return the variants that are done, with their figures."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(out: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line of figures for each variant, against the first one that was trained."""
    rows = read_results(out)
    items = {row["name"]: _items(out / f"{row['name']}.items.npz") for row in rows}
    base = next((row["name"] for row in rows if not row.get("start")), None)
    found = []
    for row in rows:
        figures, mine = row["figures"], items[row["name"]]
        held = Path(row.get("held", config["held"])).name
        line = {"name": row["name"], "loss": figures[held]["all"]["loss"]}
        line["losses"] = {k: v["loss"] for k, v in figures[held]["languages"].items()}
        for layout in ("spm", "psm"):
            if (lines := figures.get(f"{held} lines {layout}")) is None:
                continue
            line |= {f"{layout}_exact": lines["exact"], f"{layout}_se": lines["se"]}
            line[f"{layout}_ece"] = lines["ece_joint"]
            line |= {
                f"{layout}_{k}": v["exact"] for k, v in lines.items() if k.startswith("any_of")
            }
        if "edited" in figures:
            line |= {name: figures["edited"][name] for name in ("kl", "kl_se", "same")}
        line["ends"] = {
            cell: (value["end_right"], value["end_early"])
            for cell, value in figures[held]["lengths"].items()
        }
        line["ece_token"] = figures[held]["ece_token"]
        layers = figures[held]["layers"]
        line["same_14_22"] = [layers[name]["same"] for name in ("14", "22") if name in layers]
        if base is not None and row["name"] != base:
            # Means of the differences over their standard errors, in pairs.
            line["z"] = {
                name: paired_z(mine[key], items[base][key])
                for name, key in (
                    ("spm_exact", f"{held}.spm.exact"),
                    ("psm_exact", f"{held}.psm.exact"),
                    ("spm_any", f"{held}.spm.any"),
                    ("psm_any", f"{held}.psm.any"),
                    ("kl", "edited.kl"),
                    ("loss_fresh", "edited.loss_fresh"),
                )
                if key in mine and len(mine[key]) == len(items[base].get(key, ()))
            }
        found.append(line)
    return found


def _items(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(path)) if path.exists() else {}


def paired_z(mine: np.ndarray, base: np.ndarray) -> float:
    """Return the mean difference over its standard error; 0 where nothing differs."""
    difference = mine.astype(float) - base.astype(float)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return round(float(difference.mean()) / (spread / len(difference) ** 0.5), 2) if spread else 0.0


def runs_for_fit(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return what `mix_fit` takes: the variants marked "fit", and the loss before training."""
    held = Path(config["held"]).name

    def losses(row: dict[str, Any]) -> dict[str, float]:
        return {k: v["loss"] for k, v in row["figures"][held]["languages"].items()}

    rows = read_results(out)
    start = next((losses(row) for row in rows if row.get("start")), {})
    runs = [
        {
            "name": row["name"],
            "tokens": row.get("tokens", config["tokens"]),
            "pools": row.get("mix", config["mix"]),
            "loss": losses(row),
            "held_out": row["fit"] == "held out",
        }
        for row in rows
        if row.get("fit")
    ]
    return {"start": start, "runs": runs}


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20, help="for all of it, from now on")
    parser.add_argument("--devices", default="0,1", help='numbers of GPUs, or "cpu", with commas')
    parser.add_argument("--report", action="store_true", help="print what there is")
    args = parser.parse_args(argv)
    config = json.loads(args.config.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        queue = Queue(args, config)
        workers = [
            threading.Thread(target=queue.work, args=(device,))
            for device in args.devices.split(",")
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    lines = report(args.out, config)
    (args.out / "report.json").write_text(json.dumps(lines, indent=1))
    (args.out / "runs.json").write_text(json.dumps(runs_for_fit(args.out, config), indent=1))
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
