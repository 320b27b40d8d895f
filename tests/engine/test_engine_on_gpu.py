"""On every device, in every dtype: edits against a full prefill, and a GPU against the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.generation.draft import DraftRecord
from keyturn.engine.prompt.edit_plan import common_prefix
from keyturn.engine.replay.scoring import closeness
from keyturn.engine.wire.config import CompletionParams, EngineConfig

from ..tolerance import assert_close

TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n" * 12
PARAMS = CompletionParams(
    max_tokens=6, temperature=0.0, top_p=1.0, seed=0, stop=(), time_budget_ms=0
)
# KL(full || policy) in nats of one token. Both compute the same rows in other company: float32 sums
# in another order, bfloat16 rounds every activation.
MOST_KL = {"float32": 1e-7, "bfloat16": 2e-2}
SCORED = [5, 6, 7, 300]
# Logits so close may change places in other company.
CLOSE = {"float32": 1e-3, "bfloat16": 0.5}

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


def check():
    pass


def most_kl(engine, session, model, cursor):
    """Return the largest KL of a session from a full prefill of its text."""
    full = engine.open("full", session.text, path="a.py", model=model, policy="full")
    session.complete(cursor, PARAMS, check)  # heals, under that policy
    full.complete(cursor, PARAMS, check)
    return max(closeness(full.prompt.score(SCORED, check), session.prompt.score(SCORED, check)).kl)


@pytest.mark.parametrize("policy", ["prefix", "heal"])
@pytest.mark.parametrize("dtype", MOST_KL)
@pytest.mark.parametrize("device", DEVICES)
def test_after_random_edits_a_session_is_a_full_prefill(device, dtype, policy, tiny_model):
    random = np.random.default_rng(4)
    engine = Engine(EngineConfig(device, dtype, 0, 1 << 28, 0, 64))
    model = str(tiny_model)
    session = engine.open("d", TEXT, path="a.py", model=model, policy=policy)
    session.set_cursor(700)
    session.sync(check)
    for _ in range(60 if device == "cuda" else 12 if dtype == "float32" else 4):
        at = int(random.integers(0, len(session.text) - 40))
        length = int(random.integers(0, 40))
        put = TEXT[length : length + int(random.integers(0, 60))]
        session.edit([(at, at + length, put)])
        cursor = int(random.integers(0, len(session.text)))
        assert most_kl(engine, session, model, cursor) <= MOST_KL[dtype]


@pytest.mark.parametrize("dtype", MOST_KL)
@pytest.mark.parametrize("device", DEVICES)
def test_a_prefix_is_exact_whatever_the_number_of_rows_behind_it(device, dtype, tiny_model):
    # Kernels take rows in blocks: a row alone in the last one is like no other.
    engine = Engine(EngineConfig(device, dtype, 0, 1 << 28, 0, 256))
    model, cursor = str(tiny_model), len(TEXT)  # the model shows what is behind it last
    step = 1 if device == "cuda" else 40 if dtype == "float32" else 120
    counts = set()
    for back in range(1, 400, step):
        session = engine.open("d", TEXT, path="a.py", model=model, policy="prefix")
        session.set_cursor(cursor)
        session.sync(check)
        session.prompt.take_counts()
        session.edit([(cursor - back, cursor - back + 1, "=")])
        session.sync(check)
        counts.add(session.prompt.take_counts().num_recomputed)
        assert most_kl(engine, session, model, cursor) <= MOST_KL[dtype]
    assert device == "cpu" or any(count > 1 and count % 32 == 1 for count in counts)


@pytest.mark.parametrize("source", ["lookup", "exits"])
@pytest.mark.parametrize("dtype", MOST_KL)
@pytest.mark.parametrize("device", DEVICES)
def test_drafts_change_a_token_only_for_one_as_likely(device, dtype, source, tiny_model):
    engine = Engine(EngineConfig(device, dtype, 0, 1 << 28, 0, 256))
    session = engine.open("d", TEXT, path="a.py", model=str(tiny_model), policy="turn")
    session.drafts = DraftRecord(sources=frozenset({source}))
    session.drafts.exits.gain = float("inf")
    params = replace(PARAMS, max_tokens=24)
    for cursor in (400, 500, 650, 700):
        plain = session.complete(cursor, params, check).token_ids
        made = session.complete(cursor, replace(params, depth="exact"), check).token_ids
        if made != plain:
            at = common_prefix(np.array(plain), np.array(made))
            first, second = session.prompt.score([*plain[:at], 0], check)[-1].topk(2).values
            assert first - second < CLOSE[dtype]
    assert session.drafts.num_drafted > 0


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["full", "turn"])
def test_logits_agree_with_the_cpu_after_every_edit(tiny_model, policy):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = {}
    for device in ("cpu", "cuda"):
        engine = Engine(EngineConfig(device, "bfloat16", 0, 1 << 28, 0, 256))
        session = engine.open("d", TEXT, path="a.py", model=str(tiny_model), policy=policy)
        rows = []
        for edit in ((40, 40, "x = 1\n" * 9), (100, 160, ""), (5, 8, "sum"), (700, 700, "q")):
            session.edit([edit])
            session.complete(720, PARAMS, check)
            rows.append(session.prompt.score([5], check)[0].float().cpu())
        found[device] = torch.stack(rows)
    assert_close(found["cuda"], found["cpu"], torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_that_are_captured_when_nothing_is_to_be_done_change_nothing(tiny_model):
    engine = Engine(EngineConfig("cuda", "bfloat16", 0, 1 << 28, 0, 256))
    session = engine.open("d", TEXT, path="a.py", model=str(tiny_model), policy="repair")
    session.complete(700, PARAMS, check)
    session.edit([(40, 40, "x = 1\n" * 9)])
    session.set_cursor(760)
    session.sync(check)
    cache, num_stale = session.prompt.rows, session.prompt.num_stale
    rows = [cache.token_ids.copy(), cache.positions.copy()]
    before = session.prompt.logits(check)
    while engine.warm():
        pass
    assert session.model.decoder.uncaptured(cache) is None
    assert session.prompt.num_stale == num_stale
    for found, expected in zip((cache.token_ids, cache.positions), rows, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert session.prompt.logits(check) is before
