"""Situations that users of other products report; `editors/README.md` says which."""

import asyncio

import pytest

from keyturn.engine.wire.config import Completion
from keyturn.server.completions import Completions
from keyturn.server.documents import Change, Document, Limits
from keyturn.server.settings import Settings, with_values
from keyturn.server.trim import trim


def trimmed(marked: str, raw: str, language: str | None = None) -> str:
    at = marked.index("|")
    return trim(raw, marked.replace("|", "", 1), at, at, "end", language).text


class Typist:
    """A document with a cursor, and what is suggested there; the model answers once."""

    def __init__(self, marked: str, answer: str) -> None:
        self.offset = marked.index("|")
        text = marked.replace("|", "", 1)
        self.document = Document("file:///a.py", 1, text, "utf-16", Limits(10_000, 1_000), "")
        self.num_asked, self.answer = 0, answer
        settings = with_values(Settings(), debounce_ms=0, speculate=False, confidence="any")
        self.answers = Completions(self._ask, self._ask, lambda *_: None, lambda: settings)

    async def _ask(self, *_: object) -> Completion:
        self.num_asked += 1
        return Completion(self.answer, (), 0, 0, 0.0, 0.0, 1, "end", ())

    def type(self, text: str) -> None:
        position = self.document.position(self.offset)
        change = Change(text, position, position)
        edits = self.document.change([change], self.document.version + 1)
        self.answers.edited(self.document.uri, edits)
        self.offset += len(text)

    async def suggested(self) -> str:
        """Return what is offered, which begins at the cursor."""
        answer = await self.answers.complete(self.document, self.offset, invoked=False)
        assert answer.start == answer.end == self.offset
        return answer.text


def test_text_typed_before_and_after_the_answer_stays() -> None:
    async def check() -> None:
        typist = Typist("names.|\n", "everse()")
        typist.type("r")
        assert await typist.suggested() == "everse()"
        typist.type("ev")
        assert await typist.suggested() == "erse()"
        assert (typist.document.text, typist.num_asked) == ("names.rev\n", 1)

    asyncio.run(check())


def test_typing_through_before_an_auto_closed_quote() -> None:
    async def check() -> None:
        typist = Typist('print("|")\n', 'hello world")')
        assert await typist.suggested() == "hello world"
        typist.type("hello")
        assert await typist.suggested() == " world"
        assert typist.num_asked == 1

    asyncio.run(check())


def test_typing_through_up_to_a_space() -> None:
    async def check() -> None:
        typist = Typist("def f(x):\n    |\n", "return x + 1")
        assert await typist.suggested() == "return x + 1"
        for typed in "return ":
            typist.type(typed)
        assert await typist.suggested() == "x + 1"
        assert typist.num_asked == 1

    asyncio.run(check())


@pytest.mark.parametrize(
    ("marked", "raw", "expected"),
    [
        ("foo(|)\n", "a, b); bar(c)", "a, b"),
        ("foo(|);\n", "a, b);", "a, b"),
        ("x = [|]\n", "1, 2]", "1, 2"),
        ('x["|"]\n', 'name"]', "name"),
    ],
)
def test_what_follows_the_cursor_does_not_come_twice(marked, raw, expected) -> None:
    assert trimmed(marked, raw) == expected


@pytest.mark.parametrize("raw", ["a: 1,\n        b: 2,\n    };", "a: 1,\n        b: 2,"])
def test_between_an_open_brace_and_its_closer(raw) -> None:
    place = "function f() {\n    return {\n        |\n    };\n}\n"
    assert trimmed(place, raw, "javascript") == "a: 1,\n        b: 2,"


@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
def test_first_line_is_not_indented_twice(indent) -> None:
    place = f"if x:\n{indent}|\n"
    for raw in (f"a = 1\n{indent}b = 2", f"{indent}a = 1\n{indent}b = 2"):
        assert trimmed(place, raw, "python") == f"a = 1\n{indent}b = 2"
