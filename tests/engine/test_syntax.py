"""What the grammar says of a place: `‸` marks it."""

import pytest

from keyturn.engine.syntax.languages import has_grammar, language_of
from keyturn.engine.syntax.surroundings import look, num_errors


def at(marked: str, language: str, line_end: str = "\n"):
    before, after = (part.replace("\n", line_end) for part in marked.split("‸"))
    found = look(before + after, len(before), len(before), language)
    assert found is not None
    return found


# Languages


@pytest.mark.parametrize(
    ("language_id", "path", "language"),
    [
        ("python", "a.js", "python"),
        ("Python", "", "python"),
        ("", "a.py", "python"),
        ("", "/x/y.PYI", "python"),
        ("", "file:///x/a.mjs", "javascript"),
        ("", "a.jsx", "javascriptreact"),
        ("", "a.d.ts", "typescript"),
        ("", "a.tsx", "typescriptreact"),
        ("typescript.tsx", "a", "typescriptreact"),
        ("sh", "a", "shellscript"),
        ("", "a.yml", "yaml"),
        ("", "a.sql", "sql"),
        ("", "Makefile", "plaintext"),
        ("", "a.unknown", "plaintext"),
        ("", "", "plaintext"),
        ("cobol", "a.py", "cobol"),
    ],
)
def test_the_clients_word_decides_and_else_the_name(language_id, path, language) -> None:
    assert language_of(language_id, path) == language


def test_a_language_without_a_grammar_tells_nothing() -> None:
    assert not has_grammar("sql")
    assert look("select", 0, 0, "sql") is None
    assert look("select", 0, 0, None) is None
    assert num_errors("select", "sql") is None


@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [
        ("python", "x = 1\n", "x = = 1\n"),
        ("javascript", "const a = <b>c</b>;\n", "const = ;\n"),
        ("javascriptreact", "const a = <b>c</b>;\n", "const a = <b>;\n"),
        ("typescript", "let a: b<c> = <d>e;\n", "let a: = 1;\n"),
        ("typescriptreact", "let a: b = <c>d</c>;\n", "let a = <c>;\n"),
        ("go", "package a\n\nfunc f(x int) error { return nil }\n", "package a\n\nfunc f( {\n"),
        ("rust", "fn f<'a>(x: &'a str) -> u8 { 1 }\n", "fn f(x: -> u8 {\n"),
        ("c", "int f(int *a) { return a[0]; }\n", "int f(int * { return }\n"),
        ("cpp", "template <class T> T f(T a) { return [=] { return a; }(); }\n", "T f(T { }\n"),
        ("java", "class A<T> { T f(T a) { return a; } }\n", "class A { T f(T { } }\n"),
    ],
)
def test_errors_are_counted_in_every_language(language, right, wrong) -> None:
    assert num_errors(right, language) == 0
    assert num_errors(right.replace("\n", "\r\n"), language) == 0
    assert (num_errors(wrong, language) or 0) > 0


# What may be written


@pytest.mark.parametrize(
    ("language", "marked", "new", "is_right"),
    [
        ("python", "x = ‸\n", "1", True),
        ("python", "x = ‸\n", ")", False),
        ("python", "x = 1\n‸\n", "else:\n    y", False),
        ("python", "def f():\n    ‸\n    return 1\n", "x = 1", True),
        ("python", "def f():\n    ‸\n    return 1\n", "  x = 1", False),
        ("python", "def f():\n    return 1\n‸\n", "def g():", False),  # Python's own parser
        ("python", "x = 1\n‸\n", "print 'a'", False),
        ("python", "for x in ‸:\n    pass\n", "y", True),
        ("python", "for x in ‸:\n    pass\n", "y:\n    a", False),
        ("python", "a b\nx = ‸\n", "1", True),  # broken elsewhere
        ("python", "a b\nx = ‸\n", "(", False),
        ("python", "x = '‸'\n", "it\\'s", True),
        ("python", "x = '‸'\n", "it's", False),
        ("javascript", "f(‸);\n", "a => b", True),
        ("javascript", "f(‸);\n", "a => {", False),
        ("javascript", "if (a) {\n  ‸\n}\n", "} else {\n  b();", True),
        ("javascript", "if (a) {\n  ‸\n}\n", "}", False),
        ("typescript", "let a: ‸ = 1;\n", "number", True),
        ("typescript", "let a: ‸ = 1;\n", "= 2", False),
        ("typescriptreact", "const a = <b c={‸} />;\n", "d", True),
        ("typescriptreact", "const a = <b c={‸} />;\n", "<d>", False),
        ("go", "package a\n\nfunc f() {\n\t‸\n}\n", "if err != nil {\n\t\treturn\n\t}", True),
        ("go", "package a\n\nfunc f() {\n\t‸\n}\n", "if err != nil {", False),
        ("rust", "fn f() {\n    let x = ‸;\n}\n", "vec![1, 2]", True),
        ("rust", "fn f() {\n    let x = ‸;\n}\n", "vec![1", False),
        ("c", "int f(void) {\n    ‸\n}\n", "return g(1);", True),
        ("c", "int f(void) {\n    ‸\n}\n", "}", False),
        ("cpp", "auto x = ‸;\n", "std::move(y)", True),
        ("cpp", "auto x = ‸;\n", "std::move(y", False),
        ("java", "class A {\n    ‸\n}\n", "int f() { return 1; }", True),
        ("java", "class A {\n    ‸\n}\n", "int f() {", False),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_what_parsed_still_does(language, marked, new, is_right, line_end) -> None:
    assert at(marked, language, line_end).accepts(new) == is_right


def test_a_block_may_be_opened_where_the_text_does_not_parse_as_it_is() -> None:
    assert at("def f(a‸", "python").accepts("):", may_open=True)
    assert not at("while ‸:\n    y\n", "python").accepts("x)", may_open=True)
    assert at("function f(a‸", "javascript").accepts(") {", may_open=True)
    assert not at("x = 1\n‸\n", "python").accepts("if x:", may_open=True)


_SCRIPT = "function f(a) {\n  for (const b of a) {\n    "
_BELOW = "\n\nfunction g() {\n  return 1;\n}\n"
_TAGS = "const A = ({ a }) => {\n  return (\n    <>\n      <div b={a}>\n        "
_JAVA = "class A {\n    void f() {\n        "


@pytest.mark.parametrize(
    ("language", "marked", "right", "wrong"),
    [
        ("javascript", f"{_SCRIPT}s += b * ‸", "100;", "100);"),
        ("javascript", f"{_SCRIPT}s += b * ‸", "c +", "c + )"),
        ("javascript", f"{_SCRIPT}s += b * ‸{_BELOW}", "100;", "100);"),
        ("javascript", f"{_SCRIPT}if (‸", "b.c(d)) {", "b.c(d {"),
        ("javascript", f"{_SCRIPT}g(b, ‸", "c); // it's", "c)); // it's"),
        ("javascript", f"{_SCRIPT}g(b, ‸{_BELOW}", "c => {", "c => }"),
        ("javascript", f"{_SCRIPT}const c = `it's ${{b}} ‸", "(`;", "(`);"),
        ("javascript", f"{_SCRIPT}try {{\n  a();\n}} ‸", "catch (error) {", "catch error) {"),
        ("javascript", "a(‸", "(b) =>", "(b) => )"),
        ("typescript", "class A {\n  b(c: ‸", "number): string {", "number)): string {"),
        ("typescriptreact", "const a = () => {\n  return ‸", "<b>c</b>;", "<b>c</b>);"),
        ("typescript", f"{_SCRIPT}const c: D<E> = new ‸", "Map<", "Map<)"),
        ("javascript", f"{_SCRIPT}return ‸", "(", "()"),
        ("javascript", f"{_SCRIPT}return b ‸", "? (", "? )"),
        ("javascript", f"{_TAGS}‸", "<Foo", "<Foo)"),
        ("javascript", f"{_TAGS}‸", "<Foo a={b}", "<Foo a={b)}"),
        ("javascript", f"{_TAGS}‸", "<Foo a={b}>", "<Foo a={b})>"),
        ("javascript", f"{_TAGS}‸", "<p>it's {a}</p>", "<p>it's {a)}</p>"),
        ("javascript", f"{_TAGS}‸{_BELOW}", "<p>{a}</p>", "<p>{a))</p>"),
        ("javascript", f"{_TAGS}‸", "</div>", "</div>)}"),
        ("typescriptreact", f"{_TAGS}{{a < 3 && ‸", "<p>{a}</p>}", "<p>{a}</p>)}"),
        ("typescriptreact", f"{_TAGS}{{a ‸", "&& (", "&& )"),
        ("typescriptreact", f"{_TAGS}{{a.map((b) => ‸", "<p key={b}>{b}</p>)}", "<p>{b}</p>]"),
        ("javascript", f"{_SCRIPT}const c = ‸", "b ? a : 1", "b ? a"),
        ("javascript", f"{_TAGS}</‸", "div>", "p>"),
        ("javascript", f"{_TAGS}</d‸{_BELOW}", "iv>", "d>"),
        ("javascript", f"{_TAGS}‸", "</div>\n    </>", "</div>\n    </div>"),
        ("javascript", f"{_TAGS}‸", "<A.B c={a}>a</A.B>", "<A.B c={a}>a</A>"),
        ("typescriptreact", f"{_TAGS}<p>\n        </div>\n      ‸", "</>", "</>{)}"),
        ("typescriptreact", f"{_TAGS}‸", "{a && b ? (", "{a && b ? )"),
        ("typescriptreact", f"{_TAGS}‸", "<b>\n          it's {a}", "<b>\n          it's }"),
        (
            "typescriptreact",
            f"{_TAGS}{{a.map((b) => (\n‸\n<p>a</p></div></>);\n}};\n",
            "<i/>",
            "</i>",
        ),
        ("javascript", f"{_TAGS}<p b={{[‸}}>\n</p></div></>);\n}};\nif (a) {{\n", "1]", "1)"),
        ("typescriptreact", f"{_TAGS}<p b‸\n<i>a</i>\n</div></>);\n}};\n", "c={a}>", "c)"),
        ("typescriptreact", f"{_TAGS}<Foo\n        ‸", "a={() => {", "a={() => ]"),
        ("typescriptreact", f"{_TAGS}<Foo b={{c}}\n        ‸", "a={b}", "a={b)"),
        ("go", "package a\n\nfunc f() {\n\tif err ‸", "!= nil {", "!= nil) {"),
        ("go", "package a\n\nfunc f() {\n\tg(‸", "a, b)", "a, b))"),
        ("rust", "fn f() {\n    if let Some(‸", "x) = y {", "x = y {"),
        ("rust", "fn f() {\n    let x = ‸", "g(1);", "g(1));"),
        ("c", "int f(void) {\n    int a[‸", "3];", "3);"),
        ("c", "int f(int a) {\n    if ‸", "(a > 1)", "(a > 1))"),
        ("cpp", "int f() {\n  auto x = ‸", "std::move(y); // it's", "std::move(y; // it's"),
        ("java", f"{_JAVA}g(‸", "1, 2);", "1, 2));"),
        ("java", f"{_JAVA}Object a ‸", "=", "= )"),
        ("python", "print(f(a, ‸", "b))", "b)))"),
        ("python", "print(f(a, ‸\n\n\ndef g():\n    return 1\n", "b))", "b)))"),
        ("python", "x = [\n    1,\n    ‸", "2,", "2)"),
        ("python", "x = {\n    1: ‸", "f(", "f)"),
        ("python", "x = [\n    1,\n    ‸\n", "2,  # two", "2),  # two"),
        ("python", "f(\n    a,\n    ‸\n\n\ndef g():\n    return 1\n", "b,  # two", "b],  # two"),
        ("python", "f(a, ‸", "b,  # two (", "b))  # two"),
        ("python", "f(a, ‸", "b)  # two", "b}  # two"),
        (
            "go",
            "package a\n\nfunc f() {\n\tg(b, ‸\n\nfunc h() {\n\treturn\n}\n",
            "c) // it",
            "c)) // it",
        ),
        (
            "java",
            f"{_JAVA}g(b, ‸\n\n    void h() {{\n        x();\n    }}\n}}\n",
            "c); // it",
            "c)); // it",
        ),
        ("javascript", f"{_SCRIPT}‸", "if (b) { // then", "if (b)) { // then"),
        ("javascript", f"{_SCRIPT}‸", "g(b, // first", "g(b)), // first"),
        ("java", "class A {\n    ‸\n", "/** Say it. */", "/** Say it. */ }}"),
        ("python", 'def f():\n    """Say ‸', "what it does.", '""" what'),
        ("python", 'def f():\n    """Say ‸\n\n\ndef g():\n    return 1\n', 'it."""', '""" it'),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_what_is_still_open_is_closed_before_it_is_judged(
    language, marked, right, wrong, line_end
) -> None:
    """As it is while somebody types whose editor closes no brackets."""
    place = at(marked, language, line_end)
    assert place.num_errors > 0
    assert place.accepts(right, may_open=True)
    assert not place.accepts(wrong, may_open=True)


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_characters_of_any_width_are_no_hindrance(language) -> None:
    place = at("x = '日本語 😀 \ud800' + ‸\ny = 'é'\n", language)
    assert place.accepts("'ü'")
    assert not place.accepts("'ü")


def test_python_that_this_python_does_not_read_is_judged_by_the_grammar() -> None:
    place = at("print 'a'\nx = ‸\n", "python")  # of the second kind
    assert place.num_errors > 0
    assert place.accepts("1")
    assert not place.accepts("(")


# A long text


def long_text(language: str) -> tuple[str, int]:
    """Return some 20,000 lines and where a statement in their middle ends with a call's bracket."""
    python = 'class A%d:\n    """Say\n\ntext."""\n\n    def f(self, x):\n        y = g(x)\n\n'
    script = "class A%d {\n  f(x) {\n    // it's\n    const y = `a\nb`;\n    g(x);\n  }\n}\n"
    part = python if language == "python" else script
    text = "".join(part % number for number in range(2500))
    return text, text.index("g(x)", len(text) // 2) + 3


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_long_text_is_judged_by_its_neighbourhood(language) -> None:
    text, offset = long_text(language)
    place = look(text, offset, offset, language)
    assert place is not None
    assert place.num_errors == 0
    assert place.accepts(", z")
    assert not place.accepts(")")
    broken = "x = = (\n" + text  # far away
    place = look(broken, offset + 8, offset + 8, language)
    assert place is not None and place.num_errors == 0


def test_a_part_of_a_long_class_is_read_inside_of_it() -> None:
    method = (
        "    def f{0}(self, x):\n        if x:\n            return g(x)\n        return {0}\n\n"
    )
    text = "class A:\n" + "".join(method.format(number) for number in range(2000))
    for start in range(len(text) // 2, len(text) // 2 + 3000, 100):  # wherever the cuts fall
        offset = text.index("g(x)", start) + 4
        place = look(text, offset, offset, "python")
        assert place is not None and place.num_errors == 0
    offset = text.index("g(x)", len(text) // 2) + 4
    place = look(text, offset, offset, "python")
    assert place is not None
    assert place.accepts(" + 1")
    assert not place.accepts("\n                return 2")


# Where the place is


@pytest.mark.parametrize(
    ("language", "marked", "kind"),
    [
        ("python", "x = '‸'\n", "string"),
        ("python", "x = ‸'a'\n", "code"),
        ("python", "x = 'a'‸\n", "code"),
        ("python", 'def f():\n    """Do ‸ it."""\n', "string"),
        ("python", "x = f'a {‸b}'\n", "code"),
        ("python", "x = f'a‸ {b}'\n", "string"),
        ("python", "x = 1  # a‸\n", "comment"),
        ("python", "# a ‸b\nx = 1\n", "comment"),
        ("python", "# a\n‸x = 1\n", "code"),
        ("javascript", "x = `a ‸ ${b}`;\n", "string"),
        ("javascript", "x = `a ${‸b}`;\n", "code"),
        ("javascript", "/* a ‸ */ b();\n", "comment"),
        ("javascript", "/* a */‸ b();\n", "code"),
        ("typescript", "f(); // ‸", "comment"),
        ("typescriptreact", '<a b="‸" />;\n', "string"),
        ("typescriptreact", "<a b={‸} />;\n", "code"),
        ("go", 'package a\n\nvar x = "‸"\n', "string"),
        ("go", "package a\n\n// a ‸\n", "comment"),
        ("rust", "// a ‸\nfn f() {}\n", "comment"),
        ("rust", 'fn f() { g("‸"); }\n', "string"),
        ("c", "/* ‸ */\nint x;\n", "comment"),
        ("c", 'char *x = "‸";\n', "string"),
        ("cpp", 'auto x = "‸";\n', "string"),
        ("java", "class A { /* ‸ */ }\n", "comment"),
        ("java", "class A { int ‸ x; }\n", "code"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_strings_and_comments_are_told_from_code(language, marked, kind, line_end) -> None:
    assert at(marked, language, line_end).kind == kind


def test_no_torch_is_needed() -> None:
    import subprocess
    import sys

    code = "import sys, keyturn.server.suggestion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("language", "marked", "one", "other", "is_same"),
    [
        ("python", "x = ‸\n", "g(a, b)", "g( a,b, )  # so", True),
        ("python", "x = ‸\n", "'a'", '"a"', True),
        ("python", "x = ‸\n", "'a b'", "'a  b'", False),
        ("python", "x = ‸\n", "(a,)", "(a)", False),
        ("python", "x = f‸(1)\n", "oo", "un", False),
        ("python", "if a:\n    ‸\n", "b()\n    c()", "b()\nc()", False),
        ("python", "if a:\n    ‸\n", "for b in c:\n      d()", "for b in c:\n\n        d()", True),
        ("javascript", "let x = ‸\n", 'g({a, b,}, "c");', "g({ a, b }, 'c')", True),
        ("c", "char a[] = ‸\n", '"a";', "'a';", False),
    ],
)
def test_what_is_the_same_but_for_what_syntax_does_not_see(
    language, marked, one, other, is_same
) -> None:
    at = marked.index("‸")
    place = look(marked.replace("‸", ""), at, at, language)
    assert (place.normalised(one) == place.normalised(other)) == is_same
