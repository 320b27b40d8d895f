#!/usr/bin/env python3
r"""Say which held-out files repeat what a model was trained on, by package.

    python -m training.overlap data/held.bin.zst data/train_*.bin.zst

A file counts as repeated if more of its shingles than `filtering` allows occur anywhere in the
training documents. With the present sources there are none, since `collect` drops such training
files; the check is for models from before a package was reserved. The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterable
from pathlib import Path

from .data.documents import Document, load_documents
from .data.filtering import MOST_RESERVED, shingles


def repeated(held: list[Document], trained: Iterable[Document]) -> list[Document]:
    """Return the held-out documents that training documents repeat."""
    marks = [set(shingles(document.text).tolist()) for document in held]
    wanted = set().union(*marks)
    seen: set[int] = set()
    for document in trained:
        seen |= wanted.intersection(shingles(document.text).tolist())
    return [
        document
        for document, mine in zip(held, marks, strict=True)
        if len(mine & seen) > MOST_RESERVED * len(mine)
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("held", type=Path)
    parser.add_argument("trained", type=Path, nargs="+")
    args = parser.parse_args(argv)
    held = [d for d in load_documents(args.held) if d.package.startswith("reserved:")]
    trained = (document for path in args.trained for document in load_documents(path))
    found = repeated(held, trained)
    total, hits = (collections.Counter(d.package for d in part) for part in (held, found))
    for package in sorted(total):
        print(f"{package.removeprefix('reserved:')}: {hits[package]} of {total[package]} files")
    print(json.dumps({"files": len(held), "repeated": [[d.package, d.path] for d in found]}))


if __name__ == "__main__":
    main()
