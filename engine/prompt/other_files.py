"""How much of other files a prompt shows."""

from __future__ import annotations

from collections.abc import Iterable

from ..tokens.tokenizer import Tokenizer


def fitting(
    others: Iterable[tuple[str, str]], tokenizer: Tokenizer, num_tokens: int
) -> tuple[tuple[str, str], ...]:
    r"""Return what fits of other files, whole lines from the first on.

    Args:
        others: path and text of each, with "\n" for every line end.
        tokenizer: the model's.
        num_tokens: room for all of them, paths and marks among it.
    """
    found: list[tuple[str, str]] = []
    for path, text in others:
        lines = text.splitlines(keepends=True)
        head = len(tokenizer.encode(path + "\n").token_ids) + _NUM_MARKS
        sizes = [len(tokenizer.encode(line).token_ids) for line in lines]
        kept = 0
        while kept < len(lines) and head + sum(sizes[: kept + 1]) <= num_tokens:
            kept += 1
        if kept:
            found.append((path, "".join(lines[:kept])))
            num_tokens -= head + sum(sizes[:kept])
    return tuple(found)


_NUM_MARKS = 2  # before a path
