"""Tokenizers that a GGUF file describes by pieces and scores, as SentencePiece's are."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, trainers

from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.gguf_vocabulary import build_tokenizer
from keyturn.engine.tokens.tokenizer import Tokenizer
from keyturn.engine.wire.errors import ModelLoadError

SOURCE = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="utf-8")
UNKNOWN, CONTROL, USER, BYTE = 2, 3, 4, 6
SPECIALS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


@pytest.fixture(scope="module")
def trained():
    """A byte-pair tokenizer without words, whose merges are the order of its pieces."""
    raw = RawTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIALS, max_token_length=12, show_progress=False
    )
    raw.train_from_iterator(SOURCE.splitlines(keepends=True), trainer)
    return raw


def write(path, words, types, scores):
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


def described(raw, path, user=()):
    vocab = raw.get_vocab()
    words = sorted(vocab, key=vocab.get)
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **dict.fromkeys(user, USER)}
    types = [kinds.get(word, BYTE if word in SPECIALS else 1) for word in words]
    types += [USER] * len(user)
    words += user
    return write(path, words, types, [-float(at) for at in range(len(words))])


def test_pieces_are_joined_in_the_order_of_their_scores(trained, tmp_path):
    built = Tokenizer(build_tokenizer(described(trained, tmp_path / "m.gguf")), eos_id=2)
    plain = Tokenizer(RawTokenizer.from_str(trained.to_str()), eos_id=2)
    for text in (SOURCE, "x = 'é日本😀'\t\r\n  y", "</s><s>", "<0x0A>"):
        found = built.encode(text).token_ids.tolist()
        assert found == plain.encode(text).token_ids.tolist()
        assert b"".join(built.token_bytes()[at] for at in found).decode() == text
        assert not {1, 2} & set(found)


def test_pieces_that_are_never_split_are_found_as_the_vocabulary_spells_spaces(trained, tmp_path):
    file = described(trained, tmp_path / "m.gguf", ["▁▁▁▁▁▁▁", "<h1>", "<|file_separator|>"])
    raw = build_tokenizer(file)
    built = Tokenizer(raw, eos_id=2)
    token_ids = built.encode("x" + " " * 7 + "y<h1>z<|file_separator|>").token_ids.tolist()
    assert {raw.token_to_id("▁▁▁▁▁▁▁"), raw.token_to_id("<h1>")} <= set(token_ids)
    assert raw.token_to_id("<|file_separator|>") not in token_ids


def test_scores_that_do_not_fit_the_vocabulary_are_refused(tmp_path):
    file = write(tmp_path / "m.gguf", ["<unk>", "a"], [2, 1], np.zeros(1, np.float32).tolist())
    with pytest.raises(ModelLoadError, match="scores"):
        build_tokenizer(file)
