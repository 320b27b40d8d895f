"""How much of each package is kept: budgets of characters, and parts of equal size."""

from __future__ import annotations

import collections
from collections.abc import Callable

from .documents import Document
from .filtering import TEST_PATH, source_order

_WHOLE = 20  # times the usual cap: program collections stay whole


def cap_weight(caps: dict[str, float], usual: float, package: str) -> float:
    """Return how many times the usual cap a package may have."""
    return _WHOLE if package.startswith("algo:") else caps.get(package, usual) / usual


def fit_budget(
    documents: list[Document], budget: float, weight: Callable[[str], float]
) -> list[Document]:
    """Cut the largest packages so that `budget` characters remain.

    Each may have `weight` times the same cap. Within a package test files go first, then files at
    random (by hash); the order is kept.
    """
    packages: dict[str, list[Document]] = collections.defaultdict(list)
    for document in documents:
        packages[document.package].append(document)
    sizes = {name: sum(len(d.text) for d in part) for name, part in packages.items()}
    low, high = 0.0, 1e9
    for _ in range(60):
        cap = (low + high) / 2
        fits = sum(min(size, cap * weight(name)) for name, size in sizes.items()) <= budget
        low, high = (cap, high) if fits else (low, cap)
    kept: list[Document] = []
    for name, part in packages.items():
        kept += _within(part, low * weight(name))
    return kept


def split_packages(documents: list[Document], shares: list[float]) -> list[list[Document]]:
    """Deal whole packages out to parts of the given shares, the largest first; keep the order."""
    sizes: collections.Counter[str] = collections.Counter()
    for document in documents:
        sizes[document.package] += len(document.text)
    filled, part_of = [0.0] * len(shares), {}
    for package, size in sizes.most_common():
        part_of[package] = filled.index(min(filled))
        filled[part_of[package]] += size / shares[part_of[package]]
    parts: list[list[Document]] = [[] for _ in shares]
    for document in documents:
        parts[part_of[document.package]].append(document)
    return parts


def _within(part: list[Document], room: float) -> list[Document]:
    """Return a package's documents until `room` characters are filled."""

    def rank(index: int) -> tuple[bool, tuple[int, bytes]]:
        path = part[index].path
        return bool(TEST_PATH.search(path)), source_order(path)

    chosen: set[int] = set()
    for index in sorted(range(len(part)), key=rank):
        if room > 0:
            room -= len(part[index].text)
            chosen.add(index)
    return [document for index, document in enumerate(part) if index in chosen]
