"""What a device, a model's context and the byte budget allow."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from keyturn.engine import engine as engine_module
from keyturn.engine.engine import Engine, choose_device
from keyturn.engine.wire.config import CompletionParams
from keyturn.engine.wire.errors import BadRequest, OutOfMemory
from keyturn.kernels.dispatch import choose
from keyturn.server.settings import Settings

PARAMS = CompletionParams(9, 0.0, 1.0, 0, (), 0.0)


def new_engine(cache_bytes: int = 1_000_000_000) -> Engine:
    config = Settings(device="cpu", dtype="float32").engine_config()
    return Engine(replace(config, cache_bytes=cache_bytes))


@pytest.fixture
def short_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a context of 256 tokens."""
    folder = tmp_path / "short"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    return folder


@pytest.mark.parametrize("text", ["x = 1\n" * 500, "🙂" * 3000, ""])
def test_short_context_is_never_outgrown(short_model, text) -> None:
    engine = new_engine()
    session = engine.open("a", text, path="a.py", model=str(short_model), policy="turn")
    completion = session.complete(len(text) // 2, PARAMS, lambda: None)
    assert completion.num_prompt_tokens + PARAMS.max_tokens <= 256
    assert session.model.capacity <= 256


def test_one_document_stays_within_the_byte_budget(tiny_model) -> None:
    budget = 500_000
    engine = new_engine(cache_bytes=budget)
    text = "🙂" * 5000  # many more tokens than its length suggests
    session = engine.open("a", text, path="a.py", model=str(tiny_model), policy="turn")
    session.complete(2500, PARAMS, lambda: None)
    assert 0 < session.prompt.num_bytes <= budget
    assert session.model.capacity <= 1302  # what may be written later fits as well


def test_budget_too_small_for_any_document_is_refused(tiny_model) -> None:
    engine = new_engine(cache_bytes=100_000)
    with pytest.raises(OutOfMemory, match="cache_bytes=100000 holds only 260 tokens"):
        engine.load(str(tiny_model))


@pytest.mark.parametrize("name", ["nonsense", "meta", "xla", "hpu", "CPU"])
def test_device_that_cannot_compute_is_refused(name) -> None:
    with pytest.raises(BadRequest, match=f"device '{name}' cannot be used; try auto or cpu"):
        choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("device", "num_left"), [("cpu", 2), ("cuda", 1)])
def test_cache_that_is_reserved_whole_counts_whole(
    tiny_model, monkeypatch, device, num_left
) -> None:
    engine = new_engine(cache_bytes=788_000)  # 2052 rows, and a session reserves 2048
    model = str(tiny_model)
    first = engine.open("a", "x = 1\n", path="a.py", model=model, policy="turn")
    second = engine.open("b", "y = 2\n", path="b.py", model=model, policy="turn")
    first.complete(6, PARAMS, lambda: None)
    monkeypatch.setattr(engine, "device", torch.device(device))
    second.complete(6, PARAMS, lambda: None)
    assert sum(session.prompt.num_bytes > 0 for session in (first, second)) == num_left


def test_a_start_does_not_import_torchs_compiler():
    code = "import sys, keyturn.engine.engine; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("name", "index"), [("cuda:1", 1), ("cuda", 0)])
def test_an_engine_works_on_its_own_device_of_several(monkeypatch, name, index) -> None:
    current = []
    monkeypatch.setattr(engine_module, "choose_device", torch.device)
    monkeypatch.setattr(engine_module.dispatch, "choose", lambda _: choose(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    Engine(Settings(device=name, dtype="float32").engine_config())
    assert current == [index]
