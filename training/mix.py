#!/usr/bin/env python3
r"""Mix the shards of several pools: so many tokens, shares and repeats of each.

    python -m training.mix shards mixed --tokens 19e6 python=0.6 script=0.3x2 programs=0.1x4

Pools are folders in SHARDS. "script=0.3x2": three tenths of the tokens, out of half as many that
are seen twice. The mixture is written as shards of one pass (`train --passes 0:UNITS`, which the
last line gives); an epoch over what is repeated ends before the next one begins.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data.shards import COLUMNS, Shards, edit_arrays, read_shards

_UNIT_TOKENS = 500_000  # of a shard, about


class Share(NamedTuple):
    """What a pool gives: a share of the tokens, of which each is seen so many times."""

    share: float
    repeats: int = 1


def parse_share(text: str) -> tuple[str, Share]:
    """Parse "NAME=SHARE" or "NAME=SHARExREPEATS".

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"([\w.-]+)=([\d.]+)(?:x(\d+))?", text)
    if not found:
        raise ValueError(f"'{text}' is no share of a pool; write for instance python=0.6x2")
    return found[1], Share(float(found[2]), int(found[3] or 1))


def draw(
    lengths: np.ndarray, num_tokens: float, repeats: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the samples of a pool in the order in which they are seen.

    Args:
        lengths: tokens of each sample.
        num_tokens: to be seen, repeats included.
        repeats: of each sample.
        rng: decides.

    Raises:
        ValueError: the pool has too few tokens for so few repeats.
    """
    order = rng.permutation(len(lengths))
    unique = int(np.searchsorted(np.cumsum(lengths[order]), num_tokens / repeats)) + 1
    if unique > len(order):
        have = int(lengths.sum())
        raise ValueError(f"{num_tokens / repeats:.0f} tokens are wanted once, {have} are there")
    chosen = order[:unique]
    return np.concatenate([rng.permutation(chosen) for _ in range(repeats)])


def mix(shards: Path, out: Path, shares: dict[str, Share], num_tokens: float, seed: int = 0) -> int:
    """Write a mixture as shards p00_uUUU.npz; return how many."""
    total = sum(share.share for share in shares.values())
    pools = {name: read_shards(sorted((shards / name).glob("p*.npz"))) for name in shares}
    out.mkdir(parents=True, exist_ok=True)
    num_units = max(1, round(num_tokens / _UNIT_TOKENS))
    parts: list[list[tuple[Shards, int]]] = [[] for _ in range(num_units)]
    for number, (name, share) in enumerate(shares.items()):
        rng = np.random.default_rng([seed, number])
        pool, wanted = pools[name], num_tokens * share.share / total
        for unit, some in enumerate(
            np.array_split(draw(pool.length, wanted, share.repeats, rng), num_units)
        ):
            parts[unit] += [(pool, i) for i in some.tolist()]
    for unit, part in enumerate(parts):
        samples = [pool.sample(i) for pool, i in part]
        columns = {name: np.array([pool.columns[name][i] for pool, i in part]) for name in COLUMNS}
        arrays = edit_arrays([pool.edits[i] for pool, i in part])
        np.savez(
            out / f"p00_u{unit:03d}.npz",
            allow_pickle=False,
            tokens=np.concatenate([tokens for tokens, _ in samples]),
            classes=np.concatenate([classes for _, classes in samples]),
            length=np.array([len(tokens) for tokens, _ in samples], np.int32),
            **columns,
            **arrays,
        )
    return num_units


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.mix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", type=Path, help="folder of the pools' folders")
    parser.add_argument("out", type=Path)
    parser.add_argument("shares", nargs="+", type=parse_share, metavar="NAME=SHARE[xREPEATS]")
    parser.add_argument("--tokens", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    units = mix(args.shards, args.out, dict(args.shares), args.tokens, args.seed)
    print(json.dumps({"passes": f"0:{units}"}))


if __name__ == "__main__":
    main()
