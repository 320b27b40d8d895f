"""The stop: where it ends a completion, where it only warns, and its file."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from keyturn.engine.engine import Engine
from keyturn.engine.exits import stop
from keyturn.engine.exits.stop import FEATURES, StopRule, StopWatch
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import ModelLoadError

from .test_generate import doubtful

# Doubts a line in which some token has a probability below one half.
BY_LATEST = StopRule((0.0, 0.0, -1.0, 0.0, 0.0, 0.0), 0.0, math.log(2) + 1e-6)
SURE = [(2, 0.9), (4, 0.9), (2, 0.9)]  # "foo = foo"
TEXT = "def first(a, b):\n    return a + b\n\n\ndef second(a, b):\n    return \n"
AT = TEXT.index("return \n") + len("return ")


@pytest.fixture(scope="module")
def engine():
    return Engine(EngineConfig("cpu", "float32", 1, 1 << 30, 400, 64))


def test_stop_ends_before_the_token_that_brings_it_and_leaves_no_part_of_a_word():
    told = []
    script = [*SURE, (3, 0.4), (5, 0.9), (1, 0.9)]
    watch = StopWatch(BY_LATEST, "line")
    result = doubtful(script, 1e-9, lambda text, p: told.append(text), watch)
    assert (result.text, result.stop_reason, result.is_doubtful) == (
        "foo = ",
        "low_confidence",
        True,
    )
    assert "".join(told) == result.text
    result = doubtful([*SURE, (6, 0.4), (1, 0.9)], 1e-9, None, StopWatch(BY_LATEST, "line"))
    assert (result.text, result.stop_reason) == ("foo = foo", "low_confidence")


def test_gate_comes_first():
    result = doubtful([*SURE, (6, 0.4)], 0.5, None, StopWatch(BY_LATEST, "line"))
    assert result.stop_reason == "doubt"


def test_without_a_gate_it_only_warns():
    script = [*SURE, (3, 0.4), (5, 0.9), (1, 0.9)]
    result = doubtful(script, 0.0, None, StopWatch(BY_LATEST, "line"))
    assert (result.text, result.stop_reason, result.is_doubtful) == ("foo = foobar1", "end", True)
    assert not doubtful([*SURE, (1, 0.9)], 0.0, None, StopWatch(BY_LATEST, "line")).is_doubtful


def test_only_the_first_line_is_judged():
    # 7 is a line feed.
    result = doubtful([*SURE, (7, 0.9), (3, 0.3), (1, 0.9)], 1e-9, None, StopWatch(BY_LATEST, ""))
    assert (result.text, result.stop_reason, result.is_doubtful) == ("foo = foo\nbar", "end", False)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_session_stops_where_it_is_asked_to(engine, tiny_model, temperature):
    session = engine.open("stop", TEXT, path="a.py", model=str(tiny_model), policy="repair")
    params = CompletionParams(12, temperature, 1.0, 0, (), 0.0, 1e-30, depth="fast")

    def complete(most, **changes):
        seen = replace(BY_LATEST, weights=(-1.0, *[0.0] * 5), most=most)
        session.model = replace(session.model, stop=seen)
        return session.complete(AT, replace(params, **changes), lambda: None)

    whole = complete(1e9, place="rest")
    assert not whole.is_doubtful
    half = -sum(math.log(each) for each in whole.probabilities[:6]) - 1e-6
    stopped = complete(half, place="rest")
    assert stopped.stop_reason == "low_confidence"
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
    assert 0 < len(stopped.token_ids) < len(whole.token_ids)
    assert complete(half).token_ids == whole.token_ids  # no place was said
    for depth in ("full", "exact", "fast"):
        warned = complete(half, place="rest", min_probability=0.0, depth=depth)
        assert (warned.token_ids, warned.is_doubtful) == (whole.token_ids, True)
    exact = complete(half, place="rest", depth="exact")  # which changes nothing that is written
    assert (exact.token_ids, exact.is_doubtful) == (whole.token_ids, False)


def test_model_without_a_rule_is_not_watched(engine, tiny_model):
    assert engine.load(str(tiny_model)).stop is None


def test_file_is_read_back_for_its_model_and_refused_otherwise(engine, tiny_model, tmp_path):
    decoder, path = engine.load(str(tiny_model)).decoder, tmp_path / "stop.npz"
    rule = StopRule((0.5, -1.0, 0.25, 0.0, 1.0, 2.0), -0.5, 1.5)
    stop.save(path, rule, decoder)
    assert stop.find(decoder, path) == rule
    assert stop.find(decoder, tmp_path / "none.npz") is None
    given = dict(np.load(path))
    for changed, message in (
        ({"format": 2}, "has format 2, not 1; remove it"),
        ({"weights": np.zeros(2)}, "is damaged"),
        ({"most": math.nan}, "is damaged"),
    ):
        np.savez(path, **{**given, **changed})
        with pytest.raises(ModelLoadError, match=message):
            stop.find(decoder, path)
    np.savez(path, **{**given, "model": "another"})
    assert stop.find(decoder, path) is None
    path.write_bytes(b"PK")
    with pytest.raises(ModelLoadError, match="is damaged"):
        stop.find(decoder, path)


def test_shipped_rule_knows_its_features():
    with np.load(stop.SHIPPED) as file:
        assert len(file["weights"]) == len(FEATURES)
        # The surer the model, the smaller the odds.
        rule = StopRule(tuple(file["weights"].tolist()), float(file["bias"]), float(file["most"]))
    sure, unsure = (
        rule.odds(stop.features(math.log(p), p, entropy, "line"))
        for p, entropy in ((0.99, 0.05), (0.02, 5.0))
    )
    assert sure < rule.most < unsure


def test_entropy_is_of_what_is_allowed():
    # Odds of the entropy alone: of equally likely tokens it is the logarithm of their number.
    logits = torch.full((8,), float("-inf"))
    logits[:4] = 3.0
    for most, is_doubtful in ((math.log(4) - 1e-4, True), (math.log(4) + 1e-4, False)):
        watch = StopWatch(StopRule((0.0, 0.0, 0.0, 1.0, 0.0, 0.0), 0.0, most), "line")
        watch.see(b"a", 0.25, logits)
        assert watch.is_doubtful == is_doubtful
