"""What `keyturn models` says of published models: sizes, memory, and what suits a machine."""

import pytest

from keyturn.engine.files.catalog import EMBEDDED_FILE
from keyturn.engine.files.known_models import KNOWN, QUANTS, Machine, listed, recommended
from keyturn.server.model_list import list_models, models_report

GB = 1_000_000_000
BY_NAME = {model.name: model for model in KNOWN}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-Coder-0.5B", 0.49),
        ("Qwen/Qwen2.5-Coder-1.5B", 1.54),
        ("Qwen/Qwen2.5-Coder-3B", 3.09),
        ("Qwen/Qwen2.5-Coder-7B", 7.62),
        ("deepseek-ai/deepseek-coder-1.3b-base", 1.35),
        ("bigcode/starcoder2-3b", 3.03),
        ("google/codegemma-2b", 2.51),
        ("codellama/CodeLlama-7b-hf", 6.74),
        ("ByteDance-Seed/Seed-Coder-8B-Base", 8.25),
    ],
)
def test_the_weights_are_as_many_as_published(name, billions):
    assert BY_NAME[name].num_weights / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_embedded_model_weighs_what_its_file_does():
    size = EMBEDDED_FILE.stat().st_size
    assert BY_NAME["embedded"].weight_bytes("none") == pytest.approx(size, rel=0.05)


def test_fewer_bits_weigh_less_and_a_gpu_holds_nothing_beside_them():
    machine = Machine(8, 64 * GB, 2, "GPU", 24 * GB)
    for model in KNOWN[1:]:
        needed = [model.needed_bytes(quant, machine) for quant in QUANTS]
        assert needed == sorted(needed, reverse=True)
        assert needed[0] > model.num_weights * 2


@pytest.mark.parametrize(
    ("machine", "name", "quant"),
    [
        (Machine(2, 8 * GB, 4), "embedded", "none"),
        (Machine(64, 1 * GB, 2), "embedded", "none"),
        (Machine(16, 32 * GB, 2), "Qwen/Qwen2.5-Coder-0.5B", "q8"),
        (Machine(32, 64 * GB, 2), "Qwen/Qwen2.5-Coder-1.5B", "q8"),
        (Machine(8, 32 * GB, 4, "small", 2 * GB), "embedded", "none"),
        (Machine(8, 32 * GB, 4, "laptop", 8 * GB), "Qwen/Qwen2.5-Coder-1.5B", "q8"),
        (Machine(8, 64 * GB, 4, "large", 80 * GB), "ByteDance-Seed/Seed-Coder-8B-Base", "none"),
    ],
)
def test_what_suits_a_machine(machine, name, quant):
    model, chosen, why = recommended(machine)
    assert (model.name, chosen) == (name, quant) and why
    room = machine.gpu_bytes or machine.memory_bytes
    assert model.name == "embedded" or model.needed_bytes(chosen, machine) <= room / 2


def test_one_is_recommended_and_what_is_here_has_its_path():
    on_disk = [{"name": "embedded", "path": "/x", "num_bytes": 1}]
    found = listed(Machine(2, 8 * GB, 4), on_disk)
    assert [model["name"] for model in found if model["recommended"]] == ["embedded"]
    assert [model["path"] for model in found if model["path"]] == ["/x"]
    assert all(set(model["bytes"]) == set(QUANTS) for model in found)


def test_the_report_names_every_model_and_the_reason():
    found = list_models()
    text = models_report(found)
    assert all(f" {model['name']} " in text for model in found["known"])
    assert text.count("\n* ") == 2 and "suits this machine" in text
    assert "keyturn models --download" in text
