"""The server over a fake engine: who may ask, what goes wrong, streams, and clients that go."""

import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from .conftest import SETTINGS, host_status

ASKED = {"input_prefix": "ab", "input_suffix": "d", "prompt": "c"}
TOKEN = "a token of some length"
PATHS = ["/infill", "/v1/completions", "/v1/models", "/health", "/v1/health", "/nowhere"]


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("path", PATHS)
def test_without_a_token_pages_of_a_browser_are_refused(tool, path) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        for headers in (
            {"Origin": "https://example.org"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:3000"},
            {"Host": "example.org"},
            {"Host": f"rebound.example:{tool.port}"},
            {"Host": "127.0.0.1.example.org"},
            {"Host": "127.0.0.1@example.org"},
            {"Host": ""},
        ):
            status, body, _ = tool.raw(method, path, b"{}", **headers)
            assert status == 403, headers
            assert "without a token" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]", "[::1]:7"])
def test_without_a_token_programs_of_this_machine_may_ask(tool, host) -> None:
    assert tool.get("/v1/models", Host=host)[0] == 200


def test_with_a_token_only_those_that_have_it_may_ask(fake) -> None:
    with fake(token=TOKEN) as tool:
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer ÿ"},
        ):
            for path in PATHS:
                status, body, answered = tool.raw("POST", path, b"{}", **headers)
                assert (status, answered["www-authenticate"]) == (401, "Bearer")
                assert "Authorization: Bearer" in json.loads(body)["error"]["message"]
        bearer = {"Authorization": f"bearer {TOKEN}", "Host": "a.example", "Origin": "http://b"}
        assert tool.post("/infill", ASKED, **bearer)[0] == 200


def test_errors_have_each_interface_s_own_form(tool) -> None:
    status, answer = tool.post("/infill", {**ASKED, "n_predict": "x"})
    assert (status, answer["error"]["code"]) == (400, 400)
    assert answer["error"]["type"] == "invalid_request_error"
    status, answer = tool.post("/v1/completions", {"prompt": "x", "n": 2})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, None, None)
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/infill", "/v1/completions"])
def test_garbage_is_refused_and_the_server_goes_on(tool, path) -> None:
    for body in (b"", b"\xff\x00", b"[" * 100_000, b'"x"', b"{}", b'{"prompt": NaN}'):
        status, answer, _ = tool.raw("POST", path, body)
        assert status == 400 and json.loads(answer)["error"]["message"], body
    assert tool.get("/v1/models")[0] == 200
    assert tool.get(path)[0] == 405
    assert tool.get(path + "/x")[0] == 404


def test_a_text_or_a_body_that_is_too_large_is_refused(fake) -> None:
    settings = replace(SETTINGS, max_document_bytes=1000, max_line_chars=300)
    with fake(settings=settings) as tool:
        for text, status, message in (
            ("x\n" * 600, 400, "max_document_bytes"),
            ("x" * 400, 400, "max_line_chars"),
            ("x\0", 400, "binary"),
            ("x" * 2_000_000, 413, "1004000 bytes"),
        ):
            answered, answer = tool.post("/infill", {**ASKED, "prompt": text})
            assert (answered, message in answer["error"]["message"]) == (status, True), answer
        assert tool.infill("ab", "c")["content"] == "<ab|c>"


def test_a_request_s_text_is_what_the_engine_completes(tool) -> None:
    status, answer = tool.post("/infill", ASKED)
    assert (status, answer["content"]) == (200, "<abc|d>")
    prompt = "é😀\r\n\ud800"
    status, answer = tool.post("/v1/completions", {"prompt": prompt, "suffix": "x"})
    assert (status, answer["choices"][0]["text"]) == (200, f"<{prompt}|x>")
    assert tool.infill("x", stop=["\ud800"])["generation_settings"]["stop"] == ["\ud800"]


def test_streams_of_both_interfaces(tool) -> None:
    events = tool.events("/infill", {**ASKED, "prompt": "stream"})
    assert [(one["content"], one["stop"]) for one in events] == [
        *(("a", False), ("b", False), ("c", False)),
        ("", True),
    ]
    assert events[-1]["tokens_predicted"] == 2
    asked = {"prompt": "stream", "logprobs": 0, "stream_options": {"include_usage": True}}
    *pieces, ended, usage, done = tool.events("/v1/completions", asked)
    assert "".join(one["choices"][0]["text"] for one in pieces) == "abc"
    assert [one["choices"][0]["logprobs"]["text_offset"] for one in pieces] == [[6], [7], [8]]
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 2, "[DONE]")
    assert len({one["id"] for one in (*pieces, ended, usage)}) == 1
    assert len(tool.events("/v1/completions", {"prompt": "stream"})) == len(pieces) + 2


def test_what_fails_in_the_engine_is_an_error_of_the_interface(tool) -> None:
    for fields in ({}, {"stream": True}):
        status, answer = tool.post("/infill", {**ASKED, "prompt": " fail-on-complete ", **fields})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        asked = {"prompt": " memory-on-complete ", **fields}
        status, answer = tool.post("/v1/completions", asked)
        assert (status, answer["error"]["type"]) == (503, "server_error")
        assert "out of memory" in answer["error"]["message"]
    assert tool.infill("ab", "c")["content"] == "<ab|c>"


def test_a_model_that_is_missing_is_told(fake) -> None:
    with fake(settings=replace(SETTINGS, model="missing")) as tool:
        status, answer = tool.post("/infill", ASKED)
        assert (status, answer["error"]["type"]) == (503, "unavailable_error")
        assert "try embedded" in answer["error"]["message"]
        assert tool.get("/health") == (503, answer)
        assert tool.get("/v1/models")[1]["data"][0]["id"] == "missing"


def test_health(tool) -> None:
    tool.infill("ab")  # the model is there then
    for path in ("/health", "/v1/health"):
        assert tool.get(path) == (200, {"status": "ok"})


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", ["/infill", "/v1/completions"])
def test_a_client_that_goes_cancels_the_decode(tool, address, path, streams) -> None:
    tool.infill("the model is there")
    fields = {**ASKED, "prompt": "the endless text ", "stream": streams}
    body = json.dumps(fields).encode()
    with socket.create_connection(("127.0.0.1", tool.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: any("endless" in text for text in host_status(address)["texts"].values()))
        assert not host_status(address)["is_idle"]
    until(lambda: host_status(address)["is_idle"])
    assert tool.infill("ab", "c")["content"] == "<ab|c>"


def test_a_client_that_goes_while_it_sends_harms_nobody(tool) -> None:
    head = b"POST /infill HTTP/1.1\r\nHost: localhost\r\n"
    for sent in (b"", head[:9], head, head + b"Content-Length: 99\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", tool.port)) as connection:
            connection.sendall(sent)
    assert tool.infill("ab", "c")["content"] == "<ab|c>"


def test_three_requests_for_one_place_are_all_answered(tool) -> None:
    """minuet's n_completions."""
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(tool.infill("slow ", "c")["content"]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == ["<slow |c>"] * 3


def test_secrets_are_hidden_from_the_engine_and_never_repeated(fake) -> None:
    secret = "ghp_" + "a1B2c3D4" * 4 + "e5F6"  # the fake engine repeats its whole text
    asked = {"input_prefix": f'token = "{secret}"\n', "input_suffix": "", "prompt": ""}
    with fake() as tool:
        for path, body in (("/infill", asked), ("/v1/completions", {"prompt": f"k = '{secret}'"})):
            status, answer = tool.post(path, body)
            assert status >= 400 and "secret of the text" in json.dumps(answer)
            assert secret not in json.dumps(answer)
    with fake(settings=replace(SETTINGS, hide_secrets=False)) as tool:
        assert secret in tool.post("/infill", asked)[1]["content"]
