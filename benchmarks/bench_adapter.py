"""What a LoRA adapter adds to decode steps and to a prefill on the CPU, by rank.

Random 4-bit weights in the shape of the embedded model and of one of 1.5 billion weights, random
adapters of all seven projections. Processor time of one thread, which other programs hardly
disturb; every rank in turn, round after round, beside none.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import harness
import numpy as np
import torch
from models import SHAPES, Shape

from keyturn.engine.engine import choose_dtype
from keyturn.engine.files.hf_config import read_config
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.model.layers import go_on
from keyturn.engine.model.tensors import EMBEDDING, PROJECTIONS, expected_shapes
from keyturn.kernels.weights.blocks import GGUF_BLOCKS, BlockMatrix
from keyturn.kernels.weights.linear import Matrix
from keyturn.kernels.weights.low_rank import LowRank

OWN = {"embedded": Shape(30, 576, 1536, 9, 3, 64, 49152), "1.5B": SHAPES["1.5B"]}
PARTS = [part.name for parts in PROJECTIONS.values() for part in parts]
CPU = torch.device("cpu")
# Rows of a decode step, of one that checks drafts, and of a prefill.
KINDS = {"step": 1, "step of 4 rows": 4, "prefill of 256": 256}
TARGET_RANK, TARGET = 16, "<= 1.15"


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--shapes", nargs="+", choices=[*OWN], default=[*OWN])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--context", type=int, default=256, help="rows in the cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="in a round, of each kind and rank")
    parser.add_argument("--dtype", default="auto")
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for name in args.shapes for row in measured(args, name)]
    header = ["shape, rows", "rank", "ms", "times none", "p20", "p80"]
    told = [
        [row["what"], row["rank"], row["ms"], *(f"{row[key]:.3f}" for key in header[3:])]
        for row in rows
    ]
    harness.table(header, told)
    checks = [
        harness.check(f"{row['what']}, rank {row['rank']}", row["times none"], "times none", TARGET)
        for row in rows
        if row["rank"] == TARGET_RANK and row["kind"] == "step"
    ]
    figures = {"threads": args.threads, "dtype": args.dtype, "context": args.context, "rows": rows}
    harness.finish("adapter", args, figures, checks)


def measured(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Return a row for every kind of pass and rank of one shape."""
    random = torch.Generator().manual_seed(args.seed)
    decoder = decoder_of(OWN[name], choose_dtype(args.dtype, CPU), random)
    updates = {rank: random_updates(decoder, rank, random) for rank in args.ranks}
    cache = KVCache(decoder.config, args.context + max(KINDS.values()), decoder.dtype, CPU)
    tokens = np.arange(args.context) % decoder.config.vocab_size
    decoder.forward(cache, cache.append(tokens, np.arange(args.context)), go_on)
    adapted = 0

    def run(kind: str, rank: int) -> Callable[[], float]:
        def timed() -> float:
            nonlocal adapted
            if adapted != rank:
                decoder.adapt(updates.get(rank, {}))
                adapted = rank
            return pass_ms(decoder, cache, KINDS[kind], args.steps)

        return timed

    every = [(kind, rank) for rank in (0, *args.ranks) for kind in KINDS]
    runs = {json.dumps(key): run(*key) for key in every}
    found = harness.alternate(runs, repeats=args.rounds, warm_up=1)
    rows = []
    for kind, rank in sorted(every, key=lambda key: [*KINDS].index(key[0])):
        times, none = found[json.dumps((kind, rank))], found[json.dumps((kind, 0))]
        ratios = [one / other for one, other in zip(times, none, strict=True)]
        row = {"shape": name, "kind": kind, "what": f"{name}, {kind}", "rank": rank}
        row |= {"ms": median(times), "times none": median(ratios)}
        row |= {"p20": float(np.quantile(ratios, 0.2)), "p80": float(np.quantile(ratios, 0.8))}
        rows.append(row)
    return rows


def pass_ms(decoder: Decoder, cache: KVCache, num_rows: int, steps: int) -> float:
    """Return the processor time of a pass over so many new rows, to the logits of the last."""
    start = cache.num_rows
    spent = 0.0
    for number in range(max(1, steps // num_rows)):
        slots = cache.append(np.full(num_rows, number), start + np.arange(num_rows))
        began = time.process_time()
        decoder.last_logits(cache, slots, go_on)
        spent += time.process_time() - began
        cache.remove(slots)
    return spent * 1e3 / max(1, steps // num_rows)


def decoder_of(shape: Shape, dtype: torch.dtype, random: torch.Generator) -> Decoder:
    """Return a decoder of random weights: the layers' in Q4_1, the embedding's in Q8_0."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(shape.config()), encoding="utf-8")
        config = read_config(path)
    tensors: dict[str, Matrix] = {}
    for name, size in expected_shapes(config).items():
        if len(size) == 2:
            tensors[name] = random_blocks(size, "Q8_0" if name == EMBEDDING else "Q4_1", random)
        else:
            tensors[name] = torch.ones(size, dtype=dtype)
    return Decoder(config, tensors)


def random_blocks(size: tuple[int, ...], kind: str, random: torch.Generator) -> BlockMatrix:
    """Return a matrix of random codes, whose products are about as large as what it is given."""
    (rows, columns), (size_of_one, head) = size, GGUF_BLOCKS[kind]
    blocks = torch.randint(
        0, 256, (rows, columns // 32, size_of_one), generator=random, dtype=torch.uint8
    )
    scale = 1 / ({"Q4_1": 4.6, "Q8_0": 74}[kind] * math.sqrt(columns))
    halves = torch.tensor([scale, -7.5 * scale][: head // 2], dtype=torch.float16)
    blocks[..., :head] = halves.view(torch.uint8)
    return BlockMatrix(blocks.flatten(1), kind)


def random_updates(decoder: Decoder, rank: int, random: torch.Generator) -> dict[str, LowRank]:
    """Return an adapter of every projection."""
    shapes = expected_shapes(decoder.config)
    found = {}
    for layer in range(decoder.config.num_layers):
        for part in PARTS:
            name = f"model.layers.{layer}.{part}"
            rows, columns = shapes[f"{name}.weight"]
            down = torch.randn(rank, columns, generator=random) / math.sqrt(columns)
            found[name] = LowRank(down, torch.randn(rows, rank, generator=random) / 10 / rank)
    return found


if __name__ == "__main__":
    main()
