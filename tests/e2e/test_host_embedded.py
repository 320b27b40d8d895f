"""The host with the real engine and the embedded model, as the language server uses it."""

import asyncio
import contextlib
import operator
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from keyturn.engine.wire.address import at_socket
from keyturn.engine.wire.config import Completion, CompletionParams
from keyturn.engine.wire.errors import Cancelled, HostUnavailable
from keyturn.server.engine_client import EngineClient
from keyturn.server.settings import Settings

ERRORS = Path(__file__).parent.parent.parent / "engine" / "wire" / "errors.py"
SOURCE = ERRORS.read_text(encoding="utf-8").replace("return kind(message)", "return ")
SOURCE = SOURCE[max(0, SOURCE.index("return \n") - 1500) :]
GREEDY = CompletionParams(24, 0.0, 1.0, 0, (), 0.0)
SETTINGS = replace(
    Settings(), num_threads=1, dtype="float32", host_idle_s=20.0, heal="full", cold_budget_ms=0.0
)

pytestmark = pytest.mark.slow


class Editor:
    def __init__(self, client):
        self.client, self.texts, self.versions, self.states = client, {}, {}, []

    def start(self):
        self.client.start(
            SETTINGS,
            on_change=lambda state, what, percent: self.states.append(state),
            text_of=self.texts.get,
        )

    def open(self, doc, text, cursor=None):
        self.texts[doc], self.versions[doc] = text, 1
        self.client.open(doc, 1, text, doc, cursor=cursor)

    def edit(self, doc, start, end, new):
        self.texts[doc] = self.texts[doc][:start] + new + self.texts[doc][end:]
        self.versions[doc] += 1
        self.client.edit(doc, self.versions[doc] - 1, self.versions[doc], [(start, end, new)])

    def complete(self, doc, offset, params=GREEDY, on_text=None):
        return asyncio.ensure_future(
            self.client.complete(
                doc, self.versions[doc], offset, params, invoked=True, on_text=on_text
            )
        )

    async def healed(self, doc, offset):
        """Return a completion made after an edit was healed in idle time."""
        async with asyncio.timeout(300):
            await self.complete(doc, offset)  # at this cursor
            while not (await self.client.host_status())["is_idle"]:
                await asyncio.sleep(0.05)
        return await self.complete(doc, offset)


def test_killed_host_is_replaced_and_completes_as_an_undisturbed_one(tmp_path):
    tmp_path.chmod(0o700)
    address = at_socket(tmp_path / "s.sock")
    cut = SOURCE.index("return \n") + len("return ")

    async def run():
        editor = Editor(EngineClient(None, address))
        editor.start()
        try:
            editor.open("a.py", SOURCE, cursor=cut)
            pieces = []
            first = await editor.complete("a.py", cut, on_text=lambda text, _: pieces.append(text))
            assert first.text and "".join(pieces) == first.text
            assert first.num_prompt_tokens > 400
            # An edit far away is patched; the completion that follows reuses the rest.
            editor.edit("a.py", 3, 3, "Once more: ")
            where = cut + len("Once more: ")
            patched = await editor.complete("a.py", where)
            assert patched.num_reused_tokens > 0.8 * patched.num_prompt_tokens
            healed = await editor.healed("a.py", where)

            pid = editor.client.status()["host_pid"]

            def kill(*_: object) -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

            request = editor.complete("a.py", where, on_text=kill)
            with pytest.raises(HostUnavailable):
                await request
            again = await editor.healed("a.py", where)
            assert editor.client.status()["host_pid"] != pid
            assert again.token_ids == healed.token_ids and again.text == healed.text
        finally:
            os.kill((await editor.client.host_status())["pid"], signal.SIGTERM)
            await editor.client.stop()

    asyncio.run(run())
    assert "Traceback" not in address.log.read_text()


def test_newest_request_of_many_wins_and_cancelled_ones_stop(tmp_path):
    tmp_path.chmod(0o700)

    async def run():
        editor = Editor(EngineClient(None, at_socket(tmp_path / "s.sock")))
        editor.start()
        try:
            text = "def add(first, second):\n    return "
            editor.open("b.py", text)
            requests = [editor.complete("b.py", len(text), replace(GREEDY, max_tokens=400))]
            for char in "first +":
                editor.edit("b.py", len(text), len(text), char)
                text += char
                requests.append(editor.complete("b.py", len(text)))
                await asyncio.sleep(0.02)
                requests[-2].cancel()
            completion = await requests[-1]
            assert completion.text.strip().startswith("second")
            ends = await asyncio.gather(*requests[:-1], return_exceptions=True)
            stopped = [isinstance(end, (asyncio.CancelledError, Cancelled)) for end in ends]
            # On a slow machine one may be over before the next key.
            whole = [isinstance(end, Completion) for end in ends]
            assert any(stopped) and all(map(operator.or_, stopped, whole)), ends
        finally:
            os.kill((await editor.client.host_status())["pid"], signal.SIGTERM)
            await editor.client.stop()

    asyncio.run(run())
