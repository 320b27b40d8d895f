"""Steps, sides and checks of the benchmark against llama.cpp (not at hand); healing's load."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from keyturn.engine.engine import Engine
from keyturn.server.settings import Settings

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_peers, heal_load, sides, steps = map(
    importlib.import_module, ("bench_peers", "bench_heal_load", "peers.sides", "peers.steps")
)
sys.path.remove(str(ROOT / "benchmarks"))

TEXT = "".join(f"def f{number}():\n    return {number}\n" for number in range(40))


class Server:
    """A peer that computes every prompt as a whole."""

    def __init__(self):
        self.prompts = []

    def run(self, token_ids, num_decoded):
        self.prompts.append(token_ids)
        timings = {"num_redone": len(token_ids), "ready_ms": 1.0, "request_ms": 2.0}
        return {**timings, "text": "x" * num_decoded}


def followed(text, step):
    if step.change is None:
        return text
    start, end, inserted = step.change
    return text[:start] + inserted + text[end:]


def test_a_round_ends_where_it_began_and_its_cursors_are_in_the_text():
    cursor = TEXT.index("f30") - 5
    text, round_of = TEXT, steps.steps(TEXT, cursor, TEXT.index("def f10"))
    for step in round_of:
        before, text = text, followed(text, step)
        assert 0 <= step.cursor <= len(text)
        assert step.change is None or text != before
    assert text == TEXT
    assert round_of[-1].cursor == cursor
    kinds = {step.kind for step in round_of} - {""}
    assert {"a key", "Enter", "edit above", "undo of it", "accepted", *steps.JUMPS} <= kinds


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_peer_is_asked_for_the_same_tokens_as_ours(tiny_model, layout):
    engine = Engine(Settings(device="cpu", dtype="float32", window_tokens=600).engine_config())
    model = engine.load(str(tiny_model))
    text = TEXT[:400]
    session = engine.open("own", text, path="a.py", model=str(tiny_model), policy="full")
    server = Server()
    peer = sides.Peer(server, model, layout, 0, text)
    peer.step(steps.Step("a key", (200, 200, "x"), 201))
    session.edit([(200, 200, "x")])
    session.complete(201, sides.greedy(1), lambda: None)
    ours, (theirs,) = session.prompt.token_ids.tolist(), server.prompts
    assert sorted(ours) == sorted(theirs)
    assert (ours == theirs) == (layout == session.layout_name)


def test_a_cut_suffix_ends_so_many_lines_below_the_cursor(tiny_model):
    engine = Engine(Settings(device="cpu", dtype="float32", window_tokens=1500).engine_config())
    model = engine.load(str(tiny_model))
    cut = sides.Peer(Server(), model, "spm", 3, TEXT[:600]).prompt(100)
    end = TEXT.index("\n", 100) + 1
    for _ in range(3):
        end = TEXT.index("\n", end) + 1
    assert cut == sides.Peer(Server(), model, "spm", 0, TEXT[:end]).prompt(100)


def test_checks_hold_ours_against_the_best_of_either_kind_of_peer():
    def run(step, contender, num_redone, ready_ms):
        about = {"mode": "alone", "step": step, "contender": contender}
        return {**about, "num_redone": [num_redone], "ready_ms": [ready_ms]}

    runs = [run("edit above", "keyturn", 40, 100.0), run("a key", "keyturn", 1, 12.0)]
    runs += [run("edit above", "a", 900, 700.0), run("edit above", "b", 800, 400.0)]
    runs += [run("edit above", "c", 1, 80.0), run("a key", "a", 400, 50.0)]
    runs.append(run("a key", "b", 1, 10.0))
    found = [(check["value"], check["met"]) for check in bench_peers.checks(runs)]
    assert found == [(1.2, False), (4.0, False), (1.25, False)]


def test_the_load_types_at_its_pace_and_every_edit_fits_the_text_before_it():
    text = TEXT[:900]
    events = heal_load.load(700, 100, "abc\n", 60.0, 0, Settings(max_tokens=1))
    version, last_at, num_completions = 1, 0.0, 0
    for event in events:
        assert event.at_s >= last_at
        if event.method == "complete":
            num_completions += 1
            assert event.params["version"] == version
            assert 0 <= event.params["offset"] <= len(text)
            assert text[event.params["offset"] - 1] in "abc\n"
        else:
            ((start, end, inserted),) = event.params["edits"]
            assert event.params["base"] == version
            assert 0 <= start <= end <= len(text)
            assert bool(inserted) or text[start:end] == heal_load.LINE
            text, version = text[:start] + inserted + text[end:], event.params["version"]
            last_at = event.at_s
    assert num_completions > 15
    assert {event.after for event in events} == {"", heal_load.TYPING, heal_load.FAR}


def test_heal_load_prints_every_completion(monkeypatch, capsys, tiny_model):
    given = ["x", "--model", str(tiny_model), "--rounds", "1", "--seconds", "1"]
    given += ["--context", "300", "--distance", "100", "--heals", "off", "full"]
    monkeypatch.setattr(sys, "argv", given)
    heal_load.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    counted = {run["heal"]: len(run["delay_ms"]) for run in result["runs"] if run["delay_ms"]}
    assert counted["off"] == counted["full"] > 0
    assert len(result["checks"]) == 1
