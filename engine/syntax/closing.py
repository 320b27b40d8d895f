"""Code that is being written, judged as if what is open were closed.

Whoever types without an editor that closes brackets has open blocks around nearly every place. A
grammar then reads little of the text, and counts as many errors with nonsense at the place as with
the right words.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .parsed import COMMENTS, Parsed, encoded, num_errors_of
from .unclosed import Opener, has_wrong_end, unclosed

_T = TypeVar("_T")
_COMMENT_MARK = re.compile(r"#|//|/\*|<!--")
_OPENERS = "{(["
# What a line ends with that goes on below, brackets and braceless headers among it.
_GOES_ON = tuple("{([,.=+-*/%&|^?<>)")
# Of a text with more errors, or more that is open, nothing is closed: it is no code being written.
_MOST_ERRORS, _MOST_OPEN = 20, 40
_MOST_TRIED = 8  # of what is open at the place, closed one after the other
_COLON = " : _"  # and something behind it


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
        if ">" in code and has_wrong_end(self._parsed.tree_with(code), self._parsed.bytes_of(code)):
            return False
        if self.num_errors == 0 or not code.strip():
            return self._parsed.num_errors_with(new) <= self.num_errors
        if not self.is_worth_closing:
            return self._parsed.num_errors_with(code) <= self._fewest_as_it_is
        is_header = may_go_on and code.endswith(":")
        allowed = self._closed("") if is_header else self._fewest_closed
        if self._closed(code) <= allowed or self._completed(code) <= allowed:
            return True
        if not (may_go_on and (goes_on(code) or self._ends_in_tag(code))):
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
        closers = [one.closer for one in self.open_at(code) if one.byte in inside]
        closed = "".join(closers)
        if self._budget.is_spent:
            return
        before = code.rstrip(_OPENERS)
        if before.rstrip().endswith("?"):  # the other half comes when its brackets are closed
            num_own = len(code) - len(before)
            own, rest = "".join(closers[:num_own]), "".join(closers[num_own:])
            yield f"{code} _{own}{_COLON}{rest}"
        if before != code:
            yield f"{code}{closed}"
        yield f"{code} _{closed}"
        if code.endswith("<"):
            yield f"{code}_>{closed}"

    def completed(self, code: str) -> str:
        """Return `code` with what closes the brackets that are open before it on its line."""
        text, first = self._parsed.region.text, self._parsed.first_byte
        line = text[text.rfind("\n", 0, self._parsed.start) + 1 : self._parsed.start]
        before = range(first - len(encoded(line)), first)
        openers = itertools.takewhile(lambda one: not one.is_tag, self._innermost_first(code))
        return code + "".join(one.closer for one in openers if one.byte in before)

    def closers(self, code: str) -> str:
        """Return what closes all that is open around `code`."""
        inside, openers = self._parsed.bytes_of(code), self._innermost_first(code)
        return "".join(one.closer for one in openers if one.byte not in inside)

    def _innermost_first(self, code: str) -> list[Opener]:
        """Return what is open at the end of the text with `code` at the place."""
        return unclosed(self._parsed.tree_with(code))[::-1]

    def _ends_in_tag(self, code: str) -> bool:
        """Whether `code` ends in a tag that it begins: attributes or text may stand below."""
        innermost = next(iter(self.open_at(code)), None)
        inside = self._parsed.bytes_of(code)
        return innermost is not None and innermost.is_tag and innermost.byte in inside

    @functools.cached_property
    def open_before(self) -> list[Opener]:
        """What is open at the place, outermost first."""
        return unclosed(self._parsed.tree_before())

    @functools.cached_property
    def _is_being_written(self) -> bool:
        if self.num_errors > _MOST_ERRORS:
            return False
        return len(unclosed(self._parsed.tree)) <= _MOST_OPEN

    @functools.cached_property
    def _fewest_as_it_is(self) -> int:
        return min(self.num_errors, self._parsed.num_errors_with("_"))

    @functools.cached_property
    def _fewest_closed(self) -> int:
        fewest = min(self._closed(""), self._closed("_"))
        for word in ("_", "", "(_)"):  # a name, nothing, a condition
            fewest = min(fewest, self._completed(word)) if fewest else 0
        return fewest

    @functools.cached_property
    def _owes_colon(self) -> bool:
        """Whether what stands before the place waits for a colon, as half of a ternary does."""
        without = self._completed_alone("_")
        return without > 0 and self._closed(self.completed(f"_{_COLON}")) < without

    def _completed(self, code: str) -> int:
        fewest = self._completed_alone(code)
        if fewest and self._owes_colon and not self._budget.is_spent:
            fewest = min(fewest, self._closed(self.completed(code + _COLON)))
        return fewest

    def _completed_alone(self, code: str) -> int:
        completed = self.completed(code)
        fewest = self._closed(completed)
        for rest_of_statement in (";", " {}", " _;"):
            if fewest and not self._budget.is_spent:
                fewest = min(fewest, self._closed(completed + rest_of_statement))
        return fewest

    def _closed(self, code: str) -> int:
        if code not in self._known:
            fewest = self._budget.spend(lambda: self._count_closed(code))
            self._known[code] = min([fewest, *self._counts_closed_here(code)]) if fewest else 0
        return self._known[code]

    def _count_closed(self, code: str) -> int:
        fewest = self._parsed.num_errors_with(code)
        closers = self.closers(code) if fewest else ""
        if closers:
            fewest = min(fewest, self._parsed.num_errors_with(f"{code} {closers}"))
        if closers and fewest:  # the text below may be part of what is open
            fewest = min(fewest, self._parsed.num_errors_with(code, f"\n{closers}"))
        return fewest

    def _counts_closed_here(self, code: str) -> Iterator[int]:
        """Count errors with some of what is open at the place closed: the text below has the rest.

        The innermost is closed, then the one around it too, and so on, until nothing is wrong.
        """
        closed = f"{code} "
        for one in self.open_at(code)[:_MOST_TRIED]:
            if self._budget.is_spent or one.byte in self._parsed.bytes_of(code):
                return
            closed += one.closer
            count = functools.partial(self._parsed.num_errors_with, closed)
            num_errors = self._budget.spend(count)
            yield num_errors
            if num_errors == 0:
                return

    def open_at(self, code: str) -> list[Opener]:
        """Return what is open behind `code` whatever comes below, innermost first."""
        inside = self._parsed.bytes_of(code)
        return unclosed(self._parsed.tree_with(code), inside, self.open_before)[::-1]


def goes_on(code: str) -> bool:
    """Whether a line that ends like this may go on below."""
    return code.endswith(_GOES_ON)
