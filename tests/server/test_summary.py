"""What a status bar is told."""

import pytest

from keyturn.server.summary import summary

HEALING = {"num_rows_to_heal": 12, "is_idle": False}
READY = {"state": "ready", "reason": None, "percent": 100}


@pytest.mark.parametrize(
    ("engine", "flags", "state", "text"),
    [
        ({"state": "starting", "reason": "the engine is starting"}, {}, "starting", "is starting"),
        ({"state": "loading", "reason": "reading", "percent": 43}, {}, "loading", "loading 43 %"),
        ({"state": "failed", "reason": "no such model"}, {}, "failed", "no such model"),
        ({"state": "stopped", "reason": "ended"}, {}, "failed", "ended"),
        (READY, {"is_busy": True}, "completing", "completing"),
        (READY, {"is_busy": True, "is_paused": True}, "paused", "paused"),
        (READY, {}, "ready", "ready"),
        (READY, {"host": HEALING}, "healing", "healing 12 rows"),
        (READY, {"host": HEALING, "is_busy": True}, "completing", "completing"),
        (READY, {"host": HEALING, "last_reason": "too cold"}, "ready", "too cold"),
        (READY, {"host": HEALING | {"is_idle": True}}, "ready", "ready"),
        (READY, {"host": HEALING | {"num_rows_to_heal": 0}}, "ready", "ready"),
        (READY, {"last_reason": "too cold"}, "ready", "no suggestion: too cold"),
    ],
)
def test_summary_says_the_state_and_why(engine, flags, state, text):
    given = {"is_busy": False, "is_paused": False, "last_reason": None, **flags}
    told = summary(engine, **given)
    assert told["state"] == state and text in told["text"] and told["help"].endswith(".")
    assert ("percent" in told) == (state == "loading")


def test_the_help_under_a_reason_for_silence_promises_nothing_here():
    told = [
        summary(READY, is_busy=False, is_paused=False, last_reason=reason)["help"]
        for reason in (None, "the model was not trained on rust")
    ]
    assert told[0] == "Completions come when you pause."
    assert told[1].startswith("Where there is something to suggest")
