import pytest

from keyturn.engine.wire.config import Completion
from keyturn.server.settings import Settings
from keyturn.server.suggestion import (
    asked,
    has_to_begin_block,
    is_inside_word,
    is_unfinished_word,
    is_within_statement,
    offered,
    others_offered,
    untrained,
)
from keyturn.server.trim import trim


@pytest.mark.parametrize(
    ("marked", "is_inside"),
    [
        ("fo‸o", True),
        ("foo‸", False),
        ("‸foo", False),
        ("a‸_b", True),
        ("x‸1", True),
        ("a‸.b", False),
        ("a.‸b", False),
        ("don‸'t", False),
        ("про‸цент", True),
        ("한‸국", True),
        ("カ‸ナ", True),
        ("读‸取", False),
        ("こ‸ん", False),
        ("读‸a", False),
        ("e‸\u0301", True),
        ("é\u0301‸a", True),
        ("😀‸a", False),
        ("a‸ b", False),
        ("a‸\nb", False),
        ("a" * 100 + "‸" + "b" * 100, True),
    ],
)
def test_words_end_where_unicode_has_it(marked, is_inside) -> None:
    assert is_inside_word(marked.replace("‸", ""), marked.index("‸")) == is_inside


@pytest.mark.parametrize(
    ("marked", "is_unfinished"),
    [
        ("import sockets\nfrom sock‸\n", True),
        ("from sock‸\nsockets = 1\n", True),
        ("import sock, sockets\nfrom sock‸\n", False),
        ("from other import sock‸\n", False),
        ("sockets.‸\n", False),
        ("mysocket = 1\nsock‸\n", False),
        ("é = 1\nélan = 2\nél‸", True),
        ("‸sockets", False),
    ],
)
def test_a_word_that_only_begins_others_is_unfinished(marked, is_unfinished) -> None:
    text, offset = marked.replace("‸", ""), marked.index("‸")
    assert is_unfinished_word(text, offset) == is_unfinished


@pytest.mark.parametrize(
    ("raw", "probability", "invoked", "expected"),
    [
        (" import a", 0.6, False, ""),
        (" import a", 0.95, False, " import a"),  # a name that is new
        (" import a", 0.6, True, " import a"),
        ("ets import a", 0.6, False, "ets import a"),
    ],
)
def test_an_unfinished_word_is_gone_on_with(raw, probability, invoked, expected) -> None:
    text, offset = "import sockets\nfrom sock\n", 24
    answer = Completion(raw, (1, 2), 0, 0, 0.0, 0.0, 1, "end", (probability, 1.0))
    assert offered(answer, text, offset, None, invoked=invoked).text == expected


@pytest.mark.parametrize(
    ("language_id", "path", "model", "wanted", "language"),
    [
        ("python", "a", ["python"], [], None),
        ("", "a.py", ["python"], [], None),
        ("sql", "a.py", ["python"], [], "sql"),
        ("", "a.json", ["python"], [], "json"),
        ("", "README", ["python"], [], "plaintext"),
        ("sql", "a", ["python"], ["sql"], None),
        ("python", "a", ["python"], ["sql"], "python"),
        ("zsh", "a", ["python"], ["SH"], None),
        ("sql", "a", [], [], None),
        ("typescriptreact", "a", ["tsx"], [], None),
    ],
)
def test_other_languages_than_the_models_are_named(
    language_id, path, model, wanted, language
) -> None:
    reason = untrained(language_id, path, model, wanted)
    expected = f"the model was not trained on {language}; setting languages allows it"
    assert reason == (None if language is None else expected)


@pytest.mark.parametrize(
    ("marked", "stop"),
    [
        ("x = ‸\n", ("\n\n\n",)),
        ("x = ‸", ("\n\n\n",)),
        ("f(‸)\r\n", ("\n",)),
        ("f(‸)\ry\r", ("\n",)),
        ("f(‸  \r\n)", ("\n\n\n",)),
    ],
)
def test_what_is_asked_ends_with_the_line_where_it_goes_on(marked, stop) -> None:
    params = Settings().completion_params()
    got = asked(marked.replace("‸", ""), marked.index("‸"), params)
    assert got.stop == stop
    assert got.max_tokens == params.max_tokens


@pytest.mark.parametrize(
    ("language", "marked", "is_within"),
    [
        ("python", "x = ‸\n", True),
        ("python", "x = f(a,‸\ny = 2\n", True),
        ("python", "def f(a):\n    return a +‸\n", True),
        ("python", "x = f(a)‸\ny = 2\n", False),
        ("python", "def f(a,‸\n", False),
        ("python", "async def f(a,‸\n", False),
        ("python", "if a and‸\n", False),
        ("python", "x = [‸\n", False),
        ("python", "x = f(a)‸\n)\n", False),  # whole, above a line that nobody can read
        ("python", "return x if y and‸\n", True),
        ("javascript", "const x = f(a,‸\n", True),
        ("javascript", "export function f(a,‸\n", False),
        ("javascript", "const x = f(a);‸\n", False),
        ("typescript", "const x: Map<‸\nf();\n", True),
        ("sql", "select a,‸\n", False),
        (None, "x = ‸\n", False),
    ],
)
def test_rest_of_a_statement_that_is_not_whole_is_one_line(language, marked, is_within) -> None:
    text, offset = marked.replace("‸", ""), marked.index("‸")
    assert is_within_statement(text, offset, language) == is_within
    stop = asked(text, offset, Settings().completion_params(), language=language).stop
    assert stop == (("\n",) if is_within else ("\n\n\n",))


@pytest.mark.parametrize(
    ("language", "marked", "is_block"),
    [
        ("python", "def f(a):\n    ‸\n", True),
        ("python", "def f(a):\n‸", True),
        ("python", "def f(\n    a,\n) -> int:\n    ‸\nx = 1\n", True),
        ("python", "def f(a):\r\n    ‸\r\n", True),
        ("python", "def f(a):  # so:\n    ‸\n", True),
        ("python", "for a in b:\n    if a:\n        ‸\n    c()\n", True),
        ("python", "if a // b == c:\n    ‸\n", True),
        (
            "javascript",
            "class A {\n  #b;\n  f(c) {\n    if (c && #b in c) {\n      ‸\n    }\n  }\n}\n",
            True,
        ),
        ("python", "try:\n    ‸\nexcept E:\n    pass\n", True),
        ("python", "def f(a):\n    ‸\n    return a\n", False),  # it is there
        ("python", "class A:\n‸\n    x = 1\n", False),
        ("python", "def f(a):\n\n    ‸\n", False),  # the line above is blank
        ("python", "def f(a):‸\n", False),
        ("python", "def f(a):\n    x‸\n", False),
        ("python", "def f(a):\n    ‸x\n", False),
        ("python", "x = 1\n‸\n", False),
        ("python", "x = {\n    ‸\n}\n", False),
        ("python", "x = y[1:\n    ‸\n]\n", False),
        ("python", "# if so:\n‸\n", False),
        ("python", 'def f():\n    """\n    if so:\n        ‸\n    """\n', False),
        ("javascript", "function f(a) {\n  ‸\n}\n", True),
        ("javascript", "function f(a) {\n‸\n}\n", True),
        ("javascript", "  if (a) {\n  ‸\n  }\n", True),
        ("javascript", "if (a) { // so\n  ‸\n}\n", True),
        ("javascript", "switch (a) {\n  case 1:\n    ‸\n}\n", True),
        ("javascript", "function f(a) {\n  ‸\n  return a;\n}\n", False),
        ("javascript", "// see {\n‸\n", False),
        ("javascript", "/* {\n  ‸\n*/\n", False),
        ("typescript", "interface A {\n  ‸\n}\n", True),
        ("go", "func f(a int) int {\n\t‸\n}\n", True),
        ("sql", "begin {\n  ‸\n}\n", False),  # no grammar
        (None, "def f(a):\n    ‸\n", False),
    ],
)
def test_block_has_to_begin_where_one_was_opened_that_is_not_there(
    language, marked, is_block
) -> None:
    text, offset = marked.replace("‸", ""), marked.index("‸")
    assert has_to_begin_block(text, offset, language) == is_block
    got = asked(text, offset, Settings().completion_params(), language=language)
    assert (got.wanted == "block") == is_block
    assert got.stop == ("\n\n\n",) or not is_block


@pytest.mark.parametrize(
    ("language", "marked", "wanted"),
    [
        ("python", "f(‸)\n", "line"),
        (None, "f(‸)\n", "line"),
        ("python", "x = f(a,‸\ny = 2\n", "line"),
        ("python", "x = f(a)‸\n", ""),
        ("python", "def f(a,‸\n", ""),
        ("python", "x = 1\n‸\n", ""),
        ("python", "def f(a):\n    ‸\n", "block"),
    ],
)
def test_what_is_wanted_is_said_where_the_place_tells(language, marked, wanted) -> None:
    params = Settings().completion_params()
    assert params.wanted == ""
    got = asked(marked.replace("‸", ""), marked.index("‸"), params, language=language)
    assert got.wanted == wanted
    assert (got.stop == ("\n",)) == (wanted == "line")


def test_what_is_offered_is_trimmed_for_the_place() -> None:
    def offer(raw: str, text: str, offset: int, stop_reason: str) -> tuple[str, str | None]:
        completion = Completion(raw, (), 0, 0, 0.0, 0.0, 1, stop_reason, ())
        return offered(completion, text, offset, "python")

    assert offer("x)", "print()\r\n", 6, "stop") == ("x", None)
    text, reason = offer("import json", "import os\n", 0, "stop")
    assert text == "" and "another line" in (reason or "")
    text, reason = offer("", "import os\n", 0, "low_confidence")
    assert text == "" and "gave up" in (reason or "")
    assert offer("x", "print()\r\n", 6, "low_confidence") == ("x", None)  # the gate let it through


_TAGS = "const A = ({ a }) => {\n  return (\n    <>\n      <A.B c={a}>\n        "


@pytest.mark.parametrize(
    ("marked", "raw", "expected"),
    [
        (f"{_TAGS}</‸", "A>", "A.B>"),
        (f"{_TAGS}</‸", "A.B>\n    </>", "A.B>\n    </>"),
        (f"{_TAGS}</‸", "", "A.B>"),
        (f"{_TAGS}</A‸\n\nconst b = 1;\n", "rticle>", ".B>"),
        (f"{_TAGS}</‸>", "p>", "A.B"),
        (f"{_TAGS}<br /></‸\n    </>\n  );\n", "div>", "A.B>"),
        (f"{_TAGS}{{a.map((b) => <p>{{b}}</‸", "A.B>", "p>"),
        (f"{_TAGS}</A.B>\n    </‸", "div>", ""),  # `>` is one key
        (f"{_TAGS}{{a </‸", "A.B>", None),
        ('const a = "</‸', "p>", None),
        (f"{_TAGS}</\n‸", "A>", None),
        (f"{_TAGS}</‸A.B>", "p>", None),
    ],
)
def test_an_end_tag_is_that_of_the_element(marked, raw, expected) -> None:
    text, offset = marked.replace("‸", ""), marked.index("‸")
    answer = Completion(raw, (1,), 0, 0, 0.0, 0.0, 1, "doubt", (1.0,))
    kept = offered(answer, text, offset, "typescriptreact", invoked=False)
    if expected is None:
        assert kept == trim(raw, text, offset, offset, "doubt", "typescriptreact")
    else:
        assert kept.text == expected


def test_candidates_that_parse_come_first_and_none_twice() -> None:
    text = "def f(a):\n    x = g(a\n"
    others = (", b", ",b)", ", b )  # so", "", " * 2)")
    completion = Completion(")", (), 0, 0, 0.0, 0.0, 1, "end", (), others, ("end",) * len(others))
    found = others_offered(completion, text, len(text) - 1, "python", ")")
    assert found == (",b)", " * 2)", ", b")
    assert others_offered(completion, text, len(text) - 1, None, ", b") == (
        *(",b)", ", b )  # so", " * 2)"),
    )


@pytest.mark.parametrize(
    "marked, kind", [("‸\nx = 1\n", "line"), ("x = ‸\n", "rest"), ("x = (‸)\n", "gap")]
)
def test_confidence_sets_what_is_asked_of_all_and_of_the_first_word(marked, kind):
    text, offset = marked.replace("‸", ""), marked.index("‸")
    asked_of = []
    for confidence in ("any", "eager", "balanced", "reserved"):
        got = asked(text, offset, Settings().completion_params(), confidence)
        assert got.place == kind
        asked_of.append((got.min_probability, got.min_first_word))
    assert asked_of[0] == (0, 0) and asked_of == sorted(asked_of)
    assert all(whole < first_word for whole, first_word in asked_of[1:])
