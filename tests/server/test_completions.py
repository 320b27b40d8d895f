import asyncio
from dataclasses import replace

import pytest

from keyturn.engine.wire.config import Completion
from keyturn.engine.wire.errors import HostUnavailable
from keyturn.server.answers import Answer, Selected
from keyturn.server.completions import Completions
from keyturn.server.documents import Change, Document, Limits
from keyturn.server.settings import Settings, with_values

from .test_app import settle


class FakeEngine:
    """Answers every request with `text` after `delay_s`, and notes what was asked and stopped."""

    def __init__(self, text: str = "", delay_s: float = 0.0, error: Exception | None = None):
        self.text, self.delay_s, self.error = text, delay_s, error
        self.asked: list[tuple[str, int, tuple[str, ...], bool]] = []
        self.ahead = ("", 0.0)  # text and delay of what is asked ahead
        self.num_stopped = 0
        self.now = 0.0
        self.warmed: list[int] = []

    def warm(self, document, offset) -> None:
        self.warmed.append(offset)

    async def ask(self, document, offset, params, invoked, on_text) -> Completion:
        self.asked.append((document.text, offset, params.stop, invoked))
        text, delay_s = self.ahead if params.assumed else (self.text, self.delay_s)
        try:
            await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            self.num_stopped += 1
            raise
        if self.error:
            raise self.error
        return Completion(text, (), 0, 0, 0.0, 0.0, 1, "end", ())


def at(marked: str, language_id: str = "") -> tuple[Document, int]:
    text = marked.replace("|", "", 1)
    limits = Limits(10_000_000, 100_000)
    document = Document("file:///a.py", 1, text, "utf-16", limits, language_id)
    return document, marked.index("|")


async def not_of_whole(*_: object) -> Completion:
    raise AssertionError("no window is narrow here")


def completions(engine: FakeEngine, **values) -> Completions:
    defaults = {"debounce_ms": 0, "speculate": False, "confidence": "any"}
    settings = with_values(Settings(), **{**defaults, **values})
    return Completions(
        engine.ask, not_of_whole, engine.warm, lambda: settings, clock=lambda: engine.now
    )


def type_text(answers: Completions, document: Document, offset: int, text: str) -> None:
    position = document.position(offset)
    edits = document.change([Change(text, position, position)], document.version + 1)
    answers.edited(document.uri, edits)


def test_the_whole_window_is_asked_about_the_text_that_the_narrow_one_was_unsure_of() -> None:
    document, offset = at("y = |")
    asked = []

    async def narrow(document, offset, params, invoked, on_text) -> Completion:
        position = document.position(offset)  # a key that may be what the model writes
        document.change([Change("z", position, position)], document.version + 1)
        return Completion("", (), 0, 0, 0.0, 0.0, 1, "doubt", (), is_narrow=True)

    async def whole(document, version, offset, params) -> Completion:
        asked.append((version, offset))
        return Completion("z()", (), 0, 0, 0.0, 0.0, 1, "end", ())

    settings = with_values(Settings(), debounce_ms=0, speculate=False)
    answers = Completions(narrow, whole, lambda *_: None, lambda: settings)
    assert asyncio.run(answers.complete(document, offset, invoked=False)).text == "z()"
    assert (asked, document.version) == ([(1, offset)], 2)


def test_the_engine_learns_the_cursor_before_the_pause() -> None:
    engine = FakeEngine("x", delay_s=0.0)
    document, offset = at("y = |")

    async def stop_in_the_pause() -> None:
        answers = completions(engine, debounce_ms=10_000)
        task = asyncio.create_task(answers.complete(document, offset, invoked=False))
        await settle()
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(stop_in_the_pause())
    assert (engine.warmed, engine.asked) == ([offset], [])


def test_the_trimmed_text_is_returned_at_the_cursor() -> None:
    engine = FakeEngine("x)")
    document, offset = at("print(|)\n")
    answer = asyncio.run(completions(engine).complete(document, offset, invoked=True))
    assert (answer.text, answer.start, answer.end, answer.reason) == ("x", 6, 6, None)
    assert engine.asked == [("print()\n", 6, ("\n",), True)]


@pytest.mark.parametrize(
    ("marked", "stop"),
    [
        ("x = y|\ny\n", ("\n\n\n",)),
        ("x = |\ny\n", ("\n",)),
        ("x = |1\n", ("\n",)),
        ("x = y| \n", ("\n\n\n",)),
        ("x = y|\r\ny\r\n", ("\n\n\n",)),
        ("x = |1\r\n", ("\n",)),
        ("x = |1\ry = 2\r", ("\n",)),
        ("def f():\n    |\n", ("\n\n\n",)),
        ("def f():\n\treturn |)\n", ("\n",)),
    ],
)
def test_a_completion_ends_with_its_line_or_its_block(marked, stop) -> None:
    engine = FakeEngine("a")
    document, offset = at(marked)
    asyncio.run(completions(engine).complete(document, offset, invoked=True))
    assert engine.asked[0][2] == stop


def test_the_rest_is_returned_without_asking_when_the_start_was_typed() -> None:
    engine = FakeEngine("return x")
    answers = completions(engine, debounce_ms=10_000)

    async def run() -> list[str]:
        document, offset = at("|\n")
        texts = [(await answers.complete(document, offset, invoked=True)).text]
        type_text(answers, document, 0, "ret")
        texts.append((await answers.complete(document, 3, invoked=False)).text)
        type_text(answers, document, 3, "urn")
        texts.append((await answers.complete(document, 6, invoked=False)).text)
        position, end = document.position(4), document.position(6)
        answers.edited(document.uri, document.change([Change("", position, end)], 9))
        texts.append((await answers.complete(document, 4, invoked=False)).text)
        return texts

    assert asyncio.run(run()) == ["return x", "urn x", " x", "rn x"]
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("typed", "offset", "invoked"),
    [("rex", 3, False), ("ret", 2, False), ("ret", 3, True), ("return x", 8, False)],
)
def test_the_engine_is_asked_when_the_text_is_not_the_suggestions(typed, offset, invoked) -> None:
    engine = FakeEngine("return x")
    answers = completions(engine)

    async def run() -> None:
        document, cursor = at("|\n")
        await answers.complete(document, cursor, invoked=True)
        type_text(answers, document, 0, typed)
        await answers.complete(document, offset, invoked=invoked)

    asyncio.run(run())
    if typed == "ret" and offset == 2:
        assert len(engine.asked) == 1, "inside a word nothing is asked, and nothing reused"
    else:
        assert len(engine.asked) == 2


def test_an_edit_elsewhere_forgets_the_suggestion() -> None:
    engine = FakeEngine("return x")
    answers = completions(engine)

    async def run() -> None:
        document, cursor = at("a\n|\n")
        await answers.complete(document, cursor, invoked=True)
        type_text(answers, document, 0, "r")
        await answers.complete(document, cursor + 1, invoked=False)

    asyncio.run(run())
    assert len(engine.asked) == 2


def test_the_newest_request_wins_and_stops_the_older_one() -> None:
    engine = FakeEngine("x", delay_s=5)
    answers = completions(engine)

    async def run():
        document, offset = at("a = |\n")
        first = asyncio.ensure_future(answers.complete(document, offset, invoked=True))
        await settle()
        engine.delay_s = 0
        second = await answers.complete(document, offset, invoked=True)
        return await first, second

    first, second = asyncio.run(run())
    assert (first.text, first.reason) == ("", "a newer request or edit took its place")
    assert second.text == "x"
    assert engine.num_stopped == 1


def test_an_edit_ends_the_running_request_with_a_reason() -> None:
    engine = FakeEngine("x", delay_s=5)
    answers = completions(engine)

    async def run():
        document, offset = at("a = |\n")
        request = asyncio.ensure_future(answers.complete(document, offset, invoked=True))
        await settle()
        type_text(answers, document, 0, "b")
        return await request

    assert asyncio.run(run()).reason == "a newer request or edit took its place"
    assert engine.num_stopped == 1


def test_cancelling_stops_the_engine_and_is_raised() -> None:
    engine = FakeEngine("x", delay_s=5)
    answers = completions(engine)

    async def run() -> None:
        document, offset = at("a = |\n")
        request = asyncio.ensure_future(answers.complete(document, offset, invoked=True))
        await settle()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0)

    asyncio.run(run())
    assert engine.num_stopped == 1
    assert answers.status()["recent_reasons"] == ["cancelled by the editor"]
    assert answers.last_reason is None  # nobody missed anything


def test_typing_within_the_pause_asks_once() -> None:
    engine = FakeEngine("zz")
    answers = completions(engine, debounce_ms=200)

    async def run():
        document, _ = at("|\n")
        requests = []
        for count in range(1, 6):
            type_text(answers, document, count - 1, "a")
            requests.append(asyncio.ensure_future(answers.complete(document, count, invoked=False)))
            await asyncio.sleep(0.002)
        return await asyncio.gather(*requests)

    results = asyncio.run(run())
    assert [answer.text for answer in results] == ["", "", "", "", "zz"]
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("marked", "values", "reason"),
    [
        ("fo|o\n", {}, "inside a word"),
        (" \n|", {}, "empty"),
        ("x|\n", {"enabled": False}, "turned off"),
        ("x\0|\n", {}, "refused"),
        ("x|\n", {}, "the model proposed nothing"),
    ],
)
def test_an_empty_answer_has_its_reason(marked, values, reason) -> None:
    answers = completions(FakeEngine(""), **values)
    document, offset = at(marked)
    answer = asyncio.run(answers.complete(document, offset, invoked=False))
    assert answer.text == ""
    assert reason in (answer.reason or "")
    assert reason in answers.status()["recent_reasons"][-1]


@pytest.mark.parametrize(
    ("language_id", "wanted", "is_asked"),
    [
        ("python", [], True),
        ("sql", [], False),
        ("", [], True),  # a.py
        ("sql", ["sql"], True),
        ("python", ["sql"], False),
    ],
)
def test_only_the_models_languages_or_the_users_are_asked_for(
    language_id, wanted, is_asked
) -> None:
    engine = FakeEngine("b")
    settings = with_values(Settings(), debounce_ms=0, speculate=False, languages=wanted)
    answers = Completions(
        engine.ask, not_of_whole, engine.warm, lambda: settings, lambda: ("python",)
    )
    document, offset = at("a |\n" if language_id == "sql" else "a = |\n", language_id)
    answer = asyncio.run(answers.complete(document, offset, invoked=True))
    assert (answer.text, len(engine.asked)) == (("b", 1) if is_asked else ("", 0))
    assert is_asked or "setting languages allows it" in (answer.reason or "")


def test_a_language_that_the_model_says_only_once_it_is_loaded_is_refused_then() -> None:
    engine = FakeEngine("b")
    languages: list[str] = []

    async def ask(*args) -> Completion:
        languages.append("python")
        return await engine.ask(*args)

    settings = with_values(Settings(), debounce_ms=0, speculate=False)
    answers = Completions(ask, not_of_whole, engine.warm, lambda: settings, lambda: languages)
    document, offset = at("a |\n", "yaml")
    answer = asyncio.run(answers.complete(document, offset, invoked=True))
    assert (answer.text, answer.reason) == (
        "",
        "the model was not trained on yaml; setting languages allows it",
    )


def test_between_two_ideographs_an_automatic_request_is_answered() -> None:
    answers = completions(FakeEngine("文"))
    document, offset = at("# 读取|配置\n")
    answer = asyncio.run(answers.complete(document, offset, invoked=False))
    assert answer.text == "文"


def test_what_one_key_writes_is_offered_only_to_who_asks() -> None:
    document, offset = at("a |\n", "plaintext")
    for text, invoked, expected in [("=", False, ""), ("=", True, "="), ("=x", False, "=x")]:
        answers = completions(FakeEngine(text))
        answer = asyncio.run(answers.complete(document, offset, invoked=invoked))
        assert answer.text == expected and (answer.reason is None) == bool(expected)


def test_the_latest_completions_figures_are_in_the_status() -> None:
    answers = completions(FakeEngine("xy", delay_s=0.02))
    assert answers.status()["latest"] is None
    document, offset = at("a = |\n")
    asyncio.run(answers.complete(document, offset, invoked=False))
    latest = answers.status()["latest"]
    assert latest["answered_ms"] >= 20 and latest["stop_reason"] == "end"


def test_an_engine_error_is_an_empty_answer_with_its_message() -> None:
    answers = completions(FakeEngine(error=HostUnavailable("the host died; see its log")))
    document, offset = at("x|\n")
    answer = asyncio.run(answers.complete(document, offset, invoked=True))
    assert (answer.text, answer.reason) == ("", "the host died; see its log")


def test_the_answer_continues_the_selected_menu_entry() -> None:
    document, offset = at("x.app|\n")
    answers = completions(FakeEngine("end(1)"))

    async def run(selected: Selected):
        return await answers.complete(document, offset, invoked=False, selected=selected)

    answer = asyncio.run(run(Selected(2, 5, "append")))
    assert (answer.text, answer.start, answer.end) == ("append(1)", 2, 5)
    for selected in (Selected(2, 5, "apply"), Selected(2, 4, "append"), Selected(6, 5, "a")):
        answer = asyncio.run(run(selected))
        assert answer.text == ""
        assert "selected" in (answer.reason or "")


def changed(answers: Completions, document: Document, start: int, end: int, text: str) -> None:
    before = document.text
    change = Change(text, document.position(start), document.position(end))
    answers.edited(document.uri, document.change([change], document.version + 1), before)


def test_accepted_suggestion_shows_the_next_without_asking() -> None:
    engine = FakeEngine("foo()")
    engine.ahead = ("\ny = 2", 0.0)
    answers = completions(engine, speculate=True)
    document, offset = at("x = |\n")

    async def run() -> list[str]:
        texts = [(await answers.complete(document, offset, invoked=False)).text]
        await settle()
        changed(answers, document, offset, offset, "foo()")
        engine.text = "not asked"
        texts.append((await answers.complete(document, offset + 5, invoked=False)).text)
        return texts

    assert asyncio.run(run()) == ["foo()", "\ny = 2"]
    status = answers.status()
    assert (status["num_asked"], status["num_known"]) == (1, 1)
    assert status["num_asked_ahead"] == 2  # and after that one, the next


def test_typing_on_ends_what_is_computed_ahead() -> None:
    engine = FakeEngine("foo()")
    engine.ahead = ("", 10.0)
    answers = completions(engine, speculate=True)
    document, offset = at("x = |\n")

    async def run() -> None:
        await answers.complete(document, offset, invoked=False)
        await settle()
        assert len(engine.asked) == 2
        changed(answers, document, offset, offset, "bar")
        await settle()

    asyncio.run(run())
    assert engine.num_stopped == 1


def test_what_is_left_of_a_suggestion_is_there_again_when_the_cursor_comes_back() -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, offset = at("x = |\ny = \n")

    async def run() -> list[str]:
        found = [await answers.complete(document, offset, invoked=False)]
        changed(answers, document, offset, offset, "fo")
        engine.text = "bar()"
        for place in (offset + 7, offset + 2):
            found.append(await answers.complete(document, place, invoked=False))
        return [answer.text for answer in found]

    assert asyncio.run(run()) == ["foo()", "bar()", "o()"]


def test_undo_brings_the_suggestion_back_without_asking() -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, offset = at("x = |\n")

    async def run() -> str:
        await answers.complete(document, offset, invoked=False)
        changed(answers, document, offset, offset, "bar")
        await answers.complete(document, offset + 3, invoked=False)
        engine.text = "not asked"
        changed(answers, document, offset, offset + 3, "")
        return (await answers.complete(document, offset, invoked=False)).text

    assert asyncio.run(run()) == "foo()"


def test_undo_of_what_was_accepted_brings_it_back_though_the_next_was_shown() -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, offset = at("x = |\n")

    async def run() -> list[str]:
        found = [await answers.complete(document, offset, invoked=False)]
        changed(answers, document, offset, offset, "foo()")
        engine.text = ".bar()"
        found.append(await answers.complete(document, offset + 5, invoked=False))
        engine.text = "not asked"
        changed(answers, document, offset, offset + 5, "")
        found.append(await answers.complete(document, offset, invoked=False))
        return [answer.text for answer in found]

    assert asyncio.run(run()) == ["foo()", ".bar()", "foo()"]


def test_other_settings_forget_what_is_known() -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, offset = at("x = |\n")

    async def run() -> str:
        await answers.complete(document, offset, invoked=False)
        answers.reconfigured()
        engine.text = "bar()"
        return (await answers.complete(document, offset, invoked=False)).text

    assert asyncio.run(run()) == "bar()"


def test_what_was_just_deleted_is_not_offered_but_to_who_asks_for_it() -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, offset = at("x = |foo()\n")

    async def run() -> list[tuple[str, str | None]]:
        changed(answers, document, offset, offset + 5, "")
        found = [await answers.complete(document, offset, invoked=each) for each in (False, True)]
        return [(answer.text, answer.reason) for answer in found]

    assert asyncio.run(run()) == [("", "it was just deleted here"), ("foo()", None)]


def test_nothing_is_asked_in_a_burst_of_deletions() -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, _ = at("x = abcdef|\n")

    async def run() -> str | None:
        for end in (10, 9, 8):
            changed(answers, document, end - 1, end, "")
        return (await answers.complete(document, 7, invoked=False)).reason

    assert asyncio.run(run()) == "text is being deleted"
    assert not engine.asked


@pytest.mark.parametrize("uri", ["file:///a.py", None])
def test_paused_documents_get_nothing_until_they_are_resumed(uri) -> None:
    engine = FakeEngine("foo()")
    answers = completions(engine)
    document, offset = at("x = |\n")

    def reason() -> str | None:
        return asyncio.run(answers.complete(document, offset, invoked=True)).reason

    answers.pause(uri, True)
    assert reason() == "suggestions are paused here" and answers.is_paused("file:///a.py")
    assert answers.is_paused("file:///b.py") == (uri is None)
    answers.pause(uri, False)
    assert reason() is None


def test_model_in_doubt_about_the_first_word_is_a_reason() -> None:
    class Doubtful(FakeEngine):
        async def ask(self, document, offset, params, invoked, on_text) -> Completion:
            self.asked.append((document.text, offset, params.min_probability, invoked))
            return Completion("", (), 0, 0, 0.0, 0.0, 1, "doubt", ())

    engine = Doubtful()
    answers = completions(engine, confidence="balanced")
    document, offset = at("x = |\n")
    answer = asyncio.run(answers.complete(document, offset, invoked=False))
    assert answer.reason == "the model was not sure of any word"
    asyncio.run(answers.complete(document, offset, invoked=True))
    assert [asked[2] > 0 for asked in engine.asked] == [True, False]


class Doubtful(FakeEngine):
    """Is sure of `text` only where somebody asks for it, and then perhaps of a narrow window."""

    is_narrow = False

    async def ask(self, document, offset, params, invoked, on_text) -> Completion:
        self.asked.append((document.text, offset, params.stop, invoked))
        is_sure = not params.min_probability
        text, reason = (self.text, "end") if is_sure else ("", "doubt")
        is_narrow = self.is_narrow and is_sure
        return Completion(text, (), 0, 0, 0.0, 0.0, 1, reason, (), is_narrow=is_narrow)


async def asked_at(
    answers: Completions, engine: FakeEngine, document: Document, offset: int, times: list[float]
) -> list[Answer]:
    """Ask for an automatic suggestion at some seconds from now."""
    found = []
    for engine.now in times:
        found.append(await answers.complete(document, offset, invoked=False))
    return found


@pytest.mark.parametrize(
    ("times", "shown", "num_asked"),
    [
        ([0, 5], [0, 0], 1),  # Esc and back
        ([0, 5, 10], [0, 0, 1], 2),
        ([0, 5, 10, 15, 20], [0, 0, 1, 1, 1], 2),
        ([0, 0.1, 0.2, 0.3], [0, 0, 0, 0], 1),  # an editor that only looks again
    ],
)
def test_who_asks_for_the_third_time_without_a_key_gets_what_the_gate_withheld(
    times, shown, num_asked
) -> None:
    engine = Doubtful("f(a)")
    answers = completions(engine, confidence="balanced")
    document, offset = at("x = |\ny = \n")
    found = asyncio.run(asked_at(answers, engine, document, offset, times))
    assert [answer.text for answer in found] == ["f(a)" * is_shown for is_shown in shown]
    assert len(engine.asked) == num_asked


def test_where_nothing_was_withheld_the_model_is_asked_once_more_only() -> None:
    engine = Doubtful("")
    answers = completions(engine, confidence="balanced")
    document, offset = at("x = |\n")
    times = [5.0 * number for number in range(6)]
    found = asyncio.run(asked_at(answers, engine, document, offset, times))
    assert not any(answer.text for answer in found) and len(engine.asked) == 2


def test_who_asks_for_the_third_time_is_not_offered_what_was_just_deleted() -> None:
    engine = Doubtful("foo(a)")
    answers = completions(engine, confidence="balanced")
    document, offset = at("x = |foo(a)\n")
    before = document.text
    start, end = document.position(offset), document.position(offset + 6)
    answers.edited(document.uri, document.change([Change("", start, end)], 2), before)
    found = asyncio.run(asked_at(answers, engine, document, offset, [0, 5, 10, 15]))
    assert not any(answer.text for answer in found)
    assert found[2].reason == "it was just deleted here"


def test_what_was_given_up_is_a_reason_and_a_doubt_about_what_was_asked_for_is_noted() -> None:
    class Doubtful(FakeEngine):
        async def ask(self, document, offset, params, invoked, on_text) -> Completion:
            self.asked.append((document.text, offset, params.place, invoked))
            text = "f(a)" if invoked or "y" in document.text else ""
            reason = "end" if invoked else "low_confidence"
            return Completion(text, (), 0, 0, 0.0, 0.0, 1, reason, (), is_doubtful=True)

    engine = Doubtful()
    answers = completions(engine, confidence="balanced")
    document, offset = at("x = |\n")
    answer = asyncio.run(answers.complete(document, offset, invoked=False))
    assert (answer.text, answer.reason) == (
        "",
        "the model gave up what it had begun: it was likely to be wrong",
    )
    answer = asyncio.run(answers.complete(document, offset, invoked=True))
    assert (answer.text, answer.reason) == ("f(a)", None)
    assert "likely to be wrong" in answers.status()["recent_reasons"][-1]
    # What had passed the gate is shown.
    document, offset = at("y = |\n")
    answers = completions(engine, confidence="balanced")
    assert asyncio.run(answers.complete(document, offset, invoked=False)).text == "f(a)"
    assert [asked[2] for asked in engine.asked] == ["rest"] * 3


def test_candidates_are_trimmed_and_none_is_offered_twice_or_unreadable() -> None:
    class Several(FakeEngine):
        async def ask(self, document, offset, params, invoked, on_text) -> Completion:
            self.asked.append((document.text, offset, params.num_candidates, invoked))
            others = ("b(1)", "b(1) ", ")(", "c")
            return Completion("a", (), 0, 0, 0.0, 0.0, 1, "end", (), others, ("end",) * len(others))

    engine = Several()
    answers = completions(engine, num_candidates=3)
    document, offset = at("x = |\n")
    answer = asyncio.run(answers.complete(document, offset, invoked=True))
    assert (answer.text, answer.others) == ("a", ("b(1)", "c"))
    again = completions(engine, num_candidates=3)
    asyncio.run(again.complete(document, offset, invoked=False))
    assert [asked[2] for asked in engine.asked] == [3, 1]


def test_answer_of_a_narrow_window_is_asked_for_again() -> None:
    class Narrow(FakeEngine):
        async def ask(self, document, offset, params, invoked, on_text) -> Completion:
            found = await super().ask(document, offset, params, invoked, on_text)
            return replace(found, is_narrow=len(self.asked) == 1)

    engine = Narrow("near()")
    answers = completions(engine, speculate=True)
    document, offset = at("x = |\n")

    async def run() -> list[str]:
        texts = []
        for text in ("near()", "whole()", "not asked"):
            engine.text = text
            texts.append((await answers.complete(document, offset, invoked=False)).text)
        return texts

    assert asyncio.run(run()) == ["near()", "whole()", "whole()"]


class Writer(FakeEngine):
    """Writes its text piece by piece, with `delay_s` before each, as the engine streams it."""

    async def ask(self, document, offset, params, invoked, on_text) -> Completion:
        for piece in self.text:
            await asyncio.sleep(self.delay_s)
            if on_text is not None:
                on_text(piece, 1.0)
        return await super().ask(document, offset, params, invoked, on_text)


async def begun(answers: Completions, num_begun: int = 1) -> None:
    while answers.status()["num_begun"] < num_begun:
        await asyncio.sleep(0.001)


async def typed_while_asked(answers: Completions, typed: str) -> str:
    """Ask behind "x = ", type when that is begun, ask there; return what is suggested then."""
    document, offset = at("x = |\n")
    first = asyncio.ensure_future(answers.complete(document, offset, invoked=False))
    await begun(answers)
    await asyncio.sleep(0.02)
    assert not first.done()
    changed(answers, document, offset, offset, typed)
    second = await answers.complete(document, offset + len(typed), invoked=False)
    assert (await first).text == ""
    return second.text


def test_model_begins_before_the_pause_is_over_and_is_not_shown_until_then() -> None:
    engine = FakeEngine("foo()")
    document, offset = at("x = |\n")

    async def run(**values) -> tuple[float, float]:
        """Return after how many of the shortest pauses the model begins, and the answer comes."""
        answers = completions(engine, debounce_ms=100, **values)
        now = asyncio.get_running_loop().time
        started_at = now()
        task = asyncio.ensure_future(answers.complete(document, offset, invoked=False))
        await begun(answers)
        begun_at = now()
        assert (await task).text == "foo()"
        return (begun_at - started_at) / 0.1, (now() - started_at) / 0.1

    # It may be late on a slow machine, but never early.
    found = [asyncio.run(run(speculate=True)) for _ in range(3)]
    assert min(shown_after for _, shown_after in found) > 1.9
    while found[-1][0] > 1.5:
        found.append(asyncio.run(run(speculate=True)))
        assert len(found) < 50
    assert asyncio.run(run(speculate=False))[0] > 1.9


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_key_that_the_model_is_writing_does_not_end_the_request(delay_s) -> None:
    engine = Writer("foo()", delay_s=delay_s)
    answers = completions(engine, debounce_ms=200, speculate=True)
    text = asyncio.run(typed_while_asked(answers, "f"))
    assert (text, engine.num_stopped) == ("oo()", 0)
    assert all(asked[1] == 4 for asked in engine.asked[:1])
    status = answers.status()
    assert (status["num_asked"], status["num_begun"]) == (1, 1)


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_what_is_left_for_one_key_of_what_the_model_writes_is_not_offered(delay_s) -> None:
    engine = Writer("()", delay_s=delay_s)
    answers = completions(engine, debounce_ms=200, speculate=True)
    assert asyncio.run(typed_while_asked(answers, "(")) == ""
    assert answers.last_reason == "one key would write it, and one would take it"


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_other_key_than_the_model_is_writing_asks_anew(delay_s) -> None:
    engine = Writer("foo()", delay_s=delay_s)
    answers = completions(engine, debounce_ms=200, speculate=True)
    asyncio.run(typed_while_asked(answers, "b"))
    assert answers.status()["num_begun"] == 2
    assert [offset for _, offset, *_ in engine.asked if offset == 5] == [5]


def test_request_that_nobody_waits_for_any_more_ends(monkeypatch) -> None:
    monkeypatch.setattr("keyturn.server.answers._GRACE_S", 0.5)
    engine = FakeEngine("foo()", delay_s=5)
    answers = completions(engine, debounce_ms=1, speculate=True)
    document, offset = at("x = |\n")

    async def run() -> None:
        request = asyncio.ensure_future(answers.complete(document, offset, invoked=False))
        await begun(answers)
        await settle()
        changed(answers, document, offset, offset, "f")
        await asyncio.wait({request})
        assert engine.num_stopped == 0
        while not engine.num_stopped:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_other_settings_in_the_middle_of_a_request_leave_nothing_known() -> None:
    engine = FakeEngine("foo()", delay_s=5)
    answers = completions(engine, debounce_ms=1, speculate=True)
    document, offset = at("x = |\n")

    async def run() -> list[str]:
        first = asyncio.ensure_future(answers.complete(document, offset, invoked=False))
        await begun(answers)
        await settle()
        answers.reconfigured()
        engine.delay_s = 0
        return [(await first).text, (await answers.complete(document, offset, invoked=False)).text]

    assert asyncio.run(run()) == ["", "foo()"]
