"""Which lines of other files are shown, when, and what is never read."""

import asyncio
import os
import threading

import pytest
from pygls.uris import from_fs_path

from keyturn.server.nearby import shown, workspace
from keyturn.server.nearby.alike import MOST_CHARS, MOST_LINES, Chunk, alike
from keyturn.server.nearby.imports import imported
from keyturn.server.nearby.workspace import beside, is_copy, readable
from keyturn.server.settings import Settings
from tests.server.test_app import Client, FakeEngine
from tests.server.test_secrets import one

OWN = "".join(f"LIMIT_{number} = {number}  # of a slider\n" for number in range(12))
TEXT = f'''"""Widgets."""

{OWN}
from .base import Widget


class Slider(Widget):
    def resize(self, width, height):
        self.width = width
        self.height = height

'''
KIN = (
    TEXT.replace("Slider", "Button").replace(OWN, "")
    + """        self.redraw(width, height)


class Label(Widget):
    def clear(self):
        self.text = ""
"""
)
BASE = """class Widget:
    def resize(self, width, height):
        self.width = width
        self.redraw()
"""
LINE = "        self.redraw(width, height)\n"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "ui").mkdir(parents=True)
    put(folder / "ui" / "slider.py", TEXT)
    put(folder / "ui" / "button.py", KIN)
    put(folder / "ui" / "base.py", BASE)
    return folder


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names(found):
    return [os.path.basename(each.path) for each in found]


# Which lines.


def test_the_lines_most_like_those_at_the_cursor_come_with_what_follows_them() -> None:
    found = alike(TEXT, len(TEXT), [("other.py", "x = 1\n" * 40), ("button.py", KIN)])
    assert names(found) == ["button.py"]
    assert LINE in found[0].text and found[0].text in KIN


def test_nothing_is_shown_where_nothing_is_alike() -> None:
    assert alike(TEXT, len(TEXT), [("other.py", "import os\nprint(1)\n")]) == []
    assert alike("", 0, [("button.py", KIN), ("empty.py", "")]) == []


def test_two_files_at_most_and_so_many_whole_lines_of_each() -> None:
    long = KIN + "    self.width = width; self.height = height\n" * 100
    wide = KIN.replace("self.width = width", "self.width = " + "width + " * 60 + "width")
    found = alike(TEXT, len(TEXT), [("a.py", long), ("b.py", wide), ("c.py", KIN), ("d.py", KIN)])
    assert len(found) == 2
    for each in found:
        assert each.text in {"a.py": long, "b.py": wide, "c.py": KIN}[each.path]
        assert each.text.endswith("\n")
        assert each.text.count("\n") <= MOST_LINES and len(each.text) <= MOST_CHARS


# Which files.


def test_imports_are_resolved_as_the_languages_do() -> None:
    text = "from .base import (Widget,  # the base\n    Other as O)\nimport app.tools\n"
    found = {path for some in imported("src/app/ui/slider.py", text) for path in some}
    assert {"src/app/ui/base.py", "src/app/tools.py", "src/app/ui/base/Widget.py"} <= found
    assert "src/app/ui/base/the.py" not in found
    script = "import { a } from './a.js';\nconst b = require('../b');\nimport 'react'\n"
    found = [some for some in imported("src/ui/x.ts", script)]
    assert "src/ui/a.ts" in found[0] and "src/b/index.js" in found[1] and len(found) == 2


def test_imported_files_come_before_those_of_the_folder(root) -> None:
    put(root / "ui" / "notes.md", KIN)
    found = list(beside(str(root / "ui" / "slider.py"), TEXT, [str(root)]))
    assert names(found) == ["base.py", "button.py"]


def test_nothing_outside_the_workspace_is_read(root, tmp_path) -> None:
    outside = put(tmp_path / "outside.py", KIN)
    (root / "ui" / "link.py").symlink_to(outside)
    put(tmp_path / "rooted" / "x.py", KIN)
    text = TEXT + "from ...outside import x\n"
    found = list(beside(str(root / "ui" / "slider.py"), text, [str(root)]))
    assert names(found) == ["base.py", "button.py"]
    assert not readable(str(tmp_path / "rooted" / "x.py"), [str(root)])
    assert not readable(str(root), [str(root)]) and not readable("a\0b", [str(root)])


def test_what_is_hidden_or_what_nobody_writes_is_not_read(root) -> None:
    ui = root / "ui"
    put(ui / ".hidden.py", KIN)
    put(ui / "long.py", "x = '" + "y" * 600 + "'\n" + KIN)
    put(ui / "large.py", KIN * 1000)
    (ui / "binary.py").write_bytes(b"\0\xff")
    os.mkfifo(ui / "fifo.py")
    assert names(beside(str(ui / "slider.py"), TEXT, [str(root)])) == ["base.py", "button.py"]
    for folder in ("node_modules/a", ".git", "dist"):
        assert not readable(str(root / folder / "x.py"), [str(root)])


def test_so_many_files_and_bytes_at_most_are_read(root, monkeypatch) -> None:
    for number in range(40):
        put(root / "ui" / f"slider{number}.py", KIN)
    path = str(root / "ui" / "slider.py")
    assert len(list(beside(path, TEXT, [str(root)]))) == workspace.MOST_FILES
    monkeypatch.setattr(workspace, "MOST_BYTES_TOGETHER", 3 * len(KIN))
    assert len(list(beside(path, TEXT, [str(root)]))) <= 4
    monkeypatch.setattr(workspace, "MOST_SECONDS", -1.0)
    assert list(beside(path, TEXT, [str(root)])) == []


def test_a_copy_is_no_other_file() -> None:
    assert is_copy(TEXT, BASE + TEXT) and is_copy(TEXT, TEXT)
    assert not is_copy(TEXT, BASE) and not is_copy("x\n", "y\n")


# When, over the server's own messages.


class Engine(FakeEngine):
    def __init__(self):
        super().__init__()
        self.shown = []

    def show_others(self, uri, others):
        self.shown.append((uri, [tuple(each) for each in others]))


def scenario(root, run, options=None, rest_s=0.01):
    async def main():
        client = Client(Engine())
        reply = await client.request(
            "initialize",
            {
                "processId": None,
                "rootUri": root and from_fs_path(str(root)),
                "capabilities": {},
                "initializationOptions": {
                    **{"debounce_ms": 0, "speculate": False, "other_files": True},
                    **(options or {}),
                },
            },
        )
        assert "result" in reply
        client.notify("initialized", {})
        await run(client)

    before, shown.REST_S = shown.REST_S, rest_s
    try:
        asyncio.run(main())
    finally:
        shown.REST_S = before


async def rested(client):
    """Wait until nothing is to be chosen; return what the engine was told."""
    while client.server.others.is_choosing:
        await asyncio.sleep(0.005)
    return client.server.engine.shown


def cursor(client, uri, line):
    where = {"textDocument": {"uri": uri}, "position": {"line": line, "character": 0}}
    client.notify("keyturn/cursor", where)


def test_when_the_cursor_rests_lines_are_chosen_once_and_not_with_every_key(root) -> None:
    async def run(client):
        uri = from_fs_path(str(root / "ui" / "slider.py"))
        client.open(TEXT, uri=uri)
        assert await rested(client) == []  # nobody knows where the cursor is
        end = {"line": TEXT.count("\n"), "character": 0}
        for number in range(5):
            change = {"range": {"start": end, "end": end}, "text": " "}
            client.change(2 + number, change, uri=uri)
        ((at, chunks),) = await rested(client)
        assert at == uri and chunks[0][0] == "ui/button.py" and LINE in chunks[0][1]
        # Nor when those chosen further on are mostly shown already.
        change = {"range": {"start": end, "end": end}, "text": "\n" * shown.FAR_LINES}
        client.change(7, change, uri=uri)
        assert len(await rested(client)) == 1
        # Another document is opened: what is in its editor counts, not what lies on the disk.
        client.open(KIN.replace("redraw", "repaint"), uri=from_fs_path(str(root / "ui/button.py")))
        cursor(client, uri, end["line"])
        assert "self.repaint(width, height)" in (await rested(client))[-1][1][0][1]

    scenario(root, run)


def test_lines_are_chosen_anew_when_the_cursor_rests_far_away(root) -> None:
    async def run(client):
        uri = from_fs_path(str(root / "ui" / "slider.py"))
        client.open(TEXT + "\n" * 60 + "import os\nprint(1)\n", uri=uri)
        cursor(client, uri, TEXT.count("\n"))
        assert len(await rested(client)) == 1
        cursor(client, uri, TEXT.count("\n") + shown.FAR_LINES - 1)
        assert len(await rested(client)) == 1
        cursor(client, uri, TEXT.count("\n") + 62)
        assert (await rested(client))[1:] == [(uri, [])]

    scenario(root, run)


@pytest.mark.parametrize("seed", range(2))
def test_a_file_with_a_credential_is_not_shown_unless_secrets_are(root, seed) -> None:
    line, secret, _ = one("GitHub", seed)
    put(root / "ui" / "button.py", KIN + line + "\n")
    uri = from_fs_path(str(root / "ui" / "slider.py"))

    def shown_with(hide, opened=False):
        found = []

        async def run(client):
            client.open(TEXT, uri=uri)
            if opened:
                client.open(KIN + line + "\n", uri=from_fs_path(str(root / "ui" / "button.py")))
            cursor(client, uri, TEXT.count("\n"))
            found.extend(await rested(client))

        scenario(root, run, {"hide_secrets": hide})
        return [path for _, chunks in found for path, _ in chunks]

    assert "ui/button.py" in shown_with(hide=False)
    for opened in (False, True):
        assert "ui/button.py" not in shown_with(hide=True, opened=opened)


def test_setting_off_reads_nothing_and_takes_back_what_was_shown(root, monkeypatch) -> None:
    read = []
    monkeypatch.setattr(shown, "beside", lambda *args: read.append(args) or ())

    async def off(client):
        uri = from_fs_path(str(root / "ui" / "slider.py"))
        client.open(TEXT, uri=uri)
        client.open(KIN, uri=from_fs_path(str(root / "ui" / "button.py")))
        cursor(client, uri, TEXT.count("\n"))
        assert await rested(client) == [] and read == []

    async def turned_off(client):
        uri = from_fs_path(str(root / "ui" / "slider.py"))
        client.open(KIN, uri=from_fs_path(str(root / "ui" / "button.py")))
        client.open(TEXT, uri=uri)
        cursor(client, uri, TEXT.count("\n"))
        assert len(await rested(client)) == 1 and len(read) == 1
        settings = {"keyturn": {"other_files": False}}
        client.notify("workspace/didChangeConfiguration", {"settings": settings})
        cursor(client, uri, 0)
        assert (await rested(client))[1:] == [(uri, [])] and len(read) == 1

    scenario(root, off, {"other_files": False})
    scenario(root, turned_off)
    assert not Settings().other_files


def test_without_a_workspace_nothing_is_read_or_shown(root, tmp_path) -> None:
    async def run(client):
        uri = from_fs_path(str(root / "ui" / "slider.py"))
        client.open(TEXT, uri=uri)
        client.open(KIN, uri=from_fs_path(str(root / "ui" / "button.py")))
        client.open(KIN, uri="untitled:Untitled-1")
        for each in (uri, "untitled:Untitled-1"):
            cursor(client, each, TEXT.count("\n"))
        assert await rested(client) == []

    scenario(None, run)
    scenario(tmp_path / "elsewhere", run)


def test_document_that_is_closed_while_lines_are_chosen_gets_none(root, monkeypatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def chosen(*_):
        begun.set()
        go_on.wait(10)
        return [Chunk("b.py", "x\n")]

    monkeypatch.setattr(shown, "choose", chosen)

    async def run(client):
        uri = from_fs_path(str(root / "ui" / "slider.py"))
        client.open(TEXT, uri=uri)
        cursor(client, uri, 0)
        assert await asyncio.to_thread(begun.wait, 10)
        client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        go_on.set()
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not client.server.others.is_choosing and client.server.engine.shown == []

    scenario(root, run)
