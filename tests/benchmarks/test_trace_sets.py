"""The evaluation sets, of small files made here; nothing is fetched."""

import ast
import importlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

from keyturn.engine.replay.trace import Complete, Cursor, Edit, Trace, parse_trace, read_trace
from keyturn.engine.syntax.languages import parser_of

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
sets, sources, elsewhere, cursor, hunks, fim_fetch, change, python, script, make_traces = map(
    importlib.import_module,
    (
        "traces.sets",
        "traces.sources",
        "traces.elsewhere",
        "traces.cursor",
        "traces.hunks",
        "quality.fim_fetch",
        "traces.dependent.change",
        "traces.dependent.python",
        "traces.dependent.script",
        "make_traces",
    ),
)
sys.path.remove(str(ROOT / "benchmarks"))

WORDS = "basket order price parcel street client ticket voucher season harvest".split()
PYTHON_HEAD = '''"""A shop — with more than ASCII in it."""
from shop.money import rounded_price
import shop.parcels as post

LARGEST_ORDER = 40


def {0}_total(lines, discount_rate, currency):
    return sum(lines) * discount_rate
'''
PYTHON_PART = '''

def {0}_with_{1}(first_{0}, second_{1}, wanted_count=12):
    """Put the {0} “first” and the {1} second."""
    {0}_lines = [first_{0}, second_{1}]
    for number in range(wanted_count):
        if number > LARGEST_ORDER:
            {0}_lines.append(post.empty_{1}(number))
    {1}_label = f"{{len({0}_lines)}} of {0}"
    {1}_price = rounded_price(basket_total({0}_lines, 3, "{1}"))
    if not {0}_lines and wanted_count:
        {0}_lines.extend(post.full_{1}(first_{0}))
    return {1}_label + str({1}_price) + str({0}_lines) + str(second_{1})
'''
SCRIPT_HEAD = """'use strict'
const {{ roundedPrice }} = require('./money.js')
const parcels = require('./parcels.js')

const largestOrder = 40

function basketTotal (lines, discountRate, currency) {{
  return sum(lines) * discountRate
}}
"""
SCRIPT_PART = """
/** Puts the {0} first — and the {1} second. */
function {0}With{2} (first{2}, second{2}, wantedCount = 12) {{
  const {0}Lines = [first{2}, second{2}]
  for (let number = 0; number < wantedCount; number++) {{
    if (number > largestOrder) {{
      {0}Lines.push(parcels.empty{2}(number), {{ wantedCount }})
    }}
  }}
  const {1}Label = `${{{0}Lines.length}} of {0} and`
  const {1}Price = roundedPrice(basketTotal({0}Lines, 3, '{1}'))
  if (!{0}Lines.length && wantedCount) {{
    {0}Lines.push(parcels.full{2}(first{2}, '{0}'))
  }}
  return {1}Label + String({1}Price) + String({0}Lines) + String(second{2})
}}
"""


def file_of(language: str) -> str:
    head, part = (PYTHON_HEAD, PYTHON_PART) if language == "py" else (SCRIPT_HEAD, SCRIPT_PART)
    pairs = zip(WORDS, [*WORDS[3:], *WORDS[:3]], strict=True)
    return head.format("basket") + "".join(part.format(a, b, b.capitalize()) for a, b in pairs)


def newer(text: str) -> str:
    """The same file a release later: insertions, deletions and replacements."""
    lines, num_labels = [], 0
    for number, line in enumerate(text.split("\n")):
        if "abel = " in line:
            num_labels += 1
            if num_labels % 2:
                continue
            line = line.replace(" of ", " from among ")
        lines.append(line)
        if line.startswith(("    for", "  for")):
            mark = "#" if line.startswith("    ") else "//"
            lines.append(f"    {mark} added {number}\n    {mark} and {number}")
    return "\n".join(lines)


def source_of(language: str):
    old = file_of(language)
    return sources.Source("shop", "1 to 2", f"shop/basket.{language}", language, old, newer(old))


def trace_of(case) -> Trace:
    return parse_trace("".join(json.dumps(record) + "\n" for record in case.records).encode())


def replayed(trace: Trace) -> tuple[str, list[tuple[str, int, str]]]:
    """The text in the end, and at each completion text, place and reference."""
    text, asked = trace.text, []
    for record in trace.records:
        if isinstance(record, Edit):
            for start, end, new in reversed(record.edits):
                text = text[:start] + new + text[end:]
        elif isinstance(record, Complete):
            assert record.reference and record.reference not in text
            asked.append((text, record.offset, record.reference))
    return text, asked


def whole(case) -> str:
    """The text in the end with the reference in it."""
    text, ((_, offset, reference),) = replayed(trace_of(case))
    return text[:offset] + reference + text[offset:]


def cases_of(kind: str, language: str):
    found = list(sets.finder(kind)(source_of(language), random.Random(1)))
    assert found, kind
    return found


@pytest.mark.parametrize("language", ["py", "js"])
@pytest.mark.parametrize("kind", elsewhere.KINDS)
def test_edits_elsewhere_are_those_of_the_next_release(kind, language) -> None:
    source = source_of(language)
    real, _ = hunks.changes(source.old, source.text)
    for case in cases_of(kind, language):
        made, _ = hunks.changes(source.old, whole(case))
        assert case.distance >= 200
        if kind == "move":
            assert sorted(whole(case)) == sorted(source.old)
            assert whole(case) != source.old
            continue
        assert all(hunk in real for hunk in made)
        assert {elsewhere.kind_of(hunk) for hunk in made} == {kind} or kind == "several"
        assert (2 <= len(made) <= 6) if kind == "several" else len(made) == 1
        _, ((text, offset, _),) = replayed(trace_of(case))
        assert text[offset - 1 : offset].isspace() and text[offset : offset + 1] == "\n"


@pytest.mark.parametrize("language", ["py", "js"])
@pytest.mark.parametrize("kind", ["rename-variable", "rename-parameter", "rename-function",
                                  "constant", "import"])  # fmt: skip
def test_what_is_renamed_is_renamed_everywhere(kind, language) -> None:
    source, count = source_of(language), 0
    for case in cases_of(kind, language):
        match = re.fullmatch(r"(\S+) (?:becomes|is imported as) (\S+)", case.detail)
        if match is None:  # a new value or a new source
            (made,) = hunks.changes(source.text, whole(case))[0]
            name = case.detail.split(" is ")[0]
            assert re.search(rf"\b{name}\b", case.reference.split("\n")[0])
            continue
        old, new = match.groups()
        count += 1
        assert not re.search(rf"\b{new}\b", source.text)
        line = case.reference.split("\n")[0].replace(f"{old}: ", "")
        assert re.search(rf"\b{new}\b", line)
        assert not re.search(rf"\b{old}\b", line.split(new)[0])
        back = re.sub(rf"\b{new}\b", old, whole(case))
        back = back.replace(f"{old}: {old}", old).replace(f"{old} as {old}", old)
        assert back == source.text
        is_valid(whole(case), language)
    assert count


def is_valid(text: str, language: str) -> None:
    if language == "py":
        ast.parse(text)
    else:
        assert not parser_of("javascript").parse(text.encode()).root_node.has_error


@pytest.mark.parametrize("language", ["py", "js"])
def test_a_changed_signature_leads_to_the_file_as_it_is(language) -> None:
    text, details = source_of(language).text, set()
    for case in cases_of("signature", language):
        assert whole(case) == text
        assert "otal(" in case.reference.split("\n")[0]
        details.add(case.detail.split()[1])
        opened = case.records[0]["open"]["text"]
        assert ("currency" in opened) == (case.detail.split()[1] == "loses")
    assert details == {"gains", "loses"}


@pytest.mark.parametrize("language", ["py", "js"])
@pytest.mark.parametrize("kind", cursor.LINES)
def test_the_cursor_goes_so_many_lines(kind, language) -> None:
    directions = set()
    for case in cases_of(kind, language):
        trace = trace_of(case)
        assert whole(case) == source_of(language).text
        first, last = trace.records[0], trace.records[-1]
        assert isinstance(first, Cursor) and isinstance(last, Complete)
        lines = trace.text.count("\n", 0, last.offset) - trace.text.count("\n", 0, first.offset)
        assert abs(lines) == cursor.LINES[kind]
        directions.add(lines > 0)
    assert len(directions) == 2


@pytest.mark.parametrize("language", ["py", "js"])
def test_a_bracket_is_closed_behind_the_cursor(language) -> None:
    for case in cases_of("bracket", language):
        assert whole(case) == source_of(language).text
        text, ((_, offset, _),) = replayed(trace_of(case))
        assert text[offset - 1 : offset + 1] in ("()", "[]", "{}", '""', "''", "``")


@pytest.mark.parametrize("language", ["py", "js"])
def test_typing_ends_in_the_file_and_starts_without_errors(language) -> None:
    for case in cases_of("typing", language):
        trace = trace_of(case)
        text, asked = replayed(trace)
        assert text == source_of(language).text
        assert asked and len(trace.text) < len(text)
        is_valid(trace.text, language)
        for number, record in enumerate(trace.records):
            if isinstance(record, Complete):
                typed = [r.edits[0] for r in trace.records[number + 1 :] if isinstance(r, Edit)]
                written = "".join(new for _, _, new in typed)
                assert typed[0][0] == record.offset
                assert record.reference and written.startswith(record.reference)


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    global total\n    total = 1\n    return total\n",
        "def f(total):\n    total = total + 1\n    return total\n",
        "def f():\n    from a import total\n    total = total or 1\n    return total\n",
        "def f():\n    total = 1\n    return lambda total: total\n",
        "def f():\n    total = 1\n    class A:\n        total = total\n    return total\n",
        "def f():\n    total = 1\n    try:\n        g(total)\n    except E as total: g()\n",
    ],
)
def test_a_name_that_means_two_things_is_no_local_variable(text) -> None:
    names = change.Names(file_of("py"), random.Random(0))
    assert not list(python.changes("rename-variable", text, names, "py"))


@pytest.mark.parametrize(
    "text",
    [
        "const total = 1\nfunction f () { const total = 2; return total }\n"
        .replace("const total = 2", "g(total); const total = 2"),
        "function f (total) { let total = 1; return total }\n",
        "function f () { let total = 1; return (total) => total }\n",
        "function f () { const { total } = g(); let total = 1; return total }\n",
    ],
)  # fmt: skip
def test_a_name_that_means_two_things_is_no_local_variable_of_a_script(text) -> None:
    names = change.Names(file_of("js"), random.Random(0))
    assert not list(script.changes("rename-variable", text, names, "js"))


def test_keywords_of_calls_are_renamed_with_the_parameter() -> None:
    text = "def price(amount):\n    return amount\n\n\nprice(amount=1)\nother(amount=2)\n"
    names = change.Names(file_of("py"), random.Random(0))
    (found,) = python.changes("rename-parameter", text, names, "py")
    new = found.hunks[0].text
    assert hunks.applied(text, found.hunks) == text.replace("amount", new).replace(
        f"other({new}", "other(amount"
    )


def test_new_names_are_in_the_style_of_the_old() -> None:
    names = change.Names(file_of("py"), random.Random(0))
    for old, style in (
        ("_some_name", r"_[a-z]+_[a-z]+"),
        ("LARGEST", r"[A-Z]+_[A-Z]+"),
        ("SomeClass", r"([A-Z][a-z]+){2}"),
        ("someName", r"[a-z]+[A-Z][a-z]+"),
    ):
        new = names.instead_of(old)
        assert new and re.fullmatch(style, new) and new not in file_of("py")
    assert change.Names("a b c", random.Random(0)).instead_of("name") is None


@pytest.fixture
def packages(monkeypatch):
    """Two releases of two packages, in no registry."""
    chains = {"attrs": "1.0 2.0", "koa": "1.0.0 2.0.0"}
    monkeypatch.setattr(sources, "CHAINS", chains)
    monkeypatch.setattr(sets, "CHAINS", chains)
    monkeypatch.setattr(fim_fetch, "fetched", lambda requirement, cache: requirement)

    def members(requirement: str):
        language = "py" if "==" in requirement else "js"
        text = file_of(language)
        text = newer(text) if requirement[-3:] == "2.0" or "2.0.0" in requirement else text
        yield f"lib/basket.{language}", text.encode()
        yield f"lib/other.{language}", text.replace("basket", "trolley").encode()
        if language == "py":
            yield "attrs.dist-info/METADATA", b"Name: attrs\nLicense-Expression: MIT\n\nText"
        else:
            yield "package.json", b'{"license": "ISC"}'

    monkeypatch.setattr(fim_fetch, "members", members)
    sources.files.cache_clear()
    yield
    sources.files.cache_clear()


def test_sets_are_written_with_an_index_and_the_same_again(
    packages, tmp_path, monkeypatch, capsys
) -> None:
    for name in ("a", "b"):
        monkeypatch.setattr(
            sys, "argv", ["make_traces.py", "--sets", str(tmp_path / name), "--per-kind", "4"]
        )
        make_traces.main()
    assert "koa 1.0.0 to 2.0.0, ISC" in capsys.readouterr().out
    index = json.loads((tmp_path / "a/index.json").read_text())
    assert index == json.loads((tmp_path / "b/index.json").read_text())
    assert {name: fields["licences"] for name, fields in index["packages"].items()} == {
        "attrs": {"1.0": "MIT", "2.0": "MIT"},
        "koa": {"1.0.0": "ISC", "2.0.0": "ISC"},
    }
    assert {row["kind"] for row in index["traces"]} == set(sets.KINDS)
    for row in index["traces"]:
        trace = read_trace(tmp_path / "a" / row["file"])
        assert (tmp_path / "b" / row["file"]).read_bytes() == (
            tmp_path / "a" / row["file"]
        ).read_bytes()
        asked = [record for record in trace.records if isinstance(record, Complete)]
        assert row["num_completions"] == len(asked) >= 1
        if row["kind"] not in ("typing", "bracket"):
            assert row["num_edits"] == sum(
                len(record.edits) for record in trace.records if isinstance(record, Edit)
            )
        assert row["file"].startswith(f"{row['kind']}/00")


def test_one_kind_made_again_leaves_the_others(packages, tmp_path) -> None:
    sets.write_sets(tmp_path, 2, 0, tmp_path, ["insert", "bracket"])
    sets.write_sets(tmp_path, 1, 0, tmp_path, ["insert"])
    index = json.loads((tmp_path / "index.json").read_text())
    assert [row["kind"] for row in index["traces"]] == ["bracket", "bracket", "insert"]
    assert len(list((tmp_path / "insert").iterdir())) == 1


def test_a_cached_package_is_found_by_its_exact_version(tmp_path) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in ("Jinja2-3.1.6-py3-none-any.whl", "jinja2-3.1-py3-none-any.whl", "koa-3.3.0.tgz"):
        (folder / name).touch()
    found = [fim_fetch.fetched(r, tmp_path).name for r in ("jinja2==3.1", "jinja2==3.1.6")]
    assert found == ["jinja2-3.1-py3-none-any.whl", "Jinja2-3.1.6-py3-none-any.whl"]
    assert fim_fetch.fetched("koa@3.3.0", tmp_path).name == "koa-3.3.0.tgz"
