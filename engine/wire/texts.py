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


def common_ends(first: str, second: str) -> tuple[int, int]:
    """Return how many characters agree at the start, and behind those at the end."""
    start = common_prefix(first, second)
    return start, common_prefix(first[start:][::-1], second[start:][::-1])
