"""The client against real host processes that run a fake engine."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyturn.engine.wire.address import Address, at_socket
from keyturn.engine.wire.config import CompletionParams
from keyturn.engine.wire.errors import (
    BadRequest,
    Cancelled,
    DocumentRefused,
    HostUnavailable,
    ModelNotFound,
    WarmingUp,
)
from keyturn.server.engine_client import EngineClient
from keyturn.server.engine_link import look
from keyturn.server.heartbeat import Heartbeat
from keyturn.server.settings import Settings

ROOT = Path(__file__).parent.parent.parent
PARAMS = CompletionParams(8, 0.0, 1.0, 0, (), 0.0)
SETTINGS = replace(Settings(), model="m", host_idle_s=30.0, host_retry_max_s=0.5)
PYTHONPATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


class Editor:
    """What the language server does: keeps the texts and tells the client."""

    def __init__(self, address, command=None, settings=SETTINGS, heartbeat=None):
        self.pids_file = address.socket.with_suffix(".pids")
        note = ["--note", str(self.pids_file)]
        command = command or [sys.executable, "-m", "tests.fakes", *note]
        self.client = EngineClient(command, address, *([heartbeat] if heartbeat else []))
        self.settings = settings
        self.texts, self.versions, self.changes = {}, {}, []
        self.begun: set[str] = set()

    def start(self):
        self.client.start(
            self.settings,
            on_change=lambda *change: self.changes.append(change),
            text_of=self.texts.get,
        )

    def open(self, doc, text, **options):
        self.texts[doc], self.versions[doc] = text, 1
        self.client.open(doc, 1, text, doc, **options)

    def edit(self, doc, *edits):
        for start, end, text in edits:
            self.texts[doc] = self.texts[doc][:start] + text + self.texts[doc][end:]
        base = self.versions[doc]
        self.versions[doc] += 1
        self.client.edit(doc, base, base + 1, edits)

    def complete(self, doc, offset=0, invoked=True, on_text=None, wait_ms=None):
        self.begun.discard(doc)
        on_text = on_text or (lambda *_: self.begun.add(doc))
        return asyncio.ensure_future(
            self.client.complete(
                doc, self.versions[doc], offset, PARAMS,
                invoked=invoked, on_text=on_text, wait_ms=wait_ms,
            )
        )  # fmt: skip

    async def text(self, doc, offset=0):
        return (await self.complete(doc, offset)).text

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_working(self, doc):
        """Wait until the host has begun the completion that was asked for last."""
        await self.until(lambda: doc in self.begun)

    def pids(self):
        return [int(line) for line in self.pids_file.read_text().split()]


@asynccontextmanager
async def editing(address, *, count=1, **options) -> AsyncIterator[Any]:
    editors = [Editor(address, **options) for _ in range(count)]
    try:
        for editor in editors:
            editor.start()
        yield editors[0] if count == 1 else editors
    finally:
        for editor in editors:
            await editor.client.stop()
        with suppress(OSError):
            for pid in editors[0].pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    tmp_path.chmod(0o700)
    return at_socket(tmp_path / "s.sock")


def test_completion_sees_the_text_of_its_version(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "first")  # before there is any host
            editor.edit("a", (0, 5, "second"), (6, 6, "!"))
            assert await editor.text("a", 2) == "<se|cond!>"
            for step in range(50):
                editor.edit("a", (step, step, "x"))
            assert await editor.text("a", 50) == f"<{'x' * 50}|second!>"
            streamed: list[tuple[str, float]] = []
            editor.open("s", "stream")
            completion = await editor.complete("s", on_text=lambda *piece: streamed.append(piece))
            assert streamed == [(char, 0.5) for char in "abc"] and completion.token_ids == (1, 2)
            editor.client.close("a")
            with pytest.raises(BadRequest, match="not open"):
                await editor.complete("a")
        states = [state for state, _, _ in editor.changes]
        assert states[:2] == ["starting", "loading"] and states[-1] == "ready"
        assert ("loading", "loading m", 50) in editor.changes

    asyncio.run(run())


def test_the_models_languages_are_known_once_it_is_loaded(address):
    async def run():
        settings = replace(SETTINGS, model="python only")
        async with editing(address, settings=settings) as editor:
            assert editor.client.languages == ()
            editor.open("a", "text")
            await editor.text("a")
            assert editor.client.languages == ("python",)

    asyncio.run(run())


def test_lone_surrogates_pass(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "\ud800\U0001f600")
            editor.edit("a", (2, 2, "\udc00"))
            assert await editor.text("a", 1) == "<\ud800|\U0001f600\udc00>"

    asyncio.run(run())


def test_two_clients_that_start_at_once_share_one_host(address):
    async def run():
        async with editing(address, count=4) as editors:
            for number, editor in enumerate(editors):
                editor.open("a", f"text {number}")
            texts = await asyncio.gather(*(editor.text("a") for editor in editors))
            assert texts == [f"<|text {number}>" for number in range(4)]
            status = await editors[0].client.host_status()
            assert status["num_clients"] == 4
            assert editors[0].pids() == [status["pid"]]
            await editors[1].client.stop()
            assert await editors[0].text("a") == "<|text 0>"

    asyncio.run(run())


def test_two_server_processes_that_start_at_once_share_one_host(address):
    program = """
import asyncio, json, sys
from tests.server.test_engine_client import Editor, at_socket
async def run():
    editor = Editor(at_socket(sys.argv[1]))
    editor.start()
    editor.open("a", "a")
    print(json.dumps([await editor.text("a"), (await editor.client.host_status())["pid"]]))
    await editor.client.stop()
from pathlib import Path
from typing import Any
sys.argv[1] = Path(sys.argv[1])
asyncio.run(run())
"""
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", program, address.socket], stdout=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(3)
    ]
    # Reading to the end of each output also shows that the host does not hold it open.
    outputs = [json.loads(server.communicate(timeout=300)[0]) for server in servers]
    pid = outputs[0][1]
    try:
        assert outputs == [["<|a>", pid]] * 3
        assert address.socket.with_suffix(".pids").read_text().split() == [str(pid)]
        assert os.getsid(pid) == pid != os.getsid(0)
        descriptors = set()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # the connection of a server that has just gone
                descriptors.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        assert not [name for name in descriptors if name.startswith("pipe:")]
        assert os.readlink(f"/proc/{pid}/fd/1") == os.devnull
        assert os.readlink(f"/proc/{pid}/fd/2") == str(address.log)
    finally:
        os.kill(pid, signal.SIGTERM)


async def until_idle(client):
    """Wait until the host has nothing to do; return its status."""
    async with asyncio.timeout(60):
        while not (status := await client.host_status())["is_idle"]:
            await asyncio.sleep(0.01)
        return status


def test_cancelled_request_stops_the_loop_and_the_next_one_is_served(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "endless", visible=False)  # so that no healing counts
            request = editor.complete("a")
            await editor.until_working("a")
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await until_idle(editor.client)
            editor.edit("a", (0, 7, "short"))
            assert await editor.text("a") == "<|short>"
            before = (await until_idle(editor.client))["num_checks"]
            await asyncio.sleep(0.1)
            assert (await editor.client.host_status())["num_checks"] == before

    asyncio.run(run())


def test_newer_completion_ends_the_older_one(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "slow")
            older = editor.complete("a", 1)
            await editor.until_working("a")
            assert await editor.text("a", 2) == "<sl|ow>"
            with pytest.raises(Cancelled, match="newer"):
                await older

    asyncio.run(run())


def test_host_killed_during_a_completion_is_replaced_and_told_all_documents(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "endless")
            editor.open("b", "b", visible=False)
            editor.edit("a", (0, 0, "x "))
            requests = [editor.complete("a", 1), editor.complete("b", 1, invoked=False)]
            await editor.until_working("a")
            os.kill(editor.client.status()["host_pid"], signal.SIGKILL)
            for request in requests:  # at once, and not for the silence that follows
                with pytest.raises(HostUnavailable, match="was lost"):
                    await request
            editor.edit("a", (2, 9, "mended"))  # while there is no host
            editor.edit("b", (1, 1, "!"))
            assert await editor.text("a", 2) == "<x |mended>"
            assert await editor.text("b", 2) == "<b!|>"
            assert len(editor.pids()) == 2
            status = editor.client.status()
            assert status["host_pid"] == editor.pids()[1]
            assert status["num_restarts"] == 1 and status["quarantined"] == {}
            folder = Path(f"/proc/{editor.pids()[0]}")
            await editor.until(lambda: not folder.exists())  # reaped, not a zombie

    asyncio.run(run())


def test_new_host_is_told_what_is_shown_of_other_files(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "kill-on-show")
            others = [("b.py", "b = 1\n")]
            editor.client.show_others("a", others)
            editor.client.show_others("not open", others)
            # It was told, died on that, and so did the one that was told anew.
            await editor.until(lambda: "a" in editor.client.status()["quarantined"])
            assert len(editor.pids()) >= 2

    asyncio.run(run())


@pytest.mark.parametrize("word", ["kill-on-complete", "kill-on-sync"])
def test_document_that_kills_two_hosts_is_set_aside_until_it_is_opened_again(address, word):
    async def run():
        async with editing(address) as editor:
            editor.open("fine", "fine")
            assert await editor.text("fine") == "<|fine>"
            editor.open("bad", word)
            async with asyncio.timeout(60):
                while not editor.client.status()["quarantined"]:
                    with suppress(HostUnavailable, DocumentRefused):
                        await editor.complete("bad")
                    await asyncio.sleep(0.01)
            with pytest.raises(DocumentRefused, match="died 2 times while working on bad"):
                await editor.complete("bad")
            editor.edit("bad", (0, 0, "x"))  # nobody minds
            assert await editor.text("fine") == "<|fine>"
            assert list(editor.client.status()["quarantined"]) == ["bad"]
            assert len(editor.pids()) == 3
            editor.client.close("bad")
            editor.open("bad", "good again")
            assert await editor.text("bad") == "<|good again>"

    asyncio.run(run())


def test_document_of_another_server_that_kills_the_host_is_not_held_against_ours(address):
    async def run():
        async with editing(address, count=2) as (ours, other):
            for editor in (ours, other):
                editor.open("same", "fine")
                await editor.text("same")
            for _ in range(2):
                other.client.close("same")
                other.open("same", "kill-on-complete", visible=False)
                with pytest.raises(HostUnavailable):
                    await other.complete("same")
                await ours.until(lambda: ours.client.status()["state"] != "ready")
                await ours.until(lambda: ours.client.status()["state"] == "ready")
                await other.until(lambda: other.client.status()["state"] == "ready")
            assert await ours.text("same") == "<|fine>"
            assert ours.client.status()["quarantined"] == {}

    asyncio.run(run())


# A host that runs is silent for less than this, whatever else the machine does.
QUICK = Heartbeat(every_s=0.1, silence_s=1.5)


def is_gone(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.parametrize("is_busy", [False, True])
def test_host_that_is_stopped_is_replaced_and_no_document_is_lost_or_blamed(address, is_busy):
    async def run():
        async with editing(address, heartbeat=QUICK) as editor:
            editor.open("a", "endless" if is_busy else "a")
            editor.open("b", "b", visible=False)
            for _ in range(2):  # as often as a document may be to blame
                request = editor.complete("a", 1)
                await (editor.until_working("a") if is_busy else request)
                pid = editor.client.status()["host_pid"]
                os.kill(pid, signal.SIGSTOP)
                editor.edit("b", (0, 0, "x"))  # to a host that does not read
                lost = editor.complete("b")
                for waiting in [lost, *([request] if is_busy else [])]:
                    with pytest.raises(HostUnavailable, match=f"process {pid}. did not answer"):
                        await waiting
                gone = (None, pid)
                await editor.until(lambda gone=gone: editor.client.status()["host_pid"] not in gone)
                assert is_gone(pid)
            assert await editor.text("b", 2) == "<xx|b>"
            if is_busy:
                editor.edit("a", (0, 7, "quick"))
            assert await editor.text("a", 1) == ("<q|uick>" if is_busy else "<a|>")
            assert editor.client.status()["quarantined"] == {}

    asyncio.run(run())


def test_servers_that_share_a_stopped_host_share_its_successor(address):
    async def run():
        async with editing(address, count=3, heartbeat=QUICK) as editors:
            for editor in editors:
                editor.open("a", "a")
                await editor.text("a")
            stopped = editors[0].pids()[0]
            os.kill(stopped, signal.SIGSTOP)
            for editor in editors:
                status = editor.client.status
                await editor.until(lambda status=status: status()["host_pid"] != stopped)
            assert [await editor.text("a", 1) for editor in editors] == ["<a|>"] * 3
            assert len(editors[0].pids()) == 2

    asyncio.run(run())


def test_host_that_was_stopped_before_a_server_came_is_replaced(address):
    async def run():
        async with editing(address) as editor:
            await editor.client.host_status()
            os.kill(editor.pids()[0], signal.SIGSTOP)
            newcomer = Editor(address, heartbeat=QUICK)
            newcomer.start()
            newcomer.open("a", "a")
            assert await newcomer.text("a", 1) == "<a|>"
            assert len(newcomer.pids()) == 2
            await newcomer.client.stop()

    asyncio.run(run())


def test_host_that_is_only_busy_is_left_alone(address):
    async def run():
        async with editing(address, heartbeat=QUICK) as editor:
            editor.open("a", "endless")
            request = editor.complete("a")
            await editor.until_working("a")
            await asyncio.sleep(2 * QUICK.silence_s)
            assert not request.done()
            request.cancel()
            assert len(editor.pids()) == 1

    asyncio.run(run())


def test_server_that_was_stopped_itself_does_not_count_that_time(address):
    program = """
import asyncio, sys
from pathlib import Path
from tests.server.test_engine_client import Editor, Heartbeat, at_socket
async def run():
    editor = Editor(at_socket(Path(sys.argv[1])), heartbeat=Heartbeat(0.2, 1.5))
    editor.start()
    editor.open("a", "a")
    while True:
        print(await editor.text("a"), editor.client.status()["host_pid"], flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(run())
"""
    command = [sys.executable, "-c", program, address.socket]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as server:
        first = server.stdout.readline()
        pid = int(first.split()[1])
        try:
            for both in (False, True):  # the whole machine sleeps, or the server alone
                for process in (server.pid, *([pid] if both else [])):
                    os.kill(process, signal.SIGSTOP)
                time.sleep(2)
                for process in (server.pid, *([pid] if both else [])):
                    os.kill(process, signal.SIGCONT)
                time.sleep(0.5)
                server.stdin.write("\n")
                server.stdin.flush()
                assert server.stdout.readline() == first
        finally:
            server.kill()
            os.kill(pid, signal.SIGTERM)


def test_a_look_changes_nothing(address):
    async def run():
        assert await look(address, 5) is None
        assert not address.socket.exists() and not address.lock.exists()
        async with editing(address) as editor:
            editor.open("a", "a")
            await editor.text("a")
            before = await until_idle(editor.client)
            found = await look(address, 60)
            assert found["engine"]["device"] == "auto"
            assert {name: found[name] for name in before} == before
            assert await editor.client.host_status() == before
            await editor.client.stop()
            found = await look(address, 60)
            assert (found["num_clients"], found["models"]) == (0, ["m"])
            assert found["engine"]["device"] == "auto"
            os.kill(editor.pids()[0], signal.SIGSTOP)
            with pytest.raises(HostUnavailable, match="does not answer within 0.3 s"):
                await look(address, 0.3)
            os.kill(editor.pids()[0], signal.SIGCONT)
            assert (await look(address, 60))["pid"] == editor.pids()[0]

    asyncio.run(run())


def test_version_mismatch_is_mended_with_the_whole_text(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "abc")
            await editor.text("a")
            editor.texts["a"] = "something else"
            editor.client.edit("a", 1, 2, [(90, 99, "")])  # does not fit the host's text
            editor.client.edit("a", 2, 3, [(0, 0, "")])
            editor.versions["a"] = 3
            async with asyncio.timeout(60):
                while (await editor.client.host_status())["texts"]["a"] != "something else":
                    await asyncio.sleep(0.01)
            assert await editor.text("a", 4) == "<some|thing else>"
            editor.edit("a", (0, 4, "any"))
            assert await editor.text("a", 3) == "<any|thing else>"

    asyncio.run(run())


def test_cold_place_is_told_and_waited_for(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "slow-sync", visible=False)
            with pytest.raises(WarmingUp, match="model is being loaded"):
                await editor.complete("a", 4, invoked=False, wait_ms=1.0)  # there is no host yet
            await editor.client.warm("a", 1, 4)
            warm = await editor.complete("a", 4, invoked=False, wait_ms=0.0)
            assert warm.text == "<slow|-sync>"
            editor.edit("a", (0, 0, "x "))
            with pytest.raises(WarmingUp, match="cache is not there"):
                await editor.complete("a", 6, invoked=False, wait_ms=50.0)
            waiting = asyncio.ensure_future(editor.client.warm("a", 2, 6))
            await asyncio.sleep(0.05)
            editor.edit("a", (0, 0, "y"))
            with pytest.raises(Cancelled, match="changed"):
                await waiting
            with pytest.raises(Cancelled, match="changed"):
                await editor.client.warm("a", 2, 6)
            with pytest.raises(BadRequest, match="not open"):
                await editor.client.warm("b", 1, 0)

    asyncio.run(run())


def test_wait_for_a_warm_cache_ends_with_its_host(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "slow-sync", visible=False)
            await editor.text("a")
            editor.edit("a", (0, 0, "x "))
            waiting = asyncio.ensure_future(editor.client.warm("a", 2, 6))
            await asyncio.sleep(0.05)
            os.kill(editor.client.status()["host_pid"], signal.SIGKILL)
            with pytest.raises(HostUnavailable):
                await waiting

    asyncio.run(run())


def test_completion_for_an_older_version_is_not_asked(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "abc")
            request = editor.complete("a")  # waits for the host
            await asyncio.sleep(0)
            editor.edit("a", (0, 0, "x"))
            with pytest.raises(Cancelled, match="changed"):
                await request

    asyncio.run(run())


def test_missing_model_is_reported_and_another_one_can_be_chosen(address):
    async def run():
        missing = replace(SETTINGS, model="missing")
        async with editing(address, settings=missing) as editor:
            editor.open("a", "a")
            with pytest.raises(ModelNotFound, match="try embedded"):
                await editor.complete("a")
            assert editor.client.status()["state"] == "failed"
            assert "try embedded" in editor.client.status()["reason"]
            editor.client.configure(SETTINGS)
            assert await editor.text("a") == "<|a>"
            assert len(editor.pids()) == 1

    asyncio.run(run())


def test_another_adapter_is_served_without_opening_anything_anew(address, tmp_path):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "a")
            await editor.text("a")
            before = await editor.client.host_status()
            adapter = str(tmp_path / "adapter")
            editor.client.configure(replace(SETTINGS, adapter=adapter))
            assert await editor.text("a") == "<|a>"
            found = await editor.client.host_status()
            assert found["adapters"] == {"m": adapter} and found["num_documents"] == 1
            assert (found["pid"], found["num_opened"]) == (before["pid"], before["num_opened"])
            editor.client.configure(replace(SETTINGS, adapter="missing"))
            with pytest.raises(ModelNotFound, match="give another"):
                await editor.complete("a")
            editor.client.configure(SETTINGS)
            assert await editor.text("a") == "<|a>"
            assert (await editor.client.host_status())["adapters"] == {}

    asyncio.run(run())


def test_other_engine_settings_take_effect_when_no_other_server_needs_the_old(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "a")
            await editor.text("a")
            editor.client.configure(replace(SETTINGS, device="cuda"))
            assert await editor.text("a") == "<|a>"
            assert (await editor.client.host_status())["device"] == "cuda"
            second = Editor(address, settings=replace(SETTINGS, device="cpu"))
            second.start()
            second.open("a", "second")
            assert await second.text("a") == "<|second>"
            assert "device = cuda" in second.client.status()["note"]
            await second.client.stop()
            assert len(editor.pids()) == 1

    asyncio.run(run())


def test_host_that_cannot_start_is_reported_and_tried_again_less_and_less_often(address):
    async def run():
        starts = address.socket.with_suffix(".starts")
        command = ["/bin/sh", "-c", f"echo x >> {starts}; echo 'no such library' >&2; exit 3", "x"]
        async with editing(address, command=command) as editor:
            editor.open("a", "a")
            started_at = time.monotonic()
            with pytest.raises(HostUnavailable, match="code 3: no such library"):
                await editor.complete("a")
            await editor.until(lambda: len(starts.read_text().split()) >= 4)
            assert time.monotonic() - started_at > 0.1 + 0.2 + 0.4
            with pytest.raises(HostUnavailable, match="trying again in"):
                await editor.complete("a")
            assert editor.client.status()["state"] == "failed"

    asyncio.run(run())


def test_host_that_does_not_exist_or_does_not_answer_is_reported(address):
    async def run():
        async with editing(address, command=["/nonexistent/python"]) as editor:
            editor.open("a", "a")
            with pytest.raises(HostUnavailable, match="nonexistent"):
                await editor.complete("a")
        deaf = replace(SETTINGS, host_start_timeout_s=0.3)
        command = ["/bin/sh", "-c", "sleep 3", "x"]
        async with editing(address, command=command, settings=deaf) as editor:
            editor.open("a", "a")
            with pytest.raises(HostUnavailable, match="within 0.3 s"):
                await editor.complete("a")

    asyncio.run(run())


def test_too_large_document_is_refused_and_others_are_served(address):
    async def run():
        async with editing(address) as editor:
            editor.open("a", "a")
            await editor.text("a")
            editor.open("huge", "x" * (65 * 1024 * 1024))
            with pytest.raises(DocumentRefused, match="too large"):
                await editor.complete("huge")
            assert await editor.text("a") == "<|a>"

    asyncio.run(run())


def test_stopped_client_leaves_the_host_running_and_can_end_it(address):
    async def run():
        async with editing(address) as editor:
            pid = (await editor.client.host_status())["pid"]
            await editor.client.stop()
            with pytest.raises(HostUnavailable):
                await editor.client.host_status()
            os.kill(pid, 0)
            second = Editor(address)
            second.start()
            assert (await second.client.host_status())["pid"] == pid
            os.kill((await second.client.host_status())["pid"], signal.SIGTERM)
            await second.client.stop()
            await second.until(lambda: not address.socket.exists())
            assert second.pids() == [pid]

    asyncio.run(run())


def test_host_is_reached_over_loopback_with_its_token(address):
    async def run():
        tcp = Address(address.socket, is_tcp=True)
        code = (
            "from keyturn.engine.host import host; from keyturn.engine.wire import address\n"
            "host.at_socket = lambda path: address.Address(path, is_tcp=True)\n"
            "from tests.fakes import main; raise SystemExit(main())"
        )
        note = ["--note", str(address.socket.with_suffix(".pids"))]
        async with editing(tcp, command=[sys.executable, "-c", code, *note]) as editor:
            editor.open("a", "over tcp")
            assert await editor.text("a") == "<|over tcp>"
            assert tcp.port_file.exists() and not tcp.socket.exists()

    asyncio.run(run())


def test_server_side_leaves_torch_unimported():
    code = (
        "import sys, keyturn.server.engine_client, keyturn.engine.host.host\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
