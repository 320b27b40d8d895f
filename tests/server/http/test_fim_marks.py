"""Prompts in models' formats, as Zed and cursortab write them."""

import pytest

from keyturn.engine.prompt.fim_families import FAMILIES
from keyturn.server.http.fim_marks import split

# What Zed's `format_fim_prompt` makes of the text before and behind a cursor.
ZED = {
    "codellama": "<PRE> {before} <SUF>{after} <MID>",
    "starcoder": "<fim_prefix>{before}<fim_suffix>{after}<fim_middle>",
    "deepseek_coder": "<｜fim▁begin｜>{before}<｜fim▁hole｜>{after}<｜fim▁end｜>",
    "qwen": "<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>",
    "codestral": "[SUFFIX]{after}[PREFIX]{before}",
    "glm": "<|code_prefix|>{before}<|code_suffix|>{after}<|code_middle|>",
}


@pytest.mark.parametrize("form", ZED.values(), ids=ZED)
@pytest.mark.parametrize("before", ["", "def f(x):\n    return "])
@pytest.mark.parametrize("after", ["", "\n\nprint(f(1))\n"])
def test_text_of_a_prompt_with_marks(form, before, after) -> None:
    assert split(form.format(before=before, after=after)) == (before, after)


def test_other_files_before_the_marks_are_left_out() -> None:
    other = "<|repo_name|>repo\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\n"
    assert split(other + ZED["qwen"].format(before="a", after="b")) == ("a", "b")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "def f(x):\n",
        "<|fim_prefix|>a",
        "a<|fim_middle|>",
        "<|fim_suffix|>a<|fim_middle|>",
        "[SUFFIX]x",
    ],
)
def test_a_prompt_without_all_marks_is_text(prompt) -> None:
    assert split(prompt) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_that_the_engine_knows_is_known(family) -> None:
    marks = [mark.replace("▁<", "<") for mark in (family.prefix, family.suffix, family.middle)]
    space = " " if family.name == "Code Llama" else ""
    if family.middle_last:
        prompt = f"{marks[1]}after{marks[0]}before{marks[2]}"
    elif family.layouts == ("spm",):
        prompt = f"{marks[1]}after{marks[2]}before"
    else:
        prompt = f"{marks[0]}{space}before{space}{marks[1]}after{space}{marks[2]}"
    assert split(prompt) == ("before", "after")
