"""What a GGUF file says of its model's tokens: the tokenizer, and marks to fill in the middle."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, normalizers

from ..tokens import pre_tokenizers
from ..wire.errors import ModelLoadError
from .gguf_file import GGUFFile

# Token types: for what is not in the vocabulary, special, and text that is never split.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")
# Characters of pieces, squared, together: a million where the longest are spaces. It is what
# looking for all their splits takes.
_MOST_SPLITS = 200_000_000
_SPACE = "\u2581"


def fim_marks(file: GGUFFile) -> dict[str, int]:
    """Return the fill-in-the-middle marks that the metadata names: "prefix", "suffix", "middle"."""
    marks = {}
    for key in ("prefix", "suffix", "middle"):
        for name in (f"fim_{key[:3]}", key):  # the second in files made before autumn 2024
            found = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(found, int):
                marks.setdefault(key, found)
    return marks


def build_tokenizer(file: GGUFFile) -> tokenizers.Tokenizer:
    """Build the tokenizer that the metadata describes.

    Raises:
        ModelLoadError: it is of a kind that can only be had from the model's `tokenizer.json`.
    """
    metadata = file.metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelLoadError(
            f"{file.path}: a tokenizer of kind {kind!r} is not built in; put the model's "
            "tokenizer.json beside it"
        )
    words, types = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(words, list):
        raise file.damaged("the vocabulary is missing")
    if types is None:
        types = np.zeros(len(words), np.int32)
    if not isinstance(types, np.ndarray) or len(types) != len(words):
        raise file.damaged("the vocabulary's token types do not fit it")
    try:
        build = _byte_level if kind == "gpt2" else _pieces
        tokenizer = build(file, words, types)
    except ModelLoadError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise file.damaged(f"vocabulary: {str(error).splitlines()[0]}") from None
    special = [words[index] for index in np.flatnonzero(types == _CONTROL)]
    whole = [words[index] for index in np.flatnonzero(types == _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    # A piece is looked for where spaces are already spelt as in the vocabulary.
    is_piece = kind == "llama"
    tokenizer.add_tokens([AddedToken(word, normalized=is_piece) for word in whole])
    return tokenizer


def _byte_level(file: GGUFFile, words: list[str], types: NDArray[np.int32]) -> tokenizers.Tokenizer:
    """Build a tokenizer of bytes, as GPT-2's."""
    name, merges = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("pre", "merges"))
    name = name or "default"
    pre_tokenizer = pre_tokenizers.named(name)
    if pre_tokenizer is None:
        raise ModelLoadError(
            f"{file.path}: pre-tokenizer {name!r} is not built in; put the model's tokenizer.json "
            "beside it"
        )
    if not isinstance(merges, list):
        raise file.damaged("the vocabulary is missing")
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in merges]
    ids = {word: token_id for token_id, word in enumerate(words)}
    whole_words = name in pre_tokenizers.WHOLE_WORD_NAMES
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if name in pre_tokenizers.NFC_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _pieces(file: GGUFFile, words: list[str], types: NDArray[np.int32]) -> tokenizers.Tokenizer:
    """Build a tokenizer of pieces of text, as SentencePiece's byte-pair models.

    Those have no merges: the two neighbours whose union has the best score are joined first, and so
    every way to make a piece of two others is a merge, in the order of the pieces' scores.

    Source: SentencePiece, arXiv 1808.06226 section 3.2.
    """
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(words):
        raise file.damaged("the vocabulary's scores do not fit it")
    for at in np.flatnonzero(types == _BYTE):
        if not _BYTE_NAME.fullmatch(words[at]):
            raise file.damaged(f"token {words[at]!r:.40} names no byte")
    if sum(len(word) ** 2 for word in words) > _MOST_SPLITS:
        raise file.damaged("pieces of the vocabulary are too long")
    ids = {word: token_id for token_id, word in enumerate(words)}
    # Text that spells the name of another is not that token.
    plain = np.isin(types, (_UNKNOWN, _CONTROL, _BYTE), invert=True)
    merges: list[tuple[str, str]] = []
    for at in np.argsort(-scores, kind="stable").tolist():
        word = words[at]
        if plain[at]:
            splits = ((word[:cut], word[cut:]) for cut in range(1, len(word)))
            merges += [pair for pair in splits if pair[0] in ids and pair[1] in ids]
    unknown = np.flatnonzero(types == _UNKNOWN)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=words[unknown[0]] if len(unknown) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer
