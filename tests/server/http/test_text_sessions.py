"""Requests that carry texts, against a host with a fake engine that shows the text it holds."""

import asyncio
import contextlib
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyturn.engine.wire.config import CompletionParams
from keyturn.engine.wire.errors import DocumentRefused, HostUnavailable
from keyturn.server.engine_client import EngineClient
from keyturn.server.http.text_sessions import TextSessions

from .conftest import SETTINGS, end_host

PARAMS = CompletionParams(8, 0.0, 1.0, 0, (), 0.0)
LINES = [f"line {number} of a file = {number * 7}\n" for number in range(60)]
OTHER = [f"another file says {number}\n" for number in range(60)]
FILE, OTHER_FILE = "".join(LINES), "".join(OTHER)


@contextlib.asynccontextmanager
async def sessions_at(address, max_sessions=8):
    engine = EngineClient([sys.executable, "-m", "tests.fakes"], address)
    sessions = TextSessions(engine, max_sessions)
    engine.start(SETTINGS, on_change=lambda *_: None, text_of=sessions.text_of)
    try:
        yield sessions, engine
    finally:
        await engine.stop()


@pytest.fixture
def run(address):
    """Run a coroutine function with sessions over a fresh host."""

    def run(work, **options):
        async def with_sessions():
            async with sessions_at(address, **options) as (sessions, engine), asyncio.timeout(120):
                return await work(sessions, engine)

        return asyncio.run(with_sessions())

    yield run
    end_host(address)


async def texts_held(engine) -> dict[str, str]:
    # What was closed was closed without waiting for an answer.
    while not (status := await engine.host_status())["is_idle"]:
        await asyncio.sleep(0.01)
    return status["texts"]


def test_the_engine_holds_the_text_of_every_request(run) -> None:
    texts = st.text(alphabet="ab\n é😀\ud800", max_size=30)
    starts, counts = st.integers(0, 40), st.integers(0, 30)
    windows = st.tuples(st.sampled_from([LINES, OTHER]), starts, counts, texts).map(
        lambda parts: "".join(parts[0][parts[1] : parts[1] + parts[2]]) + parts[3]
    )

    async def work(sessions, engine):
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(asked=st.lists(st.tuples(texts | windows, st.floats(0, 1)), max_size=6))
        def check(asked):
            asyncio.run_coroutine_threadsafe(follow(asked), loop).result(120)

        async def follow(asked):
            for text, where in asked:
                offset = int(len(text) * where)
                answer = await sessions.complete(text, offset, PARAMS)
                assert answer.text == f"<{text[:offset]}|{text[offset:]}>"

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(check)
        assert len(await texts_held(engine)) <= 3

    run(work, max_sessions=3)


def test_a_text_goes_to_the_session_it_differs_least_from(run) -> None:
    async def work(sessions, engine):
        for text in (FILE, OTHER_FILE, FILE + "x", OTHER_FILE[100:], "\n" + FILE + "xy"):
            await sessions.complete(text, 5, PARAMS)
        assert await texts_held(engine) == {
            "http:1": "\n" + FILE + "xy",
            "http:2": OTHER_FILE[100:],
        }

    run(work)


def test_the_least_recently_used_session_goes(run) -> None:
    async def work(sessions, engine):
        for text in ("first one\n" * 9, "2nd\n" * 9, "first one\n" * 9, "a third\n" * 9):
            await sessions.complete(text, 0, PARAMS)
        assert await texts_held(engine) == {"http:1": "first one\n" * 9, "http:3": "a third\n" * 9}

    run(work, max_sessions=2)


def test_requests_at_once_are_all_answered(run) -> None:
    """minuet asks three times for the same place, and each must see its own text."""

    async def work(sessions, _):
        texts = [FILE, FILE, FILE, FILE + "x", OTHER_FILE, FILE + "xy", "quite new", FILE[50:]]
        answers = await asyncio.gather(*(sessions.complete(text, 7, PARAMS) for text in texts))
        assert [one.text for one in answers] == [f"<{text[:7]}|{text[7:]}>" for text in texts]

    run(work, max_sessions=2)


def test_a_cancelled_request_stops_the_engine_and_the_next_is_answered(run) -> None:
    async def work(sessions, engine):
        endless = asyncio.ensure_future(sessions.complete(FILE + "endless ", 0, PARAMS))
        while (await engine.host_status()).get("num_documents", 0) < 1:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert not endless.done()
        endless.cancel()
        answer = await sessions.complete(FILE, 0, PARAMS)
        assert answer.text == f"<|{FILE}>"

    run(work)


def test_warm_computes_and_says_nothing(run) -> None:
    async def work(sessions, engine):
        await sessions.warm(FILE, 3)
        log = (await engine.host_status())["log"]
        assert ["sync", ""] in log and ["complete", ""] not in log

    run(work)


def test_a_text_that_kills_the_host_is_refused_until_it_changes(run) -> None:
    async def work(sessions, _):
        deadly = FILE + "kill-on-complete"
        with pytest.raises(DocumentRefused, match="the engine died 2 times"):
            while True:  # the loss of a host is seen a moment later
                with contextlib.suppress(HostUnavailable):
                    await sessions.complete(deadly, 0, PARAMS)
                await asyncio.sleep(0.1)
        with pytest.raises(DocumentRefused):
            await sessions.complete(deadly, 0, PARAMS)
        answer = await sessions.complete(FILE, 0, PARAMS)
        assert answer.text == f"<|{FILE}>"

    run(work)
