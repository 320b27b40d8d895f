"""What one keystroke and one request pass through: the files and frames of ours, counted.

A language server and an engine host run here in one process, on one event loop, with a real socket
between them and the engine's real thread. A document is opened and warmed; then one `didChange` and
one automatic `inlineCompletion` go through the server while every call is watched.

- Files: the modules of ours in which a function was called between the message's bytes and the
  first pass over rows, for both messages together. `__init__.py` and what runs on its own (timers,
  loading, the status that is told when the request has gone out) are not among them.
- Frames: our functions on the stack at the three places where the work changes hands, added up:
  from the server's reading loop to the write on the host's socket, from the host's reading loop to
  the scheduler's inbox, from the engine thread's loop to the call of the pass; for the keystroke.

So counted, there were 30 files and 23 frames when this was written. The pass is the call of the C
library, `kernels/cpu/step.py`.

    python -m tests.keystroke_path [MODEL]     # prints the path in order
    python -m tests.keystroke_path --readme    # draws it in README.md, for the embedded model
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import keyturn.server
from keyturn.engine.host.host import Host
from keyturn.engine.wire.address import at_socket
from keyturn.engine.wire.config import EngineConfig
from keyturn.server import transport
from keyturn.server.app import KeyturnServer
from keyturn.server.engine_client import EngineClient

ROOMS = {
    f"{Path(keyturn.server.__file__).parent.parent / name}{os.sep}": name
    for name in ("server", "engine", "kernels")
}
THE_PASS = "kernels/cpu/step.py"
BY_THEMSELVES = {"server/heartbeat.py", "server/reports.py"}
# Where the work changes hands: the loop that a stack is counted from, and the call it ends with.
HANDS = {
    "server": ("server/transport.py:serve", "server/engine_link.py:request"),
    "host": ("engine/host/host.py:Client.serve", "engine/host/scheduler.py:submit"),
    "engine": ("engine/host/scheduler.py:_run", THE_PASS),
}
README = Path(__file__).parent.parent / "README.md"
MESSAGES = {"keystroke": "didChange", "request": "inlineCompletion"}
URI = "file:///home/example.py"
TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n"


@dataclass
class Trail:
    """What one message passed through.

    Attributes:
        files: modules, in the order in which they were entered.
        stacks: our frames, outermost first, at each place where the work changed hands.
    """

    files: list[str] = field(default_factory=list)
    stacks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        """Our frames at the three places together."""
        return sum(map(len, self.stacks.values()))


class Watch:
    """Notes every call of ours, in all threads, while there is a trail to note it in."""

    def __init__(self) -> None:
        self.trail: Trail | None = None

    def __enter__(self) -> Watch:
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _on_event(self, frame: FrameType, event: str, _: object) -> None:
        trail, module = self.trail, _module(frame) if event == "call" else None
        if trail is None or module is None:
            return
        if module not in trail.files and not _is_by_itself(frame):
            trail.files.append(module)
        for hand, (_, last) in HANDS.items():
            if hand not in trail.stacks and _name(frame).startswith(last):
                trail.stacks[hand] = _stack(frame, hand)
                if last == THE_PASS:
                    self.trail = None


def _is_by_itself(frame: FrameType) -> bool:
    """Whether the call belongs to no message: imports, and what the heartbeat calls."""
    at: FrameType | None = frame
    while at is not None:
        module = _module(at)
        if module is not None and (module in BY_THEMSELVES or at.f_code.co_name == "<module>"):
            return True
        at = at.f_back
    return (_module(frame) or "").endswith("__init__.py")


def _stack(frame: FrameType, hand: str) -> list[str]:
    """Return our frames from the thread's own loop to `frame`; the pass itself is not counted."""
    first, last = HANDS[hand]
    names: list[str] = []
    at: FrameType | None = frame
    while at is not None:
        if _module(at) is not None and not (last == THE_PASS and at is frame):
            names.append(_name(at))
            if _name(at, qualified=True) == first or _name(at) == first:
                break
        at = at.f_back
    return names[::-1]


def _name(frame: FrameType, *, qualified: bool = False) -> str:
    code = frame.f_code
    return f"{_module(frame)}:{code.co_qualname if qualified else code.co_name}"


def _module(frame: FrameType) -> str | None:
    file = frame.f_code.co_filename
    for folder, room in ROOMS.items():
        if file.startswith(folder):
            return f"{room}/{file[len(folder) :]}".replace(os.sep, "/")
    return None


class Editor:
    """Speaks LSP to a server through its own reading loop."""

    def __init__(self, server: KeyturnServer) -> None:
        source, self._target = os.pipe()
        server.protocol.set_writer(self)
        self._replies: dict[int, Any] = {}
        frames = transport.Framed(lambda n: os.read(source, n))
        self.served = asyncio.ensure_future(transport.serve(server, frames))
        self.served.add_done_callback(lambda _: os.close(source))

    def write(self, data: bytes) -> None:
        message = json.loads(data.split(b"\r\n\r\n", 1)[1])
        if "id" in message and "method" not in message:
            self._replies[message["id"]] = message

    def close(self) -> None:
        os.close(self._target)

    def send(self, method: str, params: object, **more: int) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params, **more}
        body = json.dumps(message).encode()
        os.write(self._target, b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    async def ask(self, method: str, params: object) -> Any:
        number = len(self._replies) + 1
        self.send(method, params, id=number)
        await _until(lambda: number in self._replies)
        return self._replies[number]["result"]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


def _make_engine(config: EngineConfig) -> Any:
    from keyturn.engine.engine import Engine  # torch, in the engine's thread as in a host

    return Engine(config)


async def trace(model: str) -> dict[str, Trail]:
    """Return the trails of a keystroke and of a request."""
    with tempfile.TemporaryDirectory(prefix="kt") as folder, Watch() as watch:
        address = at_socket(Path(folder) / "s.sock")
        host = Host(address, 60.0, _make_engine)
        hosting = asyncio.ensure_future(host.serve())
        await _until(address.socket.exists)
        server = KeyturnServer(EngineClient(address=address))
        editor = Editor(server)
        try:
            return await _type(editor, server, host, watch, model)
        finally:
            editor.close()
            await editor.served
            host.ended.set()
            await hosting


async def _type(
    editor: Editor, server: KeyturnServer, host: Host, watch: Watch, model: str
) -> dict[str, Trail]:
    async def trail_of(send: Callable[[], None]) -> Trail:
        await _until(lambda: host.scheduler.status()["is_idle"])
        trail = watch.trail = Trail()
        send()
        await _until(lambda: watch.trail is None)
        return trail

    options = {"model": model, "num_threads": 1, "debounce_ms": 0, "max_tokens": 4}
    options |= {"confidence": "any", "speculate": False}
    capabilities = {"textDocument": {"inlineCompletion": {}}}
    params = {"processId": None, "rootUri": "file:///work", "capabilities": capabilities}
    await editor.ask("initialize", {**params, "initializationOptions": options})
    editor.send("initialized", {})
    item = {"uri": URI, "languageId": "python", "version": 1, "text": TEXT}
    editor.send("textDocument/didOpen", {"textDocument": item})
    await _until(lambda: server.reports.status()["state"] == "ready")

    def place(character: int) -> dict[str, Any]:
        position = {"line": 4, "character": character}
        asked = {"position": position, "context": {"triggerKind": 2}}
        return {"textDocument": {"uri": URI}, **asked}

    await editor.ask("textDocument/inlineCompletion", place(0))  # the cursor is there from now on
    at = place(0)["position"]
    change = {"range": {"start": at, "end": at}, "text": "x = "}
    document = {"uri": URI, "version": 2}
    changed = {"textDocument": document, "contentChanges": [change]}
    return {
        "keystroke": await trail_of(lambda: editor.send("textDocument/didChange", changed)),
        "request": await trail_of(
            lambda: editor.send("textDocument/inlineCompletion", place(4), id=99)
        ),
    }


def files_of(trails: dict[str, Trail]) -> list[str]:
    """Return the modules of all trails, in the order in which they were entered."""
    return list(dict.fromkeys(name for trail in trails.values() for name in trail.files))


def report(trails: dict[str, Trail]) -> str:
    """Return the trails in words."""
    lines = []
    for message, trail in trails.items():
        lines += [f"{message}: {len(trail.files)} files, {trail.num_frames} frames", ""]
        lines += [f"    {name}" for name in trail.files]
        for hand, stack in trail.stacks.items():
            lines += ["", f"  {hand}: {len(stack)} frames", *(f"    {name}" for name in stack)]
        lines.append("")
    return "\n".join([*lines, f"together: {len(files_of(trails))} files"])


def picture(trails: dict[str, Trail]) -> str:
    """Return the trails as README draws them: folders and their modules as they are entered.

    Within a folder modules stand in the order of the trail; a folder that is entered again, after
    another thread has had its turn for instance, is named once.
    """
    lines = [
        "editor ──LSP──▶ server (no torch) ──msgpack, a local socket──▶ engine host (torch)",
    ]
    for message, trail in trails.items():
        folders: dict[str, list[str]] = {}
        for file in trail.files:
            folder, _, name = file.rpartition("/")
            folders.setdefault(folder, []).append(name.removesuffix(".py"))
        lines += ["", f"{message}, {MESSAGES[message]}: {len(trail.files)} files"]
        for folder, names in folders.items():
            lines += textwrap.wrap(
                " ".join(names), 72, initial_indent=f"  {folder:18}", subsequent_indent=" " * 20
            )
    return "\n".join(["```", *lines, "```"])


def drawn(text: str, trails: dict[str, Trail]) -> str:
    """Return a README's text with the picture of the trails between its marks."""
    marks = re.compile(r"(<!-- path -->\n).*(<!-- /path -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}{picture(trails)}\n{found[2]}", text)


def main() -> None:
    """Print the trails, or draw them in README."""
    given = sys.argv[1] if len(sys.argv) > 1 else "embedded"
    if given == "--readme":
        text = drawn(README.read_text(encoding="utf-8"), asyncio.run(trace("embedded")))
        README.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(report(asyncio.run(trace(given))) + "\n")


if __name__ == "__main__":
    main()
