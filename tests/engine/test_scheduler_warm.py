"""Who waits for a warm cache, what is streamed, and what is done while nobody waits."""

import pytest

from keyturn.engine.wire import errors
from tests.fakes import PARAMS

from .scheduler_driver import wait_until


def test_automatic_completion_waits_for_the_cache_no_longer_than_it_says(driver):
    driver.result(driver.open("a", "held-sync"))
    number = driver.complete("a", 1, 4, invoked=False, wait_ms=50.0)
    assert "warming up" in driver.error(number, errors.WarmingUp)
    # The host goes on by itself, at the cursor that was asked about.
    session = driver.engine.sessions["c", "a"]
    assert session.cursor == 4
    driver.engine.go_on.set()
    driver.result(driver.put("warm", doc="a", version=1, cursor=4, whole=False))
    assert session.synced == "held-sync"
    number = driver.complete("a", 1, 4, invoked=False, wait_ms=0.0)
    assert driver.result(number)["text"] == "<held|-sync>", "a warm place never waits"


def test_decoding_is_not_ended_by_the_wait_for_the_cache(driver):
    driver.open("a", "slow")
    driver.result(driver.put("warm", doc="a", version=1, cursor=2, whole=False))
    number = driver.complete("a", 1, 2, invoked=False, wait_ms=1.0)
    assert driver.result(number)["text"] == "<sl|ow>"


def test_cancelled_completion_leaves_its_place_to_be_warmed(driver):
    driver.result(driver.open("a", "held-sync"))
    number = driver.complete("a", 1, 4, invoked=False)
    wait_until(lambda: driver.engine.num_checks > 0)
    driver.scheduler.cancel(driver.jobs[number], "cancelled by the client")
    driver.error(number, errors.Cancelled)
    driver.engine.go_on.set()
    wait_until(lambda: driver.engine.sessions["c", "a"].synced == "held-sync")


@pytest.mark.parametrize("end", ["edit", "replace", "open", "close"])
def test_wait_for_a_warm_cache_ends_when_the_text_changes(driver, end):
    driver.result(driver.open("a", "held-sync"))
    waiting = driver.put("warm", doc="a", version=1, cursor=0, whole=False)
    wait_until(lambda: driver.engine.num_checks > 0)
    if end == "edit":
        driver.edit("a", 1, [0, 0, "x"])
    elif end == "replace":
        driver.put("replace", doc="a", version=2, text="new")
    elif end == "open":
        driver.open("a", "again")
    else:
        driver.put("close", doc="a")
    driver.error(waiting, errors.Cancelled)


def test_wait_for_a_warm_cache_tells_why_it_cannot_be(driver):
    driver.result(driver.open("a", "fail-on-sync"))
    waiting = driver.put("warm", doc="a", version=1, cursor=0, whole=False)
    assert "a fake failure" in driver.error(waiting, errors.EngineError)
    other_text = driver.put("warm", doc="a", version=7, cursor=0, whole=False)
    driver.error(other_text, errors.VersionMismatch)
    driver.error(driver.put("warm", doc="a", version=1, cursor=99, whole=False), errors.BadPosition)


def test_text_is_streamed_only_when_it_is_asked_for(driver):
    driver.open("a", "stream")
    number = driver.put(
        "complete", doc="a", version=1, offset=0, params=PARAMS, invoked=True, stream=False,
        wait_ms=None,
    )  # fmt: skip
    driver.result(number)
    assert driver.events == []


def test_completion_is_answered_in_a_narrow_window_that_grows_afterwards(driver):
    driver.result(driver.open("a", "narrow", visible=False))
    driver.result(driver.complete("a", 1, 3))
    wait_until(lambda: "grow" in [what for what, _ in driver.engine.log])
    whats = [what for what, _ in driver.engine.log]
    assert whats.index("complete") < whats.index("grow")
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    assert driver.scheduler.status()["num_narrow"] == 0


def test_completion_does_not_wait_for_a_growing_window_and_growth_is_resumed(driver):
    driver.result(driver.open("a", "narrow held-grow", visible=True))
    wait_until(lambda: "grow" in [what for what, _ in driver.engine.log])
    assert driver.result(driver.put("warm", doc="a", version=1, cursor=3, whole=False)) is None
    for number in range(2, 4):
        driver.result(driver.complete("a", 1, 3))
        assert driver.engine.sessions[("c", "a")].grown is None
        wait_until(lambda num=number: [what for what, _ in driver.engine.log].count("grow") >= num)
        assert driver.scheduler.status()["num_narrow"] == 1
    driver.put("replace", doc="a", version=2, text="narrow")
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    assert driver.engine.sessions[("c", "a")].grown == "narrow"
    assert driver.engine.log.index(("grow", "a")) < driver.engine.log.index(("heal", "a"))


def test_what_may_be_needed_later_is_prepared_when_nothing_is_to_be_done(driver):
    driver.result(driver.open("a", "text"))
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    assert driver.engine.num_warmed == 3


def test_what_cannot_be_prepared_harms_nothing(driver, monkeypatch):
    def fail():
        raise RuntimeError("no compiler")

    monkeypatch.setattr(driver.engine, "warm", fail)
    driver.result(driver.open("a", "text"))
    assert driver.result(driver.complete("a", 1, 2))
    wait_until(lambda: driver.scheduler.status()["is_idle"])


def test_other_files_are_shown_in_idle_time_and_after_a_completion_if_it_came_first(driver):
    driver.result(driver.open("a", "held-show", visible=True))
    driver.result(driver.put("others", doc="a", others=[["b.py", "b"]]))
    wait_until(lambda: ("show", "a") in driver.engine.log)
    session = driver.engine.sessions["c", "a"]
    assert driver.result(driver.complete("a", 1, 4))["text"] == "<held|-show>"
    assert session.shown == ()
    driver.engine.go_on.set()
    wait_until(lambda: session.shown == (("b.py", "b"),))
    assert driver.engine.log.count(("show", "a")) == 2


def test_who_waits_for_the_whole_window_hears_when_it_has_grown(driver):
    driver.result(driver.open("a", "narrow held-grow", visible=True))
    any_window = driver.put("warm", doc="a", version=1, cursor=0, whole=False)
    whole = driver.put("warm", doc="a", version=1, cursor=0, whole=True)
    driver.result(any_window)
    driver.result(driver.complete("a", 1, 3))
    assert driver.engine.sessions["c", "a"].grown is None
    assert whole not in driver.results
    driver.engine.go_on.set()
    driver.result(whole)
    assert driver.engine.sessions["c", "a"].grown == "narrow held-grow"


def test_who_waits_no_longer_for_the_whole_window_is_let_go_before_it_has_grown(driver):
    driver.result(driver.open("a", "narrow held-grow", visible=True))
    waiting = [driver.put("warm", doc="a", version=1, cursor=0, whole=True) for _ in range(2)]
    driver.scheduler.cancel(driver.jobs[waiting[0]], "cancelled by the client")
    driver.result(driver.complete("a", 1, 3))
    driver.error(waiting[0], errors.Cancelled)
    assert driver.engine.sessions["c", "a"].grown is None
    assert waiting[1] not in driver.results
    driver.engine.go_on.set()
    assert driver.result(waiting[1]) is None
