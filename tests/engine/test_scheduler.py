"""The order of work, by a scheduler with a fake engine."""

import gc
import threading
import time
import weakref

import pytest

from keyturn.engine.host.held_document import Job
from keyturn.engine.host.scheduler import Scheduler
from keyturn.engine.wire import errors
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.protocol import Request
from tests.fakes import PARAMS, FakeEngine

CONFIG = EngineConfig("cpu", "float32", 0, 10**9, 0, 256)


def wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Driver:
    """One client of one scheduler; results by request id."""

    def __init__(self, make_engine=FakeEngine, keep_s=60.0):
        self.engine = None
        self.results, self.events, self.jobs, self.working = {}, [], {}, []
        self.order = []
        self.ended = threading.Event()

        def make(config):
            self.engine = make_engine(config)
            return self.engine

        self.scheduler = Scheduler(make, self.working.append, self.ended.set, keep_s)
        self.scheduler.configure(CONFIG)
        self.next_id = 0

    def put(self, method, client="c", **params):
        self.next_id += 1
        number = self.next_id

        def on_result(result):
            self.results[number] = result
            self.order.append(number)

        def on_event(name, **fields):
            self.events.append((number, name, fields))

        job = Job(client, Request(number, method, params), on_result, on_event)
        self.jobs[number] = job
        self.scheduler.submit(job)
        return number

    def open(self, doc, text, version=1, visible=False, client="c"):
        return self.put(
            "open", client, doc=doc, path=doc, text=text, version=version, model="m",
            policy="turn", layout=None, cursor=0, visible=visible,
        )  # fmt: skip

    def edit(self, doc, base, *edits):
        return self.put("edit", doc=doc, base=base, version=base + 1, edits=list(edits))

    def complete(self, doc, version, offset, invoked=True, params=PARAMS, wait_ms=None):
        return self.put(
            "complete", doc=doc, version=version, offset=offset, params=params, invoked=invoked,
            stream=True, wait_ms=wait_ms,
        )  # fmt: skip

    def complete_file(self, path, text, offset, client="c", **changes):
        asked = {"path": path, "text": text, "offset": offset, "params": PARAMS}
        more = {"model": "m", "policy": "turn", "layout": None, "stream": True}
        return self.put("complete_file", client, **{**asked, **more, **changes})

    def result(self, number):
        wait_until(lambda: number in self.results)
        return self.results[number]

    def error(self, number, kind):
        result = self.result(number)
        assert type(result) is kind, result
        return str(result)


@pytest.fixture
def driver():
    driver = Driver()
    wait_until(lambda: driver.engine)
    yield driver
    driver.scheduler.stop(60)
    assert driver.ended.is_set()


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
    noted(driver.put("warm", doc="a", version=2, cursor=3), "num_stale_rows")
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


def test_a_file_is_completed_in_a_session_that_outlives_its_client(driver):
    first = driver.complete_file("/f.py", "text", 2)
    assert driver.result(first)["text"] == "<te|xt>"
    told = [
        fields for number, name, fields in driver.events if (number, name) == (first, "progress")
    ]
    assert told == [{"what": "prefilling 4 tokens", "percent": 0}]
    driver.scheduler.forget("c")
    session = driver.engine.sessions[None, "/f.py"]
    assert driver.result(driver.complete_file("/f.py", "text!", 5, "other"))["text"] == "<text!|>"
    assert driver.engine.sessions == {(None, "/f.py"): session}
    assert driver.result(driver.complete_file("/g.py", "g", 0))["text"] == "<|g>"
    other = driver.result(driver.complete_file("/f.py", "text", 0, model="n"))
    assert other["text"] == "<|text>"
    assert driver.engine.sessions[None, "/f.py"].model == "n"
    assert "leaves" in driver.error(driver.complete_file("/f.py", "t", 2), errors.BadPosition)


def test_pieces_of_a_files_completion_say_where_they_stand(driver):
    asked = driver.complete_file("/f.py", "stream", 0)
    driver.result(asked)
    quiet = driver.complete_file("/f.py", "stream", 0, stream=False)
    driver.result(quiet)
    told = [
        (number, fields["text"], fields["start"])
        for number, name, fields in driver.events
        if name == "text"
    ]
    assert told == [(asked, "a", 0), (asked, "b", 1), (asked, "c", 2)]


def test_a_file_that_a_client_holds_with_that_text_is_completed_there(driver):
    uri = "file:///x/../f.py"
    driver.put(
        "open", doc=uri, path="f.py", text="text", version=1, model="m", policy="turn",
        layout=None, cursor=0, visible=False,
    )  # fmt: skip
    assert driver.result(driver.complete_file("/f.py", "text", 2))["text"] == "<te|xt>"
    assert list(driver.engine.sessions) == [("c", uri)]
    assert driver.result(driver.complete_file("/f.py", "other", 2))["text"] == "<ot|her>"
    assert driver.engine.sessions["c", uri].text == "text"
    assert driver.result(driver.complete(uri, 1, 1))["text"] == "<t|ext>"
    assert driver.result(driver.edit(uri, 1, [0, 0, "x"])) is None


@pytest.mark.parametrize(
    "doc", ["\ud800", "file:///a\ud800", "file:///%00", "file://[", "untitled:1"]
)
def test_a_document_with_any_name_is_completed(driver, doc):
    driver.open(doc, "text")
    assert driver.result(driver.complete(doc, 1, 2))["text"] == "<te|xt>"


def test_two_that_complete_a_file_at_once_are_both_answered(driver):
    numbers = [driver.complete_file("/f.py", "slow", offset, f"c{offset}") for offset in range(4)]
    texts = [driver.result(number)["text"] for number in numbers]
    assert texts == ["<|slow>", "<s|low>", "<sl|ow>", "<slo|w>"]
    gone = driver.complete_file("/f.py", "endless", 0)
    wait_until(lambda: driver.engine.sessions[None, "/f.py"].text == "endless")
    driver.scheduler.cancel(driver.jobs[gone], "the client is gone")
    driver.error(gone, errors.Cancelled)


def test_kept_files_are_few(driver):
    for number in range(12):
        driver.result(driver.complete_file(f"/{number}.py", "text", 0))
    wait_until(lambda: len(driver.engine.sessions) <= 8)
    assert (None, "/11.py") in driver.engine.sessions


def test_kept_files_go_after_a_while():
    driver = Driver(keep_s=0.1)
    for number in range(2):
        driver.result(driver.complete_file(f"/{number}.py", "text", 0))
    wait_until(lambda: not driver.engine.sessions)
    driver.scheduler.stop(60)


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


def test_automatic_completion_waits_for_the_cache_no_longer_than_it_says(driver):
    driver.result(driver.open("a", "held-sync"))
    number = driver.complete("a", 1, 4, invoked=False, wait_ms=50.0)
    assert "warming up" in driver.error(number, errors.WarmingUp)
    # The host goes on by itself, at the cursor that was asked about.
    session = driver.engine.sessions["c", "a"]
    assert session.cursor == 4
    driver.engine.go_on.set()
    driver.result(driver.put("warm", doc="a", version=1, cursor=4))
    assert session.synced == "held-sync"
    number = driver.complete("a", 1, 4, invoked=False, wait_ms=0.0)
    assert driver.result(number)["text"] == "<held|-sync>", "a warm place never waits"


def test_decoding_is_not_ended_by_the_wait_for_the_cache(driver):
    driver.open("a", "slow")
    driver.result(driver.put("warm", doc="a", version=1, cursor=2))
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
    waiting = driver.put("warm", doc="a", version=1, cursor=0)
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
    waiting = driver.put("warm", doc="a", version=1, cursor=0)
    assert "a fake failure" in driver.error(waiting, errors.EngineError)
    other_text = driver.put("warm", doc="a", version=7, cursor=0)
    driver.error(other_text, errors.VersionMismatch)
    driver.error(driver.put("warm", doc="a", version=1, cursor=99), errors.BadPosition)


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
    assert driver.result(driver.put("warm", doc="a", version=1, cursor=3)) is None
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
