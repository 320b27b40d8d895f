"""Code that is being written, judged as if what is open were closed.

Whoever types without an editor that closes brackets has open blocks around nearly every place. A
grammar then reads little of the text, and counts as many errors with nonsense at the place as with
the right words.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import tree_sitter

from .parsed import Parsed, encoded, num_errors_of

_CLOSERS = {"{": "}", "(": ")", "[": "]", "${": "}", '"""': '"""', "'''": "'''", "`": "`"}
_STRING_PREFIX = "bBfFrRtTuU"
_OPENERS = "{(["
# What a line ends with that goes on below, brackets and braceless headers among it.
_GOES_ON = frozenset("{([,.=+-*/%&|^?<>)")


def goes_on(text: str) -> bool:
    """Whether a line that ends like this may go on below."""
    return text.rstrip()[-1:] in _GOES_ON


class Closing:
    """Counts the errors around a place that are left when all that is open has been closed.

    Args:
        parsed: the place.
        num_errors: what the grammar cannot read of the text as it is.
    """

    def __init__(self, parsed: Parsed, num_errors: int) -> None:
        """Keep both; nothing is parsed yet."""
        self._parsed = parsed
        self._num_errors = num_errors

    def accepts(self, new: str, *, may_open: bool) -> bool:
        """Whether `new` leaves no more errors than the text has with something simple there.

        Args:
            new: with line feeds. What it opens has to be closed in it.
            may_open: unless this, and it goes on below.
        """
        if self._num_errors == 0:
            return self._parsed.num_errors_with(new) == 0
        is_header = may_open and new.rstrip().endswith(":")
        allowed = self._closed("") if is_header else self._at_best
        if self._closed(new) <= allowed or self._completed(new) <= allowed:
            return True
        return may_open and goes_on(new) and self._completed(self.continued(new)) <= allowed

    def continued(self, new: str) -> str:
        """Return `new`, which goes on, with a word that it waits for; what it opens is closed."""
        inside = self._parsed.bytes_of(new)
        openers = _unclosed(self._parsed.tree_with(new))
        word = "" if new.rstrip()[-1:] in _OPENERS else " _"
        return f"{new}{word}{_closers([opener for opener in openers if opener.byte in inside])}"

    def completed(self, new: str) -> str:
        """Return `new` with what closes the brackets that are open before it on its line."""
        before = self._parsed.bytes_of("").start
        line = self._parsed.region.text.rfind("\n", 0, self._parsed.start) + 1
        first = before - len(encoded(self._parsed.region.text[line : self._parsed.start]))
        openers = _unclosed(self._parsed.tree_with(new))
        return new + _closers([opener for opener in openers if first <= opener.byte < before])

    def closers(self, new: str, tree: tree_sitter.Tree | None = None) -> str:
        """Return what closes all that is open around `new`, of the text with it, or its `tree`."""
        openers = _unclosed(self._parsed.tree_with(new) if tree is None else tree)
        inside = self._parsed.bytes_of(new)
        return _closers([opener for opener in openers if opener.byte not in inside])

    @functools.cached_property
    def _at_best(self) -> int:
        fewest = min(self._closed(""), self._closed("_"))
        for word in ("_", "", "(_)"):  # a name, nothing, a condition
            fewest = min(fewest, self._completed(word)) if fewest else 0
        return fewest

    def _completed(self, new: str) -> int:
        completed = self.completed(new)
        fewest = self._closed(completed)
        for end_of_statement in (";", " {}", " _;"):
            if fewest:
                fewest = min(fewest, self._closed(completed + end_of_statement))
        return fewest

    def _closed(self, new: str) -> int:
        tree = self._parsed.tree_with(new)
        fewest = num_errors_of(tree)
        closers = self.closers(new, tree) if fewest else ""
        if closers:
            fewest = min(fewest, self._parsed.num_errors_with(f"{new} {closers}"))
        if closers and fewest:  # the text below may be part of what is open
            fewest = min(fewest, self._parsed.num_errors_with(new, f"\n{closers}"))
        return fewest


class _Opener(NamedTuple):
    """A bracket or a string's beginning that stands at a byte, and what would close it."""

    byte: int
    closer: str


def _unclosed(tree: tree_sitter.Tree) -> list[_Opener]:
    """Return what is open at the end of a text, outermost first.

    The grammar tells brackets from those in strings and comments; what it could read is balanced,
    and is passed over.
    """
    found: list[_Opener] = []
    stack = [tree.root_node]
    while stack:
        node = stack.pop()
        if node.child_count:
            stack += reversed(node.children) if node.has_error else ()
            continue
        if node.is_missing or not node.text:
            continue
        written = node.text.decode("utf-8", "replace")
        if found and found[-1].closer == written:
            found.pop()
        elif (closer := _CLOSERS.get(written.lstrip(_STRING_PREFIX))) is not None:
            found.append(_Opener(node.start_byte, closer))
    return found


def _closers(openers: list[_Opener]) -> str:
    return "".join(opener.closer for opener in reversed(openers))
