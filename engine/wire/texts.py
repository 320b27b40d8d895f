"""Comparing texts, on both ends of a connection. No torch here."""

from __future__ import annotations


def common_prefix(first: str, second: str) -> int:
    """Return how many leading characters agree, by bisection over slices compared in C."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
