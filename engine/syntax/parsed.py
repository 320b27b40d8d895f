"""A place in a document and its neighbourhood, parsed, and parsed again with something there."""

from __future__ import annotations

import functools

import tree_sitter

from .region import Region, around

# Node types of all grammars.
COMMENTS = {"comment", "html_comment", "hash_bang_line", "line_comment", "block_comment"}
_NUM_TREES = 4  # of what is tried at a place, each is asked about several times


class Parsed:
    """The neighbourhood of `text[start:end]`, which something is to replace.

    Attributes:
        region: the part of the text that is parsed.
        start: where the place lies in it, in code points.
        end: likewise.
        tree: of the text as it is.
        first_byte: where the place begins, in bytes of UTF-8.
        tree_with: parses with `new` at the place and, if given, `behind` at the very end; what they
            change, anew. The last trees are kept.
    """

    def __init__(self, text: str, start: int, end: int, parser: tree_sitter.Parser) -> None:
        """Parse; `start` and `end` are code points of the whole text."""
        self.region: Region
        self.region, self.start, self.end = around(text, start, end)
        self._parser = parser
        source = self.region.text
        self._before, self._after = encoded(source[: self.start]), encoded(source[self.end :])
        self._old = encoded(source[self.start : self.end])
        self.tree = parser.parse(self._before + self._old + self._after)
        self.first_byte = len(self._before)
        self.tree_with = functools.lru_cache(_NUM_TREES)(self._tree_with)

    def with_(self, new: str) -> str:
        """Return the neighbourhood's text with `new` at the place."""
        source = self.region.text
        return source[: self.start] + new + source[self.end :]

    def bytes_of(self, new: str) -> range:
        """Return where `new` would lie, in bytes."""
        return range(self.first_byte, self.first_byte + len(encoded(new)))

    def tree_before(self) -> tree_sitter.Tree:
        """Parse what stands before the place alone."""
        return self._parser.parse(self._before)

    def num_errors_with(self, new: str, behind: str = "") -> int:
        """Count the errors of `tree_with`."""
        return num_errors_of(self.tree_with(new, behind))

    def _tree_with(self, new: str, behind: str = "") -> tree_sitter.Tree:
        tree, first, written = self.tree.copy(), _point(self._before), encoded(new)
        last, before = _after(first, written), self.first_byte
        tree.edit(
            before,
            before + len(self._old),
            before + len(written),
            first,
            _after(first, self._old),
            last,
        )
        source = self._before + written + self._after
        if behind:
            end, more = _after(last, self._after), encoded(behind)
            length = len(source)
            tree.edit(length, length, length + len(more), end, end, _after(end, more))
            source += more
        return self._parser.parse(source, tree)


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


def _after(point: tuple[int, int], data: bytes) -> tuple[int, int]:
    rows, columns = _point(data)
    return point[0] + rows, columns if rows else point[1] + columns
