"""Code that is being written, judged as if what is open were closed.

Whoever types without an editor that closes brackets has open blocks around nearly every place. A
grammar then reads little of the text, and counts as many errors with nonsense at the place as with
the right words.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import tree_sitter

from .parsed import COMMENTS, Parsed, encoded, num_errors_of

_T = TypeVar("_T")
_CLOSERS = {"{": "}", "(": ")", "[": "]", "${": "}", '"""': '"""', "'''": "'''", "`": "`"}
_COMMENT_MARK = re.compile(r"#|//|/\*|<!--")
_STRING_PREFIX = "bBfFrRtTuU"
_OPENERS = tuple("{([")
# What a line ends with that goes on below, brackets and braceless headers among it.
_GOES_ON = tuple("{([,.=+-*/%&|^?<>)")
_TAG_END = "/>"
# What stands before a `<` that begins a tag and compares nothing.
_BEFORE_TAG = ("(", "[", "{", "}", ",", ";", ":", "?", "=", "&&", "||", "??", ">", "return")
# Of a text with more errors, or more that is open, nothing is closed: it is no code being written.
_MOST_ERRORS, _MOST_OPEN = 20, 40


class Budget:
    """Processor time for one place: an editor waits, and some texts take seconds to make sense of.

    Attributes:
        is_spent: whether nothing is left.
    """

    def __init__(self, seconds: float) -> None:
        """Have so much."""
        self._left_s = seconds

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left."""
        return self._left_s <= 0

    def spend(self, work: Callable[[], _T]) -> _T:
        """Do something on this budget."""
        started_at = time.thread_time()
        try:
            return work()
        finally:
            self._left_s -= time.thread_time() - started_at


class Closing:
    """Judges what is to stand at a place when all that is open around it has been closed.

    Args:
        parsed: the place.
        budget: when it is spent, or the text is beyond it, nothing is closed any more.
    """

    def __init__(self, parsed: Parsed, budget: Budget) -> None:
        """Count what is wrong with the text as it is."""
        self._parsed = parsed
        self._budget = budget
        self.num_errors = num_errors_of(parsed.tree)
        self._known: dict[str, int] = {}

    def accepts(self, new: str, *, may_go_on: bool) -> bool:
        """Whether the text has no more errors with `new` than with something simple at the place.

        Args:
            new: with line feeds.
            may_go_on: whether it may end in what goes on below: an operator, a comma, a bracket or
                a block that it opens. Else what it opens has to be closed in it.
        """
        code = self.code_of(new)
        if self.num_errors == 0 or not code.strip():
            return self._parsed.num_errors_with(new) <= self.num_errors
        if not self.is_worth_closing:
            return self._parsed.num_errors_with(code) <= self._fewest_as_it_is
        is_header = may_go_on and code.endswith(":")
        allowed = self._closed("") if is_header else self._fewest_closed
        if self._closed(code) <= allowed or self._completed(code) <= allowed:
            return True
        if not (may_go_on and (goes_on(code) or self._is_in_tag(code))):
            return False
        return any(self._completed(one) <= allowed for one in self.continued(code))

    @property
    def is_worth_closing(self) -> bool:
        """Whether the text looks like code that is being written, and there is time to see."""
        return self._is_being_written and not self._budget.is_spent

    def code_of(self, new: str) -> str:
        """Return `new` without comments and white space at its end."""
        code = new.rstrip()
        if not _COMMENT_MARK.search(code):
            return code
        tree = self._parsed.tree_with(code)
        while code:
            last = self._parsed.bytes_of(code).stop
            node = tree.root_node.descendant_for_byte_range(last - 1, last)
            if node is None or node.type not in COMMENTS or node.end_byte != last:
                break
            if node.start_byte < self._parsed.first_byte:
                return new.rstrip()  # the place lies in it
            written = node.start_byte - self._parsed.first_byte
            code = encoded(code)[:written].decode("utf-8", "replace").rstrip()
        return code

    def continued(self, code: str) -> Iterator[str]:
        """Yield `code`, which goes on, with what it may wait for; what it opens is closed."""
        inside = self._parsed.bytes_of(code)
        closers = self._closers(code, lambda byte: byte in inside)
        if code.endswith(_OPENERS):
            yield f"{code}{closers}"
        yield f"{code} _{closers}"
        if code.endswith("<"):
            yield f"{code}_>{closers}"

    def completed(self, code: str) -> str:
        """Return `code` with what closes the brackets that are open before it on its line."""
        text, first = self._parsed.region.text, self._parsed.first_byte
        line = text[text.rfind("\n", 0, self._parsed.start) + 1 : self._parsed.start]
        before = range(first - len(encoded(line)), first)
        return code + self._closers(code, lambda byte: byte in before)

    def closers(self, code: str) -> str:
        """Return what closes all that is open around `code`."""
        inside = self._parsed.bytes_of(code)
        return self._closers(code, lambda byte: byte not in inside)

    def _closers(self, code: str, is_wanted: Callable[[int], bool]) -> str:
        """Return what closes those of the open ones with `code` there that stand at such bytes."""
        openers = _unclosed(self._parsed.tree_with(code))
        return "".join(one.closer for one in reversed(openers) if is_wanted(one.byte))

    def _is_in_tag(self, code: str) -> bool:
        """Whether `code` ends in a tag that it begins: attributes may stand below."""
        openers = _unclosed(self._parsed.tree_with(code))
        inside = self._parsed.bytes_of(code)
        return bool(openers) and openers[-1].closer == _TAG_END and openers[-1].byte in inside

    @functools.cached_property
    def _is_being_written(self) -> bool:
        if self.num_errors > _MOST_ERRORS:
            return False
        return len(_unclosed(self._parsed.tree)) <= _MOST_OPEN

    @functools.cached_property
    def _fewest_as_it_is(self) -> int:
        return min(self.num_errors, self._parsed.num_errors_with("_"))

    @functools.cached_property
    def _fewest_closed(self) -> int:
        fewest = min(self._closed(""), self._closed("_"))
        for word in ("_", "", "(_)"):  # a name, nothing, a condition
            fewest = min(fewest, self._completed(word)) if fewest else 0
        return fewest

    def _completed(self, code: str) -> int:
        completed = self.completed(code)
        fewest = self._closed(completed)
        if fewest:
            rests = (completed + rest for rest in (";", " {}", " _;"))
            for text in (*rests, self.completed(f"{code} : _")):
                if fewest and not self._budget.is_spent:
                    fewest = min(fewest, self._closed(text))
        return fewest

    def _closed(self, code: str) -> int:
        if code not in self._known:
            self._known[code] = self._budget.spend(lambda: self._count_closed(code))
        return self._known[code]

    def _count_closed(self, code: str) -> int:
        fewest = self._parsed.num_errors_with(code)
        closers = self.closers(code) if fewest else ""
        if closers:
            fewest = min(fewest, self._parsed.num_errors_with(f"{code} {closers}"))
        if closers and fewest:  # the text below may be part of what is open
            fewest = min(fewest, self._parsed.num_errors_with(code, f"\n{closers}"))
        return fewest


def goes_on(code: str) -> bool:
    """Whether a line that ends like this may go on below."""
    return code.endswith(_GOES_ON)


class _Opener(NamedTuple):
    """A bracket or a string's beginning that stands at a byte, and what would close it."""

    byte: int
    closer: str


def _unclosed(tree: tree_sitter.Tree) -> list[_Opener]:
    """Return what is open at the end of a text, outermost first.

    The grammar tells brackets from those in strings that are closed and in comments; what it could
    read is balanced, and is passed over, but for tags, whose ends are nodes of their own.
    """
    found: list[_Opener] = []
    has_tags = tree.language.id_for_node_kind("jsx_element", True) is not None
    stack, before = [tree.root_node], None
    while stack:
        node = stack.pop()
        kind, closer = node.type, _CLOSERS.get(node.type)
        if kind == "jsx_opening_element":
            name = node.child_by_field_name("name")
            closer = f"</{_text(name) if name else ''}>"
        elif kind == "jsx_closing_element":
            kind = "".join(_text(node).split())
        elif node.child_count and node.has_error:
            stack += reversed(node.children)
            continue
        elif node.is_missing or node.is_error:
            continue
        elif kind in ("string_start", "string_end"):
            kind = _text(node).lstrip(_STRING_PREFIX)
            closer = _CLOSERS.get(kind)
        elif kind == "<" and has_tags and before and _may_precede_tag(before):
            closer = _TAG_END
        if found and found[-1].closer == kind:
            found.pop()
        elif closer:
            found.append(_Opener(node.start_byte, closer))
        before = before if kind in COMMENTS else node
    return found


def _may_precede_tag(node: tree_sitter.Node) -> bool:
    return node.type == "jsx_text" or _text(node).endswith(_BEFORE_TAG)


def _text(node: tree_sitter.Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")
