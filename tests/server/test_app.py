"""The language server over its own message handling, with a fake engine client."""

import asyncio
import hashlib
import json
import subprocess
import sys

import pytest

from keyturn.engine.wire.config import Completion
from keyturn.engine.wire.errors import HostUnavailable
from keyturn.server.app import KeyturnServer

URI = "file:///tmp/a.py"


class FakeEngine:
    """Keeps the documents as an engine host would, and completes with `text`."""

    def __init__(self, text="done()", delay_s=0.0, error=None):
        self.text, self.delay_s, self.error = text, delay_s, error
        self.texts: dict[str, tuple[int, str]] = {}
        self.calls: list[tuple] = []
        self.num_stopped = 0
        self.on_change = None

    def start(self, settings, *, on_change, text_of):
        self.on_change, self.text_of = on_change, text_of

    async def stop(self):
        self.calls.append(("stop",))

    def configure(self, settings):
        self.calls.append(("configure", settings))

    def open(self, uri, version, text, path, *, visible=True):
        self.texts[uri] = (version, text)
        self.calls.append(("open", uri, version))

    def edit(self, uri, base, version, edits):
        held, text = self.texts[uri]
        assert held == base
        for start, end, new in edits:
            text = text[:start] + new + text[end:]
        assert text == self.text_of(uri)
        self.texts[uri] = (version, text)

    def close(self, uri):
        self.texts.pop(uri, None)

    def focus(self, uri, *, visible=True, cursor=None):
        if cursor is None:
            self.calls.append(("focus", uri, visible))
        else:
            self.calls.append(("warm", uri, cursor))

    async def complete(self, uri, version, offset, params, *, invoked, wait_ms=None, on_text=None):
        self.calls.append(("complete", version, offset, invoked))
        assert self.texts[uri][0] == version
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_stopped += 1
            raise
        if self.error:
            raise self.error
        return Completion(self.text, (), 0, 0, 0.0, 0.0, 1, "end", ())

    languages: tuple[str, ...] = ()

    def status(self):
        return {"state": "ready", "reason": None}


class Client:
    """Speaks JSON-RPC to one server in the same event loop."""

    def __init__(self, engine):
        self.server = KeyturnServer(engine)
        self.server.protocol.set_writer(self)
        self.sent: list[dict] = []
        self.next_id = 0

    def write(self, data: bytes):
        self.sent.append(json.loads(data.split(b"\r\n\r\n", 1)[1]))

    def close(self):
        pass

    def post(self, message):
        self.server.handle(json.dumps(message).encode())

    def notify(self, method, params=None):
        self.post({"jsonrpc": "2.0", "method": method, "params": params})

    def send(self, method, params=None) -> int:
        self.next_id += 1
        message = {"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params}
        self.post(message)
        return self.next_id

    async def reply(self, request_id) -> dict:
        for _ in range(20_000):
            for message in self.sent:
                if message.get("id") == request_id and "method" not in message:
                    return message
            await asyncio.sleep(0.002)
        raise AssertionError(f"no reply to {request_id} in {self.sent}")

    async def request(self, method, params=None) -> dict:
        return await self.reply(self.send(method, params))

    async def initialize(self, capabilities=None, options=None) -> dict:
        reply = await self.request(
            "initialize",
            {
                "processId": None,
                "rootUri": None,
                "capabilities": capabilities or {},
                "initializationOptions": {"debounce_ms": 0, "speculate": False, **(options or {})},
            },
        )
        self.notify("initialized", {})
        return reply["result"]["capabilities"]

    def open(self, text, version=1, uri=URI):
        item = {"uri": uri, "languageId": "python", "version": version, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": item})

    def change(self, version, *changes, uri=URI):
        params = {"textDocument": {"uri": uri, "version": version}, "contentChanges": changes}
        self.notify("textDocument/didChange", params)

    def ask(self, line, character, kind=1, uri=URI, **context) -> int:
        params = {
            "textDocument": {"uri": uri},
            "position": {"line": line, "character": character},
            "context": {"triggerKind": kind, **context},
        }
        return self.send("textDocument/inlineCompletion", params)

    def popups(self):
        return [m for m in self.sent if m.get("method") == "window/showMessage"]


async def settle():
    """Let all run that waits for nothing, however slow the machine."""
    for _ in range(30):
        await asyncio.sleep(0)


def told_states(client) -> list[str]:
    """Return what a status bar was told, in order."""
    told = [one["params"] for one in client.sent if one.get("method") == "keyturn/status"]
    return [status["summary"]["state"] for status in told]


def span(line, start, end):
    return {
        "start": {"line": line, "character": start},
        "end": {"line": line, "character": end},
    }


def scenario(engine=None, num_popups=0):
    """Run an async test with a client whose server has no other threads."""

    def decorate(function):
        def run(*args, **kwargs):
            async def body():
                client = Client(engine() if engine else FakeEngine())
                await function(client, *args, **kwargs)
                assert len(client.popups()) == num_popups

            asyncio.run(body())

        run.__name__ = function.__name__
        return run

    return decorate


def test_importing_the_server_leaves_torch_unimported() -> None:
    code = "import sys, keyturn.server.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@scenario()
async def test_capabilities_are_advertised(client) -> None:
    capabilities = await client.initialize()
    assert capabilities["inlineCompletionProvider"] == {}
    assert capabilities["textDocumentSync"]["change"] == 2
    assert capabilities["textDocumentSync"]["openClose"] is True
    assert capabilities["textDocumentSync"]["save"]
    assert capabilities["positionEncoding"] == "utf-16"
    assert capabilities["executeCommandProvider"]["commands"] == ["keyturn.didAcceptCompletion"]
    assert "completionProvider" in capabilities


@scenario()
async def test_no_menu_entries_for_an_editor_with_inline_completion(client) -> None:
    has_inline = {"textDocument": {"inlineCompletion": {}}}
    assert "completionProvider" not in await client.initialize(has_inline)


@scenario()
async def test_menu_entries_beside_inline_completion_when_asked_for(client) -> None:
    has_inline = {"textDocument": {"inlineCompletion": {}}}
    options = {"completion_items": "always"}
    assert "completionProvider" in await client.initialize(has_inline, options)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["utf-8", "utf-16"], "utf-8"),
        (["utf-32"], "utf-32"),
        (["utf-7", "utf-16"], "utf-16"),
        (["latin-1"], "utf-16"),
        ([], "utf-16"),
    ],
)
def test_the_first_position_encoding_we_know_is_taken(offered, chosen) -> None:
    @scenario()
    async def run(client):
        capabilities = await client.initialize({"general": {"positionEncodings": offered}})
        assert capabilities["positionEncoding"] == chosen
        client.open("é😀 = \n")
        width = {"utf-8": 9, "utf-16": 6, "utf-32": 5}[chosen]
        reply = await client.reply(client.ask(0, width))
        assert reply["result"][0]["range"] == span(0, width, width)
        assert client.server.engine.calls[-1] == ("complete", 1, 5, True)

    run()


@scenario()
async def test_items_carry_range_and_plain_text(client) -> None:
    await client.initialize()
    client.open("x = \n")
    reply = await client.reply(client.ask(0, 4))
    (item,) = reply["result"]
    command = item.pop("command")
    assert item == {"insertText": "done()", "range": span(0, 4, 4)}
    assert (command["title"], command["command"]) == ("", "keyturn.didAcceptCompletion")
    assert all(isinstance(one, str) for one in command["arguments"])


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 99])
def test_any_trigger_kind_gets_an_answer(kind) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.open("x = \n")
        reply = await client.reply(client.ask(0, 4, kind))
        assert reply["result"][0]["insertText"] == "done()"
        assert client.server.engine.calls[-1] == ("complete", 1, 4, kind in (0, 1))

    run()


@scenario()
async def test_a_request_sees_the_text_it_was_sent_for(client) -> None:
    await client.initialize()
    client.open("a\n")
    for count in range(1, 20):
        change = {"range": span(0, count, count), "text": "b"}
        client.change(count + 1, change)
    reply = await client.reply(client.ask(0, 20))
    assert reply["result"][0]["range"] == span(0, 20, 20)
    assert client.server.engine.texts[URI] == (20, "a" + "b" * 19 + "\n")


@scenario(lambda: FakeEngine(delay_s=30))
async def test_cancel_replies_at_once_and_stops_the_engine(client) -> None:
    await client.initialize()
    client.open("x = \n")
    request = client.ask(0, 4)
    await settle()
    assert told_states(client)[-1] == "completing"
    client.notify("$/cancelRequest", {"id": request})
    reply = await client.reply(request)
    assert reply["error"]["code"] == -32800
    await settle()
    assert client.server.engine.num_stopped == 1
    assert told_states(client)[-1] == "ready"


@scenario(lambda: FakeEngine(delay_s=0.05))
async def test_every_request_is_answered_when_the_newest_wins(client) -> None:
    await client.initialize()
    client.open("x = \n")
    requests = [client.ask(0, 4) for _ in range(5)]
    replies = [await client.reply(request) for request in requests]
    assert [len(reply["result"]) for reply in replies] == [0, 0, 0, 0, 1]


@scenario(lambda: FakeEngine(error=HostUnavailable("the host died: see /x/host.log")))
async def test_an_engine_error_is_an_empty_list_with_a_reason_in_status(client) -> None:
    await client.initialize()
    client.open("x = \n")
    assert (await client.reply(client.ask(0, 4)))["result"] == []
    status = (await client.request("keyturn/status"))["result"]
    assert status["completions"]["recent_reasons"] == ["the host died: see /x/host.log"]


@scenario(lambda: FakeEngine(error=RuntimeError("bug")))
async def test_a_bug_is_a_log_line_and_an_empty_list(client, caplog=None) -> None:
    await client.initialize()
    client.open("x = \n")
    assert (await client.reply(client.ask(0, 4)))["result"] == []
    assert (await client.request("keyturn/status"))["result"]["state"] == "ready"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("textDocument/inlineCompletion", None),
        ("textDocument/inlineCompletion", {}),
        ("textDocument/inlineCompletion", []),
        ("textDocument/inlineCompletion", "x"),
        ("textDocument/inlineCompletion", {"textDocument": None, "position": 3}),
        ("textDocument/completion", {"textDocument": {"uri": 5}}),
        ("workspace/executeCommand", {"command": "nope"}),
        ("no/such/method", {}),
        ("initialize", {"capabilities": {}, "processId": None}),
    ],
)
def test_garbage_params_get_an_error_reply(method, params) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.open("x = \n")
        reply = await client.request(method, params)
        assert reply["error"]["code"] in (-32602, -32601, -32600)
        assert "\n" not in reply["error"]["message"].strip()
        assert (await client.reply(client.ask(0, 4)))["result"]

    run()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"null", b"3", b"[]", b"{}", b'{"jsonrpc":"1.0","id":4,"method":"x"}',
     b'{"jsonrpc":"2.0","id":{},"method":"x"}', b'{"jsonrpc":"2.0","id":5,"method":7}',
     b'{"jsonrpc":"2.0","id":77,"result":null}', b'{"jsonrpc":"2.0","id":null,"error":{}}',
     b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":12345}}',
     b'{"jsonrpc":"2.0","method":"$/cancelRequest"}',
     b'{"jsonrpc":"2.0","method":"textDocument/didOpen","params":{"textDocument":{}}}',
     b'{"jsonrpc":"2.0","method":"textDocument/didFocus","params":7}',
     b'{"jsonrpc":"2.0","method":"$/setTrace","params":{"value":"loud"}}',
     b"[" * 100_000],
)  # fmt: skip
def test_garbage_messages_do_no_harm(body) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.open("x = \n")
        client.server.handle(body)
        assert (await client.reply(client.ask(0, 4)))["result"]

    run()


@scenario()
async def test_an_unreadable_message_is_answered_with_id_null(client) -> None:
    await client.initialize()
    client.server.handle(b"{not json")
    assert client.sent[-1]["id"] is None
    assert client.sent[-1]["error"]["code"] == -32700


@scenario()
async def test_requests_before_initialize_and_after_shutdown_are_refused(client) -> None:
    assert (await client.request("keyturn/status"))["error"]["code"] == -32002
    await client.initialize()
    assert (await client.request("shutdown"))["result"] is None
    assert (await client.request("keyturn/status"))["error"]["code"] == -32600
    assert client.server.exit_code is None
    client.notify("exit")
    assert client.server.exit_code == 0


@scenario()
async def test_exit_without_shutdown_is_exit_code_1(client) -> None:
    await client.initialize()
    client.notify("exit")
    assert client.server.exit_code == 1


@scenario()
async def test_a_garbled_change_sets_the_document_aside_until_it_is_opened_again(client) -> None:
    await client.initialize()
    client.open("x = \n")
    params = {"textDocument": {"uri": URI, "version": 2}, "contentChanges": [{"range": 5}]}
    client.notify("textDocument/didChange", params)
    assert (await client.reply(client.ask(0, 4)))["result"] == []
    status = (await client.request("keyturn/status"))["result"]
    assert "open it again" in status["refused"][URI]
    assert URI not in client.server.engine.texts
    client.open("x = \n", version=3)
    assert (await client.reply(client.ask(0, 4)))["result"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x" * 10_000_001, "max_document_bytes"),
        ("ELF\0\0\1", "binary"),
        ("y" * 5_000_000, "max_line_chars"),
    ],
)
def test_a_document_is_refused_with_a_reason(text, reason) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.open(text)
        assert (await client.reply(client.ask(0, 4)))["result"] == []
        status = (await client.request("keyturn/status"))["result"]
        assert reason in status["refused"][URI]
        assert URI not in client.server.engine.texts
        assert any(m.get("method") == "window/logMessage" for m in client.sent)
        assert any(m.get("method") == "keyturn/status" for m in client.sent)

    run()


@scenario()
async def test_a_refused_document_is_opened_when_an_edit_mends_it(client) -> None:
    await client.initialize()
    client.open("x\0 = \n")
    client.change(2, {"range": span(0, 1, 2), "text": ""})
    assert client.server.engine.texts[URI] == (2, "x = \n")
    assert (await client.reply(client.ask(0, 4)))["result"]


@scenario()
async def test_the_held_text_can_be_compared(client) -> None:
    await client.initialize()
    text = "a\f\u2028b\r\n😀\ud83d\n"
    client.open(text)
    (held,) = (await client.request("keyturn/documents"))["result"]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    assert (held["num_chars"], held["version"], held["sha256"]) == (len(text), 1, digest)
    client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    assert (await client.request("keyturn/documents"))["result"] == []


@scenario()
async def test_menu_entry_replaces_the_word_before_the_cursor(client) -> None:
    await client.initialize()
    client.server.engine.text = "urn x"
    client.open("    ret\n")
    params = {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 7}}
    result = (await client.request("textDocument/completion", params))["result"]
    assert result["isIncomplete"] is True
    (item,) = result["items"]
    assert item["textEdit"] == {"newText": "return x", "range": span(0, 4, 7)}
    assert item["insertTextFormat"] == 1
    assert item["filterText"] == item["label"] == "return x"


@scenario()
async def test_a_menu_that_the_user_opened_counts_as_asked_for(client) -> None:
    await client.initialize()
    client.open("fo.o\n")
    place = {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 1}}
    for context, invoked in (
        ({"triggerKind": 1}, True),
        ({"triggerKind": 2, "triggerCharacter": "."}, False),
        ({"triggerKind": 3}, False),
    ):
        client.server.engine.calls.clear()
        await client.request("textDocument/completion", place | {"context": context})
        asked = [call[-1] for call in client.server.engine.calls if call[0] == "complete"]
        assert asked == ([True] if invoked else [])  # the cursor is inside a word


@scenario()
async def test_the_clients_word_for_a_language_decides(client) -> None:
    await client.initialize()
    client.server.engine.languages = ("javascript",)
    client.open("a = \n")  # python
    assert (await client.reply(client.ask(0, 4)))["result"] == []
    reasons = (await client.request("keyturn/status", {}))["result"]["completions"]
    assert "not trained on python" in reasons["recent_reasons"][-1]


@scenario()
async def test_selected_menu_entry_is_continued(client) -> None:
    await client.initialize()
    client.server.engine.text = "end(1)"
    client.open("x.app\n")
    info = {"range": span(0, 2, 5), "text": "append"}
    reply = await client.reply(client.ask(0, 5, 2, selectedCompletionInfo=info))
    (item,) = reply["result"]
    assert (item["insertText"], item["range"]) == ("append(1)", span(0, 2, 5))
    client.change(2, {"range": span(0, 0, 0), "text": " "})
    info = {"range": span(0, 3, 6), "text": "apply"}
    reply = await client.reply(client.ask(0, 6, 2, selectedCompletionInfo=info))
    assert reply["result"] == []


@scenario()
async def test_bad_settings_are_logged_and_the_rest_is_used(client) -> None:
    await client.initialize(options={"max_tokens": 0, "seed": 5})
    logged = [m["params"]["message"] for m in client.sent if m.get("method") == "window/logMessage"]
    assert any("max_tokens" in message for message in logged)
    assert client.server.settings.seed == 5
    client.notify("workspace/didChangeConfiguration", {"settings": {"keyturn": {"seed": 6}}})
    assert client.server.settings.seed == 6
    client.notify("workspace/didChangeConfiguration", {"settings": None})
    client.notify("workspace/didChangeConfiguration", {"settings": 5})
    assert client.server.settings.seed == 5


@scenario()
async def test_loading_is_shown_as_progress_only_to_a_client_that_can(client) -> None:
    await client.initialize({"window": {"workDoneProgress": True}})
    client.server.engine.on_change("loading", "reading weights", 10)
    await settle()
    (create,) = [m for m in client.sent if m.get("method") == "window/workDoneProgress/create"]
    client.post({"jsonrpc": "2.0", "id": create["id"], "result": None})
    await settle()
    client.server.engine.on_change("loading", "reading weights", 60)
    client.server.engine.on_change("ready", "ready", 100)
    kinds = [m["params"]["value"]["kind"] for m in client.sent if m.get("method") == "$/progress"]
    assert kinds == ["begin", "report", "end"]
    assert client.sent[-1]["method"] == "keyturn/status"


@scenario()
async def test_no_progress_for_a_client_that_cannot_show_it(client) -> None:
    await client.initialize()
    client.server.engine.on_change("loading", "reading weights", 10)
    await settle()
    client.server.engine.on_change("ready", "ready", 100)
    methods = {m.get("method") for m in client.sent}
    assert "window/workDoneProgress/create" not in methods
    assert "$/progress" not in methods


@scenario()
async def test_a_client_that_refuses_progress_is_left_alone(client) -> None:
    await client.initialize({"window": {"workDoneProgress": True}})
    client.server.engine.on_change("loading", "reading weights", 10)
    await settle()
    (create,) = [m for m in client.sent if m.get("method") == "window/workDoneProgress/create"]
    error = {"code": -32601, "message": "no"}
    client.post({"jsonrpc": "2.0", "id": create["id"], "error": error})
    await settle()
    client.server.engine.on_change("ready", "ready", 100)
    assert "$/progress" not in {m.get("method") for m in client.sent}


@scenario()
async def test_only_the_focused_document_stays_visible_to_the_engine(client) -> None:
    await client.initialize()
    client.open("a\n")
    client.open("b\n", uri="file:///b.py")
    for uri in (URI, "file:///b.py", "file:///unknown.py"):
        client.notify("textDocument/didFocus", {"textDocument": {"uri": uri}})
    assert [call[1:] for call in client.server.engine.calls if call[0] == "focus"] == [
        (URI, True),
        (URI, False),
        ("file:///b.py", True),
    ]


@scenario()
async def test_initialize_accepts_values_its_enumerations_lack(client) -> None:
    capabilities = {
        "textDocument": {
            "completion": {
                "completionItem": {"documentationFormat": ["html"], "tagSupport": {"valueSet": [9]}}
            },
            "codeAction": {"codeActionLiteralSupport": {"codeActionKind": {"valueSet": ["odd"]}}},
            "publishDiagnostics": {"tagSupport": {"valueSet": [77]}},
        },
        "workspace": {
            "symbol": {"symbolKind": {"valueSet": [999]}},
            "workspaceEdit": {"failureHandling": "shrug", "resourceOperations": ["teleport"]},
        },
    }
    params = {"processId": None, "rootUri": None, "capabilities": capabilities, "trace": "loud"}
    reply = await client.request("initialize", params)
    assert reply["result"]["capabilities"]["inlineCompletionProvider"] == {}


@pytest.mark.parametrize("uri", ["untitled:Untitled-1", "file://[x", "", "a b\n%zz", "c:\\x.py"])
def test_any_uri_names_a_document(uri) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.open("x = \n", uri=uri)
        assert (await client.reply(client.ask(0, 4, uri=uri)))["result"]

    run()


@scenario(num_popups=2)
async def test_a_failure_is_told_once_with_reason_and_remedy(client) -> None:
    await client.initialize()
    tell = client.server.engine.on_change
    for pause in ("0.4", "0.8", "1.6"):
        tell(
            "failed", f"cannot create folder /x; set XDG_RUNTIME_DIR; trying again in {pause} s", 0
        )
    tell("starting", "the engine host was lost", 0)
    for _ in range(2):
        tell("failed", "no model", 0)
    tell("ready", "ready", 100)
    tell("failed", "cannot create folder /x; set XDG_RUNTIME_DIR; trying again in 0.4 s", 0)
    shown = [message["params"] for message in client.popups()]
    assert [(note["type"], note["message"]) for note in shown] == [
        (1, "Keyturn cannot complete: cannot create folder /x; set XDG_RUNTIME_DIR"),
        (1, "Keyturn cannot complete: no model; keyturn doctor says what to do"),
    ]
