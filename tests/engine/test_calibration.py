"""Training exits on what was observed, and thresholds that keep a risk."""

import math

import numpy as np
import pytest
import torch

from keyturn.engine.calibration.calibrate import most_saved
from keyturn.engine.calibration.fill_fit import FillFit
from keyturn.engine.calibration.fit import fit_point, least_sure
from keyturn.engine.calibration.observe import Observed, observe
from keyturn.engine.calibration.places import draw, source_files
from keyturn.engine.engine import Engine
from keyturn.engine.exits.fill import with_one
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.errors import BadRequest

SOURCE = "import os\n\n\ndef first(value):\n    return value + 1\n\n\nprint(first(2), os)\n" * 6


def check():
    pass


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "b.py").write_text(SOURCE)
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "notes.txt").write_text("nothing of use")
    (tmp_path / "wide.py").write_text("x = '" + "y" * 1000 + "'\n")
    return tmp_path


def test_places_are_holes_in_source_files(folder):
    files = source_files([str(folder)], ["python"])
    assert [path for path, _ in files] == [str(folder / "a.py")]
    places = draw(files, 30, seed=3)
    assert len(places) == 30 and {each.kind for each in places} == {"line", "rest", "gap"}
    for place in places:
        before, after = place.text[: place.offset], place.text[place.offset :]
        assert before + place.middle + after == SOURCE and place.middle.strip()
        assert (place.kind == "gap") == (not after.startswith("\n"))
    assert places == draw(files, 30, seed=3)


def test_a_folder_without_source_says_so(folder):
    with pytest.raises(BadRequest, match="no source file of javascript"):
        source_files([str(folder)], ["javascript"])
    with pytest.raises(BadRequest, match="does not exist"):
        source_files([str(folder / "none")], [])


def test_observed_rows_are_what_the_layers_say_one_by_one(folder, tiny_model):
    engine = Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))
    place = draw(source_files([str(folder / "a.py")], []), 4, seed=1)[0]
    session = engine.open("a", place.text, path="a.py", model=str(tiny_model), policy="turn")
    decoder = session.model.decoder
    ids = torch.arange(0, decoder.config.vocab_size, 3)
    head = decoder.head_over(ids)
    found = observe(session, place, (1, 2), [(head, ids)] * 2, check)
    num_rows = session.prompt.rows.num_rows
    assert num_rows == session.num_prompt_tokens  # nothing is left
    logits = session.prompt.score(found.tokens.tolist(), check)
    assert found.final.tolist() == logits.argmax(-1).tolist()
    assert found.probability == pytest.approx(logits.softmax(-1).amax(-1).numpy(), rel=1e-4)
    assert found.guesses[1].tolist() == ids[logits[:, ids].argmax(-1)].tolist()
    by_itself = [session.prompt.decode(int(each), check, range(1)) for each in found.tokens[:-1]]
    guesses = [int(ids[each[ids].argmax()]) for each in by_itself]
    assert found.guesses[0, 1:].tolist() == guesses


def test_a_trained_exit_tells_what_the_state_tells():
    random = np.random.default_rng(5)
    states = random.normal(size=(1, 600, 16)).astype(np.float16)
    is_final = states[0, :, 3] > 0
    zeros = np.zeros(600, dtype=np.int64)
    sure = np.tile(np.array([-0.7, 1.0], dtype=np.float32), (1, 600, 1))
    wrong = (states[0, :, 5] > 0).astype(np.int64)
    guesses = np.where(is_final, 0, 9)[None]
    rows = Observed(None, wrong, states, guesses, sure, zeros, zeros, 1)
    point = fit_point([rows], 0, depth=4)
    odds = point.odds(torch.from_numpy(states[0]), torch.from_numpy(sure[0])).numpy()
    assert ((odds[:, 0] > 0) == is_final).mean() > 0.95
    assert ((odds[:, 1] > 0) == (wrong == 1)).mean() > 0.95
    assert (point.depth, point.exit_at) == (4, math.inf)


def test_the_threshold_keeps_the_risk_in_nineteen_of_twenty_draws():
    random = np.random.default_rng(1)
    risks = []
    for _ in range(100):
        probability = random.random(2000)
        is_right = random.random(2000) < probability
        threshold = least_sure(probability, is_right, 0.02, 0.05)
        risks.append((1 - threshold) ** 2 / 2)  # what leaves wrongly of as many as there are
    assert 0.005 < np.mean(risks) < 0.02
    assert np.mean(np.array(risks) > 0.02) <= 0.05
    assert least_sure(np.full(50, 0.9), np.ones(50, dtype=bool), 0.001, 0.05) == math.inf


def test_what_deeper_layers_make_is_learnt_of_the_states_that_tell_it():
    random = torch.Generator().manual_seed(3)
    states = torch.randn(900, 16, generator=random)
    looked_at = with_one(states)
    # Of three directions, and of two layers: two keys and two values each.
    wanted = torch.randn(8, 3, generator=random) @ torch.randn(3, 17, generator=random)
    made = looked_at @ wanted.t()
    fit = FillFit()
    for start in (0, 400):
        some = slice(start, start + 400)
        fit.add(states[some], made[some].view(-1, 2, 2, 2))
    assert fit.num_rows == 800
    for rank in (3, 40):
        reduce, expand = fit.solve(rank)
        off = looked_at[800:] @ (expand @ reduce).t() - made[800:]
        assert off.norm() < 0.02 * made[800:].norm()
    reduce, expand = fit.solve(1)
    assert (reduce.shape, expand.shape) == ((1, 17), (8, 1))


def test_exits_are_chosen_by_what_they_save_together():
    late = np.array([True, True, True, False])
    early = np.array([True, False, False, False])
    assert most_saved([2, 8], [early, late], 10, 0.0, 2) == (0, 1)
    assert most_saved([2, 8], [early, late], 10, 0.0, 1) == (0,)
    # Asking the late one costs the tokens that come there more than those that leave there save.
    assert most_saved([2, 8], [early, late], 10, 1.5, 2) == (0,)
    assert most_saved([2, 8], [early, late], 10, 2.0, 2) == ()
    assert most_saved([2, 8], [early & False, late], 10, 1.0, 2) == (1,)
    assert most_saved([8], [late & False], 10, 0.1, 1) == ()
