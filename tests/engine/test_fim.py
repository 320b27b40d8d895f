"""Which format a model gets: from its sidecar, its family's marks, or its GGUF metadata."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from keyturn.engine.prompt import fim
from keyturn.engine.prompt.fim import FimTemplate, find_template, read_sidecar
from keyturn.engine.prompt.fim_families import FAMILIES
from keyturn.engine.wire.errors import ModelLoadError

EMBEDDED = Path(fim.__file__).parents[1] / "embedded" / "fim.json"
FIELDS = json.loads(EMBEDDED.read_text())
OPTIONAL = {"languages", "header_ids", "middle_last", "repository_ids", "spaced_layouts", "files"}
WANTED_IDS = {"line": 11, "block": 12}

VOCABULARIES = {
    "Mellum": ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<filename>"],
    "Seed-Coder": ["<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", "<[end▁of▁sentence]>"],
    "StarCoder": ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"],
    "StarCoder2": ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<file_sep>"],
    "Qwen2.5-Coder": ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    + ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
    "DeepSeek-Coder": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁hole｜>"]
    + ["<｜fim▁begin｜>", "<｜fim▁end｜>", "<|EOT|>"],
    "Code Llama": ["<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"],
    "CodeGemma": ["<eos>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    + ["<|file_separator|>"],
    "Granite": ["<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    + ["<|fim_pad|>"],
    "SantaCoder": ["<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>"],
    "Codestral": ["<s>", "</s>", "[SUFFIX]", "[PREFIX]", "[MIDDLE]"],
}


def lookup(words):
    return {word: at for at, word in enumerate(words)}.get


@pytest.mark.parametrize("family", VOCABULARIES)
def test_family_is_known_by_its_marks(family):
    words = VOCABULARIES[family]
    ends = frozenset({99})
    name = "models--JetBrains--Mellum-4b" if family == "Mellum" else ""
    template = find_template(lookup(words), end_ids=ends, vocab_size=100, names=name)
    assert template is not None and template.family == family
    assert template.layout == template.layouts[0]
    assert 99 in template.end_ids
    assert {template.prefix_id, template.suffix_id, template.middle_id} <= template.end_ids
    assert all(at == 99 or at < len(words) for at in template.end_ids)


def test_deepseek_asks_for_the_middle_with_its_end_mark():
    words = VOCABULARIES["DeepSeek-Coder"]
    template = find_template(lookup(words), vocab_size=100)
    marks = [words[at] for at in (template.prefix_id, template.suffix_id, template.middle_id)]
    assert marks == ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]
    assert template.bos_first


def test_codestral_has_one_mark_for_prefix_and_middle():
    words = VOCABULARIES["Codestral"]
    template = find_template(lookup(words), vocab_size=100)
    assert words[template.middle_id] == "[PREFIX]" and template.prefix_id == template.suffix_id
    assert template.layouts == ("spm",)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_family_with_a_mark_missing_is_not_taken(missing):
    words = VOCABULARIES["StarCoder"].copy()
    words[missing] = "other"
    assert find_template(lookup(words), vocab_size=100) is None


def test_mark_outside_the_embedding_is_not_taken():
    assert find_template(lookup(VOCABULARIES["StarCoder"]), vocab_size=3) is None


def test_marks_that_the_file_names_are_taken_when_no_family_fits():
    marks = {"prefix": 4, "suffix": 5, "middle": 6}
    template = find_template(lambda name: None, marks=marks, vocab_size=10)
    assert (template.prefix_id, template.suffix_id, template.middle_id) == (4, 5, 6)
    assert template.layouts == ("psm",)
    assert find_template(lambda name: None, marks=marks, vocab_size=6) is None
    assert find_template(lambda name: None, marks={"prefix": 4}, vocab_size=9) is None


def test_sidecar_wins_over_everything_else(tmp_path):
    path = tmp_path / "fim.json"
    path.write_text(json.dumps(FIELDS))
    words = VOCABULARIES["StarCoder"]
    template = find_template(lookup(words), sidecar=path, vocab_size=49152)
    assert template.family == "keyturn-135m"
    path.unlink()
    assert find_template(lookup(words), sidecar=path, vocab_size=49152).family == "StarCoder"


def test_embedded_sidecar_says_what_the_model_was_trained_on():
    template = read_sidecar(EMBEDDED, 49152)
    assert (template.prefix_id, template.suffix_id, template.middle_id) == (8, 9, 10)
    assert template.layouts == ("spm", "psm") and template.layout == "spm"
    assert 0 in template.end_ids and not template.regenerate_white_space and not template.bos_first
    assert template.window_tokens == 2048
    assert {"python", "javascript", "typescriptreact"} <= set(template.languages)
    assert template.wanted_ids == ()  # it was not trained to be told
    assert FIELDS.keys() | {"wanted_ids"} == asdict(template).keys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prefix_id": 49152}, "vocabulary"),
        ({"end_ids": [-1]}, "vocabulary"),
        ({"end_ids": 0}, "fim.json"),
        ({"layout": "pms"}, "pms"),
        ({"layouts": ["psm"]}, "spm"),
        ({"layouts": ["spm", "other"]}, "other"),
        ({"window_tokens": -1}, "window_tokens"),
        ({"chars_per_token": 0}, "chars_per_token"),
        ({"chars_per_token": float("nan")}, "chars_per_token"),
        ({"middle_id": "x"}, "fim.json"),
        ({"layout": ["spm"]}, "fim.json"),
        ({"files": "outside"}, "outside"),
        ({"wanted_ids": {"line": 11, "block": 49152}}, "vocabulary"),
        ({"wanted_ids": {"line": -1}}, "vocabulary"),
        ({"wanted_ids": {"lines": 11}}, '"lines" is none of line, block'),
        ({"wanted_ids": {"line": "x"}}, "fim.json"),
        ({"wanted_ids": [11, 12]}, "fim.json"),
    ],
)
def test_wrong_sidecar_is_one_line_with_its_name(tmp_path, changes, reason):
    path = tmp_path / "fim.json"
    path.write_text(json.dumps(FIELDS | changes))
    with pytest.raises(ModelLoadError, match=reason) as error:
        read_sidecar(path, 49152)
    assert "fim.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - OPTIONAL))
def test_sidecar_without_a_field_is_refused(tmp_path, field):
    path = tmp_path / "fim.json"
    path.write_text(json.dumps({key: FIELDS[key] for key in FIELDS if key != field}))
    with pytest.raises(ModelLoadError, match=field):
        read_sidecar(path, 49152)


def test_a_sidecar_need_not_name_languages(tmp_path):
    path = tmp_path / "fim.json"
    path.write_text(json.dumps({key: FIELDS[key] for key in FIELDS if key != "languages"}))
    assert read_sidecar(path, 49152).languages == ()


def test_a_sidecar_may_say_how_a_model_is_told_what_is_wanted(tmp_path):
    path = tmp_path / "fim.json"
    path.write_text(json.dumps(FIELDS | {"wanted_ids": WANTED_IDS}))
    template = read_sidecar(path, 49152)
    assert dict(template.wanted_ids) == WANTED_IDS
    assert [template.wanted_id(name) for name in ("line", "block", "")] == [11, 12, None]
    path.write_text(json.dumps(FIELDS | {"wanted_ids": {"line": 11}}))
    assert read_sidecar(path, 49152).wanted_id("block") is None


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '"x"'])
def test_sidecar_that_is_no_object_is_refused(tmp_path, content):
    path = tmp_path / "fim.json"
    path.write_text(content)
    with pytest.raises(ModelLoadError, match="fim.json"):
        read_sidecar(path, 49152)


def test_families_shown_to_people_have_an_example():
    assert all(family.example.count("/") == (family.name != "SantaCoder") for family in FAMILIES)
    assert all(family.source for family in FAMILIES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_template_is_a_value():
    template = read_sidecar(EMBEDDED, 49152)
    assert isinstance(template, FimTemplate) and hash(template) is not None
