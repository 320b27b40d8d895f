"""Prompts that a client has put a model's fill-in-the-middle marks into: its text, without them.

Zed's `open_ai_compatible_api` and cursortab send one string, in the format of a family of models.
The engine writes the marks of its own model around a text.
"""

from __future__ import annotations

from typing import NamedTuple


class _Marks(NamedTuple):
    prefix: str
    suffix: str
    middle: str


# As their families have them, see `engine/prompt/fim_families.py` for the sources; Code Llama's
# with the white space around them, which belongs to the format. The last are GLM's, which Zed
# knows.
_MARKS = (
    _Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    _Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    _Marks("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),
    _Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _Marks("<PRE> ", " <SUF>", " <MID>"),
    _Marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)
# Codestral's has the suffix first, and nothing asks for the middle but the prefix's end.
_SUFFIX_FIRST = ("[SUFFIX]", "[PREFIX]")


def split(prompt: str) -> tuple[str, str] | None:
    """Return the text before and behind the cursor of a prompt with marks, None without.

    What stands before the first mark, other files of a repository, is left out. A text that has
    such marks itself is taken to end at the first of them.
    """
    for marks in _MARKS:
        if not prompt.endswith(marks.middle):
            continue
        start = prompt.find(marks.prefix)
        middle = prompt.find(marks.suffix, start + len(marks.prefix))
        if 0 <= start < middle:
            before = prompt[start + len(marks.prefix) : middle]
            return before, prompt[middle + len(marks.suffix) : -len(marks.middle)]
        suffix = prompt.find(marks.suffix)  # before the prefix, as Mellum and Seed-Coder have it
        if 0 <= suffix < start:
            after = prompt[suffix + len(marks.suffix) : start]
            return prompt[start + len(marks.prefix) : -len(marks.middle)], after
    suffix_mark, prefix_mark = _SUFFIX_FIRST
    if prompt.startswith(suffix_mark) and (at := prompt.rfind(prefix_mark)) > 0:
        return prompt[at + len(prefix_mark) :], prompt[len(suffix_mark) : at]
    return None
