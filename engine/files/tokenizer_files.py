"""A model's tokenizer and its start and end tokens, from `tokenizer.json` or GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from ..tokens.tokenizer import Tokenizer
from ..wire.errors import ModelLoadError
from . import gguf_vocabulary
from .gguf_file import GGUFFile
from .hf_config import read_json

FILE = "tokenizer.json"

# Tokens that end a text wherever they exist, whatever else a model names.
_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|EOT|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "▁<EOT>",
    "<[end▁of▁sentence]>",
)
# What begins another file, repository or turn: text after it is not about this one any more.
_SEPARATORS = (
    *("<|file_sep|>", "<file_sep>", "<|file_separator|>", "<|filename|>", "<filename>"),
    *("<|repo_name|>", "<repo_name>", "<|reponame|>", "<reponame>"),
    *("<end_of_turn>", "<|eom_id|>", "<|end_of_role|>"),
)
# The largest published file has a third of that. Reading one takes its size several times.
_MOST_BYTES = 100 << 20
# A sample of ids is compared with the file's own vocabulary before a tokenizer.json is believed.
_SAMPLES = 256


def gguf_tokenizer(file: GGUFFile, vocab_size: int) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Return the tokenizer of a GGUF file: the `tokenizer.json` beside it, or built from metadata.

    Building takes longer, and some kinds cannot be built. A `tokenizer.json` of another model that
    happens to lie there is left alone.

    Raises:
        ModelLoadError: there is none for this model.
    """
    words = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(words, list) or not 0 < len(words) <= vocab_size:
        raise file.damaged("the vocabulary is missing or does not fit the embedding")
    beside = file.path.with_name(FILE)
    raw = _read(beside) if beside.is_file() else None
    if raw is None or not _fits(raw, words):
        raw = gguf_vocabulary.build_tokenizer(file)

    def known_id(key: str) -> int | None:
        value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return value if isinstance(value, int) and 0 <= value < vocab_size else None

    bos_id = known_id("bos") if file.metadata.get("tokenizer.ggml.add_bos_token") else None
    return _wrapped(file.path, raw, vocab_size, bos_id, [known_id("eos"), known_id("eot")]), raw


def hf_tokenizer(folder: Path, vocab_size: int) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Return the tokenizer of a Hugging Face folder.

    Raises:
        ModelLoadError: there is no usable `tokenizer.json`.
    """
    if not (folder / FILE).is_file():
        raise ModelLoadError(
            f"{folder} has no {FILE}; save it with transformers' fast tokenizer for this model"
        )
    raw = _read(folder / FILE)
    config = read_json(folder / "config.json")
    extra: dict[str, Any] = {}
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            extra |= read_json(folder / name)
    bos_id = config.get("bos_token_id")
    starts = raw.encode("a", add_special_tokens=True).ids[:1] == [bos_id]
    if not starts and extra.get("add_bos_token") is not True:
        bos_id = None
    ends: list[Any] = []
    for source in (config, extra):
        eos = source.get("eos_token_id")
        ends += eos if isinstance(eos, list) else [eos]
    return _wrapped(folder / FILE, raw, vocab_size, bos_id, ends), raw


def is_chat_tuned(folder: Path) -> bool:
    """Return whether a Hugging Face folder says how a chat is written."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES >> 20} MB")
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).splitlines()[0]
        raise ModelLoadError(f"{path} is malformed ({reason}); fetch it again") from None


def _fits(raw: tokenizers.Tokenizer, words: list[str]) -> bool:
    sample = range(0, len(words), max(1, len(words) // _SAMPLES))
    return all(raw.id_to_token(token_id) == words[token_id] for token_id in sample)


def _wrapped(
    path: Path, raw: tokenizers.Tokenizer, vocab_size: int, bos_id: object, named: list[Any]
) -> Tokenizer:
    size = raw.get_vocab_size(with_added_tokens=False)
    if not size:
        raise ModelLoadError(f"{path} has no tokens; fetch the model again")
    if size > vocab_size:
        raise ModelLoadError(
            f"{path} has {size} tokens for an embedding of {vocab_size}; fetch the model again"
        )
    between, others = ([raw.token_to_id(name) for name in names] for names in (_ENDS, _SEPARATORS))
    # Models tuned to chat name the end of a turn; what lies between texts is their base's token.
    ends = [at for at in (*between, *named, *others) if type(at) is int and 0 <= at < vocab_size]
    return Tokenizer(
        raw,
        vocab_size=vocab_size,
        bos_id=bos_id if type(bos_id) is int and 0 <= bos_id < vocab_size else None,
        eos_id=ends[0] if ends else None,
        end_ids=ends,
    )
