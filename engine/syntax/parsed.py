"""A place in a document and its neighbourhood, parsed, and parsed again with something there."""

from __future__ import annotations

import tree_sitter

from .region import Region, around


class Parsed:
    """The neighbourhood of `text[start:end]`, which something is to replace.

    Attributes:
        region: the part of the text that is parsed.
        start: where the place lies in it, in code points.
        end: likewise.
        tree: of the text as it is.
    """

    def __init__(self, text: str, start: int, end: int, parser: tree_sitter.Parser) -> None:
        """Parse; `start` and `end` are code points of the whole text."""
        self.region: Region
        self.region, self.start, self.end = around(text, start, end)
        self._parser = parser
        self.tree = parser.parse(encoded(self.region.text))

    def with_(self, new: str) -> str:
        """Return the neighbourhood's text with `new` at the place."""
        source = self.region.text
        return source[: self.start] + new + source[self.end :]

    def bytes_of(self, new: str) -> range:
        """Return where `new` would lie, in bytes of the neighbourhood."""
        start = len(encoded(self.region.text[: self.start]))
        return range(start, start + len(encoded(new)))

    def tree_with(self, new: str, behind: str = "") -> tree_sitter.Tree:
        """Parse with `new` at the place and `behind` at the very end; what they change, anew."""
        source = self.region.text
        start, old = (encoded(source[: self.start]), encoded(source[self.start : self.end]))
        written = encoded(new)
        tree = self.tree.copy()
        tree.edit(
            len(start),
            len(start) + len(old),
            len(start) + len(written),
            _point(start),
            _point(start + old),
            _point(start + written),
        )
        if behind:
            above = encoded(self.with_(new))
            last, below = _point(above), encoded(behind)
            tree.edit(
                len(above), len(above), len(above) + len(below), last, last, _point(above + below)
            )
        return self._parser.parse(encoded(self.with_(new) + behind), tree)

    def num_errors_with(self, new: str, behind: str = "") -> int:
        """Count the errors of `tree_with`."""
        return num_errors_of(self.tree_with(new, behind))


def num_errors_of(tree: tree_sitter.Tree) -> int:
    """Count the nodes that are errors or stand for a token that is missing."""
    count = 0
    stack = [tree.root_node]
    while stack:
        node = stack.pop()
        count += node.is_error or node.is_missing
        if node.has_error:
            stack += node.children
    return count


def encoded(text: str) -> bytes:
    """Return UTF-8; half of a surrogate pair becomes one other character."""
    return text.encode("utf-8", "replace")


def _point(data: bytes) -> tuple[int, int]:
    return data.count(b"\n"), len(data) - data.rfind(b"\n") - 1
