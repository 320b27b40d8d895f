"""A file that is edited elsewhere: when it has changed, and where a place in it has gone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

_POLL_S = 0.15


def versions(path: str) -> Iterator[None]:
    """Yield once for the file as it is, then whenever it has become another; without an end.

    Time of change, size and inode are compared, since editors write in place or rename a new file
    over the old one. A change counts once it lasts from one look to the next, and nothing is said
    of a file that is not there.
    """
    yielded = seen = _mark(path)
    yield
    while True:
        time.sleep(_POLL_S)
        now = _mark(path)
        if now is not None and now == seen and now != yielded:
            yielded = now
            yield
        seen = now


def _mark(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def moved(offset: int, old: str, new: str) -> int:
    """Return where a cursor in `old` stands in `new`: behind text that was typed at it.

    Args:
        offset: in `old`, in code points.
        old: the text as it was.
        new: the text as it is; what both begin and end with is taken to be unchanged.
    """
    start = len(os.path.commonprefix((old, new)))
    end = len(os.path.commonprefix((old[::-1], new[::-1])))
    behind = len(old) - offset
    if end >= behind and (start >= offset or len(new) - end >= start):
        return len(new) - behind
    if offset < start:
        return offset
    return len(new) - min(end, len(new) - start, behind)
