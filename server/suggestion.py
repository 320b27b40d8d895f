"""One suggestion: what the engine is asked, and what of its answer is offered.

The language server, `keyturn complete` and the benchmarks all ask and trim by these two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..engine.syntax.languages import language_of
from ..engine.syntax.region import unified
from ..engine.syntax.surroundings import look, num_errors
from ..engine.wire.config import Completion, CompletionParams
from .trim import Trimmed, first_line, trim
from .trim.cut_off import DOUBT

# Two blank lines mean that a block is left: what a model writes from there on is something else.
BLOCK_END = "\n\n\n"
# Nothing but white space over such a length counts as nothing.
_MAX_REST = 1000
# Boundaries are found by a few characters on either side.
_MAX_WORD = 32


class Least(NamedTuple):
    """The least joint probability of what is offered, and of its first word.

    A wrong first word leaves nothing to take; behind a right one the rest can be left.
    """

    whole: float
    first_word: float


# By the setting `confidence` and the kind of place: `benchmarks/bench_gate.py` shows what each
# costs and spares.
LEAST = {
    "any": {"line": Least(0.0, 0.0), "rest": Least(0.0, 0.0), "gap": Least(0.0, 0.0)},
    "eager": {"line": Least(0.1, 0.3), "rest": Least(0.1, 0.3), "gap": Least(0.1, 0.3)},
    "balanced": {"line": Least(0.25, 0.5), "rest": Least(0.25, 0.5), "gap": Least(0.3, 0.5)},
    "reserved": {"line": Least(0.6, 0.8), "rest": Least(0.6, 0.8), "gap": Least(0.7, 0.8)},
}
# What begins so has a body below it, and what ends so is gone on with there.
_HEADER = re.compile(
    r"\s*(?:(?:export|default|async|public|private|protected|static|abstract|declare|const) )*"
    r"(?:def|class|if|elif|else|for|while|with|try|except|finally|match|case|function|switch|catch|do|"
    r"interface|enum|namespace|type)\b"
)
_OPENERS = (":", "{", "(", "[")
# The last line of a header of several, and what closes a block.
_HEADER_END, _BLOCK_CLOSED = re.compile(r"[)\]]"), re.compile(r"[)\]}]")
# Behind code, of Python and of others; what has a quote in it may be a part of a string.
_COMMENT, _COMMENT_OF_OTHERS = (re.compile(rf"(?:^|\s){mark}[^'\"]*\Z") for mark in ("#", "//"))
# Of the first token behind a word that looks unfinished: then it is a name that is new.
_SURE = 0.9
ONE_KEY = "one key would write it, and one would take it"
# An ideograph takes several.
_KEY = re.compile(r"[ -~]")
_WORD = re.compile(r"\w")
_LAST_WORD = re.compile(r"\w+\Z")
_WORD_CHARACTER = re.compile(r"\w", re.ASCII)


def kind_of(text: str, offset: int) -> str:
    """Return what kind of place this is.

    "line": nothing but indentation is on the cursor's line; "rest": nothing is behind the cursor
    there; "gap": other text is.
    """
    if first_line(text[offset : offset + _MAX_REST]).strip():
        return "gap"
    before = text[max(0, offset - _MAX_REST) : offset]
    return "rest" if before[max(before.rfind("\n"), before.rfind("\r")) + 1 :].strip() else "line"


def is_within_statement(text: str, offset: int, language: str | None) -> bool:
    """Whether the line ends in a statement that is not whole: its rest is what is missing.

    Not behind the beginning of a header, nor where something was just opened: those go on below.

    Args:
        text: the document.
        offset: the cursor, at the end of its line.
        language: an LSP identifier; without a grammar nothing is known.
    """
    before = text[max(0, offset - _MAX_REST) : offset]
    line = before[max(before.rfind("\n"), before.rfind("\r")) + 1 :].strip()
    if language is None or _HEADER.match(line) or line.endswith(_OPENERS):
        return False
    syntax = look(text, offset, offset, language)
    # Something else may be wrong with the text.
    return syntax is not None and syntax.num_errors > 0 and num_errors(line, language) != 0


def has_to_begin_block(text: str, offset: int, language: str | None) -> bool:
    """Whether a block has to begin at the cursor: the line above opens one that is not there yet.

    By syntax: the line ends with an opening brace or is a header that ends in a colon, nothing but
    indentation is on the cursor's line, and what follows is not indented as the block would be.

    Args:
        text: the document.
        offset: the cursor.
        language: an LSP identifier; without a grammar nothing is known.
    """
    before = unified(text[max(0, offset - _MAX_REST) : offset])
    above, _, indent = before.rpartition("\n")
    rest = unified(text[offset : offset + _MAX_REST])
    if indent.strip() or rest.split("\n", 1)[0].strip():
        return False
    comment = _COMMENT if language == "python" else _COMMENT_OF_OTHERS
    opener = comment.sub("", above[above.rfind("\n") + 1 :]).strip()
    if opener.endswith(":"):
        is_opened = bool(_HEADER.match(opener) or _HEADER_END.match(opener))
    else:  # of Python a brace opens no block
        is_opened = opener.endswith("{") and language != "python"
    if not is_opened:
        return False
    following = next((line for line in rest.split("\n") if line.strip()), "")
    deep = len(following) - len(following.lstrip())
    is_there = deep >= len(indent) > 0 or deep > len(indent)
    if is_there and not _BLOCK_CLOSED.match(following.lstrip()):
        return False
    syntax = look(text, offset, offset, language)
    return syntax is not None and syntax.kind == "code"


def asked(
    text: str,
    offset: int,
    params: CompletionParams,
    confidence: str = "any",
    language: str | None = None,
) -> CompletionParams:
    """Return `params` with what ends a completion at `offset` before the model does.

    Before other text on its line, and within a statement, a completion fills in the line, and a
    model that can be told is told so; likewise where a block has to begin. The engine writes line
    feeds, whatever the document has.

    Args:
        text: the document.
        offset: the cursor.
        params: budgets and sampling.
        confidence: how sure the model must be of all that is offered, see `LEAST`.
        language: an LSP identifier, see `language_of`.
    """
    kind = kind_of(text, offset)
    is_line = kind == "gap" or (kind == "rest" and is_within_statement(text, offset, language))
    stop = ("\n",) if is_line else (BLOCK_END,)
    is_block = kind == "line" and has_to_begin_block(text, offset, language)
    wanted = "line" if is_line else "block" if is_block else ""
    least = LEAST[confidence][kind]
    return replace(
        params,
        stop=stop,
        min_probability=least.whole,
        min_first_word=least.first_word,
        place=kind,
        wanted=wanted,
    )


def offered(
    completion: Completion,
    text: str,
    offset: int,
    language: str | None,
    *,
    invoked: bool = True,
) -> Trimmed:
    """Return what of a completion is worth offering at `offset`; if nothing, why.

    Which element an end tag ends is known, whatever the model says.

    Args:
        completion: the engine's answer to what `asked` returned.
        text: the document that it was asked for.
        offset: the cursor, in code points.
        language: an LSP identifier, see `language_of`; what does not parse in it is not offered.
        invoked: the user asked for it: also what is as soon typed as taken.
    """
    kept = _kept(completion, text, offset, language)
    if kept.text and not invoked:
        if is_one_key(kept.text):
            return Trimmed("", ONE_KEY)
        doubts = completion.probabilities[:1] < (_SURE,)
        if doubts and not _WORD.match(kept.text) and is_unfinished_word(text, offset):
            return Trimmed("", "it leaves the word before the cursor unfinished")
    return kept


def _kept(completion: Completion, text: str, offset: int, language: str | None) -> Trimmed:
    syntax = look(text, offset, offset, language)
    if syntax is not None and not completion.text.startswith(syntax.end_tag):
        return Trimmed(syntax.end_tag, None)
    reason = completion.stop_reason
    if reason == DOUBT and not completion.text.strip():
        return Trimmed("", "the model was not sure of any word")
    if reason == "low_confidence":
        if not completion.text.strip():
            return Trimmed("", "the model gave up what it had begun: it was likely to be wrong")
        reason = DOUBT
    return trim(completion.text, text, offset, offset, reason, language)


def others_offered(
    completion: Completion, text: str, offset: int, language: str | None, first: str
) -> tuple[str, ...]:
    """Return what of a completion's further candidates is worth offering beside the first.

    None is like another but for what syntax does not see, and what leaves an error behind comes
    after what leaves none.
    """
    syntax = look(text, offset, offset, language)

    def normal(kept: str) -> tuple[object, ...]:
        return tuple(kept.split()) if syntax is None else syntax.normalised(unified(kept))

    found: list[str] = []
    seen = {normal(first)}
    for other, reason in zip(completion.other_texts, completion.other_stop_reasons, strict=True):
        kept = offered(replace(completion, text=other, stop_reason=reason), text, offset, language)
        if kept.text and normal(kept.text) not in seen:
            seen.add(normal(kept.text))
            found.append(kept.text)
    if syntax is None:
        return tuple(found)
    return tuple(sorted(found, key=lambda kept: not syntax.parses_with(unified(kept))))


def is_one_key(text: str) -> bool:
    """Whether a text is as soon typed as taken."""
    return _KEY.fullmatch(text) is not None


def is_inside_word(text: str, offset: int) -> bool:
    """Whether a word goes on from before `offset` to behind it, by Unicode's word boundaries.

    UAX #29: every ideograph is a word of its own. Punctuation that may join words there, such as
    the point in `a.b`, separates them in code.
    """
    at = min(offset, _MAX_WORD)
    around = text[offset - at : offset + _MAX_WORD]
    beside = around[at - 1 : at + 1] if at else ""
    if beside.isascii():
        return len(beside) == 2 and all(map(_WORD_CHARACTER.match, beside))
    import regex  # a language server starts sooner without it

    is_word = len(beside) == 2 and all(regex.match(r"[\w\p{M}]", char) for char in beside)
    return is_word and regex.compile(r"\b", regex.WORD).match(around, at) is None


def is_unfinished_word(text: str, offset: int) -> bool:
    """Whether the word that ends at `offset` is nowhere else in a text but as others' beginning."""
    found = _LAST_WORD.search(text, max(0, offset - _MAX_REST), offset)
    if found is None:
        return False
    word = rf"\b{re.escape(found[0])}"
    is_begun = is_whole = False
    for part in (text[: found.start()], text[offset:]):
        is_begun = is_begun or re.search(rf"{word}\B", part) is not None
        is_whole = is_whole or re.search(rf"{word}\b", part) is not None
    return is_begun and not is_whole


def untrained(
    language_id: str, path: str, model_languages: Sequence[str], wanted: Sequence[str]
) -> str | None:
    """Return why nothing is suggested in a document of this language, None if something is.

    Args:
        language_id: what the client calls the language; "" if it does not say.
        path: the document's name, which tells the language otherwise.
        model_languages: what the model was trained on; empty if it does not say.
        wanted: the user's own list, which is used instead if it is not empty.
    """
    languages = [name.lower() for name in wanted or model_languages]
    language = language_of(language_id, path)
    if not languages or language in (language_of(name, "") for name in languages):
        return None
    return f"the model was not trained on {language}; setting languages allows it"
