#!/usr/bin/env python3
"""Turn documents into shards of tokenized fill-in-the-middle samples, on many cores.

A shard pPP_uUUU.npz holds samples end to end: tokens uint16, classes uint8 (see fim.py), and for
each sample length int32, kind, layout, language uint8, reserved bool. Shards that exist are not
made again.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import fim
import numpy as np
from collect import load_documents


def make_shard(
    number: int, unit: int, args: argparse.Namespace, builder: fim.Builder
) -> tuple[int, int, int]:
    """Write shard `unit` of pass `number`; return its numbers of samples, tokens, middle tokens."""
    path = args.out / f"p{number:02d}_u{unit:03d}.npz"
    if path.exists():
        return 0, 0, 0
    if builder.tokenizer is None:
        builder.open_tokenizer(str(args.tokenizer))
    rng = random.Random(f"{args.seed}.{number}.{unit}")
    order = []
    for i, document in enumerate(builder.documents):
        is_set = document[0].startswith("algo:")
        order += [i] * (args.program_set_times if is_set and not args.natural else 1)
    random.Random(f"{args.seed}.{number}").shuffle(order)
    samples = []
    for i in order[unit :: args.units]:
        package, path_of, _ = builder.documents[i]
        extra = fim.LANGUAGES.index(fim.language_of(path_of)), package.startswith("reserved:")
        try:
            mine = [
                sample for sample in builder.samples(rng, i, args.small, args.natural) if sample
            ]
        except (
            IndexError,
            ValueError,
            RecursionError,
        ) as error:  # one odd file must not end a long job
            print(f"left out {package} {path_of}: {error!r}", flush=True)
            continue
        samples += [(*sample, *extra) for sample in mine]
    rng.shuffle(samples)
    classes = np.concatenate([np.array(s[1], np.uint8) for s in samples])
    temporary = path.with_name("." + path.stem + ".tmp.npz")
    np.savez(
        temporary,
        tokens=np.concatenate([np.array(s[0], np.uint16) for s in samples]),
        classes=classes,
        length=np.array([len(s[0]) for s in samples], np.int32),
        **{
            name: np.array([s[k] for s in samples], np.uint8)
            for k, name in enumerate(("kind", "layout", "language"), 2)
        },
        reserved=np.array([s[5] for s in samples], bool),
    )
    os.rename(temporary, path)
    middles = np.isin(classes, (fim.MIDDLE, fim.FIRST, fim.LAST, fim.LINE_START)).sum()
    return len(samples), len(classes), int(middles)


def _work(job: tuple[int, int]) -> tuple[int, int, int]:
    return make_shard(*job, *_work.state)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("documents", nargs="+", help=".bin.zst files of collect.py")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--first-pass", type=int, default=0, help="number of the first pass")
    parser.add_argument("--units", type=int, default=96, help="shards a pass")
    parser.add_argument("--only", type=int, help="make this many shards of each pass (for a test)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--small", type=int, default=1, help="samples of each small program a pass")
    parser.add_argument(
        "--program-set-times", type=int, default=4, help="draws of program collections a pass"
    )
    parser.add_argument(
        "--natural", action="store_true", help="held-out set: no plain text, nothing repeated"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = time.time()
    with multiprocessing.get_context("fork").Pool(min(4, len(args.documents))) as pool:
        documents = [d for part in pool.map(load_documents, args.documents) for d in part]
    _work.state = args, fim.Builder(documents)
    print(f"{len(documents)} documents, {time.time() - started:.1f} s", flush=True)
    last = args.first_pass + args.passes
    units = args.only or args.units
    jobs = [(p, u) for p in range(args.first_pass, last) for u in range(units)]
    total = np.zeros(3, np.int64)
    with multiprocessing.get_context("fork").Pool(args.workers) as pool:
        for done, counts in enumerate(pool.imap(_work, jobs), 1):
            total += counts
            if done % units == 0:
                report = dict(zip(("samples", "tokens", "middle"), total.tolist(), strict=False))
                print(
                    json.dumps(
                        {"passes": done // units, **report, "s": round(time.time() - started, 1)}
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
