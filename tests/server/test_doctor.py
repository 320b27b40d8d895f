import dataclasses
import os
import socket
from importlib.metadata import version

import pytest

from keyturn.engine.wire.address import default_address, make_folder
from keyturn.engine.wire.errors import HostUnavailable
from keyturn.server import doctor
from keyturn.server.events import log_path
from keyturn.server.settings import COMMAND_LINE, Settings


@pytest.fixture(autouse=True)
def own_runtime_dir(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def asked(tiny_model) -> Settings:
    """Settings with a model that loads in milliseconds."""
    return dataclasses.replace(COMMAND_LINE, model=str(tiny_model), device="cpu")


def unmakable(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "file"))
    return "cannot create folder"


def open_to_others(folder, monkeypatch):
    (folder / "keyturn").mkdir()
    (folder / "keyturn").chmod(0o755)
    return "its mode is 0755"


def a_link(folder, monkeypatch):
    (folder / "elsewhere").mkdir(mode=0o700)
    (folder / "keyturn").symlink_to(folder / "elsewhere")
    return "it is no folder"


def a_lock_that_is_a_folder(folder, monkeypatch):
    default_address().lock.mkdir(parents=True)
    (folder / "keyturn").chmod(0o700)
    return "cannot open"


def a_log_that_is_a_link(folder, monkeypatch):
    make_folder(folder / "keyturn")
    default_address().log.symlink_to(folder / "elsewhere")
    return "cannot open"


def nowhere_to_write(folder, monkeypatch):
    monkeypatch.setattr(os, "write", fail_with(OSError(28, "No space left on device")))
    return "No space left"


def no_sockets_there(folder, monkeypatch):
    monkeypatch.setattr(socket.socket, "bind", fail_with(OSError(95, "not supported")))
    return "cannot make a socket"


def no_python(folder, monkeypatch):
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    return "cannot start"


def fail_with(error):
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "spoil",
    [
        unmakable,
        open_to_others,
        a_link,
        a_lock_that_is_a_folder,
        a_log_that_is_a_link,
        nowhere_to_write,
        no_sockets_there,
        no_python,
    ],
)
def test_a_place_where_no_host_can_start_is_fatal(asked, tmp_path, monkeypatch, spoil):
    message = spoil(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    found = doctor.examine(asked)
    assert found["ok"] is False
    (problem,) = found["problems"]
    assert message in problem["problem"]
    assert "XDG_RUNTIME_DIR" in problem["remedy"]
    assert doctor.report(found).endswith("completion does not work\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_good_place_is_named_and_left_as_it_was(asked, tmp_path) -> None:
    found = doctor.examine(asked)
    assert (found["ok"], found["problems"]) == (True, [])
    assert list(tmp_path.iterdir()) == []
    assert found["packages"] == {name: version(name) for name in found["packages"]}
    assert {"torch", "pygls", "msgpack"} <= found["packages"].keys()
    assert found["host"]["running"] is False
    assert found["host"]["socket"].endswith(".sock")
    assert found["log_files"] == []
    assert found["model"]["path"] == asked.model
    assert "completion works" in doctor.report(found)
    make_folder(default_address().socket.parent)
    default_address().log.write_text("said before\n")
    before = sorted(tmp_path.rglob("*"))
    found = doctor.examine(asked)
    assert found["ok"] is True
    assert found["log_files"] == [str(default_address().log)]
    lines = doctor.report(found).splitlines()
    assert f"log        {default_address().log}" in lines
    assert f"events     {log_path()} (none yet)" in lines
    assert sorted(tmp_path.rglob("*")) == before


def test_a_running_host_is_named_and_one_that_is_silent_too(asked, monkeypatch) -> None:
    async def running(*_: object) -> dict:
        return {"pid": 4711}

    monkeypatch.setattr(doctor, "look", running)
    found = doctor.examine(asked)
    assert (found["host"]["running"], found["host"]["pid"]) == (True, 4711)
    assert "running, process 4711" in doctor.report(found)

    async def silent(*_: object) -> dict:
        raise HostUnavailable("the engine host does not answer within 5 s; its log is x")

    monkeypatch.setattr(doctor, "look", silent)
    found = doctor.examine(asked)
    assert found["ok"] is True
    assert "does not answer" in found["problems"][0]["problem"]
    assert "it does not answer" in doctor.report(found)


def test_a_model_that_cannot_be_used_is_a_fatal_problem_with_its_remedy(asked, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = doctor.examine(dataclasses.replace(asked, model="no/such-model"))
    assert found["ok"] is False
    (problem,) = found["problems"]
    assert problem["problem"].startswith("model 'no/such-model' is not in the local cache")
    assert "--download" in problem["remedy"]
    text = doctor.report(found)
    assert f"PROBLEM    {problem['problem']}\n" in text
    assert "remedy" in text
    assert text.endswith("completion does not work\n")


@pytest.mark.parametrize(
    ("values", "device", "dtype", "why"),
    [
        ({}, "cpu", "float32", "no CUDA device was found; it does not multiply in bfloat16"),
        ({}, "cuda", "bfloat16", "a CUDA device was found; it multiplies in bfloat16"),
        ({"device": "cpu", "dtype": "float32"}, "cpu", "float32", "as asked; dtype as asked"),
    ],
)
def test_the_choice_of_device_and_dtype_is_explained(values, device, dtype, why) -> None:
    found = {"ok": True, "problems": []}
    status = {"device": device, "dtype": dtype, "kernels": {"backend": "triton", "why": ""}}
    doctor.examine_device(found, Settings(**values), status)
    assert found["why"].startswith(why)


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
    doctor.examine_device(found, COMMAND_LINE, status)
    assert found["ok"] is True
    assert found["kernels"] == kernels
    assert len(found["problems"]) == (problem is not None)
    for key, start in zip(("problem", "remedy"), problem or (), strict=False):
        assert found["problems"][0][key].startswith(start)
