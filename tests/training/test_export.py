"""The exported file is what the engine loads, and both models say the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from keyturn.engine.engine import Engine
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.weights import load_model as load_files
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.kernels.weights.linear import values_of
from training import export
from training.data import layouts
from training.evaluation.greedy import greedy
from training.evaluation.human_eval import prompt, run_program, tasks
from training.model.rounding import q4_1
from training.model.weights import load_model, named
from training.pieces import pack_checkpoint, write_pieces

BEFORE, AFTER = "def add(a, b):\n    total = ", "\n    return total\n"


def check():
    pass


@pytest.fixture(scope="module")
def raw(tokenizer_path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


def last_logits(model, token_ids):
    ids = torch.tensor(token_ids)
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    last = model.shape.num_layers
    with torch.no_grad():
        return model.logits(model.hidden(ids, torch.arange(len(ids)), bounds, {last})[last])


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_engine_gives_the_training_models_logits(exported, raw, layout):
    model = load_model(exported)
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 0, 256))
    session = engine.open(
        "a", BEFORE + AFTER, path="", model=str(exported), policy="full", layout=layout
    )  # without a name there is no header, as in `prompt`
    completion = session.complete(len(BEFORE), CompletionParams(6, 0.0, 1.0, 0, (), 0.0), check)
    token_ids = list(completion.token_ids)
    assert token_ids
    asked = prompt(raw, BEFORE, AFTER, layout)
    mine = last_logits(model, asked + token_ids)[len(asked) - 1 : -1]
    engines = session.prompt.score(token_ids, check)
    torch.testing.assert_close(mine, engines, rtol=1e-4, atol=1e-4)
    found = greedy(model, [asked, asked[:1]], 6, model.shape.num_layers).ids[0]
    assert found[: len(token_ids)] == token_ids[: len(found)]


def test_file_holds_the_rounded_weights(exported, tiny):
    tensors = load_files(exported, torch.float32).tensors
    for name, weight in named(tiny).items():
        wanted = q4_1(weight) if weight.dim() == 2 else weight
        assert torch.equal(values_of(tensors[name], torch.float32), wanted), name
    again = load_model(exported).state_dict()
    for name, weight in tiny.state_dict().items():
        assert torch.equal(again[name], q4_1(weight) if weight.dim() == 2 else weight)


def test_metadata_says_what_the_product_needs(exported):
    file = GGUFFile(exported)
    assert {info.kind.name for info in file.tensors.values()} == {"Q4_1", "F32"}
    wanted = {
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "general.base_model.0.name": "SmolLM2-135M",
        "tokenizer.ggml.eos_token_id": layouts.END,
        "tokenizer.ggml.fim_pre_token_id": 8,
        "tokenizer.ggml.fim_suf_token_id": 9,
        "tokenizer.ggml.fim_mid_token_id": 10,
        "llama.embedding_length": 64,
    }
    assert {key: file.metadata[key] for key in wanted} == wanted
    assert "general.author" in file.metadata and "tokenizer.chat_template" not in file.metadata
    fim = load_files(exported, torch.float32).fim
    assert fim is not None and fim.end_ids >= layouts.template().end_ids
    assert replace(fim, end_ids=layouts.template().end_ids) == layouts.template()


def test_packed_and_plain_checkpoints_give_the_same_file(tmp_path, tiny):
    checkpoint = {"model": {k: v.detach() for k, v in tiny.state_dict().items()}, "step": 1}
    torch.save(checkpoint, tmp_path / "a.pt")
    write_pieces(pack_checkpoint(checkpoint), str(tmp_path / "a"), 1)
    for weights in ("a.pt", "a"):
        export.main([str(tmp_path / weights), str(tmp_path / f"{weights}.gguf")])
    files = [np.fromfile(tmp_path / name, np.uint8) for name in ("a.pt.gguf", "a.gguf")]
    assert np.array_equal(*files)


def test_greedy_answers_do_not_depend_on_the_batch(tiny, raw):
    prompts = [prompt(raw, BEFORE[:n], AFTER, "spm") for n in (0, 5, 20)]
    together = greedy(tiny, prompts, 5, 30, num_forks=2)
    alone = [greedy(tiny, [p], 5, 30, num_forks=2) for p in prompts]
    assert together.ids == [answers.ids[0] for answers in alone]
    assert together.logs == pytest.approx([answers.logs[0] for answers in alone], abs=1e-3)
    assert together.forks == [answers.forks[0] for answers in alone]
    halt = torch.ones(layouts.VOCABULARY, dtype=torch.bool)
    assert all(len(ids) <= 1 for ids in greedy(tiny, prompts, 5, 30, halt=halt).ids)


def test_forks_are_the_likeliest_other_beginnings(tiny, raw):
    asked = prompt(raw, BEFORE, AFTER, "spm")
    answers = greedy(tiny, [asked], 4, 30, num_forks=9)
    ids, found = answers.ids[0], answers.forks[0]
    assert len(found) == len({tuple(fork) for fork in found}) == min(4, len(ids) + 1)
    expected = []
    for at in range(len(found)):
        logs = last_logits(tiny, asked + ids[:at])[-1].log_softmax(-1)
        first, second = logs.topk(2).indices.tolist()
        assert [first] == ids[at : at + 1] or first == layouts.END
        expected.append((sum_of_logs(tiny, asked, [*ids[:at], second]), [*ids[:at], second]))
    assert found == [fork for _, fork in sorted(expected, reverse=True)]


def sum_of_logs(model, asked, ids):
    logs = last_logits(model, asked + ids)[len(asked) - 1 : -1].log_softmax(-1)
    return logs.gather(1, torch.tensor(ids)[:, None]).sum().item()


def test_programs_run_apart():
    assert run_program("assert 1 + 1 == 2") and not run_program("assert 1 + 1 == 3")


def test_tasks_have_their_indentation_typed(tmp_path):
    import gzip
    import json

    row = {"prompt": "def f():\n", "canonical_solution": "    return 1\n", "suffix": "x"}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write((json.dumps(row) + "\n") * 4)
    (task, _) = tasks(tmp_path / "a.jsonl.gz", 2)
    assert (task["before"], task["after"]) == ("def f():\n    ", "\nx")
