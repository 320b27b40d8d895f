"""Every family's prompt is the one that its source documents."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RawTokenizer

from keyturn.engine.engine import Engine
from keyturn.engine.files.catalog import EMBEDDED_FILE
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.tokenizer_files import gguf_tokenizer
from keyturn.engine.prompt.fim import find_template, read_sidecar
from keyturn.engine.prompt.fim_families import FAMILIES
from keyturn.engine.prompt.growing_window import PromptEncoder
from keyturn.engine.prompt.layout import lay_out
from keyturn.engine.tokens.tokenizer import Tokenizer
from keyturn.engine.wire.config import CompletionParams, EngineConfig

GOLDEN = json.loads(Path(__file__).with_name("fim_prompts.json").read_text(encoding="utf-8"))
PLACE = GOLDEN["place"]
PROMPTS = GOLDEN["prompts"]
NAMES = [f"{prompt['family']}-{prompt['layout']}" for prompt in PROMPTS]


def vocabulary(real):
    path = Path(__file__).with_name("vocabularies") / real["vocabulary"]
    raw = RawTokenizer.from_file(str(path))
    return Tokenizer(raw, bos_id=real.get("bos"), vocab_size=real["size"])


def template_of(prompt):
    words = {word: at for at, word in enumerate(prompt["tokens"])}
    called = prompt.get("called", "")
    template = find_template(words.get, vocab_size=len(words), names=called)
    assert template is not None and template.family == prompt["family"]
    return template


def rendered(prompt, **kwargs):
    template, words = template_of(prompt), prompt["tokens"]
    text, cursor = PLACE["prefix"] + PLACE["suffix"], len(PLACE["prefix"])
    bos = words.index(prompt["bos"]) if "bos" in prompt else None
    window, layout = (0, len(text)), prompt["layout"]
    assert layout in template.layouts
    made = lay_out(text, cursor, cursor, template, layout, window, bos, **kwargs)
    return "".join(
        "".join(words[at] for at in segment.token_ids) + segment.text for segment in made.segments
    )


def test_every_family_has_a_prompt():
    assert {prompt["family"] for prompt in PROMPTS} == {
        family.name for family in FAMILIES if family.example
    }


@pytest.mark.parametrize("prompt", PROMPTS, ids=NAMES)
def test_prompt_is_as_documented(prompt):
    assert rendered(prompt) == prompt["prompt"].format(**PLACE)
    first = prompt["layout"] == next(
        family.layouts[0] for family in FAMILIES if family.name == prompt["family"]
    )
    assert (template_of(prompt).layout == prompt["layout"]) == first


@pytest.mark.parametrize("prompt", PROMPTS, ids=NAMES)
def test_path_and_other_files_are_said_to_those_that_know_them(prompt):
    path = PLACE["path"]
    plain = prompt["prompt"]
    with_path = prompt.get("with_path", plain)
    assert rendered(prompt, header=path) == with_path.format(**PLACE)
    others = [tuple(other) for other in GOLDEN["others"]]
    found = rendered(prompt, header=path, others=others, repository=GOLDEN["repository"])
    assert found == prompt.get("with_repository", with_path).format(**PLACE)


def test_a_file_without_a_path_is_still_parted_from_others():
    others, found = [("a.py", "A = 1\n")], {}
    for prompt in PROMPTS:
        if template_of(prompt).files != "marked":
            text = rendered(prompt, others=others, repository="r")
            found[prompt["family"], prompt["layout"]] = text[: text.index(">def") + 1]
            assert rendered(prompt) == prompt["prompt"].format(**PLACE)
    between = "<bos>a.py\nA = 1\n<|file_separator|><|fim_prefix|>"
    assert found["CodeGemma", "psm"] == between
    assert found["StarCoder2", "psm"] == "<repo_name>r<file_sep>a.py\nA = 1\n<file_sep><fim_prefix>"


@pytest.mark.parametrize("prompt", PROMPTS, ids=NAMES)
def test_every_stop_token_ends_a_middle(prompt):
    found = {prompt["tokens"][at] for at in template_of(prompt).end_ids}
    assert found == set(prompt["ends"])


def test_ids_of_the_embedded_model_with_its_real_tokenizer():
    """From SmolLM2's vocabulary: <file_sep>, <filename>, then the sidecar's PRE SUF … MID …."""
    file = GGUFFile(EMBEDDED_FILE)
    tokenizer, _ = gguf_tokenizer(file, 49152)
    template = read_sidecar(EMBEDDED_FILE.with_name("fim.json"), 49152)
    encoder = PromptEncoder(template, tokenizer, "spm", 200, 3.7, "shape.py")
    text = PLACE["prefix"] + PLACE["suffix"]
    prompt = encoder.encode(text, len(PLACE["prefix"]), len(PLACE["prefix"]))
    found = [int(at) for part in prompt.tokens.values() for at in part]
    assert found == GOLDEN["ids"]["keyturn-135m"]


@pytest.mark.parametrize("real", GOLDEN["real"], ids=lambda real: real["family"])
def test_ids_of_published_tokenizers(real):
    """Cut down to what its place needs by `published_vocabularies`; no id is another for it."""
    tokenizer = vocabulary(real)
    template = find_template(tokenizer.raw.token_to_id, vocab_size=real["size"])
    assert template is not None and template.family == real["family"]
    header = real.get("header", "")
    encoder = PromptEncoder(template, tokenizer, template.layout, 200, 3.7, header)
    place = real.get("place", PLACE)
    cursor = len(place["prefix"])
    prompt = encoder.encode(place["prefix"] + place["suffix"], cursor, cursor)
    assert [int(at) for part in prompt.tokens.values() for at in part] == real["ids"]


@pytest.fixture
def suffix_first(tiny_model, tmp_path):
    """The tiny model with Mellum's name: SUF suffix PRE prefix MID."""
    folder = tmp_path / "Mellum-tiny"
    shutil.copytree(tiny_model, folder)
    return str(folder)


def test_typing_before_a_mark_that_stands_last_turns_one_row(suffix_first):
    def session(text, policy):
        engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
        return engine.open("a", text, path="a.py", model=suffix_first, policy=policy)

    def complete(opened, offset):
        return opened.complete(offset, CompletionParams(6, 0.0, 1.0, 0, (), 0.0), lambda: None)

    before, after = "def area(w, h):\n    return w", "\n\nprint(area(2, 3))\n" * 8
    typed = session(before + after, "prefix")
    complete(typed, len(before))
    typed.edit([(len(before), len(before), " * h")])
    found = complete(typed, len(before) + 4)
    fresh = complete(session(before + " * h" + after, "full"), len(before) + 4)
    assert (found.text, found.token_ids) == (fresh.text, fresh.token_ids)
    num_computed = found.num_prompt_tokens - found.num_reused_tokens
    assert num_computed <= len(" * h") + 2  # what was typed, a token that it changed, the mark


def test_a_space_before_the_prefix_is_none_of_the_document(tiny_model, tmp_path):
    """Narrow windows and edits count the document's own characters."""
    fields = json.loads(EMBEDDED_FILE.with_name("fim.json").read_text())
    fields |= {"prefix_id": 1, "suffix_id": 3, "middle_id": 2, "end_ids": [0], "header_ids": []}
    folders = []
    for name, spaced in (("plain", []), ("spaced", ["spm"])):
        folders.append(tmp_path / name)
        shutil.copytree(tiny_model, folders[-1])
        (folders[-1] / "fim.json").write_text(json.dumps(fields | {"spaced_layouts": spaced}))
    text, shown = "def area(w, h):\n    return w * h\n" * 40, []
    for folder in folders:
        engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 120, 64))
        session = engine.open("a", text, path="a.py", model=str(folder), policy="prefix")
        params = CompletionParams(4, 0.0, 1.0, 0, (), 0.0)
        for at in (600, 601, 640):
            session.edit([(at, at, "x")])
            found = session.complete(at + 1, params, lambda: None)
            fresh = engine.open("b", session.text, path="a.py", model=str(folder), policy="full")
            assert fresh.complete(at + 1, params, lambda: None).token_ids == found.token_ids
            shown.append(found.num_prompt_tokens)
    assert all(60 < count <= 120 for count in shown), shown
