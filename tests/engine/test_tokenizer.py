"""Incremental re-encoding always equals encoding afresh."""

import json
import sysconfig
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import (
    Tokenizer as RawTokenizer,
)

from keyturn.engine.files.catalog import EMBEDDED_FILE
from keyturn.engine.tokens.pre_tokenizers import named
from keyturn.engine.tokens.tokenizer import Stretch, Tokenizer

STDLIB = Path(sysconfig.get_paths()["stdlib"])
SOURCE = (STDLIB / "textwrap.py").read_text(encoding="utf-8")
SPECIALS = ["<|endoftext|>", "<fim_prefix>"]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def split(regex):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


KINDS = {
    "digits-gpt2": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
        None,
    ),
    "gpt2": (GPT2, None),
    "llama3": (split(LLAMA3), None),
    "qwen2-nfc": (split(QWEN2), normalizers.NFC()),
    "deepseek": (named("deepseek-coder"), normalizers.Sequence([])),
    "seed-coder": (named("seed-coder"), None),
    "prefix-space": (pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), None),
    "unknown-regex": (split(r"\w+|\W+(?=x)|\W"), None),
    "whole": (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), None),
    "metaspace": (pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None),
    "llama2": (
        None,
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
}
LOCAL = {"digits-gpt2", "gpt2", "llama3", "qwen2-nfc", "deepseek", "seed-coder", "prefix-space"}
PIECES = {"metaspace", "llama2"}  # a SentencePiece alphabet, the others spell bytes


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    pre_tokenizer, normalizer = KINDS[kind]
    raw = RawTokenizer(models.BPE(byte_fallback=kind in PIECES, unk_token=None))
    if pre_tokenizer is not None:
        raw.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.decoder = decoders.Metaspace() if kind in PIECES else decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=SPECIALS + [f"<0x{byte:02X}>" for byte in range(256 * (kind in PIECES))],
        initial_alphabet=[] if kind in PIECES else pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    raw.train_from_iterator(SOURCE.splitlines(keepends=True), trainer)
    if kind in PIECES:  # the trainer only takes byte tokens as special ones
        description = json.loads(raw.to_str())
        added = description["added_tokens"]
        description["added_tokens"] = [at for at in added if at["content"] in SPECIALS]
        raw = RawTokenizer.from_str(json.dumps(description))
    else:  # as many models have it: it trims spaces off the offsets
        raw.post_processor = processors.ByteLevel(trim_offsets=True)
    raw.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return Tokenizer(raw, eos_id=0)


pieces = st.one_of(
    st.sampled_from(
        ["\r\n", "\r", "\n", "\x0c", "\u2028", "\t", "    ", " ", "\ud800", "é", "e\u0301", "😀"]
        + ["<|endoftext|>", "<tool>", "<to", "ol>", "'ll", "'l", "l", "it's", "1234", "12", "7"]
        + ["def f(x):\n    return x\n", "# ---", "))", "x" * 300, "日本語", "\u00a0", "_"]
    ),
    st.text(max_size=6),
)
texts = st.lists(pieces, max_size=30).map("".join)


def assert_fresh(stretch, tokenizer):
    fresh = tokenizer.encode(stretch.text)
    assert stretch.token_ids.tolist() == fresh.token_ids.tolist()
    assert stretch.starts.tolist() == fresh.starts.tolist()
    assert stretch.is_word_start.tolist() == fresh.is_word_start.tolist()


@settings(max_examples=100, deadline=None)
@given(text=texts, edits=st.lists(st.tuples(st.integers(0), st.integers(0), texts), max_size=6))
@example(text="a  b", edits=[(2, 0, " "), (0, 1, "")])
@example(text="it'", edits=[(3, 0, "l"), (4, 0, "l")])
@example(text="x = 1\n\n\n\ny", edits=[(9, 0, "  ")])
@example(text="<to ol>", edits=[(3, 1, "")])
def test_update_equals_encoding_afresh_for_random_edits(tokenizer, text, edits):
    stretch = Stretch(tokenizer, text)
    for start, length, inserted in edits:
        start %= len(text) + 1
        text = text[:start] + inserted + text[start + length % 20 :]
        stretch.update(text)
        assert stretch.text == text
        assert_fresh(stretch, tokenizer)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_update_equals_encoding_afresh_in_real_source(tokenizer, data):
    start = data.draw(st.integers(0, len(SOURCE) - 3000))
    text = SOURCE[start : start + 3000]
    stretch = Stretch(tokenizer, text)
    for _ in range(5):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 40)))
        text = text[:at] + data.draw(pieces) + text[end:]
        stretch.update(text)
        assert_fresh(stretch, tokenizer)


def test_edit_in_a_long_stretch_encodes_only_a_piece_of_it(tokenizer, kind, monkeypatch):
    stretch = Stretch(tokenizer, SOURCE)
    encoded = []
    encode = tokenizer.encode

    def spy(text):
        encoded.append(len(text))
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", spy)
    for at in range(1000, len(SOURCE) - 1000, 997):
        stretch.update(SOURCE[:at] + "name = 1" + SOURCE[at:])
        stretch.update(SOURCE)
    if kind in LOCAL:
        assert max(encoded) < 500
    else:
        assert min(encoded) >= len(SOURCE)  # not known to be local: the whole stretch
    monkeypatch.undo()
    assert_fresh(stretch, tokenizer)


def test_edit_in_a_very_long_line_and_word(tokenizer):
    text = "x = [" + "1, " * 20_000 + "]" + "y" * 30_000
    stretch = Stretch(tokenizer, text)
    for at in (5, 30_000, 60_006, 75_000, len(text)):
        text = text[:at] + "ab 12" + text[at:]
        stretch.update(text)
        assert_fresh(stretch, tokenizer)


def test_special_token_in_a_document_is_plain_text(tokenizer):
    token_ids = tokenizer.encode("a <|endoftext|> b <fim_prefix>").token_ids
    assert not set(token_ids.tolist()) & {0, 1}


MARKS = {
    "Qwen2.5-Coder": ["<|fim_prefix|>", "<|file_sep|>", "<|repo_name|>", "<tool_call>", "</think>"],
    "DeepSeek-Coder": ["<｜fim▁hole｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"],
    "Seed-Coder, Zeta-2": ["<[fim-middle]>", "<[end▁of▁sentence]>", "<filename>"],
    "Mellum, StarCoder": ["<fim_suffix>", "<fim-pad>", "<file_sep>", "<reponame>", "<gh_stars>"],
    "Codestral": ["[SUFFIX]", "[TOOL_CALLS]", "</s>"],
    "Code Llama": ["▁<PRE>", "<unk>"],
    "Gemma": ["<|file_separator|>", "<end_of_turn>", "<unused7>", "<eos>"]
    + ["[multimodal]", "[@BOS@]", "<2mass>"],
}


@pytest.mark.parametrize("names", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("special", [True, False])
def test_marks_in_a_document_are_text_however_the_file_lists_them(tokenizer, names, special):
    raw = RawTokenizer.from_str(tokenizer.raw.to_str())
    raw.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    wrapped = Tokenizer(raw, eos_id=0)
    text = "x = '" + "' + '".join(name.replace("▁", " ") for name in names) + "'"
    ids = {raw.token_to_id(name) for name in names}
    assert not ids & set(wrapped.encode(text).token_ids.tolist())
    assert all(wrapped.token_bytes()[at] == b"" for at in ids)


@pytest.mark.parametrize("name", ["<table>", "</td>", "\n\n", "    ", "<strong>"])
def test_tokens_that_stand_for_text_stay_whole(tokenizer, name):
    raw = RawTokenizer.from_str(tokenizer.raw.to_str())
    raw.add_tokens([AddedToken(name, special=False, normalized=False)])
    token_ids = Tokenizer(raw, eos_id=0).encode(f"a{name}b").token_ids.tolist()
    assert raw.token_to_id(name) in token_ids


PUBLISHED = [EMBEDDED_FILE.with_name("tokenizer.json")]
PUBLISHED += sorted(Path(__file__).with_name("vocabularies").glob("*.json"))


@pytest.fixture(scope="module", params=PUBLISHED, ids=lambda path: path.stem)
def published(request):
    raw = RawTokenizer.from_file(str(request.param))
    return Tokenizer(raw, vocab_size=1 + max(raw.get_vocab().values()))  # some are cut down


def test_indentation_is_written_as_it_is_read_by_published_tokenizers(published):
    for text in ("  ", "a:\n    b\n        c\n", "\t\tx  =  1\n\n\n"):
        token_ids = published.encode(text).token_ids.tolist()
        assert b"".join(published.token_bytes()[at] for at in token_ids).decode() == text


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_is_a_special_token_of_a_published_tokenizer(published, data):
    added = published.raw.get_added_tokens_decoder()
    special = {at: token.content for at, token in added.items() if token.special}
    names = st.sampled_from(sorted(special.values()))
    halves = st.builds(lambda name, cut: name[: cut % len(name)], names, st.integers(0, 99))
    others = st.sampled_from(["a", " ", "\n", "<", "|", ">", "<0x0A>", "é", "日", "\t", "</s>"])
    text = "".join(data.draw(st.lists(st.one_of(names, halves, others), max_size=12)))
    token_ids = published.encode(text).token_ids.tolist()
    assert not special.keys() & set(token_ids)
    written = b"".join(published.token_bytes()[at] for at in token_ids).decode()
    assert written in (text, text.replace("▁", " "))


def test_every_special_token_of_a_published_tokenizer_ends_a_text(published):
    added = published.raw.get_added_tokens_decoder()
    special = {at for at, token in added.items() if token.special}
    assert special and special <= published.end_ids
    assert all(published.token_bytes()[at] == b"" for at in special)


def test_lone_surrogate_becomes_a_replacement_character_at_the_same_offset(tokenizer):
    with_surrogate, replaced = tokenizer.encode("a\ud800b"), tokenizer.encode("a\ufffdb")
    assert with_surrogate.token_ids.tolist() == replaced.token_ids.tolist()
    assert with_surrogate.starts.max() <= 2


def test_token_bytes_join_to_the_text(tokenizer):
    text = SOURCE[:3000] + "é😀日本\r\n\t"
    pieces = tokenizer.token_bytes()
    token_ids = tokenizer.encode(text).token_ids
    assert b"".join(pieces[at] for at in token_ids).decode() == text
    assert pieces[0] == b"" and len(pieces) == tokenizer.vocab_size
    assert tokenizer.encode("x").starts.tolist() == [0]  # no space before it


def test_starts_are_those_of_the_text_not_of_its_words(tokenizer):
    encoded = tokenizer.encode("def  name(x)")
    pieces = tokenizer.token_bytes()
    lengths = [len(pieces[at]) for at in encoded.token_ids]
    assert encoded.starts.tolist() == [sum(lengths[:n]) for n in range(len(lengths))]


def test_rows_beyond_the_vocabulary_have_no_text(tokenizer):
    raw = RawTokenizer.from_str(tokenizer.raw.to_str())
    wide = Tokenizer(raw, eos_id=0, end_ids=[1], vocab_size=tokenizer.vocab_size + 7)
    assert wide.token_bytes()[-7:] == [b""] * 7
    assert wide.end_ids == {0, 1, raw.token_to_id("<tool>")} and wide.start_id == 0
    assert Tokenizer(raw, bos_id=3, eos_id=0).start_id == 3


def test_empty_text_has_no_tokens(tokenizer):
    assert len(tokenizer.encode("").token_ids) == 0
    stretch = Stretch(tokenizer)
    stretch.update("x")
    stretch.update("")
    assert_fresh(stretch, tokenizer)
