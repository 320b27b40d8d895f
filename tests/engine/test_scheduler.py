"""The order of work, by a scheduler with a fake engine."""

import gc
import time
import weakref

from keyturn.engine.wire import errors
from tests.fakes import PARAMS, FakeEngine

from .scheduler_driver import CONFIG, Driver, wait_until


def test_idle_means_that_all_caches_follow_their_texts_and_are_fresh(driver):
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    driver.open("a", "held-sync", visible=True)
    assert not driver.scheduler.status()["is_idle"]
    for step in range(20):
        driver.put("replace", doc="a", version=step + 2, text="x" * step)
        wait_until(lambda: driver.scheduler.status()["is_idle"])
        session = driver.engine.sessions["c", "a"]
        assert session.synced == "x" * step and session.num_stale == 0
        assert driver.scheduler.status()["num_stale_rows"] == 0


def test_an_engine_that_was_replaced_is_let_go_of(driver):
    driver.engine.itself = driver.engine
    gone = weakref.ref(driver.engine)
    driver.result(driver.put("load", model="m", adapter=None))
    assert gc.get_freeze_count()
    driver.engine = None
    driver.scheduler.configure(CONFIG)
    wait_until(lambda: driver.engine)
    wait_until(lambda: gc.collect() >= 0 and gone() is None)
    driver.result(driver.put("load", model="m", adapter=None))
    driver.scheduler.stop(60)
    assert not gc.get_freeze_count()


def test_status_holds_what_was_answered(driver):
    seen = []

    def noted(number, what):
        """Note a part of the status in the worker thread, as the answer comes."""
        driver.jobs[number].on_result = lambda _: seen.append(driver.scheduler.status()[what])

    driver.open("b", "deaf-sync", visible=True)
    wait_until(lambda: ("sync", "b") in driver.engine.log)
    noted(driver.put("load", adapter="x", model="n"), "models")
    noted(driver.open("a", "text"), "num_opened")
    noted(driver.edit("a", 1, [0, 0, "new "]), "texts")
    noted(driver.complete("a", 2, 2), "log")
    noted(driver.put("warm", doc="a", version=2, cursor=3, whole=False), "num_stale_rows")
    driver.engine.go_on.set()
    wait_until(lambda: len(seen) == 5)
    models, num_opened, texts, log, num_stale_rows = seen
    assert (models, num_opened, num_stale_rows) == (["m", "n"], 2, 10)
    assert texts["a"] == "new text" and ("complete", "a") in log
    driver.result(driver.put("close", doc="a"))
    assert list(driver.scheduler.status()["texts"]) == ["b"]


def test_completion_sees_all_edits_before_it_and_none_after(driver):
    driver.open("a", "xy")
    driver.edit("a", 1, [1, 1, "1"])
    driver.edit("a", 2, [2, 2, "2"])
    first = driver.complete("a", 3, 3)
    driver.edit("a", 3, [0, 1, ""])
    second = driver.complete("b", 1, 0)
    assert driver.result(first)["text"] == "<x12|y>"
    assert "open it first" in driver.error(second, errors.BadRequest)
    last = driver.complete("a", 4, 0)
    assert driver.result(last)["text"] == "<|12y>"


def test_edits_of_one_message_build_on_each_other(driver):
    driver.open("a", "abc")
    driver.result(driver.edit("a", 1, [0, 1, "XYZ"], [3, 4, ""], [0, 0, "-"]))
    assert driver.result(driver.complete("a", 2, 0))["text"] == "<|-XYZc>"


def test_whole_text_is_asked_for_when_versions_differ_or_an_edit_does_not_fit(driver):
    driver.open("a", "abc")
    assert "version 1" in driver.error(driver.edit("a", 7, [0, 0, "x"]), errors.VersionMismatch)
    driver.error(driver.edit("a", 1, [0, 0, "x"], [2, 99, ""]), errors.VersionMismatch)
    driver.error(driver.edit("a", 1, [0, 0, "x"]), errors.VersionMismatch)  # half of it is in
    driver.error(driver.complete("a", 1, 0), errors.VersionMismatch)
    driver.result(driver.put("replace", doc="a", version=9, text="new"))
    assert driver.result(driver.complete("a", 9, 3))["text"] == "<new|>"


def test_newer_completion_supersedes_older_ones_of_its_document(driver):
    driver.open("a", "endless")
    driver.open("b", "b")
    running = driver.complete("a", 1, 0)
    wait_until(lambda: driver.engine.num_checks > 0)
    other = driver.complete("b", 1, 0)
    queued = driver.complete("a", 1, 1)
    driver.put("replace", doc="a", version=2, text="quick")
    newest = driver.complete("a", 2, 0)
    assert "newer" in driver.error(running, errors.Cancelled)
    assert "newer" in driver.error(queued, errors.Cancelled)
    assert driver.result(newest)["text"] == "<|quick>"
    assert driver.result(other)["text"] == "<|b>"


def test_invoked_completion_interrupts_an_automatic_one_which_then_ends_right(driver):
    driver.open("a", "held")
    driver.open("b", "b")
    automatic = driver.complete("a", 1, 2, invoked=False)
    wait_until(lambda: driver.engine.num_checks > 3)
    driver.result(driver.complete("b", 1, 0))
    assert automatic not in driver.results
    driver.engine.go_on.set()
    assert driver.result(automatic)["text"] == "<he|ld>"


def test_interrupted_completion_is_done_before_the_edits_after_it(driver):
    driver.open("a", "slow")
    driver.open("b", "b")
    automatic = driver.complete("a", 1, 2, invoked=False)
    wait_until(lambda: driver.engine.num_checks > 3)
    driver.edit("a", 1, [0, 4, "after"])
    driver.complete("b", 1, 0)
    assert driver.result(automatic)["text"] == "<sl|ow>"
    assert driver.result(driver.complete("a", 2, 0))["text"] == "<|after>"


def test_edit_does_not_wait_for_the_patch_of_the_text_before_it(driver):
    driver.result(driver.open("a", "held-sync", visible=True))
    driver.edit("a", 1, [0, 0, "x "])
    wait_until(lambda: driver.engine.num_checks > 0)
    driver.result(driver.edit("a", 2, [0, 0, "y"]))
    assert driver.engine.sessions["c", "a"].synced is None


def test_automatic_completion_waits_for_an_invoked_one(driver):
    driver.open("a", "slow")
    driver.open("b", "b")
    invoked = driver.complete("a", 1, 2)
    wait_until(lambda: driver.engine.num_checks > 3)
    automatic = driver.complete("b", 1, 0, invoked=False)
    driver.result(automatic)
    assert driver.order.index(invoked) < driver.order.index(automatic)


def test_cancelling_stops_the_loop(driver):
    driver.open("a", "endless")
    number = driver.complete("a", 1, 0)
    wait_until(lambda: driver.engine.num_checks > 0)
    driver.scheduler.cancel(driver.jobs[number], "cancelled by the client")
    assert "by the client" in driver.error(number, errors.Cancelled)
    num_checks = driver.engine.num_checks
    time.sleep(0.1)
    assert driver.engine.num_checks == num_checks


def test_many_edits_cost_one_sync(driver):
    driver.result(driver.open("a", "deaf-sync", visible=True))
    wait_until(lambda: ("sync", "a") in driver.engine.log)  # the patch is under way
    for version in range(1, 100):
        driver.edit("a", version, [0, 0, "x"])
    last = driver.put("replace", doc="a", version=101, text="end")
    driver.engine.go_on.set()
    driver.result(last)
    session = driver.engine.sessions["c", "a"]
    wait_until(lambda: session.synced == "end")
    assert driver.engine.log.count(("sync", "a")) == 2


def test_completion_comes_before_the_patch_and_warm_up_of_others(driver):
    driver.result(driver.open("b", "b"))
    driver.result(driver.open("a", "held-sync", visible=True))
    wait_until(lambda: driver.engine.num_checks > 0)
    driver.result(driver.complete("b", 1, 1, invoked=False))
    assert driver.engine.sessions["c", "a"].synced is None
    driver.engine.go_on.set()
    wait_until(lambda: driver.engine.sessions["c", "a"].synced is not None)


def test_only_visible_documents_are_warmed_and_healed(driver):
    driver.open("seen", "seen", visible=True)
    driver.open("unseen", "unseen", visible=False)
    driver.result(driver.edit("unseen", 1, [0, 0, "x"]))
    sessions = lambda: driver.engine.sessions  # noqa: E731
    wait_until(lambda: ("heal", "seen") in driver.engine.log)
    wait_until(lambda: sessions()["c", "seen"].num_stale == 0)
    time.sleep(0.05)
    assert {doc for _, doc in driver.engine.log} == {"seen"}
    driver.put("focus", doc="unseen", visible=True, cursor=2)
    wait_until(lambda: ("heal", "unseen") in driver.engine.log)
    assert sessions()["c", "unseen"].cursor == 2


def test_a_rename_in_many_files_computes_nothing_until_one_is_looked_at(driver):
    docs = [f"d{number}" for number in range(50)]
    driver.open("seen", "name", visible=True)
    for doc in docs:
        driver.open(doc, "name name", visible=False)
    for doc in ["seen", *docs]:
        last = driver.edit(doc, 1, [0, 4, "other"])
    last = driver.put("replace", doc="d7", version=3, text="whole new text")
    driver.result(last)
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    assert {doc for _, doc in driver.engine.log} == {"seen"}
    driver.put("focus", doc="d3", visible=True, cursor=None)
    assert driver.result(driver.complete("d4", 2, 5))["text"] == "<other| name>"
    assert driver.result(driver.complete("d7", 3, 0))["text"] == "<|whole new text>"
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    assert {doc for _, doc in driver.engine.log} == {"seen", "d3", "d4", "d7"}
    assert driver.engine.sessions["c", "d3"].synced == "other name"
    # What was completed is followed until something else is looked at.
    driver.edit("d4", 2, [0, 0, "an"])
    wait_until(lambda: driver.engine.sessions["c", "d4"].synced == "another name")
    driver.put("focus", doc="d4", visible=False, cursor=None)
    driver.result(driver.edit("d4", 3, [0, 0, "y"]))
    wait_until(lambda: driver.scheduler.status()["is_idle"])
    assert driver.engine.sessions["c", "d4"].synced == "another name"


def test_healing_takes_at_most_half_of_the_time():
    spans = []

    class Slow(FakeEngine):
        def open(self, key, text, **options):
            session = super().open(key, text, **options)
            session.num_stale = 10**6

            def heal(max_rows, check):
                started_at = time.monotonic()
                time.sleep(0.02)
                session.num_stale -= max_rows
                spans.append((started_at, time.monotonic()))

            session.heal = heal
            session.sync = lambda check: None
            return session

    driver = Driver(Slow)
    driver.open("a", "a", visible=True)
    wait_until(lambda: len(spans) > 5)
    driver.scheduler.stop(5)
    worked = [end - start for start, end in spans]
    rests = [after[0] - before[1] for before, after in zip(spans, spans[1:], strict=False)]
    assert all(rest >= 0.99 * work for rest, work in zip(rests, worked, strict=False))


def test_healing_gives_way_to_an_edit(driver):
    driver.result(driver.open("a", "held-heal", visible=True))
    wait_until(lambda: ("heal", "a") in driver.engine.log)
    driver.result(driver.edit("a", 1, [0, 9, "now"]))
    assert driver.result(driver.complete("a", 2, 3))["text"] == "<now|>"


def test_failing_job_is_answered_and_the_thread_lives_on(driver):
    driver.open("a", "fail-on-complete")
    assert "a fake failure" in driver.error(driver.complete("a", 1, 0), errors.EngineError)
    driver.open("b", "fail-on-sync", visible=True)
    driver.open("d", "fine")
    assert driver.result(driver.complete("d", 1, 0))["text"] == "<|fine>"
    driver.error(driver.complete("d", 1, 99), errors.BadPosition)
    driver.error(driver.complete("d", 1, 0, params={"max_tokens": 1}), errors.BadRequest)


def test_out_of_memory_drops_all_caches(driver):
    driver.open("a", "fine", visible=True)
    session = lambda: driver.engine.sessions["c", "a"]  # noqa: E731
    wait_until(lambda: ("c", "a") in driver.engine.sessions and session().synced)
    driver.open("b", "memory-on-complete")
    assert "cache_bytes" in driver.error(driver.complete("b", 1, 0), errors.OutOfMemory)
    assert session().synced is None


def test_document_of_a_missing_model_keeps_saying_why(driver):
    number = driver.put(
        "open", doc="a", path="a", text="", version=1, model="missing", policy="turn",
        layout=None, cursor=None, visible=True,
    )  # fmt: skip
    driver.error(number, errors.ModelNotFound)
    driver.error(driver.complete("a", 1, 0), errors.ModelNotFound)
    driver.error(driver.put("load", adapter=None, model="missing"), errors.ModelNotFound)
    driver.result(driver.open("a", "now it is there"))
    driver.result(driver.complete("a", 1, 0))


def test_engine_that_cannot_be_made_answers_every_request():
    def fail(config):
        raise errors.BadRequest(f"device '{config.device}' cannot be used")

    driver = Driver(fail)
    driver.error(driver.put("load", adapter=None, model="m"), errors.BadRequest)
    driver.error(driver.open("a", ""), errors.BadRequest)
    assert "device" in driver.error(driver.complete("a", 1, 0), errors.BadRequest)
    driver.scheduler.stop(5)


def test_forgotten_client_frees_its_documents_and_no_others(driver):
    driver.open("a", "endless", client="gone")
    driver.result(driver.open("a", "kept", client="stays"))
    number = driver.put(
        "complete",
        "gone",
        doc="a",
        version=1,
        offset=0,
        params=PARAMS,
        invoked=True,
        stream=False,
        wait_ms=None,
    )
    wait_until(lambda: driver.engine.num_checks > 0)
    driver.scheduler.cancel(driver.jobs[number], "the client is gone")
    driver.scheduler.forget("gone")
    wait_until(lambda: list(driver.engine.sessions) == [("stays", "a")])
    driver.result(driver.put("close", "stays", doc="a"))
    assert not driver.engine.sessions


def test_a_loaded_model_says_its_languages(driver):
    assert driver.result(driver.put("load", adapter=None, model="python only"))["languages"] == [
        "python"
    ]
    assert driver.result(driver.put("load", adapter=None, model="m"))["languages"] == []


def test_progress_and_text_are_streamed_piece_by_piece(driver):
    driver.result(driver.put("load", adapter=None, model="m"))
    driver.open("a", "stream")
    driver.result(driver.complete("a", 1, 0))
    texts = [fields["text"] for _, name, fields in driver.events if name == "text"]
    assert texts == ["a", "b", "c"]
    assert [f["percent"] for _, name, f in driver.events if name == "progress"] == [0, 50, 100]


def test_working_document_is_named_before_the_work(driver):
    driver.open("a", "fine")
    driver.result(driver.complete("a", 1, 0))
    wait_until(lambda: driver.working and driver.working[-1] is None)
    assert ("c", "a") in driver.working
