"""Known traps of clients and of pygls, each over a real process."""

import json
import os
import socket
import subprocess

import pytest

from ..lsp_client import SERVE, LspClient

URI = "file:///a.py"
TEXT = "import os\nname = \n"


@pytest.fixture
def client(start, options) -> LspClient:
    client = start()
    client.initialize(options)
    client.open(URI, TEXT)
    client.wait_for_state("ready")
    return client


def popups(client) -> list[dict]:
    return [one for one in client.notifications if one["method"].startswith("window/show")]


def test_initialize_is_answered_before_any_model_is_there(start, options) -> None:
    client = start()
    capabilities = client.initialize(options | {"model": "no/such-model"})
    assert capabilities["inlineCompletionProvider"] == {}
    client.open(URI, TEXT)
    status = client.wait_for_state("failed")
    assert "no/such-model" in status["reason"]
    assert client.complete(URI, 1, 7) == ""
    assert "no/such-model" in client.result("keyturn/status")["completions"]["recent_reasons"][-1]
    # The user is told once that nothing will come, and what to do.
    (shown,) = popups(client)
    assert shown["method"] == "window/showMessage" and shown["params"]["type"] == 1
    assert "no/such-model" in shown["params"]["message"]
    assert client.shut_down() == 0


def test_every_trigger_kind_is_answered(client) -> None:
    for kind in (0, 1, 2, 7):
        assert isinstance(client.reply(client.ask(URI, 1, 7, kind))["result"], list)


def test_items_always_have_a_range_on_one_line_and_plain_text(client) -> None:
    items = client.reply(client.ask(URI, 1, 7))["result"]
    assert 1 <= len(items) <= 3, client.result("keyturn/status")
    at = {"line": 1, "character": 7}
    for item in items:
        assert item["range"] == {"start": at, "end": at}
        assert isinstance(item["insertText"], str)


def test_garbage_is_answered_with_errors_and_never_a_popup(client) -> None:
    for method in ("textDocument/inlineCompletion", "textDocument/completion", "x/y"):
        for params in (None, {}, [], 3, {"textDocument": {"uri": None}}):
            assert client.reply(client.request(method, params))["error"]["code"] < 0
    client.send_body(b"{not json")
    client.send({"jsonrpc": "2.0", "method": "textDocument/didChange", "params": {"a": 1}})
    client.send([{"jsonrpc": "2.0", "id": 4000, "method": "keyturn/status"}, 5])
    assert "state" in client.reply(4000)["result"]
    client.complete(URI, 1, 7)
    assert popups(client) == []
    assert client.shut_down() == 0


def test_cancelling_a_long_completion_frees_the_engine(client, start, options) -> None:
    slow = start()
    slow.initialize(options | {"max_tokens": 1024})
    slow.open(URI, TEXT)
    slow.wait_for_state("ready")
    request = slow.ask(URI, 1, 7)
    slow.notify("$/cancelRequest", {"id": request})
    reply = slow.reply(request)
    assert "result" in reply or reply["error"]["code"] == -32800
    assert isinstance(slow.reply(slow.ask(URI, 1, 7))["result"], list)


def test_progress_is_shown_only_to_a_client_that_can(start, options) -> None:
    for can in (False, True):
        client = start()
        client.initialize(options, window={"workDoneProgress": can})
        client.open(URI, TEXT)
        client.wait_for_state("ready")
        assert can or "window/workDoneProgress/create" not in client.requests


def test_documents_may_be_opened_before_the_settings_are_known(start, options) -> None:
    client = start()
    client.settings = options
    client.initialize({"debounce_ms": 1}, workspace={"configuration": True})
    client.open(URI, TEXT)
    client.change(URI, 2, {"text": TEXT})
    client.wait_for_state("ready")
    assert client.complete(URI, 1, 7)
    assert client.result("keyturn/status")["model"] == options["model"]
    assert not any("Traceback" in line for line in client.log), "".join(client.log)


def test_exit_without_shutdown_is_exit_code_1(start, options) -> None:
    client = start()
    client.initialize(options)
    client.notify("exit")
    assert client.process.wait(60) == 1


def test_a_client_that_vanishes_ends_the_server(start, options) -> None:
    client = start()
    client.initialize(options)
    client.open(URI, TEXT)
    client.ask(URI, 1, 7)
    assert client.process.stdin and client.process.stdout
    client.process.stdin.close()
    client.process.stdout.close()
    assert client.process.wait(60) == 1
    assert not any("Traceback" in line for line in client.log), "".join(client.log)


def framed(method: str) -> bytes:
    params = {"processId": None, "rootUri": None, "capabilities": {}}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    body = json.dumps(message).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def test_nothing_but_messages_on_standard_output() -> None:
    message = framed("keyturn/status")
    done = subprocess.run(SERVE, input=message, capture_output=True, timeout=120)
    assert done.stdout.startswith(b"Content-Length: ")
    assert b'"code": -32002' in done.stdout
    assert done.returncode == 1


def test_tcp_serves_the_client_that_has_the_token() -> None:
    token = "t" * 20
    process = subprocess.Popen(
        [*SERVE[:-1], "--tcp", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        env={**os.environ, "KEYTURN_TOKEN": token},
        text=True,
    )
    try:
        assert process.stderr
        port = int(process.stderr.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(token.encode() + b"\n" + framed("initialize"))
            reply = b""
            while b"inlineCompletionProvider" not in reply:
                piece = connection.recv(65_536)
                assert piece, reply
                reply += piece
        assert process.wait(60) == 1
    finally:
        process.kill()


def test_restart_and_pause_lose_nothing(client) -> None:
    before = client.result("keyturn/status")
    text = client.complete(URI, 1, 7)
    told = client.reply(client.request("keyturn/restart", {}))
    assert told["result"].get("num_documents") == before["num_documents"], told
    client.wait_for_state("ready")
    after = client.result("keyturn/status")
    assert after["host_pid"] != before["host_pid"] and after["num_restarts"] == 1
    assert client.complete(URI, 1, 7) == text
    client.notify("keyturn/pause", {"paused": True})
    assert client.reply(client.ask(URI, 1, 7))["result"] == []
    assert client.result("keyturn/status")["summary"]["state"] == "paused"
    client.notify("keyturn/pause", {"paused": False})
    assert client.complete(URI, 1, 7) == text
