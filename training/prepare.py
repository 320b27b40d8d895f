#!/usr/bin/env python3
"""Turn documents into shards of tokenized fill-in-the-middle samples, on many cores.

A shard pPP_uUUU.npz holds the samples of pass PP end to end: tokens uint16, classes uint8 (see
layouts.py), and for each sample length int32, kind, layout, language uint8, reserved bool, and its
prompt before an edit where it has one (see shards.py). The
same documents, numbers and seed give the same shard. Shards that exist are not made again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .data.documents import (
    COMPILED_POOL_OF,
    LANGUAGES,
    OLD,
    Document,
    language_of,
    load_documents,
)
from .data.layouts import MIDDLE_CLASSES
from .data.samples import Builder, Sample, Shares
from .data.shards import edit_arrays

POOLS = ("python", "script", "programs", "go", "rust", "java", "c")

_Row = tuple[Sample, int, bool]  # sample, its language, whether of a reserved package


class Job(NamedTuple):
    """What a worker needs for every shard; `tokenizer` is the path of a tokenizer.json."""

    args: argparse.Namespace
    builder: Builder


def pool_of(document: Document) -> str:
    """Return what a document is for a mix, one of `POOLS`."""
    if document.package.removeprefix(OLD).startswith("algo:"):
        return "programs"
    other = "python" if document.path.endswith(".py") else "script"
    return COMPILED_POOL_OF.get(language_of(document.path), other)


def make_shard(number: int, unit: int, job: Job) -> tuple[int, int, int]:
    """Write shard `unit` of pass `number`.

    Returns:
        Its numbers of samples, tokens and middle tokens; zeros if it was there.
    """
    args, builder = job
    path = args.out / f"p{number:02d}_u{unit:03d}.npz"
    if path.exists():
        return 0, 0, 0
    builder.open_tokenizer(args.tokenizer)
    rng = random.Random(f"{args.seed}.{number}.{unit}")
    rows: list[_Row] = []
    for i in _order(args, number, builder.documents)[unit :: args.units]:
        package, path_of, _ = builder.documents[i]
        try:
            found = [s for s in builder.samples(rng, i, args.small, args.natural) if s]
        except (IndexError, ValueError, RecursionError) as error:
            # One odd file must not end a long job.
            tqdm.write(f"left out {package} {path_of}: {error!r}")
            continue
        language = LANGUAGES.index(language_of(path_of))
        rows += [(sample, language, package.startswith("reserved:")) for sample in found]
    rng.shuffle(rows)
    return _write(path, rows)


def _order(args: argparse.Namespace, number: int, documents: list[Document]) -> list[int]:
    """Return the documents of a pass, shuffled; program collections come several times."""
    order: list[int] = []
    for i, document in enumerate(documents):
        is_set = document.package.startswith("algo:")
        order += [i] * (args.program_set_times if is_set and not args.natural else 1)
    random.Random(f"{args.seed}.{number}").shuffle(order)
    return order


def _write(path: Path, rows: list[_Row]) -> tuple[int, int, int]:
    samples = [sample for sample, _, _ in rows]
    none: list[int] = []  # a shard may be empty where there are few documents
    classes = np.concatenate([np.array(s.classes, np.uint8) for s in samples] or [none])
    tokens = np.concatenate([np.array(s.tokens, np.uint16) for s in samples] or [none])
    temporary = path.with_name("." + path.stem + ".tmp.npz")
    arrays = edit_arrays([s.edit for s in samples])
    np.savez(
        temporary,
        allow_pickle=False,
        tokens=tokens.astype(np.uint16),
        classes=classes.astype(np.uint8),
        length=np.array([len(s.tokens) for s in samples], np.int32),
        kind=np.array([s.kind for s in samples], np.uint8),
        layout=np.array([s.layout for s in samples], np.uint8),
        language=np.array([language for _, language, _ in rows], np.uint8),
        reserved=np.array([reserved for _, _, reserved in rows], bool),
        **arrays,
    )
    temporary.rename(path)
    return len(samples), len(classes), int(np.isin(classes, MIDDLE_CLASSES).sum())


_jobs: list[Job] = []  # handed to the workers by the fork, which shares the documents' memory


def _work(numbers: tuple[int, int]) -> tuple[int, int, int]:
    return make_shard(*numbers, _jobs[0])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tokenizer", type=Path, help="tokenizer.json of the base model")
    add("out", type=Path)
    add("documents", nargs="+", help=".bin.zst files of collect.py")
    add("--passes", type=int, default=4)
    add("--first-pass", type=int, default=0, help="number of the first pass")
    add("--units", type=int, default=96, help="shards a pass")
    add("--only", type=int, help="make this many shards of each pass (for a test)")
    add("--workers", type=int, default=os.cpu_count())
    add("--small", type=int, default=1, help="samples of each small program a pass")
    add("--program-set-times", type=int, default=4, help="draws of program collections a pass")
    add("--edited", type=float, default=0, help="share of samples with a prompt before an edit")
    add("--wanted", type=float, default=0, help="share that says whether a line or block is wanted")
    add("--natural", action="store_true", help="held-out set: no plain text, nothing repeated")
    add(
        "--no-programs",
        action="store_true",
        help="an ablation: no program collections, no small programs",
    )
    add("--pool", choices=POOLS, help="only these documents; the recipe's mix has all")
    add("--seed", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    forks = multiprocessing.get_context("fork")
    with forks.Pool(min(4, len(args.documents))) as pool:
        documents = [d for part in pool.map(load_documents, args.documents) for d in part]
    if args.no_programs:
        documents = [d for d in documents if not d.package.startswith("algo:")]
        args.small = 0
    if args.pool:
        documents = [d for d in documents if pool_of(d) == args.pool]
    _jobs[:] = [Job(args, Builder(documents, shares=Shares(args.edited, args.wanted)))]
    passes = range(args.first_pass, args.first_pass + args.passes)
    numbers = [(p, u) for p in passes for u in range(args.only or args.units)]
    total = np.zeros(3, np.int64)
    with forks.Pool(args.workers) as pool:
        for counts in tqdm(pool.imap(_work, numbers), total=len(numbers), unit=" shards"):
            total += counts
    made = dict(zip(("samples", "tokens", "middle"), total.tolist(), strict=True))
    print(json.dumps({"documents": len(documents), **made}))


if __name__ == "__main__":
    main()
