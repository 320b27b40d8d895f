"""What `keyturn models` says of published models: sizes, memory, and what suits a machine."""

import json

import pytest

from keyturn.engine.files import known_models
from keyturn.engine.files.catalog import EMBEDDED_FILE
from keyturn.engine.files.hf_config import read_config
from keyturn.engine.files.known_models import KNOWN, QUANTS, Machine, listed, recommended
from keyturn.engine.files.packing import KINDS
from keyturn.engine.model.config import Experts, ModelConfig
from keyturn.engine.model.passes import StepPass
from keyturn.engine.model.tensors import EMBEDDING, HEAD, expected_shapes
from keyturn.kernels.weights.blocks import BlockMatrix
from keyturn.server.model_list import list_models, models_report

from .families import CASES

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
        ("ibm-granite/granite-4.0-1b-base", 1.63),
        ("JetBrains/Mellum2-12B-A2.5B-Base", 12.15),
    ],
)
def test_the_weights_are_as_many_as_published(name, billions):
    assert BY_NAME[name].num_weights / 1e9 == pytest.approx(billions, rel=0.01)


def config_of(model):
    queries, keys, width = model.heads
    experts = Experts(model.experts, 8, model.inner, True) if model.experts > 1 else None
    return ModelConfig(
        family=model.model_type,
        num_layers=model.layers,
        hidden_size=model.hidden,
        intermediate_size=model.inner,
        num_heads=queries,
        num_kv_heads=keys,
        head_dim=width,
        vocab_size=model.vocab,
        max_positions=2048,
        norm_eps=1e-5,
        rope_theta=1e4,
        rotary_dim=width,
        rope_interleaved=False,
        rope_scaling=None,
        tied_embeddings=model.tied,
        attention_bias=False,
        output_bias=False,
        mlp_bias=False,
        is_gated=model.is_gated,
        experts=experts,
    )


@pytest.mark.parametrize("model", KNOWN[1:], ids=lambda model: model.name)
def test_weights_and_their_bytes_are_those_of_the_shapes_that_are_loaded(model):
    shapes = expected_shapes(config_of(model))
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    assert model.num_weights == sum(rows * columns for rows, columns in matrices.values())
    assert model.weight_bytes("none") == 2 * model.num_weights
    for quant, (of_layer, of_ends) in KINDS.items():
        packed = sum(
            rows
            * BlockMatrix.row_bytes(of_ends if name in (EMBEDDING, HEAD) else of_layer, columns)
            for name, (rows, columns) in matrices.items()
            if "router" not in name
        )
        assert model.weight_bytes(quant) == pytest.approx(packed, rel=1e-3)


def test_the_step_is_known_to_compute_what_it_says_it_does(tmp_path):
    computed, path = set(), tmp_path / "config.json"
    for case in CASES:
        path.write_text(json.dumps(case.config))
        if not any(StepPass.lacks(block) for block in read_config(path).blocks()):
            computed.add(case.config["model_type"])
    assert set(known_models.OF_THE_STEP) == computed


def test_where_figures_come_from_is_said_or_known_to_be_missing():
    missing = {model.name for model in KNOWN if not model.source}
    assert missing == {"ByteDance-Seed/Seed-Coder-8B-Base"}


def test_the_embedded_model_weighs_what_its_file_does():
    size = EMBEDDED_FILE.stat().st_size
    assert BY_NAME["embedded"].weight_bytes("none") == pytest.approx(size, rel=0.05)


def test_fewer_bits_weigh_less_and_a_gpu_holds_nothing_beside_them():
    machine = Machine(8, 64 * GB, 2, "GPU", 24 * GB)
    for model in KNOWN[1:]:
        needed = [model.needed_bytes(quant, machine) for quant in QUANTS]
        assert not any(map(str.isspace, model.name)) and len(model.licence) <= 15
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
    paths = {model["path"] for model in found["on_disk"]}
    long = [line for line in text.splitlines() if len(line) > 80 and line.strip() not in paths]
    assert long == []
    assert "keyturn models --download" in text
