"""Fill-in-the-middle formats: which model takes which marks in which order, as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelLoadError

SIDECAR = "fim.json"


@dataclass(frozen=True, slots=True)
class FimTemplate:
    """One model's fill-in-the-middle format.

    Attributes:
        family: whose format it is.
        prefix_id: token before the text before the cursor (PRE).
        suffix_id: token before the text after the cursor (SUF).
        middle_id: token that asks for the middle (MID).
        layouts: orders the model was trained on: "spm" (PRE SUF suffix MID prefix) and "psm"
            (PRE prefix SUF suffix MID).
        layout: the order to use.
        end_ids: tokens that end a middle.
        heal_white_space: whether white space before the cursor is taken off and generated again,
            for models not trained on cuts at any character.
        bos_first: whether the sequence starts with the tokenizer's beginning-of-text token.
        window_tokens: longest prompt the model was trained on; 0 if not known.
        chars_per_token: characters of code a token stands for.
    """

    family: str
    prefix_id: int
    suffix_id: int
    middle_id: int
    layouts: tuple[str, ...]
    layout: str
    end_ids: frozenset[int]
    heal_white_space: bool
    bos_first: bool
    window_tokens: int
    chars_per_token: float


@dataclass(frozen=True, slots=True)
class Family:
    """A published family of models and the names of its tokens.

    Attributes:
        name: as people know it.
        prefix: name of PRE in the vocabulary.
        suffix: name of SUF.
        middle: name of MID.
        ends: names of the tokens that end a middle, as far as the vocabulary has them.
        layouts: orders it was trained on, the one to use first.
        bos_first: whether its prompts start with the beginning-of-text token.
        example: a published model, for `keyturn models`.
    """

    name: str
    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...]
    layouts: tuple[str, ...]
    bos_first: bool
    example: str


# Sources: the models' cards and papers (StarCoder 2305.06161, Code Llama 2308.12950 section 2.3,
# DeepSeek-Coder 2401.14196 section 3.1, Qwen2.5-Coder 2409.12186, CodeGemma 2406.11409).
# DeepSeek's hole mark stands between prefix and suffix and its end mark asks for the middle.
FAMILIES = (
    Family(
        "Qwen2.5-Coder",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|endoftext|>", "<|file_sep|>", "<|repo_name|>", "<|fim_pad|>", "<|im_end|>"),
        ("psm",),
        False,
        "Qwen/Qwen2.5-Coder-0.5B",
    ),
    Family(
        "DeepSeek-Coder",
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
        ("<｜end▁of▁sentence｜>", "<|EOT|>"),
        ("psm",),
        True,
        "deepseek-ai/deepseek-coder-1.3b-base",
    ),
    Family(
        "StarCoder",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<|endoftext|>", "<file_sep>", "<repo_name>"),
        ("psm", "spm"),
        False,
        "bigcode/starcoder2-3b",
    ),
    Family(
        "Code Llama",
        "▁<PRE>",
        "▁<SUF>",
        "▁<MID>",
        ("▁<EOT>", "</s>"),
        ("psm", "spm"),
        True,
        "codellama/CodeLlama-7b-hf",
    ),
)


def find_template(
    token_id: Callable[[str], int | None],
    *,
    sidecar: Path | None = None,
    marks: dict[str, int] | None = None,
    eos_id: int | None = None,
) -> FimTemplate | None:
    """Find a model's format.

    Args:
        token_id: returns a token's id by name, None if the vocabulary lacks it.
        sidecar: a `fim.json` beside the model, which wins over everything else.
        marks: "prefix", "suffix" and "middle" ids that the model file itself names.
        eos_id: the model's end token.

    Returns:
        The format, or None for a model that only continues text.

    Raises:
        ModelLoadError: the sidecar is not usable.
    """
    if sidecar is not None and sidecar.is_file():
        return read_sidecar(sidecar)
    for family in FAMILIES:
        prefix, suffix, middle = (
            token_id(name) for name in (family.prefix, family.suffix, family.middle)
        )
        if prefix is None or suffix is None or middle is None:
            continue
        ends = {token_id(name) for name in family.ends} | {eos_id}
        return FimTemplate(
            family=family.name,
            prefix_id=prefix,
            suffix_id=suffix,
            middle_id=middle,
            layouts=family.layouts,
            layout=family.layouts[0],
            end_ids=frozenset(at for at in ends if at is not None),
            heal_white_space=False,
            bos_first=family.bos_first,
            window_tokens=0,
            chars_per_token=3.0,
        )
    if marks and marks.keys() >= {"prefix", "suffix", "middle"}:
        return FimTemplate(
            family="named by the model file",
            prefix_id=marks["prefix"],
            suffix_id=marks["suffix"],
            middle_id=marks["middle"],
            layouts=("psm",),
            layout="psm",
            end_ids=frozenset() if eos_id is None else frozenset({eos_id}),
            heal_white_space=False,
            bos_first=False,
            window_tokens=0,
            chars_per_token=3.0,
        )
    return None


def read_sidecar(path: Path) -> FimTemplate:
    """Read a `fim.json`: the fields of `FimTemplate`, ids as numbers, other keys ignored.

    Raises:
        ModelLoadError: it is not JSON, or a field is missing or of the wrong kind.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        template = FimTemplate(
            family=str(fields["family"]),
            prefix_id=int(fields["prefix_id"]),
            suffix_id=int(fields["suffix_id"]),
            middle_id=int(fields["middle_id"]),
            layouts=tuple(fields["layouts"]),
            layout=fields["layout"],
            end_ids=frozenset(int(at) for at in fields["end_ids"]),
            heal_white_space=bool(fields["heal_white_space"]),
            bos_first=bool(fields["bos_first"]),
            window_tokens=int(fields["window_tokens"]),
            chars_per_token=float(fields["chars_per_token"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path} is no usable description ({error!r}); remove it") from None
    if template.layout not in template.layouts or not set(template.layouts) <= {"spm", "psm"}:
        raise ModelLoadError(
            f'{path}: layout "{template.layout}" of {template.layouts} is not spm or psm'
        )
    return template
