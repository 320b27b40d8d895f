"""A training sample's prompt is what the engine builds for the same text and cursor."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from keyturn.engine.engine import Engine
from keyturn.engine.prompt.growing_window import PromptEncoder
from keyturn.engine.wire.config import EngineConfig
from training.data import layouts
from training.data.documents import language_of
from training.data.samples import Builder, Shares
from training.data.spans import SHORT
from training.data.syntax import Source
from training.evaluation.human_eval import prompt

TEXT = st.text(st.sampled_from("ab_é😀 \n\t():=.1"), max_size=40)


@pytest.fixture(scope="module")
def engine(exported) -> Engine:
    return Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 0, 256))


@pytest.fixture(scope="module")
def raw(tokenizer_path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


def engine_prompt(engine, exported, before, typed, after, layout, wanted=""):
    """Return the engine's tokens after `typed` was typed at the cursor."""
    name = "spm" if layout == layouts.SPM else "psm"
    model = engine.load(str(exported))
    encoder = PromptEncoder(
        replace(model.template, wanted_ids=tuple(layouts.WANTED.items())),
        model.tokenizer,
        name,
        model.window_tokens,
        model.chars_per_token,
        path="",  # without a header
    )
    encoder.wanted = wanted
    cursor = len(before) + len(typed)
    anchor = len(before) if name == "psm" else cursor
    prompt = encoder.encode(before + typed + after, anchor, cursor)
    return np.concatenate(list(prompt.tokens.values())).tolist()


@given(TEXT, TEXT, TEXT, st.sampled_from([layouts.PSM, layouts.SPM, layouts.EFIM]))
@settings(max_examples=60, deadline=None)
def test_prompt_is_the_engines(engine, exported, raw, before, typed, after, layout):
    if layout != layouts.EFIM:
        before, typed = before + typed, ""

    def encode(text):
        return raw.encode(text, add_special_tokens=False).ids

    prefix, tail = (before + typed, "") if layout == layouts.SPM else (before, typed)
    parts = {"prefix": encode(prefix), "tail": encode(tail), "suffix": encode(after)}
    tokens, classes = layouts.arrange(layouts.segments(before, typed, after, layout), parts)
    assert tokens == engine_prompt(engine, exported, before, typed, after, layout)
    assert len(tokens) == len(classes)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_wanted_is_said_as_the_engine_says_it(
    engine, exported, raw, documents, tokenizer_path, seed
):
    builder = Builder(documents, tokenizer_path, Shares(wanted=1.0))
    source = Source(documents[seed].text, language_of(documents[seed].path))
    sample = None
    rng = random.Random(seed)
    while sample is None or sample.layout == layouts.EFIM:
        sample = builder.fim(rng, source, 0, min(len(source.text), 1500), SHORT)
    is_spm = sample.layout == layouts.SPM
    at = next(i for i, c in enumerate(sample.classes) if c == layouts.FIRST)
    wanted, middle = sample.tokens[at - 1], raw.decode(sample.tokens[at:-1])
    assert wanted == layouts.WANTED["block" if "\n" in middle else "line"]
    before, after = (sample.tokens[: at - 1].index(mark) for mark in (8, 9))  # PRE, SUF
    mid = sample.tokens.index(10)
    prefix = sample.tokens[mid + 1 : at - 1] if is_spm else sample.tokens[before + 1 : after]
    texts = raw.decode(prefix), raw.decode(sample.tokens[after + 1 : mid])
    name = "block" if "\n" in middle else "line"
    prompt = engine_prompt(engine, exported, texts[0], "", texts[1], sample.layout, name)
    assert prompt == sample.tokens[:at]


@given(TEXT, TEXT, st.sampled_from(["spm", "psm"]))
@settings(max_examples=30, deadline=None)
def test_evaluation_asks_as_the_engine_does(engine, exported, raw, before, after, layout):
    number = layouts.LAYOUTS.index(layout)
    wanted = engine_prompt(engine, exported, before, "", after, number)
    assert prompt(raw, before, after, layout) == wanted


def test_marks_are_those_of_the_tokenizer(raw):
    assert [raw.id_to_token(i) for i in (layouts.END, layouts.FILE_SEP, layouts.FILENAME)] == [
        "<|endoftext|>",
        "<file_sep>",
        "<filename>",
    ]
    template = layouts.template()
    assert {layouts.END, layouts.FILE_SEP, layouts.FILENAME} <= template.end_ids
    assert raw.get_vocab_size() == layouts.VOCABULARY
    assert template.window_tokens == layouts.MAX_TOKENS
