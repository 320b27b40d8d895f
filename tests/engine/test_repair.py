"""Repair before a completion, and healing by what rows are worth."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.model.pass_cost import PassCost
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.prompt.prompt_cache import PromptCache
from keyturn.engine.prompt.repair import (
    BY_SHARE,
    SHARE,
    RepairLimit,
    choose,
    disagreement,
    owed,
    stale_rows,
)
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import Interrupted

from ..tolerance import assert_close
from .test_kv_cache import new_cache

SOURCE = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="utf-8")
GREEDY = CompletionParams(8, 0.0, 1.0, 0, (), 0.0)
ALL = RepairLimit(max_ms=0.0)


def check():
    pass


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request):
    return Engine(EngineConfig("cpu", request.param, 1, 1 << 30, 1200, 64))


@pytest.fixture
def opened(engine, tiny_model):
    def open_(text, policy="repair", layout=None, heals="full"):
        session = engine.open(
            policy, text, path="a.py", model=str(tiny_model), policy=policy, layout=layout
        )
        session.heals = heals
        return session

    return open_


def edited(session, cursor=2000):
    """Fill a cache, then change text before the cursor and behind it."""
    session.set_cursor(cursor)
    session.sync(check)
    session.prompt.take_counts()
    session.edit([(300, 330, "renamed"), (cursor + 40, cursor + 40, "\nadded = 1\n")])
    return cursor - 23


@pytest.mark.parametrize("layout", ["spm", "psm"])
def test_repairing_all_that_is_stale_equals_a_full_prefill(opened, layout, engine):
    session = opened(SOURCE[:3000], layout=layout)
    cursor = edited(session)
    session.repair_limit = ALL
    completion = session.complete(cursor, GREEDY, check)
    fresh = opened(session.text, "full", layout=layout)
    expected = fresh.complete(cursor, GREEDY, check)
    assert completion.num_prompt_tokens == expected.num_prompt_tokens
    assert_close(
        session.prompt.score([5, 6], check), fresh.prompt.score([5, 6], check), engine.dtype
    )


def test_as_many_rows_as_the_limit_says_are_repaired_and_counted(opened):
    session = opened(SOURCE[:3000])
    session.repair_limit = RepairLimit(max_rows=30)
    cursor = edited(session)
    forwarded = session.prompt.num_rows_forwarded
    session.complete(cursor, GREEDY, check)
    counts = session.prompt.take_counts()
    assert counts.num_repaired in (29, 30, 58, 59, 60)  # a round or two
    assert counts.num_wanted == sum(
        (counts.num_kept, counts.num_turned, counts.num_repaired, counts.num_recomputed)
    )
    assert session.prompt.num_rows_forwarded - forwarded >= counts.num_repaired
    assert session.num_stale > 0


def test_nothing_is_repaired_twice_nor_for_what_is_typed_on(opened):
    session = opened(SOURCE[:3000])
    cursor = edited(session)
    session.complete(cursor, GREEDY, check)
    session.prompt.take_counts()
    session.complete(cursor, GREEDY, check)
    assert session.prompt.take_counts().num_repaired == 0
    for key in "name":
        session.edit([(cursor, cursor, key)])
        cursor += 1
        session.complete(cursor, GREEDY, check)
        assert session.prompt.take_counts().num_repaired == 0
    session.edit([(1500, 1510, "")])
    session.complete(cursor - 10, GREEDY, check)
    assert session.prompt.take_counts().num_repaired > 0


def test_policy_turn_keeps_no_record_and_repairs_nothing(opened):
    session = opened(SOURCE[:3000], "turn")
    session.complete(edited(session), GREEDY, check)
    assert session.prompt.take_counts().num_repaired == 0
    assert session.prompt.dependencies is None


def test_an_interrupted_repair_is_done_again(opened, engine):
    session = opened(SOURCE[:3000])
    session.repair_limit = ALL
    cursor = edited(session)
    session.sync(check)
    calls = 0

    def interrupt():
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted("more urgent work waits")

    with pytest.raises(Interrupted):
        session.complete(cursor, GREEDY, interrupt)
    session.complete(cursor, GREEDY, check)
    fresh = opened(session.text, "full")
    fresh.complete(cursor, GREEDY, check)
    assert_close(session.prompt.score([5], check), fresh.prompt.score([5], check), engine.dtype)


def test_what_an_interrupted_patch_has_changed_is_repaired(engine, tiny_model):
    decoder = engine.load(str(tiny_model)).decoder
    prompt = PromptCache(decoder, 300, find_policy("repair"), chunk_tokens=16)
    random = np.random.default_rng(0)
    old, middle, end = (random.integers(4, 300, count) for count in (200, 16, 10))
    prompt.set_prompt({("prefix",): old})
    prompt.patch(check)
    forwarded = prompt.num_rows_forwarded

    def interrupt():
        if prompt.num_rows_forwarded > forwarded:  # those in the middle are there
            raise Interrupted("more urgent work waits")

    prompt.set_prompt({("prefix",): np.concatenate([old[:50], middle, old[50:], end])})
    with pytest.raises(Interrupted):
        prompt.patch(interrupt)
    prompt.patch(check)  # what is left comes last, and changes nothing under the others
    assert prompt.repair(BY_SHARE, check) > 0


def test_healing_by_worth_ends_when_little_is_owed(opened):
    session = opened(SOURCE[:3000], heals="worthwhile")
    cursor = edited(session)
    session.complete(cursor, GREEDY, check)
    prompt = session.prompt
    before = owed(prompt.dependencies)[stale_rows(prompt.rows, prompt.num_tokens)].sum()
    assert session.num_to_heal > 0 and before > 0
    done = 0
    while rows := session.heal(16, check):
        done += rows
    assert session.num_to_heal == 0
    after = owed(prompt.dependencies)[stale_rows(prompt.rows, prompt.num_tokens)].sum()
    assert after < 0.5 * before  # some is left, and what is done owes through what is not
    assert done < session.num_prompt_tokens / 2
    session.edit([(1500, 1510, "x")])
    session.sync(check)
    assert session.num_to_heal > 0  # a new edit, new work


def test_a_short_stale_tail_is_healed_in_order_and_exact(opened, engine):
    session = opened(SOURCE[:3000], heals="worthwhile", layout="spm")
    session.set_cursor(2500)
    session.sync(check)
    session.edit([(2400, 2410, "changed")])  # near the end of an SPM prompt
    session.sync(check)
    while session.heal(64, check):
        pass
    assert session.num_stale == 0
    fresh = opened(session.text, "full", layout="spm")
    fresh.complete(2497, GREEDY, check)
    session.complete(2497, GREEDY, check)
    assert_close(session.prompt.score([5], check), fresh.prompt.score([5], check), engine.dtype)


def test_healing_switched_off_does_nothing(opened):
    session = opened(SOURCE[:3000], heals="off")
    session.complete(edited(session), GREEDY, check)
    assert session.num_stale > 0 == session.num_to_heal == session.heal(64, check)


def test_only_stale_rows_of_the_prompt_are_chosen_and_the_best_of_them():
    cache = new_cache(capacity=20)
    cache.append(np.zeros(12, dtype=np.int64), np.random.default_rng(0).permutation(12))
    cache.num_fresh = 3
    positions = cache.positions
    worth = np.arange(12, dtype=np.float32)[positions]  # more for later ones
    stale = stale_rows(cache, 10)  # the last of ten is the cursor's, two more are generated
    assert sorted(positions[stale].tolist()) == list(range(3, 9))
    assert positions[choose(cache, worth, 10, 4)].tolist() == [5, 6, 7, 8]
    assert positions[choose(cache, -worth, 10, 2)].tolist() == [3, 4]
    assert len(choose(cache, worth, 10, 0)) == 0
    assert len(choose(cache, worth, 10, 99)) == 6


def test_a_limit_is_a_number_a_time_or_a_share():
    cost = PassCost()
    assert RepairLimit().rows(1000, cost) == SHARE * 1000
    assert RepairLimit(max_rows=7).rows(1000, cost) == 7
    assert ALL.rows(1000, cost) == 1000
    assert RepairLimit(max_ms=50.0).rows(1000, cost) == 90  # nothing is known yet
    for rows in (1, 8, 256, 64):
        cost.observe(rows, 10 + rows)
    assert RepairLimit(max_ms=50.0).rows(1000, cost) == 40
    assert RepairLimit(max_ms=5.0).rows(1000, cost) == 0
    assert RepairLimit(max_ms=5000.0).rows(1000, cost) == 90


def test_what_passes_cost_is_followed_when_it_changes():
    cost = PassCost()
    assert cost.ms(10) is None
    cost.observe(100, 50.0)
    assert cost.ms(10) == pytest.approx(5.0)
    for _ in range(100):
        cost.observe(1, 8.0)
        cost.observe(256, 300.0)
    assert cost.ms(1) == pytest.approx(8.0, rel=0.1)
    assert cost.ms(256) == pytest.approx(300.0, rel=0.1)
    for _ in range(200):
        cost.observe(1, 16.0)
        cost.observe(256, 600.0)
    assert cost.ms(128) == pytest.approx(308, rel=0.1)


def test_disagreement_is_the_divergence_of_what_comes_next():
    same = torch.randn(50)
    assert disagreement(same, same) == pytest.approx(0, abs=1e-6)
    assert disagreement(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0])) > 1
