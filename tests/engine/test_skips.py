"""Sets of sub-layers for drafts: the search, its oracle, and the file."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from keyturn.engine.calibration.skip_search import KnownText, Said, as_bytes, search
from keyturn.engine.engine import Engine
from keyturn.engine.exits import skip_file
from keyturn.engine.exits.skip_file import SkipSet
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import ModelLoadError
from keyturn.server.cli import main

SOURCE = "def f{0}(a, b):\n    total = a + {0} * b\n    return total\n\n\nprint(f{0}(1, {0}))\n"


def check():
    pass


@pytest.fixture(scope="module")
def four_layers(tiny_model, tmp_path_factory):
    """The tiny model with its two layers twice."""
    folder = tmp_path_factory.mktemp("four") / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, each in list(tensors.items()):
        for one, other in (("layers.0", "layers.2"), ("layers.1", "layers.3")):
            tensors[name.replace(one, other)] = each.clone()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return folder


def load(model):
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
    return engine, engine.load(str(model))


class Additive(KnownText):
    """Text of which each sub-layer that is left out takes its own part."""

    def __init__(self, parts, num_tokens):
        self.parts, self.random = parts, np.random.default_rng(4)
        zeros = np.zeros(num_tokens)
        self.full = Said(zeros.astype(np.int64), zeros, zeros)

    def said(self, skipped):
        off = [part for at, part in enumerate(self.parts) if skipped[at // 2] >> at % 2 & 1]
        is_wrong = self.random.random(len(self.full.loss)) > np.exp(-np.sum(off))
        return replace(self.full, likeliest=is_wrong.astype(np.int64))


def test_the_search_finds_what_costs_little_sooner_than_chance():
    random = np.random.default_rng(1)
    gained = []
    for seed in range(8):
        parts = random.exponential(0.04, 40)
        parts[random.integers(2, 38)] = 3.0  # one without which nothing goes
        text = Additive(parts, 600)
        tried = [skipped for skipped, _ in search(text, 20, 8, 60, seed)]
        assert len(set(tried)) == 60
        assert all(sum(each.bit_count() for each in skipped) == 8 for skipped in tried)
        assert tried[0] == bytes(16) + bytes([3] * 4)
        assert not any(skipped[0] or skipped[-1] for skipped in tried[1:])
        costs = [
            parts[[at for at in range(40) if each[at // 2] >> at % 2 & 1]].sum() for each in tried
        ]
        gained.append(min(costs[1:25]) - min(costs[25:]))
    assert np.mean(gained) > 0.05 and np.min(gained) > 0


def test_the_search_ends_where_there_are_no_more_sets():
    text = Additive(np.full(8, 0.01), 100)
    assert len(dict(search(text, 4, 3, 9, 0))) == 1 + 4


def test_known_text_is_what_the_layers_say_of_rows_in_the_prompt(four_layers):
    engine, model = load(four_layers)
    text = "\n".join(map(SOURCE.format, range(9)))
    sessions = []
    for at in (60, 300):
        session = engine.open(at, text, path="a.py", model=str(four_layers), policy="turn")
        session.set_cursor(at)
        session.sync(check)
        sessions.append(session)
    logits = [session.prompt.logits(check) for session in sessions]
    known = KnownText(sessions, check)
    for session, expected in zip(sessions, logits, strict=True):
        assert torch.equal(session.prompt.logits(check), expected)
    skipped = as_bytes([3, 4], 4)
    assert skipped == bytes([0, 2, 1, 0])
    without = known.said(skipped)
    assert 0 < known.agrees(without).mean() < 1
    # The same, row after row as they would be drafted.
    session = sessions[-1]
    cache, order = session.prompt.rows, session.prompt.rows.by_position()
    session.prompt.heal_now(check)
    tokens = cache.token_ids[order]
    decoder = model.decoder
    states = [
        decoder.forward(cache, order[at : at + 1], check, skipped=skipped)
        for at in range(len(order) - 65, len(order) - 1)
    ]
    found = decoder.logits(torch.cat(states)).log_softmax(-1)
    half = len(without.loss) - 64
    assert without.likeliest[half:].tolist() == found.argmax(-1).tolist()
    losses = -found[torch.arange(64), torch.from_numpy(tokens[-64:].astype(np.int64))]
    assert without.loss[half:] == pytest.approx(losses.numpy(), rel=1e-3, abs=1e-3)


def test_what_was_searched_is_found_by_language_and_drafts(
    four_layers, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("\n".join(map(SOURCE.format, range(12))))
    monkeypatch.setattr("keyturn.engine.calibration.skips.NUM_TRIED", 6)
    flags = ("--skip", "1", "--oracle", "--threads", "1", "--dtype", "float32")
    assert main(["calibrate", str(tmp_path), "--model", str(four_layers), *flags]) == 0
    engine, model = load(four_layers)
    shown = capsys.readouterr().out
    assert shown.endswith(f"written to {skip_file.path_of(model.decoder)}\n")
    rows = [line.split() for line in shown.splitlines() if line.startswith(("easy", "hard", "all"))]
    for _, count, ours, oracle, full, of_set, best in rows:
        assert float(best) <= float(of_set) and float(full) > 0 and int(count) > 0
        assert 0 <= float(ours[:-1]) <= float(oracle[:-1]) <= 100
    (skipped,) = model.skips.values()
    assert list(model.skips) == ["python"] and sum(each.bit_count() for each in skipped) == 1
    session = engine.open("a", SOURCE, path="a.py", model=str(four_layers), policy="turn")
    session.drafts.sources = frozenset({"skips"})
    params = CompletionParams(24, 0.0, 1.0, 0, (), 0.0, depth="exact")
    made = session.complete(30, params, check)
    assert session.drafts.num_accepted > 0
    assert made.token_ids == session.complete(30, replace(params, depth="full"), check).token_ids
    # Of another language nothing is known.
    session.path, session.drafts.num_drafted = "a.js", 0
    session.complete(30, params, check)
    assert session.drafts.num_drafted == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--skip", "0"], "--skip 0: must be a whole number above 0"),
        (["--skip", "4"], "--skip 4: must be from 1 to 3"),
        (["--oracle"], "--skip 8: must be from 1 to 3"),
        (["--skip", "1"], "fewer than 24 places"),
    ],
)
def test_what_cannot_be_searched_is_said(four_layers, tmp_path, capsys, flags, message):
    (tmp_path / "a.py").write_text("value = 1\n")
    assert main(["calibrate", str(tmp_path), "--model", str(four_layers), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"format": 9}, "has format 9"),
        ({"model": "another"}, "another model"),
        ({"skipped": np.zeros((1, 3), np.uint8)}, "do not fit"),
        ({"skipped": np.full((1, 4), 4, np.uint8)}, "do not fit"),
        ({"agreement": np.array([np.nan])}, "do not fit"),
        (None, "damaged"),
    ],
)
def test_a_file_is_read_as_it_was_written_or_says_what_to_do(
    four_layers, tmp_path, change, message
):
    _, model = load(four_layers)
    decoder, path = model.decoder, tmp_path / "skips.npz"
    sets = {"python": SkipSet(bytes([0, 3, 1, 0]), 0.75)}
    skip_file.save(path, sets, decoder)
    if change is None:
        path.write_bytes(path.read_bytes()[:200])
    elif change:
        with np.load(path) as file:
            content = dict(file)
        np.savez(path, **content | change)
    if not message:
        assert skip_file.load(path, decoder) == sets
        return
    with pytest.raises(ModelLoadError, match=message) as error:
        skip_file.load(path, decoder)
    assert "keyturn calibrate" in str(error.value)
