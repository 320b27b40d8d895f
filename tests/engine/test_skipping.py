"""Fewer sub-layers by a schedule: what is written, what is stale, and what healing makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyturn.engine.engine import Engine
from keyturn.engine.generation.decoding_cache import DecodingCache
from keyturn.engine.generation.draft import DraftRecord
from keyturn.engine.generation.skipping import Schedule, skip_decode
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.kernels import dispatch

from ..tolerance import assert_close
from .test_exits import ours, reference, rows_of

TEXT = "def first(a, b):\n    return a + b\n\n\ndef second(a, b):\n    return \n\nx = first(1, 2)\n"
AT = TEXT.index("return \n") + len("return ")
PARAMS = CompletionParams(24, 0.0, 1.0, 0, (), 0.0, depth="fast")
# What is left out of the two layers: the second from the fifth token on; or an MLP, from the start.
FALLING = Schedule(((0, bytes(2)), (4, bytes([0, 3]))))
FIXED = Schedule(((0, bytes([0, 2])),))


def check():
    pass


@pytest.fixture(scope="module")
def engine():
    return Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))


@pytest.fixture
def opened(engine, tiny_model):
    def open_(schedule, sources=(), policy="repair"):
        session = engine.open(policy, TEXT, path="a.py", model=str(tiny_model), policy=policy)
        session.model = replace(session.model, exits=schedule)
        session.drafts = DraftRecord(sources=frozenset(sources))
        session.drafts.exits.gain = float("inf")
        return session

    return open_


@given(st.integers(4, 40), st.data())
def test_a_schedule_only_falls_and_warms_up(num_layers, data) -> None:
    warm_up = data.draw(st.integers(0, num_layers - 2))
    least = data.draw(st.integers(warm_up + 1, num_layers))
    over = data.draw(st.integers(1, 30))
    schedule = skip_decode(num_layers, warm_up=warm_up, least=least, over=over)
    skipped = [schedule(number) for number in range(over + 9)]
    assert skipped[0] == bytes(num_layers)
    assert {sum(map(bool, each)) for each in skipped[over:]} == {num_layers - least}
    for earlier, later in zip(skipped, skipped[1:], strict=False):
        # What a row goes through the rows before it have been through.
        assert all(one & other == one for one, other in zip(earlier, later, strict=True))
        assert not any(later[:warm_up]) and not later[-1]


def test_without_the_last_layer_it_writes_what_the_others_write(opened) -> None:
    schedule = Schedule(((0, bytes([0, 3])),))
    fast = opened(schedule).complete(AT, PARAMS, check)
    assert fast.token_ids == opened(None).complete(AT, replace(PARAMS, depth="1"), check).token_ids
    assert fast.num_layers_run == 1
    nothing = opened(Schedule(((0, bytes(2)),))).complete(AT, PARAMS, check)
    full = opened(None).complete(AT, replace(PARAMS, depth="full"), check)
    assert (nothing.token_ids, nothing.num_layers_run) == (full.token_ids, 2)


def test_the_first_tokens_are_those_of_all_layers(opened) -> None:
    fast = opened(FALLING).complete(AT, PARAMS, check)
    full = opened(None).complete(AT, replace(PARAMS, depth="full"), check)
    assert fast.token_ids[:5] == full.token_ids[:5]
    num_steps = len(fast.token_ids) - 1
    assert fast.num_layers_run == pytest.approx((4 * 2 + (num_steps - 4)) / num_steps)


@pytest.mark.parametrize("schedule", [FALLING, FIXED], ids=["falling", "fixed"])
@pytest.mark.parametrize("source", ["lookup", "exits"])
def test_drafts_do_not_change_what_is_written(opened, source, schedule) -> None:
    """Where a draft begins before layers are left out it may keep them a little longer."""
    alone = opened(schedule).complete(AT, PARAMS, check)
    session = opened(schedule, [source])
    session.past.completed([*alone.token_ids[:9], 3, *alone.token_ids[10:]])
    drafted = session.complete(AT, PARAMS, check)
    assert session.drafts.num_accepted > 0
    num_same = 5 if schedule is FALLING else len(alone.token_ids)
    assert drafted.token_ids[:num_same] == alone.token_ids[:num_same]


def test_layers_that_are_left_out_do_not_draft(opened) -> None:
    session = opened(Schedule(((0, bytes([2, 0])),)), ["exits"])
    session.complete(AT, PARAMS, check)
    assert session.drafts.num_drafted == 0


@pytest.mark.parametrize("schedule", [FALLING, FIXED], ids=["falling", "fixed"])
def test_accepted_and_healed_the_cache_equals_a_full_prefill(opened, schedule) -> None:
    session = opened(schedule, ["lookup"])
    text = session.complete(AT, PARAMS, check).text
    session.edit([(AT, AT, text)])
    session.sync(check)
    assert session.num_stale > 5
    while session.heal(16, check):
        pass
    fresh = opened(None, policy="full")
    fresh.set_cursor(AT)
    fresh.edit([(AT, AT, text)])
    fresh.sync(check)
    for layer in range(2):
        for made, wanted in zip(rows_of(session, layer), rows_of(fresh, layer), strict=True):
            assert_close(made, wanted, torch.float32)


def test_candidates_branch_off_what_was_written_with_fewer_layers(opened) -> None:
    several = replace(PARAMS, num_candidates=3)
    made = opened(FALLING).complete(AT, several, check)
    assert made.text == opened(FALLING).complete(AT, PARAMS, check).text
    assert len({made.text, *made.other_texts}) == 1 + len(made.other_texts) > 1


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_sequences_in_one_batch_are_what_each_is_alone(monkeypatch, kernels) -> None:
    """At one position all go through the same layers, and each sees its own way only."""
    monkeypatch.setenv(dispatch.VARIABLE, kernels)
    decoder = ours(reference())
    random, lengths = np.random.default_rng(4), 6
    sequences = random.integers(10, 90, (3, lengths))

    def prompt():
        made = DecodingCache(decoder, 64, find_policy("turn"), 64)
        made.set_prompt({("prefix",): np.arange(10)})
        made.patch(check)
        return made

    def step(cache, ways, token_ids, number):
        positions = np.full(len(token_ids), 10 + number)
        slots = cache.append(np.array(token_ids), positions)
        unseen = torch.ones(len(slots), cache.num_rows - 10, dtype=torch.bool)
        for at, (way, slot) in enumerate(zip(ways, slots.tolist(), strict=True)):
            way.append(slot)
            unseen[at, torch.tensor(way) - 10] = False
        skipped = bytes([0, *FALLING(number)])  # of three layers the last ones
        return decoder.logits(
            decoder.forward(cache, slots, check, skipped=skipped, unseen=unseen)
        ).clone()

    together, ways = prompt().rows, [[] for _ in sequences]
    found = [step(together, ways, sequences[:, at], at) for at in range(lengths)]
    for number, sequence in enumerate(sequences):
        alone, way = prompt().rows, [[]]
        for at in range(lengths):
            expected = step(alone, way, [sequence[at]], at)
            assert_close(found[at][number : number + 1], expected, torch.float32)
