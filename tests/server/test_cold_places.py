"""Places where the cache is not there yet: what is answered, offered again and told the client."""

import asyncio
from dataclasses import replace

import pytest

from keyturn.engine.wire.errors import Cancelled, HostUnavailable, WarmingUp
from keyturn.server.lsp_items import path_of

from .test_app import URI, FakeEngine, scenario, settle

REFRESHES = {"experimental": {"keyturn": {"refresh": True}}}


class ColdEngine(FakeEngine):
    """Answers "warming up" to what does not wait, until `warmth` is set."""

    def __init__(self):
        super().__init__()
        self.warmth = asyncio.Event()
        self.waits, self.paths, self.outcome = [], [], None

    def open(self, uri, version, text, path, *, visible=True):
        super().open(uri, version, text, path, visible=visible)
        self.paths.append(path)

    async def complete(self, uri, version, offset, params, *, invoked, wait_ms=None, on_text=None):
        self.waits.append(wait_ms)
        if not self.warmth.is_set():
            if wait_ms is not None:
                raise WarmingUp("warming up: the cache is not there yet")
            await self.warmth.wait()
        return await super().complete(uri, version, offset, params, invoked=invoked)

    async def warm(self, uri, version, offset, *, whole=False):
        self.calls.append(("until warm", "whole" if whole else "any"))
        await self.warmth.wait()
        if self.outcome is not None:
            raise self.outcome


def refreshes(client):
    return [one["params"] for one in client.sent if one.get("method") == "keyturn/refresh"]


@scenario(ColdEngine)
async def test_cold_place_is_answered_empty_with_its_reason_and_refreshed_when_warm(client) -> None:
    await client.initialize(REFRESHES)
    client.open("é = 1\nx = \n")
    reply = await client.reply(client.ask(1, 4, kind=2))
    assert reply["result"] == []
    status = (await client.request("keyturn/status"))["result"]
    assert status["completions"]["recent_reasons"][-1].startswith("warming up")
    assert client.server.engine.waits == [30_000.0]
    await settle()
    assert refreshes(client) == []
    client.server.engine.warmth.set()
    await settle()
    place = {"textDocument": {"uri": URI}, "position": {"line": 1, "character": 4}}
    assert refreshes(client) == [place]
    assert (await client.reply(client.ask(1, 4, kind=2)))["result"][0]["insertText"] == "done()"
    await settle()
    assert len(refreshes(client)) == 1


@scenario(ColdEngine)
async def test_invoked_request_waits_for_a_cold_place_without_bound(client) -> None:
    await client.initialize(REFRESHES, {"cold_wait_ms": 1})
    client.open("x = \n")
    request = client.ask(0, 4)
    await settle()
    assert client.server.engine.waits == [None]
    client.server.engine.warmth.set()
    assert (await client.reply(request))["result"]
    assert refreshes(client) == []


@pytest.mark.parametrize(
    "capabilities",
    [{}, {"experimental": None}, {"experimental": 3}, {"experimental": {"keyturn": True}},
     {"experimental": {"keyturn": {"refresh": "yes"}}}, {"experimental": {"other": {}}}],
)  # fmt: skip
def test_no_refresh_for_a_client_that_does_not_announce_it(capabilities) -> None:
    @scenario(ColdEngine)
    async def run(client):
        await client.initialize(capabilities)
        client.open("x = \n")
        await client.reply(client.ask(0, 4, kind=2))
        client.server.engine.warmth.set()
        await settle()
        assert refreshes(client) == []

    run()


@scenario(ColdEngine)
async def test_no_refresh_when_the_text_has_changed_or_a_newer_request_came(client) -> None:
    await client.initialize(REFRESHES)
    client.open("x = \n")
    await client.reply(client.ask(0, 4, kind=2))
    request = client.ask(0, 4)  # waits as long as it takes, and is answered itself
    await settle()
    client.server.engine.warmth.set()
    assert (await client.reply(request))["result"]
    client.server.engine.warmth.clear()
    await client.reply(client.ask(0, 4, kind=2))
    client.server.engine.outcome = Cancelled("the document has changed")
    client.server.engine.warmth.set()
    await settle()
    assert refreshes(client) == []


@scenario(ColdEngine)
async def test_no_refresh_of_a_place_whose_text_changes_as_the_cache_is_there(client) -> None:
    await client.initialize(REFRESHES)
    for change in ("edit", "close", "open anew", "close and open anew"):
        client.open("x = \n")
        await client.reply(client.ask(0, 4, kind=2))
        await settle()
        client.server.engine.warmth.set()
        if change == "edit":
            client.change(2, {"text": ""})
        if "close" in change:
            client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
        if "open" in change:
            client.open("")
        await settle()
        assert refreshes(client) == []
        client.server.engine.warmth.clear()


@scenario(ColdEngine)
async def test_who_asks_after_a_refresh_that_came_too_late_is_heard(client) -> None:
    await client.initialize(REFRESHES)
    client.open("x = \ny = \n")
    await client.reply(client.ask(0, 4, kind=2))
    client.server.engine.warmth.set()
    await settle()
    assert len(refreshes(client)) == 1
    await client.reply(client.ask(1, 4, kind=2))
    await client.reply(client.ask(0, 4))
    assert client.server.engine.waits[-1] is None, "as of what the user asks for"


class LostEngine(ColdEngine):
    """Is lost while it completes, and there again when `warmth` is set."""

    async def complete(self, *args, **options):
        if not self.warmth.is_set():
            raise HostUnavailable("the engine host did not answer")
        return await super().complete(*args, **options)


@scenario(LostEngine)
async def test_where_the_engine_was_lost_the_client_asks_again_once(client) -> None:
    await client.initialize(REFRESHES)
    client.open("x = \n")
    warmth = client.server.engine.warmth
    assert (await client.reply(client.ask(0, 4, kind=2)))["result"] == []
    await settle()
    assert refreshes(client) == []
    warmth.set()
    await settle()
    assert len(refreshes(client)) == 1
    # It is lost again by the same request: that is no chance.
    warmth.clear()
    assert (await client.reply(client.ask(0, 4, kind=2)))["result"] == []
    warmth.set()
    await settle()
    assert len(refreshes(client)) == 1
    reply = await client.reply(client.ask(0, 4, kind=2))
    assert reply["result"][0]["insertText"] == "done()"


class NarrowEngine(ColdEngine):
    """Answers at once from a narrow window, and is sure of `so_far` before `warmth` is set."""

    so_far = ""

    async def complete(self, *args, invoked, **options):
        answer = await FakeEngine.complete(self, *args, invoked=invoked, **options)
        if self.warmth.is_set():
            return answer
        text = answer.text if invoked else self.so_far
        return replace(answer, text=text, is_narrow=True, stop_reason="doubt")


@scenario(NarrowEngine)
async def test_what_a_narrow_window_is_not_sure_of_waits_for_the_whole_one(client) -> None:
    await client.initialize(REFRESHES)
    client.open("x = \n")
    assert (await client.reply(client.ask(0, 4, kind=2)))["result"] == []
    status = (await client.request("keyturn/status"))["result"]
    assert "not sure" in status["completions"]["recent_reasons"][-1]
    await settle()
    assert ("until warm", "whole") in client.server.engine.calls
    assert refreshes(client) == []
    assert (await client.reply(client.ask(0, 4)))["result"], "who asks gets what there is"
    assert (await client.reply(client.ask(0, 4, kind=2)))["result"] == []
    client.server.engine.warmth.set()
    await settle()
    assert len(refreshes(client)) == 1
    reply = await client.reply(client.ask(0, 4, kind=2))
    assert reply["result"][0]["insertText"] == "done()"


class SurerEngine(NarrowEngine):
    so_far = "done"


@pytest.mark.parametrize("capabilities", [REFRESHES, {}], ids=["refreshes", "asks once"])
def test_what_a_narrow_window_is_sure_of_is_offered_and_the_whole_one_says_more(capabilities):
    @scenario(SurerEngine)
    async def run(client):
        await client.initialize(capabilities)
        client.open("x = \n")
        reply = await client.reply(client.ask(0, 4, kind=2))
        assert reply["result"][0]["insertText"] == "done"
        client.server.engine.warmth.set()
        await settle()
        assert refreshes(client) == [], "nothing changes under the user's eyes"
        reply = await client.reply(client.ask(0, 4, kind=2))
        assert reply["result"][0]["insertText"] == "done()"

    run()


@scenario(NarrowEngine)
async def test_a_client_that_asks_no_more_by_itself_waits_for_the_whole_window(client) -> None:
    await client.initialize()
    client.open("x = \n")
    asked = client.ask(0, 4, kind=2)
    await settle()
    assert ("until warm", "whole") in client.server.engine.calls
    client.server.engine.warmth.set()
    assert (await client.reply(asked))["result"][0]["insertText"] == "done()"


@scenario(NarrowEngine)
async def test_a_client_that_asks_no_more_by_itself_waits_so_long_at_most(client) -> None:
    await client.initialize(options={"cold_wait_ms": 1})
    client.open("x = \n")
    await client.reply(client.ask(0, 4, kind=2))
    calls = [call[0] for call in client.server.engine.calls]
    assert calls.count("complete") == calls.count("until warm") == 1


class HurriedEngine(FakeEngine):
    """Has no time for more than `text`."""

    async def complete(self, *args, **options):
        return replace(await super().complete(*args, **options), stop_reason="time")


@scenario(lambda: HurriedEngine("a\nb\n"))
async def test_what_time_cut_is_computed_again_until_it_is_typed(client) -> None:
    await client.initialize()
    client.open("\n")
    client.change(2, {"range": {"start": {"line": 0, "character": 0},
                                "end": {"line": 0, "character": 0}}, "text": "x = "})  # fmt: skip
    for number in range(1, 3):
        await client.reply(client.ask(0, 4, kind=2))
        calls = [call for call in client.server.engine.calls if call[0] == "complete"]
        assert len(calls) == number


@scenario(ColdEngine)
async def test_cursor_that_is_told_is_warmed(client) -> None:
    await client.initialize()
    client.open("é😀 = \n")
    for params in (
        {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 6}},
        {"textDocument": {"uri": URI}, "position": {"line": "0", "character": None}},
        {"textDocument": {"uri": URI}},
        {"textDocument": {"uri": "file:///other"}, "position": {"line": 0, "character": 6}},
        [], None, 5,
    ):  # fmt: skip
        client.notify("keyturn/cursor", params)
    await settle()
    warmed = [call for call in client.server.engine.calls if call[0] == "warm"]
    assert warmed == [("warm", URI, 5)]


@pytest.mark.parametrize(
    ("uri", "language", "path"),
    [
        ("file:///home/a/x/y.py", "python", "x/y.py"),
        ("file:///home/a/sub/z.py", "python", "z.py"),
        ("file:///home/ab/z.py", "python", "z.py"),
        ("file:///elsewhere/deep/q.ts", "typescript", "q.ts"),
        ("file:///home/a/%C3%A9%20b.py", "", "é b.py"),
        ("untitled:Untitled-1", "python", "untitled.py"),
        ("untitled:Untitled-1", "typescriptreact", "untitled.tsx"),
        ("untitled:Untitled-1", "cobol", ""),
        ("git:/home/a/x.py?ref=HEAD", "javascript", "untitled.js"),
        ("nonsense", "", ""),
        ("", "python", "untitled.py"),
    ],
)
def test_path_is_relative_to_the_innermost_folder(uri, language, path) -> None:
    assert path_of(uri, ["file:///home/a", "file:///home/a/sub", ""], language) == path


@scenario(ColdEngine)
async def test_engine_is_told_paths_relative_to_the_workspace(client) -> None:
    params = {"processId": None, "rootUri": "file:///old", "capabilities": {},
              "workspaceFolders": [{"uri": "file:///one", "name": "one"}]}  # fmt: skip
    await client.request("initialize", params)
    client.notify("initialized", {})
    client.open("x", uri="file:///one/pkg/a.py")
    added = [{"uri": "file:///two", "name": "two"}]
    removed = [{"uri": "file:///one", "name": "one"}]
    event = {"event": {"added": added, "removed": removed}}
    client.notify("workspace/didChangeWorkspaceFolders", event)
    client.open("x", uri="file:///two/pkg/b.py")
    client.open("x", uri="file:///one/pkg/c.py")
    assert client.server.engine.paths == ["pkg/a.py", "pkg/b.py", "c.py"]
