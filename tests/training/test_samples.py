"""Samples reassemble their windows, their classes fit their tokens, a seed gives them again."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.data import layouts
from training.data.cross_file import Neighbours
from training.data.documents import LANGUAGES, Document, language_of
from training.data.samples import Builder
from training.data.small_programs import small_programs
from training.data.spans import KINDS, SHORT
from training.data.syntax import Source

PRE, SUF, MID, END = 8, 9, 10, 0
MARKS = {PRE, SUF, MID}


@pytest.fixture(scope="module")
def raw(tokenizer_path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


def parts_of(sample):
    """Return head, prefix, typed, middle and suffix of a sample's tokens, by its marks."""
    tokens = sample.tokens[:-1]
    head, rest = tokens[: tokens.index(PRE)], tokens[tokens.index(PRE) + 1 :]
    before, after = rest[: rest.index(MID)], rest[rest.index(MID) + 1 :]
    num_middle = sum(c in layouts.MIDDLE_CLASSES for c in sample.classes) - 1
    typed, middle = after[: len(after) - num_middle], after[len(after) - num_middle :]
    cut = before.index(SUF)
    prefix, suffix = before[:cut], before[cut + 1 :]
    return (head, typed, [], middle, suffix) if sample.layout == layouts.SPM else (
        head, prefix, typed, middle, suffix
    )  # fmt: skip


@given(number=st.integers(0, 60), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_sample_reassembles_its_window(builder, raw, number, seed):
    document = builder.documents[number % len(builder.documents)]
    source = Source(document.text, language_of(document.path))
    rng = random.Random(seed)
    a = rng.choice(source.starts[: max(1, len(source.starts) // 2)])
    b = min(len(document.text), a + rng.randrange(100, 1500))
    sample = builder.fim(rng, source, a, b, SHORT, path=document.path if seed % 2 else "")
    if sample is None:
        return
    head, prefix, typed, middle, suffix = parts_of(sample)
    text = raw.decode(prefix + typed + middle + suffix, skip_special_tokens=False)
    assert document.text[a:b].startswith(text)  # the suffix is left out in some
    assert text == document.text[a:b] or not suffix
    decoded = raw.decode(head, skip_special_tokens=False)
    assert decoded == (f"<file_sep><filename>{document.path}\n" if seed % 2 else "")


def check_classes(sample):
    tokens, classes = sample.tokens, sample.classes
    assert len(tokens) == len(classes) <= layouts.MAX_TOKENS and tokens[-1] == END
    assert sample.kind in range(len(KINDS))
    if sample.layout == layouts.PLAIN:
        assert set(classes) <= {layouts.OTHER, layouts.NONE} and sample.kind == 0
        return
    assert [t for t in tokens if t in MARKS] == ([PRE, SUF, MID])  # the same in all layouts
    assert all(c == layouts.NONE for t, c in zip(tokens, classes, strict=True) if t in MARKS)
    first = classes.index(layouts.FIRST)
    middle = classes[first:]
    assert middle[-1] == layouts.LAST and set(middle) <= set(layouts.MIDDLE_CLASSES)
    assert middle.count(layouts.FIRST) == middle.count(layouts.LAST) == 1
    assert not set(classes[:first]) & set(layouts.MIDDLE_CLASSES)
    seen = [c for t, c in zip(tokens, classes, strict=True) if c == layouts.SEES_SUFFIX]
    assert layouts.SEES_SUFFIX not in classes[: tokens.index(MID)]
    assert len(seen) == first - tokens.index(MID) - 1


def test_classes_fit_tokens_in_every_layout(builder):
    found = set()
    for number in range(len(builder.documents)):
        for sample in builder.samples(random.Random(number), number, 2):
            if sample is not None:
                check_classes(sample)
                found.add(sample.layout)
    assert found == {layouts.PSM, layouts.SPM, layouts.EFIM, layouts.PLAIN}


def test_line_starts_are_marked_where_a_line_begins(builder, raw):
    for sample in builder.samples(random.Random(3), 0):
        if sample is None or sample.layout == layouts.PLAIN:
            continue
        for i, class_ in enumerate(sample.classes):
            if class_ == layouts.LINE_START:
                before, here = (raw.decode([t]) for t in sample.tokens[i - 1 : i + 1])
                assert before.endswith("\n") or here.startswith("\n")


def test_same_seed_gives_the_same_samples(builder, documents, tokenizer_path):
    again = Builder(documents, tokenizer_path)
    for number in range(len(documents)):
        first = list(builder.samples(random.Random("1.0.0"), number))
        assert first == list(again.samples(random.Random("1.0.0"), number))
        assert first != list(builder.samples(random.Random("2.0.0"), number)) or len(first) < 3


def test_natural_samples_have_no_plain_text(builder):
    for number in range(len(builder.documents)):
        for sample in builder.samples(random.Random(number), number, 1, natural=True):
            assert sample is None or sample.layout != layouts.PLAIN


def test_long_sample_is_cut_to_the_window(tokenizer_path):
    text = "".join(f"name_{i} = [{i}, {i * i}, 'ünï😀']\n" for i in range(600))
    builder = Builder([Document("p", "a.py", text)], tokenizer_path)
    source = Source(text, "py")
    for seed in range(20):
        sample = builder.fim(random.Random(seed), source, 0, len(text), SHORT, path="a.py")
        assert sample is None or len(sample.tokens) <= layouts.MAX_TOKENS


def test_small_programs_bring_their_imports():
    text = "import math\nimport requests\n\n\ndef f(x):\n"
    text += '    """Double."""\n    y = math.sqrt(x)\n    y += 1\n    return y\n\n\n'
    text += 'def g(x):\n    """Ask."""\n    y = requests.get(x)\n    y += 1\n    return y\n'
    (program,) = small_programs(text)
    assert program.startswith("import math\n\n\ndef f") and "requests" not in program
    assert small_programs("def f(:") == []


@pytest.mark.parametrize(
    ("path", "text", "other", "definition"),
    [
        ("a/a.go", "package a\n", "a/b.go", "func (s *Shop) Total() int {\n\treturn 1\n}\n"),
        ("a/a.rs", "use crate::goods::x;\n", "b/goods.rs", "pub(crate) fn Total() -> i32 {}\n"),
        ("a/A.java", "import b.Total;\n", "b/Total.java", "public final class Total {\n}\n"),
        ("a/a.c", '#include "b/goods.h"\n', "b/goods.h", "struct Total {\n    int sum;\n};\n"),
        ("a/a.cc", "#  include <goods.hpp>\n", "b/goods.hpp", "class Total {};\n"),
    ],
)
def test_context_in_compiled_languages_begins_at_the_definition(path, text, other, definition):
    filler = "".join(f"// Line {i} of that file.\n" for i in range(40))
    documents = [Document("p", path, text), Document("p", other, filler + definition)]
    documents += [Document("p", f"c/more_{i}.go", filler) for i in range(3)]
    found = Neighbours(documents).chunks(random.Random(0), 0, text, "Total()")
    assert found == [(other, definition)]


def test_languages_are_numbered_as_in_shards():
    assert LANGUAGES == ("py", "js", "ts", "tsx", "go", "rust", "java", "c", "cpp")
    paths = "a.py b.mjs c.d.ts d.tsx e.go f.rs g.java h.c i.hpp".split()
    assert [language_of(p) for p in paths] == list(LANGUAGES) and language_of("j.h") == "cpp"
