"""How text is cut before byte-pair merging: kinds that GGUF files name, and what is known of them.

A GGUF file names its pre-tokenizer instead of describing it. The patterns are those of the models'
own `tokenizer.json` files.
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Seed-Coder's, as its own file and as llama.cpp spell it: marks do not take line ends along.
_SEED_CODER = _QWEN2.replace(r"\p{N}|", r"\p{N}{1}|").replace(
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+"
)
_DEEPSEEK_CODER = (
    "[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[一-龥ࠀ-一가-퟿]+",
)

# Patterns without lookbehind whose matches look no further than the white space behind them and two
# more characters: what an incremental encoder may rely on.
_LOCAL_PATTERNS = frozenset((_LLAMA3, _QWEN2, _SEED_CODER, *_DEEPSEEK_CODER))

_KINDS = {
    "gpt2": ("gpt-2", "gpt2", "mpt", "olmo", "phi-2"),
    "digits": ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "mellum2"),
    "llama3": ("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"),
    "qwen2": ("qwen2", "stablelm2", "deepseek-r1-qwen"),
    "deepseek-coder": ("deepseek-coder",),
    "seed-coder": ("seed-coder",),
}
_PATTERNS = {"llama3": _LLAMA3, "qwen2": _QWEN2, "seed-coder": _SEED_CODER}
_NAMES = {name: kind for kind, names in _KINDS.items() for name in names}

# These normalise the text first.
NFC_NAMES = frozenset(("qwen2", "deepseek-r1-qwen"))
# Words that are in the vocabulary are taken whole, whatever the merges say.
WHOLE_WORD_NAMES = frozenset(("llama3", "llama-v3", "llama-bpe"))


def named(name: str) -> PreTokenizer | None:
    """Return the pre-tokenizer that a GGUF file names, None if it is not known."""
    kind = _NAMES.get(name)
    if kind is None:
        return None
    if kind == "gpt2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "digits":
        return pre_tokenizers.Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    if kind == "deepseek-coder":
        splits = [Split(Regex(pattern), "isolated") for pattern in _DEEPSEEK_CODER]
        parts = [*splits, Digits(individual_digits=True)]
    else:
        parts = [Split(Regex(_PATTERNS[kind]), "isolated")]
    return pre_tokenizers.Sequence([*parts, ByteLevel(add_prefix_space=False, use_regex=False)])


def parts_of(component: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return the descriptions of a normalizer or pre-tokenizer, sequences taken apart."""
    found, waiting = [], [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        part = waiting.pop(0)
        if part["type"] == "Sequence":
            waiting = [*(part.get("pretokenizers") or part.get("normalizers") or []), *waiting]
        else:
            found.append(part)
    return found


def is_local(part: dict[str, Any]) -> bool:
    """Whether what a pre-tokenizer cuts somewhere depends only on text near that place."""
    if part["type"] == "Split":
        return (
            part["pattern"].get("Regex") in _LOCAL_PATTERNS
            and part["behavior"] == "Isolated"
            and not part["invert"]
        )
    return part["type"] in ("ByteLevel", "Digits")


def drop_prefix_space(tokenizer: tokenizers.Tokenizer) -> None:
    """Stop a tokenizer from putting a space before every text."""
    before = parts_of(tokenizer.normalizer)
    after = [part for part in before if part["type"] != "Prepend"]
    if after != before:
        sequence = normalizers.Sequence([])
        sequence.__setstate__(json.dumps({"type": "Sequence", "normalizers": after}).encode())
        tokenizer.normalizer = sequence
    before, after = parts_of(tokenizer.pre_tokenizer), parts_of(tokenizer.pre_tokenizer)
    for part in after:
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    if after != before:
        sequence = pre_tokenizers.Sequence([])
        sequence.__setstate__(json.dumps({"type": "Sequence", "pretokenizers": after}).encode())
        tokenizer.pre_tokenizer = sequence
