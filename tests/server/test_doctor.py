import pytest

from keyturn.engine.wire.address import FileLock, default_address, make_folder
from keyturn.engine.wire.errors import ModelNotFound
from keyturn.server import doctor
from keyturn.server.settings import COMMAND_LINE


@pytest.fixture(autouse=True)
def own_runtime_dir(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_a_host_runs_exactly_when_its_lock_is_held() -> None:
    assert doctor.is_host_running() is False
    address = default_address()
    make_folder(address.socket.parent)
    lock = FileLock(address.lock)
    assert lock.acquire()
    assert doctor.is_host_running() is True
    lock.release()
    assert doctor.is_host_running() is False


def test_a_model_that_cannot_be_used_is_a_fatal_problem_with_its_remedy(monkeypatch) -> None:
    def fail(found: dict, settings: object) -> None:
        raise ModelNotFound("model 'x' is not on this disk; keyturn models lists what is")

    monkeypatch.setattr(doctor, "_examine_model", fail)
    found = doctor.examine(COMMAND_LINE)
    assert found["ok"] is False
    assert found["problems"] == [
        {"problem": "model 'x' is not on this disk", "remedy": "keyturn models lists what is"}
    ]
    text = doctor.report(found)
    assert "PROBLEM    model 'x'" in text
    assert "remedy" in text
    assert text.endswith("completion does not work\n")


def test_findings_name_versions_host_and_log(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_examine_model", lambda *_: None)
    found = doctor.examine(COMMAND_LINE)
    assert found["ok"] is True
    assert found["problems"] == []
    assert set(found["packages"]) == set(doctor._PACKAGES)
    assert found["host"]["running"] is False
    assert found["host"]["socket"].endswith(".sock")
    assert found["log_files"] == []
    assert "completion works" in doctor.report(found)


@pytest.mark.parametrize(
    ("values", "device", "dtype", "why"),
    [
        ({}, "cpu", "float32", "no CUDA device was found; it does not multiply in bfloat16"),
        ({}, "cuda", "bfloat16", "a CUDA device was found; it multiplies in bfloat16"),
        ({"device": "cpu", "dtype": "float32"}, "cpu", "float32", "as asked; dtype as asked"),
    ],
)
def test_the_choice_of_device_and_dtype_is_explained(values, device, dtype, why) -> None:
    settings = doctor.Settings(**values)
    assert doctor._why(settings, device, dtype).startswith(why)


@pytest.mark.parametrize(
    ("device", "backend", "why", "problem"),
    [
        ("cpu", "reference", "Triton compiles for CUDA devices", None),
        ("cuda", "triton", "compiled for sm_90", None),
        ("cuda", "reference", "triton is not installed; pip install it", ("triton is", "pip")),
        ("cuda:1", "reference", "Triton failed here", ("Triton failed", "edits and completions")),
    ],
)
def test_a_gpu_without_its_kernels_is_a_problem_but_not_fatal(device, backend, why, problem):
    found = {"ok": True, "problems": []}
    kernels = {"backend": backend, "why": why}
    status = {"device": device, "dtype": "bfloat16", "kernels": kernels}
    doctor._note_device(found, COMMAND_LINE, status)
    assert found["ok"] is True
    assert found["kernels"] == kernels
    assert len(found["problems"]) == (problem is not None)
    for key, start in zip(("problem", "remedy"), problem or (), strict=False):
        assert found["problems"][0][key].startswith(start)
