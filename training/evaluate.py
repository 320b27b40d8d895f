#!/usr/bin/env python3
"""Evaluate weights: held-out middles and HumanEval single lines by execution.

WEIGHTS is a .gguf, a checkpoint (.pt) or packed pieces (the prefix). With --round the layers'
matrices are rounded first, with --round-embedding the embedding. Middles are scored with the true
text fed in: by layer, layout, length, kind and language. Infilling as an editor asks: the
indentation is typed already, the suffix begins with the line's own newline. "exact": the first
line of the output, stripped, is the reference; "passed": the program with it passes its tests.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import batches
import fim
import numpy as np
import spans
import torch
from model import NUM_LAYERS, Model, greedy, rms_norm
from quants import ROUNDINGS
from tokenizers import Tokenizer
from weights import load_model

LAYERS = (6, 10, 14, 18, 22, 26, NUM_LAYERS)
LENGTHS = ((0, 500), (500, 1000), (1000, 2049))
MAX_NEW = 72


# ---------------------------------------------------------------- held-out middles


@torch.inference_mode()
def score_middles(
    model: Model, folder: Path, device: str, most: int, size: int = 32768
) -> dict[str, np.ndarray]:
    """Return a row per middle token: nll, top-1, confidence of each layer; its sample."""
    tokens, classes, samples = batches.read_shards(sorted(folder.glob("p*.npz")))
    samples.setdefault("reserved", np.zeros(len(samples["length"]), bool))
    order = [
        i
        for i in np.random.default_rng(7).permutation(len(samples["length"]))
        if samples["layout"][i] != fim.PLAIN
    ]
    rows, used, at = [], 0, 0
    while at < len(order) and used < most:
        group, room = [], size
        while (
            at < len(order)
            and samples["length"][order[at]] <= room
            and len(group) < batches.MAX_SAMPLES - 40
        ):
            group.append(order[at])
            room -= int(samples["length"][order[at]])
            at += 1
        used += size - room
        pieces = [
            slice(samples["offset"][i], samples["offset"][i] + samples["length"][i]) for i in group
        ]
        batch = batches.pack(
            [tokens[p] for p in pieces],
            [classes[p] for p in pieces],
            size,
            64,
            np.random.default_rng(0),
        )
        hidden = model.hidden(
            batch.token_ids.to(device),
            batch.positions.to(device),
            batch.bounds.to(device),
            set(LAYERS),
        )
        begins = np.concatenate([[0], np.cumsum(samples["length"][group])])
        where = [
            b + np.flatnonzero(np.isin(classes[p], batches.MIDDLE_CLASSES)) - 1
            for b, p in zip(begins, pieces, strict=False)
        ]
        places = torch.from_numpy(np.concatenate(where)).to(device)
        truth = batch.token_ids.to(device)[places + 1]
        figures = {}
        for layer in LAYERS:
            out = []
            for c in range(0, len(places), 4096):
                h = rms_norm(hidden[layer][places[c : c + 4096]], model.norm)
                logits = (h @ model.embedding.t()).float()
                lse, (best, top) = logits.logsumexp(-1), logits.max(-1)
                nll = lse - logits.gather(1, truth[c : c + 4096, None])[:, 0]
                out.append(torch.stack([nll, top.float(), (best - lse).exp()], 1))
            figures[layer] = torch.cat(out).double().cpu().numpy()
        counts = [len(w) for w in where]
        rows.append(
            {
                "truth": truth.cpu().numpy(),
                "last": np.concatenate([np.arange(n) == n - 1 for n in counts]),
                "sample": np.repeat(group, counts),
                **{f"layer{k}": v for k, v in figures.items()},
                **{
                    k: np.repeat(samples[k][group], counts)
                    for k in ("length", "kind", "layout", "language", "reserved")
                },
            }
        )
    return {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}


def summarise(rows: dict[str, np.ndarray], mask: np.ndarray) -> dict:
    """Return figures of the last layer over some middle tokens."""
    full, truth, last = rows[f"layer{NUM_LAYERS}"][mask], rows["truth"][mask], rows["last"][mask]
    ends, sample = full[:, 1] == fim.END, rows["sample"][mask]
    right = full[:, 1] == truth
    wrong = np.unique(sample[~right])
    num = int(last.sum())
    return {
        "samples": num,
        "tokens": len(truth),
        "loss": round(float(full[:, 0].mean()), 4),
        "top1": round(float(right.mean()), 4),
        "end_right": round(float(ends[last].mean()), 4),
        "end_early": round(len(np.unique(sample[ends & ~last])) / num, 4),
        "all_right": round(1 - len(wrong) / num, 4),  # greedy decoding would be an exact match
    }


def held_out(model: Model, folder: Path, device: str, most: int, size: int) -> dict:
    """Return tables over held-out middles: by layer, by layout and length, by kind, by language."""
    rows = score_middles(model, folder, device, most, size)
    everything = np.ones(len(rows["truth"]), bool)
    out = {
        "all": summarise(rows, everything),
        "layers": {},
        "lengths": {},
        "kinds": {},
        "languages": {},
        "reserved": {},
    }
    top = rows[f"layer{NUM_LAYERS}"][:, 1]
    for layer in LAYERS:
        nll, guess, confidence = rows[f"layer{layer}"].T
        sure = confidence >= 0.9
        out["layers"][layer] = {
            "loss": round(float(nll.mean()), 4),
            "top1": round(float((guess == rows["truth"]).mean()), 4),
            "same": round(float((guess == top).mean()), 4),
            "sure": round(float(sure.mean()), 4),
            "sure_same": round(float((guess == top)[sure].mean()), 4),
        }
    cells = []
    for layout in (fim.PSM, fim.SPM, fim.EFIM):
        mine = rows["layout"] == layout
        cells += [
            (
                "lengths",
                f"{fim.LAYOUTS[layout]} {a}-{b - 1}",
                mine & (rows["length"] >= a) & (rows["length"] < b),
            )
            for a, b in LENGTHS
        ]
    cells += [("kinds", kind, rows["kind"] == k) for k, kind in enumerate(spans.KINDS)]
    cells += [
        ("languages", language, rows["language"] == k) for k, language in enumerate(fim.LANGUAGES)
    ]
    script = rows["language"] > 0
    for name, mine in (("python", ~script), ("script", script)):
        cells += [
            ("reserved", f"{name} {word}", mine & (rows["reserved"] == flag))
            for word, flag in (("packages", True), ("files", False))
        ]
    for table, name, mask in cells:
        if mask.any():
            out[table][name] = summarise(rows, mask)
    return out


# ---------------------------------------------------------------- HumanEval


def run_program(source: str) -> bool:
    """Run a program in a process with little time and memory; return whether it exits with 0."""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-"], input=source.encode(), cwd=folder, timeout=6,
                preexec_fn=limits, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def tasks(path: Path, step: int) -> list[dict]:
    """Return the tasks with the prefix and the suffix that an editor would have."""
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file][::step]
    for row in rows:
        want = row["canonical_solution"]
        row["before"] = row["prompt"] + want[: len(want) - len(want.lstrip(" \t"))]
        row["after"] = ("\n" if want.endswith("\n") else "") + row["suffix"]
    return rows


def infill(
    model: Model,
    tokenizer: Tokenizer,
    rows: list[dict],
    layout: str,
    depth: int,
    device: str,
    batch_size: int = 256,
) -> list:
    """Return (first line, whether it ended by itself) for each task."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids if text else []

    words = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    halt = torch.tensor(["\n" in w for w in words], device=device)
    prompts = []
    for row in rows:
        prefix, suffix = encode(row["before"]), encode(row["after"])
        if layout == "spm":
            prompts.append([fim.PRE, fim.SUF, *suffix, fim.MID, *prefix])
        else:
            prompts.append([fim.PRE, *prefix, fim.SUF, *suffix, fim.MID])
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    out = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        for i, ids in zip(
            part,
            greedy(model, [prompts[k] for k in part], MAX_NEW, depth, fim.END, halt),
            strict=False,
        ):
            text = tokenizer.decode(ids, skip_special_tokens=False)
            out[i] = text.split("\n")[0], "\n" not in text and len(ids) < MAX_NEW
    return out


def human_eval(
    model: Model,
    tokenizer_path: Path,
    path: Path,
    runs: list[str],
    step: int,
    device: str,
    batch_size: int,
    say: Callable[..., None],
) -> tuple[dict, list]:
    """Return the figures of each run ("spm.30": layout and depth) and every answer."""
    tokenizer, rows = Tokenizer.from_file(str(tokenizer_path)), tasks(path, step)
    answers, programs = [], {}
    for run in runs:
        layout, depth = run.split(".")
        for number, (row, (line, ended)) in enumerate(
            zip(
                rows,
                infill(model, tokenizer, rows, layout, int(depth), device, batch_size),
                strict=False,
            )
        ):
            program = (
                row["before"]
                + line
                + row["after"]
                + "\n"
                + row["test"]
                + f"\ncheck({row['entry_point']})\n"
            )
            exact = line.strip() == row["canonical_solution"].strip()
            answers.append(
                dict(
                    run=run,
                    task=row["task_id"],
                    number=number,
                    line=line,
                    ended=ended,
                    exact=exact,
                    program=program,
                )
            )
            programs[program] = None
        say(run, "exact", np.mean([a["exact"] for a in answers if a["run"] == run]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = dict(zip(programs, pool.map(run_program, programs), strict=False))
    figures = {}
    for answer in answers:
        answer["passed"] = programs[answer.pop("program")]
    for run in runs:
        mine = [a for a in answers if a["run"] == run]
        odd = [a for a in mine if a["number"] % 2]

        def mean(part: list[dict], key: str) -> float:
            return round(float(np.mean([a[key] for a in part])), 4)

        figures[run] = {k: mean(mine, k) for k in ("exact", "passed", "ended")} | {"n": len(mine)}
        figures[run] |= {"odd_" + k: mean(odd, k) for k in ("exact", "passed")}
        figures[run]["empty"] = round(float(np.mean([not a["line"].strip() for a in mine])), 4)
        say(run, figures[run])
    return figures, answers


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the result: OUT/NAME.json, OUT/NAME.answers.jsonl.gz")
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument(
        "--round", choices=ROUNDINGS, default="none", help="of the layers' matrices"
    )
    parser.add_argument("--round-embedding", choices=ROUNDINGS, default="none")
    parser.add_argument(
        "--held", type=Path, action="append", default=[], help="folder of held-out shards (several)"
    )
    parser.add_argument("--held-tokens", type=int, default=1_000_000)
    parser.add_argument("--humaneval", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--runs", default="spm.30,psm.30")
    parser.add_argument("--step", type=int, default=1, help="every STEP-th task")
    parser.add_argument(
        "--batch", type=int, default=256, help="tasks decoded together (24 on a CPU)"
    )
    parser.add_argument(
        "--size", type=int, default=32768, help="tokens scored together (4096 on a CPU)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    started = time.time()

    def say(*words: object) -> None:
        print(args.name, *words, f"{time.time() - started:.1f} s", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    model = load_model(args.weights).to(args.device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.data = ROUNDINGS[args.round_embedding if name == "embedding" else args.round](
                    p.data
                )
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    model = model.to(dtype).eval().requires_grad_(False)
    result = {
        "name": args.name,
        "weights": args.weights,
        "round": args.round,
        "round_embedding": args.round_embedding,
    }
    if args.humaneval:
        figures, answers = human_eval(
            model,
            args.tokenizer,
            args.humaneval,
            args.runs.split(","),
            args.step,
            args.device,
            args.batch,
            say,
        )
        result["humaneval"] = figures
        with gzip.open(args.out / f"{args.name}.answers.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(a) + "\n" for a in answers)
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1))
    for folder in args.held:
        result[folder.name] = held_out(model, folder, args.device, args.held_tokens, args.size)
        say(
            folder.name,
            result[folder.name]["all"],
            {k: v["same"] for k, v in result[folder.name]["layers"].items()},
        )
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
