"""Files that a scheduler completes in, and keeps for a while."""

import pytest

from keyturn.engine.wire import errors

from .scheduler_driver import Driver, wait_until


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


def test_a_file_is_completed_by_itself_though_its_document_shows_other_files(driver):
    driver.open("/f.py", "text")
    shown = driver.put("others", doc="/f.py", others=[["b.py", "b = 1\n"]])
    assert driver.result(shown) is None
    assert driver.engine.sessions["c", "/f.py"].others == (("b.py", "b = 1\n"),)
    assert driver.result(driver.complete_file("/f.py", "text", 2))["text"] == "<te|xt>"
    assert (None, "/f.py") in driver.engine.sessions


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
