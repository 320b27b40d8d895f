"""Which ops a device gets, and that the reason is told."""

import numpy as np
import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.kernels import dispatch
from keyturn.kernels.cpu import library as cpu_library
from keyturn.kernels.rotary import launch as rope_shift
from keyturn.kernels.rotary import reference

from .conftest import IS_INTERPRETED

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_gets_products_of_its_own_and_says_which():
    chosen = dispatch.try_out(CPU, "auto")
    assert chosen.backend == "cpu"
    assert "; many rows: " in chosen.why
    assert (chosen.whole_step is not None) == chosen.why.startswith("few rows in C (")
    assert chosen.rope_shift is reference.rope_shift
    assert chosen.write_rows is reference.write_rows


def test_a_cpu_without_the_c_library_says_why(monkeypatch):
    monkeypatch.setattr(cpu_library, "load", lambda: "not built; reinstall keyturn")
    chosen = dispatch.try_out(CPU, "auto")
    assert chosen.whole_step is None
    assert chosen.why.startswith("no C library: it is not built; reinstall keyturn; many rows: ")


def test_the_choice_is_made_once_for_what_the_environment_asks_for(monkeypatch):
    monkeypatch.setenv("KEYTURN_KERNELS", "reference")
    chosen = dispatch.choose(CPU)
    assert (chosen.backend, chosen.why) == ("reference", "KEYTURN_KERNELS=reference")
    assert dispatch.choose(CPU) is chosen
    monkeypatch.delenv("KEYTURN_KERNELS")
    chosen = dispatch.choose(CPU)
    assert chosen.backend == "cpu"
    assert dispatch.choose(CPU) is chosen


@pytest.mark.skipif(not IS_INTERPRETED, reason="needs the interpreter")
def test_the_interpreter_is_used_when_asked_for():
    chosen = dispatch.try_out(CPU, "triton")
    assert (chosen.backend, chosen.why) == ("triton", "interpreted, tried on one key")
    assert chosen.rope_shift is rope_shift.rope_shift


def test_triton_on_a_cpu_without_the_interpreter_is_the_reference(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert dispatch.try_out(CPU, "triton").backend == "reference"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_the_reference_is_used_when_asked_for(device):
    chosen = dispatch.try_out(device, "reference")
    assert (chosen.backend, chosen.why) == ("reference", "KEYTURN_KERNELS=reference")


def test_a_value_that_is_not_known_is_ignored_and_named():
    chosen = dispatch.try_out(CPU, "fast")
    assert chosen.backend == "cpu"
    assert "KEYTURN_KERNELS=fast is not one of auto, triton, reference" in chosen.why


def test_a_gpu_without_triton_gets_the_reference_and_the_remedy(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    chosen = dispatch.try_out(CUDA, "auto")
    assert chosen.backend == "reference"
    assert "pip install 'keyturn[gpu]'" in chosen.why


def fail(*_):
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")


def turn_wrongly(unrotated, rotated, *_):
    rotated.copy_(unrotated)


@pytest.mark.skipif(not IS_INTERPRETED, reason="needs the interpreter")
@pytest.mark.parametrize(
    ("turn", "why"),
    [
        (fail, "Triton failed here with RuntimeError: Failed to find C compiler."),
        (turn_wrongly, "Triton turned (3, 4) to [3.0, 4.0], not to (-4, 3)"),
    ],
)
def test_a_failed_trial_ends_in_the_reference_and_the_reason(monkeypatch, turn, why):
    monkeypatch.setattr(rope_shift, "rope_shift", turn)
    chosen = dispatch.try_out(CPU, "triton")
    assert (chosen.backend, chosen.why) == ("reference", why)


def test_the_trial_succeeds_where_kernels_run(device):
    assert dispatch.failed_trial(device) is None


@pytest.mark.gpu
@pytest.mark.skipif(IS_INTERPRETED, reason="needs TRITON_INTERPRET=0")
def test_a_gpu_gets_triton():
    chosen = dispatch.try_out(CUDA, "auto")
    assert chosen.backend == "triton"
    assert chosen.why.startswith("compiled for sm_")


def test_an_engine_patches_and_completes_alike_with_either(monkeypatch, tiny_model):
    found = {}
    for backend in ("reference", "triton"):
        monkeypatch.setenv("KEYTURN_KERNELS", backend)
        engine = Engine(
            EngineConfig(
                device="cpu" if IS_INTERPRETED else "cuda",
                dtype="float32",
                num_threads=0,
                cache_bytes=10**8,
                window_tokens=200,
                chunk_tokens=64,
            )
        )
        assert engine.status()["kernels"]["backend"] == backend
        text = "def add(first, second):\n    return first + second\n"
        session = engine.open("a", text, path="a.py", model=str(tiny_model), policy="turn")
        session.set_cursor(len(text))
        session.sync(lambda: None)
        session.edit([(0, 0, "import os\n")])
        params = CompletionParams(8, 0.0, 1.0, 0, (), 0.0)
        completion = session.complete(len(text) + 10, params, lambda: None)
        assert session.prompt.take_counts().num_turned > 0
        found[backend] = np.array(completion.token_ids)
    assert len(found["triton"])
    assert found["triton"].tolist() == found["reference"].tolist()
