#!/usr/bin/env python3
r"""Evaluate weights: held-out middles, and HumanEval single lines by execution.

    python -m training.evaluate final out/final.pt --round q4_1 --round-embedding q4_1 \
        --held data/held --humaneval dl/HumanEval-SingleLineInfilling.jsonl.gz \
        --tokenizer engine/embedded/tokenizer.json --out evaluation

WEIGHTS is anything that train.py starts from. Writes OUT/NAME.json, every answer to
OUT/NAME.answers.jsonl.gz, and to OUT/NAME.items.npz what two models are compared by, place by place
(--lines, --edited). The language models' answers are executed: use a machine that may break.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from .evaluation.held_edits import held_edits
from .evaluation.held_lines import held_lines
from .evaluation.held_middles import held_out
from .evaluation.human_eval import human_eval, tasks
from .model.decoder import Model
from .model.rounding import FORMATS, rounded
from .model.weights import load_model


def prepared(args: argparse.Namespace) -> Model:
    """Load the weights, round them as asked, and put them on the device."""
    model = load_model(args.weights)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.data = rounded(
                    p.data, args.round_embedding if name == "embedding" else args.round
                )
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    return model.to(args.device, dtype).eval().requires_grad_(False)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", help="of the result")
    add("weights")
    add("--out", type=Path, default=Path("."))
    add("--round", choices=FORMATS, default="none", help="of the layers' matrices")
    add("--round-embedding", choices=FORMATS, default="none")
    add("--held", type=Path, action="append", default=[], help="held-out shards (several)")
    add("--held-tokens", type=int, default=1_000_000)
    add("--edited", type=Path, help="held-out shards of `prepare --edited 1`: what turning costs")
    add("--edits", type=int, default=1000, help="samples of --edited at most")
    add("--lines", type=int, default=0, help="first lines to write, of each layout, in --held")
    add("--candidates", type=int, default=1, help="of which one may be right, of --lines")
    add("--humaneval", type=Path, help="HumanEval-SingleLineInfilling.jsonl.gz")
    add("--tokenizer", type=Path, help="tokenizer.json, for --humaneval")
    add("--runs", default="spm.30,psm.30", help="layouts and numbers of layers")
    add("--step", type=int, default=1, help="every STEP-th task")
    add("--batch", type=int, default=256 if cuda else 24, help="tasks decoded together")
    add("--size", type=int, default=32768 if cuda else 4096, help="tokens scored together")
    add("--device", default="cuda" if cuda else "cpu")
    args = parser.parse_args(argv)
    if (args.humaneval or args.lines) and not args.tokenizer:
        parser.error("--humaneval and --lines need --tokenizer")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    model = prepared(args)
    result: dict[str, Any] = {
        "name": args.name,
        "weights": args.weights,
        "round": args.round,
        "round_embedding": args.round_embedding,
    }
    path = args.out / f"{args.name}.json"
    items: dict[str, np.ndarray] = {}
    tokenizer = Tokenizer.from_file(str(args.tokenizer)) if args.tokenizer else None
    if args.humaneval and tokenizer:
        rows = tasks(args.humaneval, args.step)
        figures, answers = human_eval(model, tokenizer, rows, args.runs.split(","), args.batch)
        result["humaneval"] = figures
        with gzip.open(args.out / f"{args.name}.answers.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(answer) + "\n" for answer in answers)
        path.write_text(json.dumps(result, indent=1))
        print(json.dumps(figures, indent=1))
    for folder in args.held:
        result[folder.name] = held_out(model, folder, args.held_tokens, args.size)
        path.write_text(json.dumps(result, indent=1))
        print(folder.name, json.dumps(result[folder.name]["all"]))
        if not (args.lines and tokenizer):
            continue
        for layout in ("spm", "psm"):
            figures, found = held_lines(
                model, tokenizer, folder, layout, args.lines, args.batch, args.candidates
            )
            result[f"{folder.name} lines {layout}"] = figures
            items |= {f"{folder.name}.{layout}.{name}": part for name, part in found.items()}
    if args.edited and args.edits:
        result["edited"], found = held_edits(model, args.edited, args.size, args.edits)
        items |= {f"edited.{name}": part for name, part in found.items()}
    if items:
        np.savez_compressed(args.out / f"{args.name}.items.npz", allow_pickle=False, **items)
    path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
