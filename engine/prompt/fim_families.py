"""The published families of models that fill in the middle, and what their formats look like.

As data, no torch. A family's source is where its format is documented; `tests/engine/fim_prompts/`
has a prompt of each as that source has it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A published family of models and the names of its tokens.

    Attributes:
        name: as people know it.
        prefix: name of PRE in the vocabulary.
        suffix: name of SUF.
        middle: name of MID.
        ends: names of the tokens that end a middle, as far as the vocabulary has them: of texts,
            and what would begin another file or repository.
        layouts: orders it was trained on, the one to use first.
        bos_first: whether its prompts start with the beginning-of-text token.
        example: a published model, for `keyturn models`.
        source: where the format is documented.
        known_by: another token that tells families with the same marks apart.
        called: a part of the model's name that does, where no token does.
        middle_last: as in `FimTemplate`.
        file_mark: name of the token before a file's path, where the model was trained to see it
            before a prompt of one file, too.
        repository_mark: name of the token before a repository's name.
        files: where paths and the file mark stand, as in `FimTemplate`.
        spaced_layouts: as in `FimTemplate`: the prefix is encoded as SentencePiece encodes any
            text, which puts a space before it.
    """

    name: str
    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...]
    layouts: tuple[str, ...]
    bos_first: bool
    example: str
    source: str
    known_by: str = ""
    called: str = ""
    middle_last: bool = False
    file_mark: str = ""
    repository_mark: str = ""
    files: str = "marked"
    spaced_layouts: tuple[str, ...] = ()


# DeepSeek's hole mark stands between prefix and suffix and its end mark asks for the middle.
# Codestral puts the suffix first, and the mark of the prefix is where the middle follows. The first
# family that fits is taken.
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
        "github.com/QwenLM/Qwen2.5-Coder, README; arXiv 2409.12186 section 3.2",
        known_by="<|file_sep|>",
        file_mark="<|file_sep|>",
        repository_mark="<|repo_name|>",
    ),
    Family(
        "CodeGemma",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|file_separator|>", "<eos>", "<end_of_turn>"),
        ("psm", "spm"),
        True,
        "google/codegemma-2b",
        "ai.google.dev/gemma/docs/codegemma/prompt-structure; arXiv 2406.11409 figures 2 and 4",
        known_by="<|file_separator|>",
        file_mark="<|file_separator|>",
        files="separated",
    ),
    Family(
        "Granite",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|end_of_text|>", "<|fim_pad|>", "<|filename|>", "<|reponame|>", "<|end_of_role|>"),
        ("psm", "spm"),
        False,
        "ibm-granite/granite-4.0-350m-base",
        "huggingface.co/ibm-granite/granite-4.0-350m, model card; arXiv 2405.04324 section 4.2",
        known_by="<|end_of_text|>",
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
        "github.com/deepseek-ai/DeepSeek-Coder, README; arXiv 2401.14196 section 3.1",
    ),
    Family(
        "Seed-Coder",
        "<[fim-prefix]>",
        "<[fim-suffix]>",
        "<[fim-middle]>",
        ("<[end▁of▁sentence]>", "<[PAD▁TOKEN]>", "<filename>"),
        ("spm",),
        True,
        "ByteDance-Seed/Seed-Coder-8B-Base",
        "huggingface.co/ByteDance-Seed/Seed-Coder-8B-Base, model card; arXiv 2506.03524",
        middle_last=True,
    ),
    Family(
        "Mellum",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<|endoftext|>", "<fim_pad>", "<filename>", "<reponame>", "<file_sep>", "<repo_name>"),
        ("spm",),
        False,
        "JetBrains/Mellum-4b-base",
        "huggingface.co/JetBrains/Mellum-4b-base, model card",
        called="mellum",
        middle_last=True,
        file_mark="<filename>",
    ),
    Family(
        "StarCoder2",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>"),
        ("psm", "spm"),
        False,
        "bigcode/starcoder2-3b",
        "arXiv 2402.19173 section 5.1",
        known_by="<file_sep>",
        file_mark="<file_sep>",
        repository_mark="<repo_name>",
        files="inside",
    ),
    Family(
        "StarCoder",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>", "<filename>", "<reponame>"),
        ("psm", "spm"),
        False,
        "stabilityai/stable-code-3b",
        "arXiv 2305.06161 section 5.1; Stable Code's and Granite Code's model cards",
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
        "arXiv 2308.12950 section 2.3; github.com/meta-llama/codellama, infilling_prompt_tokens",
        spaced_layouts=("psm",),
    ),
    Family(
        "Codestral",
        "[SUFFIX]",
        "[SUFFIX]",
        "[PREFIX]",
        ("</s>",),
        ("spm",),
        True,
        "mistralai/Codestral-22B-v0.1",
        "github.com/mistralai/mistral-common, encode_fim",
        spaced_layouts=("spm",),
    ),
    Family(
        "SantaCoder",
        "<fim-prefix>",
        "<fim-suffix>",
        "<fim-middle>",
        ("<|endoftext|>", "<fim-pad>"),
        ("psm", "spm"),
        False,
        "",
        "arXiv 2301.03988 section 4; its architecture is not served, others took the format over",
    ),
)
