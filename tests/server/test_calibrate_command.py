"""`keyturn calibrate`: a file that the engine finds, and clear words about what it cannot use."""

import re

import pytest

from keyturn.engine.engine import Engine
from keyturn.engine.exits import depth_file
from keyturn.engine.exits.controller import Exits
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.errors import ModelLoadError
from keyturn.server.cli import main

SOURCE = "def f{0}(a, b):\n    total = a + {0} * b\n    return total\n\n\nprint(f{0}(1, {0}))\n"


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "code"
    folder.mkdir()
    for name in ("a.py", "b.py"):
        (folder / name).write_text("\n".join(map(SOURCE.format, range(12))))
    return folder


def calibrate(code, model, *more):
    few = ("--places", "40", "--threads", "1", "--dtype", "float32")
    return main(["calibrate", str(code), "--model", str(model), *few, *more])


@pytest.mark.parametrize("flags", [[], ["--fill-in"]])
def test_what_was_learnt_is_found_when_the_model_is_loaded(code, tiny_model, capsys, flags):
    def load():
        engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
        model = engine.load(str(tiny_model))
        known = engine.status()["models_with_exits"]
        assert known == ([] if model.exits is None else [str(tiny_model)])
        return model

    model = load()
    assert model.exits is None
    path = depth_file.own_file(model.decoder)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match="keyturn calibrate"):
        load()
    assert calibrate(code, tiny_model, "--risk", "0.45", *flags) == 0
    shown = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"^ +\d+  ([\d.]+)%$", shown, re.MULTILINE)]
    assert len(shares) == 2 and shares[0] < shares[1] == 100
    assert shown.endswith(f"written to {path}\n")
    exits = load().exits
    assert isinstance(exits, Exits)
    (point,) = exits.points
    assert point.depth == 1 and point.exit_at < 1
    assert (point.fill is None, exits.fill(point) is None) == (not flags, not flags)
    assert exits.made_up == (0 if flags else 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--risk", "0"], "--risk 0: must be a number above 0 and below 0.5"),
        (["--risk", "1e-9"], "give more source code, or a higher risk"),
        (["--places", "3"], "only 3 places"),
        (["--fill-in", "--skip", "2"], "give one of them"),
        (["--fill-in", "--oracle"], "give one of them"),
        (["--places", "-1"], "--places -1: must be"),
        (["--risk", "0.45", "--out", "/dev/null/depth.npz"], "name another file with --out"),
    ],
)
def test_what_it_cannot_use_is_said_with_what_to_do(code, tiny_model, capsys, flags, message):
    assert calibrate(code, tiny_model, *flags) == 2
    assert message in capsys.readouterr().err


def test_code_that_is_not_there_is_said(code, tiny_model, capsys):
    assert calibrate(code / "none", tiny_model) == 2
    assert "does not exist" in capsys.readouterr().err
    for path in code.iterdir():
        path.unlink()
    assert calibrate(code, tiny_model) == 2
    assert "no source file" in capsys.readouterr().err
