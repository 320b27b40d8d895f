"""The prompt in tokens: never more than the window, whatever the text; the name of short files."""

import random
import string
from pathlib import Path

import numpy as np
import pytest

from keyturn.engine.engine import Engine
from keyturn.engine.prompt import patched_cache
from keyturn.engine.prompt.growing_window import PromptEncoder
from keyturn.engine.wire.config import EngineConfig

WINDOW = 512
CODE = "".join(
    f"def name_{i}(first, second):\n    return first + second * {i}\n\n" for i in range(200)
)
RANDOM = random.Random(3)
DENSE = {
    "code": CODE,
    "chinese": "".join(f"# {'读取配置文件并返回字典' * 4}\nx{i} = {i}\n" for i in range(200)),
    "cyrillic": "# функция возвращает значение и читает файл\n" * 300,
    "emoji": "x = '" + "🎉👩‍👩‍👧‍👦" * 2000 + "'\n",
    "base64": "\n".join("".join(RANDOM.choices(string.ascii_letters, k=76)) for _ in range(200)),
    "one line": "".join(f"a{i}=[{i},{i}];" for i in range(2000)),
    "digits": "0123456789" * 2000,
    "code, then dense": CODE[:3000] + "# 这个函数\n" * 800,
    "blank lines": "\n" * 9000,
}


@pytest.fixture(scope="module")
def model():
    return Engine(EngineConfig("cpu", "float32", 1, 1 << 28, 0, 256)).load("embedded")


def encoder(model, layout="spm", path="a.py", window=WINDOW):
    return PromptEncoder(
        model.template, model.tokenizer, layout, window, model.chars_per_token, path
    )


def same(first, second):
    return first.tokens.keys() == second.tokens.keys() and all(
        np.array_equal(first.tokens[key], second.tokens[key]) for key in first.tokens
    )


@pytest.mark.parametrize("layout", ["spm", "psm"])
@pytest.mark.parametrize("kind", DENSE)
def test_prompt_fits_the_window_and_fills_it(model, kind, layout):
    text = DENSE[kind]
    for place in (0, len(text) // 3, 2 * len(text) // 3):
        prompt = encoder(model, layout).encode(text, place, place)
        assert prompt.num_tokens <= WINDOW
        # What does not fit is left out in steps, not by halves.
        assert prompt.num_tokens > WINDOW / 3, place
        start, end = prompt.layout.window
        assert start <= place <= end


def test_code_is_shown_as_far_as_characters_say(model):
    text = Path(patched_cache.__file__).read_text(encoding="utf-8")
    prompt = encoder(model, window=2048).encode(text, 9000, 9000)
    start, end = prompt.layout.window
    assert end - start >= 2048 * model.chars_per_token * 0.7


@pytest.mark.parametrize("kind", ["chinese", "code", "base64"])
def test_window_depends_on_the_text_alone_and_moves_seldom_while_typing(model, kind):
    text, place = DENSE[kind], len(DENSE[kind]) // 2
    typing, num_moves, before = encoder(model), 0, None
    typed = "读取" * 40 if kind == "chinese" else "name = 1 " * 9
    for char in typed:
        text = text[:place] + char + text[place:]
        place += 1
        prompt = typing.encode(text, place, place)
        assert prompt.num_tokens <= WINDOW
        start, end = prompt.layout.window
        edges = (start, len(text) - end)
        num_moves += before is not None and edges != before
        before = edges
    assert num_moves <= len(typed) // 8
    fresh = encoder(model).encode(text, place, place)
    assert same(typing.encode(text, place, place), fresh)


def test_file_is_named_while_it_is_short(model):
    made = encoder(model, path="some/folder/short.py")
    line = "x = 1\n"

    def header(num_lines):
        text = line * (num_lines - 1)
        prompt = made.encode(text, len(text), len(text))
        ids = np.concatenate(list(prompt.tokens.values()))
        assert made.says_header == (5 in ids)
        return "short.py\n" in model.tokenizer.raw.decode(ids.tolist())

    assert [header(count) for count in (1, 19, 25, 29, 30, 25, 19)] == [
        *(True, True, True, True),
        *(False, False, True),
    ]


@pytest.mark.parametrize("path", ["", "a\nb.py", "x" * 500 + ".py", "\x00.py", "é🎉.ts", "\ud800"])
def test_odd_names_make_one_header_or_none(model, path):
    prompt = encoder(model, path=path).encode("import ", 7, 7)
    assert prompt.num_tokens < 150
    ids = np.concatenate(list(prompt.tokens.values()))
    assert (ids == 5).sum() == (ids == 6).sum() <= 1
