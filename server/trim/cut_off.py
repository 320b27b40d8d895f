"""A completion that the model had not ended: only what is whole is offered."""

from __future__ import annotations

import keyword
import re

from .brackets import QUOTES, STRING

LENGTH, TIME = "length", "time"
CUT_OFF = (LENGTH, TIME)
# The model was no longer sure: what there is is offered, though its last line may go on.
DOUBT = "doubt"

_LAST_TOKEN = re.compile(r"\s*(?:\w+|(?:(?<!\w)[rbfuRBFU]{1,2})?(?:\"{3}|'{3}|[\"'])|[^\w\s])\s*\Z")
# Behind these something has to come, but for steps up and down and an ellipsis.
_OPERATOR = re.compile(r"[.,=+\-*/%<&|^~@\\]\Z")
_WHOLE = re.compile(r"(?:\+\+|--|\.\.\.)\Z")
_COMMENT = re.compile(r"(?:#|//).*")
_LAST_WORD = re.compile(r"(?<![.\w$])[a-z]+\Z")
_NAME = re.compile(r"[^\W\d][\w$]*(?:\.[^\W\d][\w$]*)*")
# And no dictionary: behind a bracket, and what a function returns.
_BLOCK = re.compile(r"(?:\)(?::?\s*[\w.*<>\[\] |]+)?|=>)\s*\{\Z")
_STATEMENTS = frozenset(("pass", "break", "continue", "return", "raise", "yield", "debugger"))
_PREFIX = re.compile(r"(?<![\w.])[rbfuRBFU]{1,2}\Z")
# `return` and the like, which may stand alone, are among them: what is to end there ends the line.
_OF_OTHERS = frozenset(
    "and as assert async await case class const def delete elif else enum export extends fn for "
    "from func if impl import in is let match mut new not or pub raise return select static struct "
    "switch throw typeof union use var where while with yield".split()
)
_OF_JAVASCRIPT = frozenset(
    "async await case catch class const delete do else enum export extends finally for function if "
    "implements import in instanceof interface let new private protected public readonly return "
    "static switch throw try typeof var void while with yield".split()
)
_OF_PYTHON = frozenset(keyword.kwlist) - {"True", "False", "None", "pass", "break", "continue"}
_JAVASCRIPT = ("javascript", "javascriptreact", "typescript", "typescriptreact")
_KEYWORDS = {"python": _OF_PYTHON, **dict.fromkeys(_JAVASCRIPT, _OF_JAVASCRIPT)}
# What may be a name is a keyword where it stands alone.
_ALONE = frozenset(("match", "case", "type", "declare", "abstract", "namespace"))
# What a line begins with that has to end with what opens its block, or with a statement.
_PYTHON_HEADER = re.compile(
    r"\s*(?:async )?(?:def|class|if|elif|else|for|while|with|try|except|finally)\b"
)
_HEADER = re.compile(r"[\s}]*(?:if|else|for|while|switch|function|class|try|catch|do)\b")
_GO_HEADER = re.compile(r"\s*(?:func|if|for|switch|select)\b")
_RUST_HEADER = re.compile(
    r"\s*(?:pub\s+)?(?:async\s+)?(?:fn|impl|trait|mod|match|if|for|while|loop)\b"
)
_HEADERS = {
    "python": (_PYTHON_HEADER, ":"),
    "go": (_GO_HEADER, "}{"),
    "rust": (_RUST_HEADER, ";}{"),
    **dict.fromkeys((*_JAVASCRIPT, "java", "c", "cpp"), (_HEADER, ";}{")),
}
# Elsewhere a key or a type comes with something behind its colon.
_COLON = re.compile(r"\s*(?:case\b.*|default|public|private|protected):\Z")
_BLOCK_HEADER = re.compile(
    r"[\s}]*(?:if|else|for|while|switch|select|func|function|try|catch|do|finally)\b"
)


def without_last_token(text: str) -> str:
    """Drop the last word or mark, what begins a string being one, and the white space around it."""
    return _LAST_TOKEN.sub("", text)


def drop_partial_line(lines: list[str], stop_reason: str) -> list[str]:
    """Drop the last line, which was cut in the middle.

    A single line that reached `max_tokens` stays, up to its last whole item if it has several; one
    that reached the time limit does not: it would have been longer on a quieter machine.
    """
    if any(line.strip() for line in lines[:-1]):
        return lines[:-1]
    if stop_reason == TIME:
        return []
    line = lines[-1]
    return [*lines[:-1], line[: line.rfind(", ")] if ", " in line else line]


def drop_comments_at_end(text: str) -> str:
    """Drop comments and blank lines below the first line: what they speak of was cut off."""
    lines = text.split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith(("#", "//"))):
        lines.pop()
    return "\n".join(lines)


def waits_for_more(before: str, text: str, language: str | None) -> bool:
    """Whether a text ends in what has no end yet: a string or header it begins, or an operator.

    A grammar says so too where it can read what is around; this does where the place is broken.

    Args:
        before: what stands before it on its line.
        text: without white space at its end.
        language: an LSP identifier, for the headers.
    """
    line, is_new = _last_line(before, text), "\n" in text or not before.strip()
    if _opens_string(line):  # where it was open before, this is prose
        return is_new or not _opens_string(before) or leaves_string(before, text)
    if _OPERATOR.search(line) and not _WHOLE.search(line):
        return True
    if line.endswith(":") and language in _HEADERS and language != "python":
        return not _COLON.match(line)
    if not is_new or language not in _HEADERS:
        return False
    header, ends = _HEADERS[language]
    return header.match(line) is not None and line[-1] not in ends


def ends_in_name(before: str, text: str, language: str | None) -> bool:
    """Whether the last of several lines is a name alone, as a statement begins and none ends.

    Args:
        before: what stands before the text on its line.
        text: without white space at its end; of one line it is another rule's.
        language: an LSP identifier; a block of Rust may end in a name.
    """
    above, line_end, line = text.rpartition("\n")
    above, line = (before + above).rstrip() if line_end else "", line.strip()
    is_item = not above or above[-1] in "([{" or _OPERATOR.search(above)
    is_block = _BLOCK.search(above) or _BLOCK_HEADER.match(above.rpartition("\n")[2])
    is_item = is_item and (language == "rust" or not is_block)
    return not is_item and _NAME.fullmatch(line) is not None and line not in _STATEMENTS


def ends_in_keyword(before: str, text: str, language: str | None) -> bool:
    """Whether a text ends in a keyword behind which there is more as a rule; arguments likewise."""
    line = _last_line(before, text)
    word = _LAST_WORD.search(line)
    if word is None:
        return False
    is_alone = line.strip() == word[0] and word[0] in _ALONE
    return is_alone or word[0] in _KEYWORDS.get(language or "", _OF_OTHERS)


def leaves_string(before: str, text: str) -> bool:
    """Whether a text closes the string that is open at the end of a line before it."""
    code = _without_strings(before)
    opener = next((char for char in code if char in QUOTES), None)
    return opener is not None and re.search(rf"(?<!\\){opener}", text) is not None


def begins_string(above: str, text: str) -> bool:
    """Whether a text of Python ends in the prefix of a string, a letter that is no name `above`."""
    prefix = _PREFIX.search(text)
    if prefix is None:
        return False
    name = re.compile(rf"\b{prefix[0]}\b(?!['\"])")
    return name.search(above) is None and name.search(text, 0, prefix.start()) is None


def _last_line(before: str, text: str) -> str:
    return text.rpartition("\n")[2] if "\n" in text else before + text


def _opens_string(line: str) -> bool:
    """Whether a quote of a line has no partner on it, comments left out."""
    code = _without_strings(line)
    return any(quote in code for quote in QUOTES)


def _without_strings(line: str) -> str:
    """Return a line without what is a string on it as a whole, and without its comment."""
    return _COMMENT.sub("", STRING.sub("", line))
