"""Early exits: what rows that left lack, what is made of it, and that healing makes it exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from keyturn.engine.calibration.fill_fit import FillFit
from keyturn.engine.engine import Engine
from keyturn.engine.exits import depth_file
from keyturn.engine.exits.controller import ExitPoint, ExitRule, Exits
from keyturn.engine.generation.decoding_cache import DecodingCache
from keyturn.engine.generation.draft import DraftRecord, LookupWorth, Rates
from keyturn.engine.generation.fast import FastSteps
from keyturn.engine.generation.speculation import Decoding
from keyturn.engine.model.pass_cost import StepCost
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import Cancelled, ModelLoadError

from ..tolerance import RELATIVE, assert_close
from .test_model import ours, reference

TEXT = "def first(a, b):\n    return a + b\n\n\ndef second(a, b):\n    return \n\nx = first(1, 2)\n"
AT = TEXT.index("return \n") + len("return ")
PARAMS = CompletionParams(12, 0.0, 1.0, 0, (), 0.0, depth="fast")
ALWAYS, NEVER = 0.0, 1.1


def check():
    pass


@pytest.fixture(scope="module")
def engine():
    return Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))


def rule_of(decoder, exit_at, last=2, made_up=2):
    config = decoder.config
    random = torch.Generator().manual_seed(1)
    weights = torch.randn(2, config.hidden_size + 2, generator=random)
    point = ExitPoint(1, weights, torch.zeros(2), exit_at)
    return ExitRule((point,), torch.arange(0, config.vocab_size, 2), last, made_up)


@pytest.fixture
def opened(engine, tiny_model):
    def open_(rule=None, policy="repair", text=TEXT, sources=()):
        session = engine.open(policy, text, path="a.py", model=str(tiny_model), policy=policy)
        exits = None if rule is None else Exits(rule, session.model.decoder)
        session.model = replace(session.model, exits=exits)
        session.drafts = DraftRecord(sources=frozenset(sources))
        return session

    return open_


class Scripted(Exits):
    """Lets a row leave when its turn says so."""

    def __init__(self, rule, decoder, turns):
        super().__init__(rule, decoder)
        self.turns = iter(turns)

    def logits(self, point, hidden):
        return [torch.zeros(self._vocab_size) if next(self.turns) else None for _ in hidden]


def steps_of(prompt, exits, lookup=None):
    record, token_bytes = (
        DraftRecord(sources=frozenset()),
        [b"x"] * prompt.decoder.config.vocab_size,
    )
    decoding = Decoding(prompt, check, lookup, record, lambda token_id: False, 200)
    return FastSteps(decoding, exits=exits, num_forced=0, token_bytes=token_bytes)


def rows_of(session, layer):
    cache = session.prompt.rows
    order = torch.from_numpy(cache.by_position().copy())
    return [part[layer][:, order] for part in cache.storage]


def learnt_at_random(rule, config):
    """Return the rule with an exit that fills in anything."""
    num_made = 2 * config.num_kv_heads * 8 * (config.num_layers - 1)
    fill = torch.rand(5, config.hidden_size + 1), torch.rand(num_made, 5)
    return replace(rule, points=(replace(rule.points[0], fill=fill),))


@pytest.mark.parametrize("exit_at", [ALWAYS, 0.5, NEVER])
@pytest.mark.parametrize("learnt", [False, True])
def test_accepted_and_healed_the_cache_equals_a_full_prefill(opened, exit_at, learnt):
    session = opened()
    decoder = session.model.decoder
    session.complete(AT, replace(PARAMS, max_tokens=1), check)
    session.prompt.drop_generated()
    text = "first(b, a) + first(a, b) * second(a, a)"
    rule = rule_of(decoder, exit_at)
    rule = learnt_at_random(rule, decoder.config) if learnt else rule
    steps = steps_of(session.prompt, Exits(rule, decoder))
    for token_id in session.model.tokenizer.encode(text).token_ids:
        steps(int(token_id))
    steps.end()
    assert (steps.mean_layers == 1) == (exit_at == ALWAYS)
    session.edit([(AT, AT, text)])
    session.sync(check)
    assert (session.num_stale > 20) == (exit_at != NEVER)
    while session.heal(16, check):
        pass
    fresh = opened(None, "full")
    fresh.set_cursor(AT)
    fresh.edit([(AT, AT, text)])
    fresh.sync(check)
    for layer in range(2):
        for made, wanted in zip(rows_of(session, layer), rows_of(fresh, layer), strict=True):
            assert_close(made, wanted, torch.float32)


def test_no_exit_writes_what_all_layers_write(opened):
    decoder = opened().model.decoder
    fast = opened(rule_of(decoder, NEVER)).complete(AT, PARAMS, check)
    full = opened().complete(AT, replace(PARAMS, depth="full"), check)
    assert (fast.token_ids, fast.num_layers_run) == (full.token_ids, 2)
    assert fast.probabilities == pytest.approx(full.probabilities, rel=1e-4)


@pytest.mark.parametrize("source", ["lookup", "exits"])
@pytest.mark.parametrize("exit_at", [ALWAYS, 0.5, NEVER])
def test_drafts_do_not_change_what_is_written_by_exits(opened, source, exit_at):
    """Of rows made up where they left everything is as if each had been computed by itself."""
    decoder = opened().model.decoder
    rule = rule_of(decoder, exit_at)
    asked = replace(PARAMS, max_tokens=40)
    alone = opened(rule).complete(AT, asked, check)
    session = opened(rule, sources=[source])
    # What is drafted is not what is written everywhere.
    session.past.completed([*alone.token_ids[:9], 3, *alone.token_ids[10:]])
    drafted = session.complete(AT, asked, check)
    assert session.drafts.num_accepted > 0
    assert drafted.token_ids == alone.token_ids
    assert drafted.probabilities == pytest.approx(alone.probabilities, rel=1e-3)


@pytest.mark.parametrize("made_up", [0, 3])
def test_rows_that_left_are_made_up_when_a_later_one_goes_deep(made_up):
    """As if they had never left; or filled in, which is another thing from the second layer on."""
    decoder = ours(reference())
    prompt = DecodingCache(decoder, 48, find_policy("turn"), 64)
    prompt.set_prompt({"all": np.arange(10)})
    prompt.patch(check)
    token_ids = np.random.default_rng(2).integers(10, 90, 24)
    expected = [prompt.decode(int(each), check) for each in token_ids]
    rows = [part.clone() for part in prompt.rows.layer(2)]
    prompt.drop_generated()
    turns = [True] * 3 + [False, True, False] + [True] * 17 + [False, True]
    exits = Scripted(rule_of(decoder, 0.5, 3, made_up), decoder, turns)
    steps = steps_of(prompt, exits)
    found = [steps(int(each)) for each in token_ids]
    assert steps.mean_layers == (24 * 3 if made_up else 24 + 3 * 2) / 24
    for at in (3, 5, 23):
        off = (found[at] - expected[at]).norm() / expected[at].norm()
        assert (off <= RELATIVE[torch.float32]) == (made_up == 3)
    assert prompt.rows.num_fresh == 10  # what left is stale, and what came after it
    steps.end()
    for made, wanted in zip(prompt.rows.layer(2), rows, strict=True):
        assert made.isfinite().all()
        if made_up:
            assert_close(made, wanted, torch.float32)


@pytest.mark.parametrize("depth", [1, 2])
def test_what_was_learnt_is_filled_in_for_rows_that_left(depth):
    """Where states tell exactly what deeper layers would make, as if no row had ever left."""
    decoder = ours(reference())
    prompt = DecodingCache(decoder, 48, find_policy("turn"), 64)
    prompt.set_prompt({"all": np.arange(10)})
    prompt.patch(check)
    token_ids = np.random.default_rng(2).integers(10, 90, 24)
    expected = [prompt.decode(int(each), check) for each in token_ids]
    slots = prompt.rows.by_position()[10:].copy()
    wanted = [part[:, :, torch.from_numpy(slots)].clone() for part in prompt.rows.storage]
    states = decoder.forward(prompt.rows, slots, check, layers=range(depth)).clone()
    fit = FillFit()
    made = [each[depth:].permute(2, 0, 1, 3).flatten(2) for each in (wanted[0], wanted[2])]
    for _ in range(40):  # fewer rows than entries: the ridge is to count for nothing
        fit.add(states, torch.stack(made, 1))
    reduce, expand = fit.solve(states.shape[1] + 1)
    point = replace(rule_of(decoder, 0.5).points[0], depth=depth, fill=(reduce, expand))
    rule = replace(rule_of(decoder, 0.5, 3, 0), points=(point,))
    prompt.drop_generated()
    turns = [True] * 3 + [False, True, False] + [True] * 17 + [False, True]
    steps = steps_of(prompt, Scripted(rule, decoder, turns))
    found = [steps(int(each)) for each in token_ids]
    assert steps.mean_layers == (21 * depth + 3 * 3) / 24  # nothing is made up
    for at in (3, 5, 23):
        assert (found[at] - expected[at]).norm() <= 0.05 * expected[at].norm()
    steps.end()
    for part, other in zip(prompt.rows.storage, wanted, strict=True):
        filled = part[:, :, torch.from_numpy(prompt.rows.by_position()[10:].copy())]
        assert (filled - other).norm() <= 0.05 * other.norm()


def test_where_rows_leave_early_only_likely_tokens_are_looked_up(opened, monkeypatch):
    """Other tokens would be worth it where a row more costs nothing."""
    monkeypatch.setattr(StepCost, "all_ms", lambda cost, most, slots: [1.0] * most)
    monkeypatch.setattr(LookupWorth, "is_due", lambda worth, step_ms: True)
    monkeypatch.setattr(LookupWorth, "note_drop", lambda worth, ms: None)
    decoder = opened().model.decoder
    rule = rule_of(decoder, 0.5)
    learnt = learnt_at_random(rule, decoder.config)
    num_drafted = {}
    for name, each in (("made up", rule), ("learnt", learnt)):
        for rate in (0.55, 0.9):
            session = opened(each, sources=["lookup"])
            session.drafts.lookup = Rates([rate] * 9)
            session.complete(AT, replace(PARAMS, max_tokens=40), check)
            num_drafted[name, rate] = session.drafts.num_drafted
    assert num_drafted["learnt", 0.55] == 0
    assert all(count > 0 for at, count in num_drafted.items() if at != ("learnt", 0.55))


def test_beside_an_adapter_nothing_leaves(opened, monkeypatch):
    session = opened(rule_of(opened().model.decoder, ALWAYS))
    monkeypatch.setattr(session.model.decoder, "is_adapted", True)
    assert session.complete(AT, PARAMS, check).num_layers_run == 2


def test_what_leaves_at_the_last_layer_writes_what_so_many_layers_write(opened):
    decoder = opened().model.decoder
    rule = replace(rule_of(decoder, 0.5, last=1, made_up=1), points=())
    fast = opened(rule).complete(AT, PARAMS, check)
    assert fast.token_ids == opened().complete(AT, replace(PARAMS, depth="1"), check).token_ids
    assert fast.num_layers_run == 1


def test_nothing_leaves_before_forced_text_is_written(opened):
    decoder = opened().model.decoder
    session = opened(rule_of(decoder, ALWAYS))
    assumed = "a + b\n"
    made = session.complete(AT, replace(PARAMS, assumed=assumed, max_tokens=4), check)
    full = opened().complete(
        AT, replace(PARAMS, assumed=assumed, max_tokens=4, depth="full"), check
    )
    num_forced = next(
        count
        for count in range(len(full.token_ids))
        if len(session.model.tokenizer.decode(full.token_ids[:count])) >= len(assumed)
    )
    assert made.token_ids[: num_forced + 1] == full.token_ids[: num_forced + 1]
    assert all(each % 2 == 0 for each in made.token_ids[num_forced + 1 :])


def test_a_cancelled_step_leaves_whole_rows_only(opened):
    decoder = opened().model.decoder
    session = opened(rule_of(decoder, 0.5))
    calls = 0

    def cancel():
        nonlocal calls
        calls += 1
        if calls > 40:
            raise Cancelled("enough")

    session.sync(check)
    with pytest.raises(Cancelled):
        session.complete(AT, replace(PARAMS, max_tokens=200), cancel)
    again = session.complete(AT, PARAMS, check)
    assert again.token_ids == opened(rule_of(decoder, 0.5)).complete(AT, PARAMS, check).token_ids


def test_a_rule_is_the_same_after_it_was_saved(opened, tmp_path, monkeypatch):
    decoder = opened().model.decoder
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert depth_file.find(decoder) is None
    rule = learnt_at_random(rule_of(decoder, 0.75, made_up=1), decoder.config)
    depth_file.save(depth_file.own_file(decoder), rule, decoder)
    found = depth_file.find(decoder)
    assert (found.last, found.made_up) == (2, 1)
    assert torch.equal(found.token_ids, rule.token_ids)
    (point,) = found.points
    assert (point.depth, point.exit_at) == (1, 0.75)
    assert torch.equal(point.weights, rule.points[0].weights)
    for part, wanted in zip(point.fill, rule.points[0].fill, strict=True):
        assert torch.equal(part, wanted.half().float())


def test_a_file_of_the_first_format_is_read_and_fills_nothing_in(opened, tmp_path):
    decoder, path = opened().model.decoder, tmp_path / "depth.npz"
    depth_file.save(path, rule_of(decoder, 0.75), decoder)
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **content | {"format": 1})
    (point,) = depth_file.load(path, decoder).points
    assert (point.exit_at, point.fill) == (0.75, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "has format 9"),
        ({"model": "another"}, "another model"),
        ({"depths": np.array([3])}, "do not fit"),
        ({"weights": np.full((1, 2, 34), np.nan, np.float32)}, "do not fit"),
        ({"token_ids": np.array([5, 4], np.uint32)}, "do not fit"),
        ({"last": "x"}, "damaged"),
        ({"reduce_1": np.zeros((5, 33)), "expand_1": np.zeros((31, 5))}, "do not fit"),
        ({"reduce_1": np.zeros((5, 33)), "expand_1": np.full((32, 5), np.inf)}, "do not fit"),
        ({"reduce_1": np.zeros((5, 33))}, "damaged"),
        (None, "damaged"),
    ],
)
def test_a_file_that_does_not_fit_says_what_to_do(opened, tmp_path, change, message):
    decoder, path = opened().model.decoder, tmp_path / "depth.npz"
    depth_file.save(path, rule_of(decoder, 0.5), decoder)
    if change is None:
        path.write_bytes(path.read_bytes()[:200])
    else:
        with np.load(path) as file:
            content = dict(file)
        np.savez(path, **content | change)
    with pytest.raises(ModelLoadError, match=message) as error:
        depth_file.load(path, decoder)
    assert "keyturn calibrate" in str(error.value)


@pytest.mark.slow
def test_of_the_embedded_model_what_is_accepted_heals_to_a_full_prefill():
    engine = Engine(EngineConfig("cpu", "auto", 1, 1 << 30, 0, 64))
    text = "def area(wide, high):\n    return wide * high\n\n\ndef perimeter(wide, high):\n    \n"
    at = len(text) - 1

    def opened(policy):
        session = engine.open(policy, text, path="a.py", model="embedded", policy=policy)
        session.set_cursor(at)
        return session

    session = opened("repair")
    assert session.model.exits is not None
    completion = session.complete(at, replace(PARAMS, max_tokens=24), check)
    assert completion.num_layers_run != 30
    session.edit([(at, at, completion.text)])
    session.sync(check)
    assert session.num_stale > 0
    while session.heal(64, check):
        pass
    fresh = opened("full")
    fresh.edit([(at, at, completion.text)])
    fresh.sync(check)
    for layer in range(30):
        for made, wanted in zip(rows_of(session, layer), rows_of(fresh, layer), strict=True):
            assert_close(made.float(), wanted.float(), torch.bfloat16)
