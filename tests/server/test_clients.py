"""What editors really send: their initialize parameters, their slips, their settings."""

import asyncio

import pytest

from .test_app import URI, Client, FakeEngine, scenario, settle, span

FOLDER = {"uri": "file:///home/u/my%20app", "name": "my app"}
VSCODE = {
    "general": {"positionEncodings": ["utf-16"], "staleRequestSupport": {"cancel": True}},
    "textDocument": {
        "synchronization": {"dynamicRegistration": True, "willSave": True, "didSave": True},
        "completion": {"contextSupport": True, "completionItem": {"insertTextModeSupport": {}}},
        "semanticTokens": {"requests": {"range": True}, "tokenTypes": [], "tokenModifiers": []},
        "inlineCompletion": {"dynamicRegistration": True},
    },
    "window": {"workDoneProgress": True, "showMessage": {"messageActionItem": {}}},
}
EDITORS = {
    "vscode": {
        "processId": 1,
        "clientInfo": {"name": "Visual Studio Code", "version": "1.139.1"},
        "locale": "en",
        "rootPath": None,
        "rootUri": None,
        "capabilities": VSCODE,
        "trace": "off",
        "workspaceFolders": None,
    },
    "eglot": {
        "processId": None,
        "clientInfo": {"name": "Eglot", "version": "1.19"},
        "rootPath": "/home/u/my app/",
        "rootUri": "file:///home/u/my%20app",
        "initializationOptions": {},
        "capabilities": {"workspace": {"applyEdit": True}, "experimental": {}},
        "workspaceFolders": [FOLDER],
    },
    "helix": {
        "processId": 1,
        "rootPath": "/home/u/my app",
        "rootUri": FOLDER["uri"],
        "capabilities": {"general": {"positionEncodings": ["utf-8", "utf-32", "utf-16"]}},
        "trace": None,
        "workspaceFolders": [],
    },
    "kate": {
        "processId": 1,
        "rootPath": None,
        "rootUri": None,
        "capabilities": {"textDocument": {"documentSymbol": {}}, "window": {}},
        "initializationOptions": None,
    },
    "coc": {
        "processId": 1,
        "rootPath": "",
        "rootUri": "file://[broken",
        "capabilities": {"textDocument": {"completion": {"completionItemKind": {"valueSet": [0]}}}},
        "initializationOptions": {},
        "trace": "loud",
        "workspaceFolders": [FOLDER],
    },
    "odd": {
        "processId": "1",
        "rootUri": 5,
        "capabilities": {"textDocument": {"hover": [], "inlineCompletion": {}}, "workspace": 3},
        "clientInfo": {"version": "1"},
        "workspaceFolders": [{"uri": "file:///x"}],
    },
    "bare": {"capabilities": None},
    "empty": {},
}


async def begin(client: Client, params: dict) -> dict:
    options = {"debounce_ms": 0, "speculate": False, **(params.get("initializationOptions") or {})}
    params = {**params, "initializationOptions": options}
    reply = await client.request("initialize", params)
    client.notify("initialized", {})
    return reply["result"]["capabilities"]


@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_gets_completions(editor) -> None:
    @scenario()
    async def run(client):
        capabilities = await begin(client, EDITORS[editor])
        has_inline = editor in ("vscode", "odd")
        assert ("completionProvider" in capabilities) is not has_inline
        wanted = "utf-8" if editor == "helix" else "utf-16"
        assert capabilities["positionEncoding"] == wanted
        client.open("x = \n")
        assert (await client.reply(client.ask(0, 4)))["result"]

    run()


@pytest.mark.parametrize("version", [7, 1, 0, -3, None, "7", 7.5, 2**40, "absent"])
def test_any_version_of_a_change_is_taken(version) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.open("x = \n")
        document = {"uri": URI, "version": version}
        if version == "absent":
            del document["version"]
        for text in "ab":
            change = {"range": span(0, 0, 0), "rangeLength": None, "text": text}
            params = {"textDocument": document, "contentChanges": [change]}
            client.notify("textDocument/didChange", params)
        assert client.server.engine.texts[URI][1] == "bax = \n"
        assert (await client.reply(client.ask(0, 6)))["result"]

    run()


@scenario()
async def test_whole_texts_and_ranges_in_one_notification(client) -> None:
    await client.initialize()
    client.open("old\n")
    far = {"line": 2**53, "character": 1.7e308}
    client.change(
        2,
        {"text": "one\ntwo\n"},
        {"range": span(1, 0, 3), "rangeLength": 3, "text": "2"},
        {"range": {"start": {"line": 2, "character": 0}, "end": far}, "text": "end"},
    )
    assert client.server.engine.texts[URI] == (2, "one\n2\nend")
    client.change(3, {"range": None, "text": "whole\n"}, {"range": span(0, 0, 1), "text": "W"})
    assert client.server.engine.texts[URI] == (3, "Whole\n")


@scenario()
async def test_a_text_of_null_is_never_taken_for_a_word(client) -> None:
    await client.initialize()
    client.open("x = \n")
    client.change(2, {"text": None})
    assert URI not in client.server.engine.texts
    assert (await client.reply(client.ask(0, 4)))["result"] == []


@pytest.mark.parametrize("language", ["klingon", "", None, 5])
def test_any_language_and_version_opens_a_document(language) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        item = {"uri": URI, "languageId": language, "text": "x = \n"}
        client.notify("textDocument/didOpen", {"textDocument": item})
        assert client.server.engine.texts[URI] == (0, "x = \n")

    run()


@scenario()
async def test_a_document_opened_twice_has_the_newer_text(client) -> None:
    await client.initialize()
    client.open("first\n", version=9)
    client.open("second\n", version=1)
    assert client.server.engine.texts[URI] == (1, "second\n")
    client.change(2, {"range": span(0, 0, 0), "text": "a "})
    assert client.server.engine.texts[URI] == (2, "a second\n")


@scenario()
async def test_what_is_not_open_can_be_changed_and_closed_without_harm(client) -> None:
    await client.initialize()
    other = "untitled:Untitled-2"
    client.change(2, {"text": "a"}, uri=other)
    client.notify("textDocument/didClose", {"textDocument": {"uri": other}})
    client.open("x = \n")
    assert (await client.reply(client.ask(0, 4)))["result"]


@scenario()
async def test_unknown_requests_are_refused_and_unknown_notifications_passed_over(client) -> None:
    await client.initialize()
    for method in ("textDocument/hover", "x/y", "$/x", "completionItem/resolve"):
        client.post({"jsonrpc": "2.0", "id": f"id {method}", "method": method, "params": {}})
        assert (await client.reply(f"id {method}"))["error"]["code"] == -32601
    num_sent = len(client.sent)
    for method, params in (
        ("$/x", {}),
        ("x/y", None),
        ("$/setTrace", {"value": "compact"}),
        ("window/workDoneProgress/cancel", {"token": 3}),
        ("workspace/didChangeWatchedFiles", {"changes": [{"uri": URI, "type": 9}]}),
        ("textDocument/willSave", {"textDocument": {"uri": URI}, "reason": 1}),
        ("textDocument/didSave", {"textDocument": {"uri": URI}, "text": "x"}),
        ("notebookDocument/didChange", {"notebookDocument": {"uri": "n", "version": 1}}),
    ):
        client.notify(method, params)
    await settle()
    assert len(client.sent) == num_sent


@scenario()
async def test_of_many_documents_opened_at_once_only_the_last_is_warmed(client) -> None:
    await client.initialize()
    for count in range(200):
        client.open("x = \n", uri=f"file:///{count}.py")
    await asyncio.sleep(0.1)
    assert looks(client) == [("file:///199.py", True)]
    await client.reply(client.ask(0, 4, uri="file:///3.py"))
    client.notify("textDocument/didClose", {"textDocument": {"uri": "file:///3.py"}})
    client.change(2, {"range": span(0, 0, 0), "text": "a"}, uri="file:///5.py")
    await asyncio.sleep(0.1)
    assert looks(client)[1:] == [
        ("file:///199.py", False),
        ("file:///3.py", True),
        ("file:///5.py", True),
    ]


@scenario()
async def test_a_document_that_is_closed_at_once_takes_no_look_from_another(client) -> None:
    await client.initialize()
    client.open("x = \n")
    await client.reply(client.ask(0, 4))
    client.open("y = \n", uri="file:///peeked.py")
    client.notify("textDocument/didClose", {"textDocument": {"uri": "file:///peeked.py"}})
    await asyncio.sleep(0.1)
    assert looks(client) == [(URI, True)]


def looks(client: Client) -> list[tuple[str, bool]]:
    return [call[1:] for call in client.server.engine.calls if call[0] == "focus"]


def asks(client: Client) -> list[dict]:
    return [one for one in client.sent if one.get("method") == "workspace/configuration"]


async def answer(client: Client, **reply: object) -> None:
    """Answer the latest question for settings."""
    await settle()
    client.post({"jsonrpc": "2.0", "id": asks(client)[-1]["id"], **reply})
    await settle()


CAN_BE_ASKED = {"workspace": {"configuration": True}}


@scenario()
async def test_settings_are_asked_for_before_the_engine_starts(client) -> None:
    await client.initialize(CAN_BE_ASKED, {"seed": 3})
    client.open("x = \n")
    request = client.ask(0, 4)
    await settle()
    assert client.server.engine.on_change is None
    assert asks(client)[0]["params"] == {"items": [{"section": "keyturn"}]}
    await answer(client, result=[{"max_tokens": 9}])
    assert client.server.engine.on_change is not None
    assert (client.server.settings.max_tokens, client.server.settings.seed) == (9, 3)
    assert (await client.reply(request))["result"]


@pytest.mark.parametrize("settings", [None, {}, {"keyturn": None}, {"keyturn": {}}, "absent"])
def test_settings_are_asked_for_again_when_a_change_says_nothing(settings) -> None:
    @scenario()
    async def run(client):
        await client.initialize(CAN_BE_ASKED)
        await answer(client, result=[{"seed": 1}])
        params = {} if settings == "absent" else {"settings": settings}
        client.notify("workspace/didChangeConfiguration", params)
        await answer(client, result=[{"seed": 2}])
        assert len(asks(client)) == 2
        assert client.server.settings.seed == 2
        assert client.server.engine.calls[-1] == ("configure", client.server.settings)

    run()


@scenario()
async def test_settings_that_were_pushed_are_not_undone_by_an_older_answer(client) -> None:
    await client.initialize(CAN_BE_ASKED)
    await settle()
    client.notify("workspace/didChangeConfiguration", {"settings": {"keyturn": {"seed": 8}}})
    await answer(client, result=[{"seed": 2}])
    assert client.server.settings.seed == 8


@pytest.mark.parametrize(
    "reply",
    [
        {"result": ["x"]},
        {"result": 5},
        {"result": {}},
        {"result": []},
        {"result": None},
        {"result": [{"seed": "x"}]},
        {"error": {"code": -32601, "message": "no"}},
        {"error": {"code": "x"}},
    ],
)
def test_a_bad_answer_leaves_a_warning_and_the_settings_from_before(reply) -> None:
    @scenario()
    async def run(client):
        await client.initialize(CAN_BE_ASKED, {"seed": 3})
        await answer(client, **reply)
        assert client.server.settings.seed == 3
        assert client.server.engine.on_change is not None
        assert any(one.get("method") == "window/logMessage" for one in client.sent)

    run()


def test_no_answer_starts_the_engine_all_the_same(monkeypatch) -> None:
    monkeypatch.setattr("keyturn.server.app._SETTINGS_SECONDS", 0.05)

    @scenario()
    async def run(client):
        await client.initialize(CAN_BE_ASKED)
        client.open("x = \n")
        assert (await client.reply(client.ask(0, 4)))["result"]

    run()


@scenario()
async def test_a_client_that_must_be_told_what_to_report_is_told(client) -> None:
    await client.initialize(
        {"workspace": {"didChangeConfiguration": {"dynamicRegistration": True}}}
    )
    (told,) = [one for one in client.sent if one.get("method") == "client/registerCapability"]
    (registration,) = told["params"]["registrations"]
    assert registration["method"] == "workspace/didChangeConfiguration"
    assert registration["registerOptions"] == {"section": "keyturn"}
    client.post({"jsonrpc": "2.0", "id": told["id"], "error": {"code": -32601, "message": "no"}})
    assert asks(client) == []


LONG = "".join(map(str, range(100)))


@pytest.mark.parametrize(
    ("before", "text", "label", "inserted"),
    [
        ("    ret", "urn x", "return x", "return x"),
        ("for i in x:", "\n        y\n", "y", "\n        y\n"),
        ("x = f(", "a,\n      b)", "a,…", "a,\n      b)"),
        ("x = ", f"'{LONG}'", f"'{LONG[:79]}…", f"'{LONG}'"),
    ],
)
def test_menu_entry_is_one_short_line_that_inserts_the_whole(before, text, label, inserted) -> None:
    @scenario(lambda: FakeEngine(text))
    async def run(client):
        await client.initialize()
        client.open(before + "\n")
        at = {"line": 0, "character": len(before)}
        params = {"textDocument": {"uri": URI}, "position": at}
        reply = await client.request("textDocument/completion", params)
        (item,) = reply["result"]["items"]
        new_text = item["textEdit"]["newText"]
        assert item["label"] == label
        assert new_text == item["filterText"] == item["documentation"]
        assert new_text.rstrip() == inserted.rstrip()
        assert item["textEdit"]["range"]["end"] == at
        assert (item["insertTextFormat"], item["insertTextMode"]) == (1, 1)
        assert item["sortText"] < "A"

    run()
