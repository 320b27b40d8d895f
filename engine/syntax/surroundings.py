"""A place in a document as its grammar sees it: what may be written there."""

from __future__ import annotations

import functools
import re

from . import python
from .closing import Budget, Closing, goes_on
from .languages import has_grammar, parser_of
from .parsed import COMMENTS, Parsed, encoded, num_errors_of
from .region import unified

_STRINGS = {
    "string", "template_string", "string_fragment", "concatenated_string", "regex",
    "string_literal", "raw_string_literal", "interpreted_string_literal", "rune_literal",
    "char_literal", "character_literal",
}  # fmt: skip
# Where both kinds of quotes are the same, and a statement may or need not end with a semicolon.
_LOOSE = {"python", "javascript", "javascriptreact", "typescript", "typescriptreact"}
_QUOTES = {"string_start", "string_end", '"', "'"}
# Processor time that a place takes at most to see what could close it: some texts take seconds.
_BUDGET_S = 0.05
_NUM_READ = 4
_HANDLERS = {"catch_clause", "finally_clause"}
_ATTRIBUTE = re.compile(r"\s[\w$:-]+\Z")
_NAME = re.compile(r"[\w$.:-]")
_END_TAG = re.compile(rf"</{_NAME.pattern}*\Z")
# Code again, inside of a string.
_INTERPOLATIONS = {"interpolation", "template_substitution"}


class Surroundings:
    """The parsed neighbourhood of `text[start:end]`, which something is to replace.

    A region of at most some 24,000 characters is parsed, a few milliseconds' work; of a longer text
    nothing beyond it is known. Made by `look`.

    Attributes:
        language: an LSP identifier.
        num_errors: places that the grammar cannot read, and tokens that it misses.
    """

    def __init__(self, text: str, start: int, end: int, language: str) -> None:
        """Parse; see `look`."""
        self.language = language
        self._parsed = parsed = Parsed(text, start, end, parser_of(language))
        self._budget = Budget(_BUDGET_S)
        self._closing = Closing(parsed, self._budget)
        self.num_errors = self._closing.num_errors
        self._above = ""
        if language == "python":
            if not parsed.region.is_whole:
                above = unified(text[: parsed.region.start])
                self._above = python.enclosing(parsed.region.text, above)
            is_right = python.parses(parsed.region.text, self._above)
            self.num_errors = 0 if is_right else max(1, self.num_errors)
        # What is tried at a place is asked about twice, and took milliseconds.
        self._reads = functools.lru_cache(_NUM_READ)(
            functools.partial(python.parses, above=self._above)
        )

    def accepts(self, new: str, *, may_open: bool = False) -> bool:
        """Whether `new` may be written at the place: what could be read before still can.

        The errors may not become more than the text has with something simple at the place, all
        that is still being written closed: else everything behind it would be an error. Of Python
        its own parser is asked.

        Args:
            new: with line feeds.
            may_open: where the text has errors as it is, `new` may end in what goes on below: an
                operator, a comma, a bracket or a block that it opens, for it is being written.
        """
        may_open = may_open and self.num_errors > 0 and not self._rest_of_line().strip()
        if not self._is_read_by_python:
            return self._closing.accepts(new, may_go_on=may_open)
        if self.parses_with(new):
            return True
        if self.num_errors == 0:
            return False
        code = self._closing.code_of(new)
        if self._is_right_closed(code) or (may_open and self._is_open_block(code)):
            return True
        if not (may_open and goes_on(code)):
            return False
        going_on = map(self._closing.completed, self._closing.continued(code))
        return any(map(self._is_right_closed, going_on))

    def waits_for_more(self, new: str) -> bool:
        """Whether `new` ends with a `try` that nothing catches, or with the name of an attribute.

        Both can be read, and are seldom meant.
        """
        last = self._parsed.bytes_of(new).stop
        leaf = self._parsed.tree_with(new).root_node.descendant_for_byte_range(last - 1, last)
        block = None if leaf is None or leaf.type != "}" else leaf.parent
        if block and block.prev_sibling and block.prev_sibling.type == "try":
            return block.next_sibling is None or block.next_sibling.type not in _HANDLERS
        around = self._closing.open_at(new)
        is_in_tag = bool(around) and bool(around[0].end_tag)
        text = self._parsed.region.text[: self._parsed.start] + new
        return is_in_tag and _ATTRIBUTE.search(text) is not None

    @functools.cached_property
    def end_tag(self) -> str:
        """What is missing at the place of an end tag that begins before it, if one does."""
        source = self._parsed.region.text
        begun = _END_TAG.search(source[: self._parsed.start])
        if not begun or self.kind != "code" or _NAME.match(source, self._parsed.end):
            return ""
        around = self._closing.open_before
        closer = around[-1].closer if around and around[-1].is_tag else ""
        if source.startswith(">", self._parsed.end):
            closer = closer.removesuffix(">")
        return closer[len(begun[0]) :] if closer.startswith(begun[0]) else ""

    def parses_with(self, new: str) -> bool:
        """Whether the neighbourhood has no error at all with `new` at the place."""
        if self.language == "python":
            return self._reads(self._parsed.with_(new))
        return self._parsed.num_errors_with(new) == 0

    def normalised(self, new: str) -> tuple[tuple[int, bytes], ...]:
        """Return the tokens that `new` would be at the place, and how deep in the tree they lie.

        They are the same where only white space, comments and commas before a closing bracket
        differ and, where the language does not care, the kind of quotes and semicolons.
        """
        inside = self._parsed.bytes_of(new)
        found: list[tuple[int, bytes]] = []
        stack = [(0, self._parsed.tree_with(new).root_node)]
        while stack:
            depth, node = stack.pop()
            is_apart = node.end_byte <= inside.start or node.start_byte >= inside.stop
            if is_apart or node.type in COMMENTS:
                continue
            if node.child_count:
                stack += [(depth + 1, child) for child in reversed(node.children)]
                continue
            text, is_loose = node.text or b"", self.language in _LOOSE
            if is_loose and node.type in _QUOTES:
                text = text.replace(b'"', b"'")
            is_tuple = node.parent is not None and "tuple" in node.parent.type
            if text in (b")", b"]", b"}") and found and found[-1][1] == b"," and not is_tuple:
                found.pop()
            if text.strip() and not (is_loose and text == b";"):
                found.append((depth, text))
        return tuple(found)

    @property
    def kind(self) -> str:
        """What the place lies in: "string", "comment" or "code"."""
        source = self._parsed.region.text
        # A string or a comment that the text ends with has no byte at the place itself.
        at = self._parsed.first_byte
        node = self._parsed.tree.root_node.descendant_for_byte_range(max(0, at - 1), at)
        while node is not None:
            if node.type in _INTERPOLATIONS and node.start_byte < at < node.end_byte:
                return "code"
            if node.type in COMMENTS and node.start_byte < at:
                is_line = not source.startswith("/*", self._char(node.start_byte))
                if at < node.end_byte or (is_line and at == node.end_byte):
                    return "comment"
            if node.type in _STRINGS and node.start_byte < at < node.end_byte:
                return "string"
            node = node.parent
        return "code"

    @functools.cached_property
    def _is_read_by_python(self) -> bool:
        """Whether Python's own parser reads the text as it is, or with a word at the place."""
        if self.language != "python":
            return False
        if self.num_errors == 0 or self.parses_with("_"):
            return True
        return self._is_right_closed(self._closing.completed("_"))

    def _is_right_closed(self, code: str) -> bool:
        """Whether Python reads the text with `code` at the place when that is closed."""
        if not self._closing.is_worth_closing:
            return False
        closed = f"{code} {self._closing.closers(code)}".rstrip()
        return self._budget.spend(lambda: self.parses_with(closed))

    def _char(self, byte: int) -> int:
        return len(encoded(self._parsed.region.text)[:byte].decode("utf-8", "replace"))

    def _is_open_block(self, new: str) -> bool:
        """Whether `new` ends with a header, and parses with a body below it."""
        line = (self._parsed.region.text[: self._parsed.start] + new).rsplit("\n", 1)[-1]
        indent = line[: len(line) - len(line.lstrip())]
        return line.rstrip().endswith(":") and self.parses_with(f"{new}\n{indent} pass")

    def _rest_of_line(self) -> str:
        return _line(self._parsed.region.text, self._parsed.end)


# A completion's place is looked at before it is asked for and when it has come.
@functools.lru_cache(maxsize=2)
def look(text: str, start: int, end: int, language: str | None) -> Surroundings | None:
    """Parse the neighbourhood of `text[start:end]`; None if the language has no grammar here.

    Args:
        text: the document, with any line ends.
        start: code points.
        end: code points.
        language: an LSP identifier, see `languages.language_of`.
    """
    if language is None or not has_grammar(language):
        return None
    return Surroundings(text, start, end, language)


def num_errors(text: str, language: str) -> int | None:
    """Return how many places of a whole text cannot be read; None if there is no grammar for it.

    It takes some 50 to 100 ms for a million characters.
    """
    if not has_grammar(language):
        return None
    return num_errors_of(parser_of(language).parse(encoded(unified(text))))


def _line(text: str, at: int) -> str:
    end = text.find("\n", at)
    return text[at:] if end < 0 else text[at:end]
