"""The host as a process, spoken to over its socket by well and badly behaved clients."""

import contextlib
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import msgpack
import pytest

from keyturn.engine.wire.address import FileLock, at_socket, identity
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.protocol import MAX_MESSAGE_BYTES
from tests.fakes import PARAMS

ROOT = Path(__file__).parent.parent.parent
ENGINE = asdict(EngineConfig("cpu", "float32", 0, 10**9, 0, 256))


@contextlib.contextmanager
def killed(process):
    """Wait for a process that a failing test may have left running."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()


# For what takes milliseconds on a quiet machine.
LIMIT_S = 60


def start_host(address, idle_s=60.0):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes", "--socket", address.socket, "--idle-s", str(idle_s)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            Connection(address).close()
            return process
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no host: {process.stderr.read()}")


def start_impatient_host(address, idle_s, **hello):
    """Return a host that soon ends without clients, a connection, and the answer to its hello."""
    for _ in range(20):  # it may have gone before a slow machine comes to say hello
        with contextlib.suppress(AssertionError, EOFError, OSError):
            process = start_host(address, idle_s)
            connection = Connection(address)
            return process, connection, connection.hello(**hello)["result"]
    raise AssertionError("it is gone each time")


class Refused(Exception):
    """An error reply that belongs to no request."""


class Connection:
    """A blocking client that can also send nonsense."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(address.socket))
        self.last_id = 0
        self.events = []

    def close(self):
        self.socket.close()

    def send(self, method, **params):
        self.last_id += 1
        self.raw({"id": self.last_id, "method": method, "params": params})
        return self.last_id

    def raw(self, message):
        body = msgpack.packb(message, unicode_errors="surrogatepass")
        self.socket.sendall(struct.pack(">I", len(body)) + body)

    def _exactly(self, num_bytes):
        data = b""
        while len(data) < num_bytes:
            part = self.socket.recv(num_bytes - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self):
        (length,) = struct.unpack(">I", self._exactly(4))
        return msgpack.unpackb(self._exactly(length), unicode_errors="surrogatepass")

    def reply(self, request_id):
        while True:
            message = self.receive()
            if "event" in message:
                self.events.append(message)
            elif message["id"] is None:
                raise Refused(message)
            elif message["id"] == request_id:
                return message

    def ask(self, method, **params):
        return self.reply(self.send(method, **params))

    def hello(self, client="me", **changes):
        return self.ask(
            "hello",
            **{**asdict(identity()), "token": "", "client": client, "engine": ENGINE, **changes},
        )

    def open(self, doc, text, version=1, visible=False):
        return self.ask(
            "open", doc=doc, path=doc, text=text, version=version, model="m", policy="turn",
            layout=None, cursor=None, visible=visible,
        )  # fmt: skip

    def begin(self, doc):
        """Ask for a completion without an end; return when the host is at it."""
        number = self.complete(doc, 0)
        while True:
            message = self.receive()
            if message.get("event") == "text" and message["params"]["id"] == number:
                return number

    def complete(self, doc, offset, version=1):
        return self.send(
            "complete",
            doc=doc,
            version=version,
            offset=offset,
            params=PARAMS,
            invoked=True,
            stream=True,
            wait_ms=None,
        )

    def is_closed(self):
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    address = at_socket(tmp_path_factory.mktemp("host") / "s.sock")
    process = start_host(address)
    yield address
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    assert not address.socket.exists()


@pytest.fixture
def good(address):
    """A client that must be served whatever others do."""
    connection = Connection(address)
    assert connection.hello()["result"]["died_on"] is None
    assert connection.open("good", "good")["result"] is None
    yield connection
    reply = connection.reply(connection.complete("good", 2))
    assert reply["result"]["text"] == "<go|od>"
    connection.close()


def test_socket_is_the_owners_alone(address):
    assert stat.S_IMODE(address.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(address.lock.stat().st_mode) == 0o600
    assert stat.S_IMODE(address.working.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        struct.pack(">I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        struct.pack(">I", 3) + msgpack.packb([1, 2]),
        struct.pack(">I", MAX_MESSAGE_BYTES + 1),
        struct.pack(">I", 70_000) + b"\0" * 70_000,
        struct.pack(">I", 0),
    ],
)
@pytest.mark.parametrize("has_greeted", [False, True])
def test_garbage_costs_an_error_and_the_connection(address, good, garbage, has_greeted):
    bad = Connection(address)
    if has_greeted:
        bad.hello("bad")
    bad.socket.sendall(garbage)
    reply = bad.receive()
    assert reply["id"] is None and reply["error"]["code"] == "bad-request"
    assert bad.is_closed()


def test_half_a_message_costs_the_connection_only(address, good):
    for part in (b"\0", b"\0\0\0\x20abc"):
        bad = Connection(address)
        bad.hello("bad")
        bad.socket.sendall(part)
        bad.socket.shutdown(socket.SHUT_WR)
        assert bad.is_closed()


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 99},
        {"package": "9"},
        {"install": "/elsewhere"},
        {"token": "guess"},
        {"engine": {"device": "cpu"}},
        {"client": 3},
    ],
)
def test_hello_of_another_installation_is_refused(address, good, change):
    bad = Connection(address)
    bad.send(
        "hello", **{**asdict(identity()), "token": "", "client": "b", "engine": ENGINE, **change}
    )
    reply = bad.receive()
    assert reply["error"]["code"] == "bad-request"
    assert bad.is_closed()


def test_hello_must_come_first_and_once(address, good):
    bad = Connection(address)
    bad.send("status")
    assert "hello" in bad.receive()["error"]["message"]
    assert bad.is_closed()
    assert "twice" in good.hello()["error"]["message"]


def test_unknown_or_malformed_request_is_answered_and_the_next_one_served(good):
    assert "fly" in good.ask("fly")["error"]["message"]
    assert "edit.edits" in good.ask("edit", doc="good", base=1, version=2)["error"]["message"]
    good.raw({"id": "x", "method": "status", "params": {}})
    assert good.receive()["error"]["code"] == "bad-request"
    good.raw({"id": 77, "params": 3})
    assert good.receive()["id"] == 77
    assert good.ask("status")["result"]["num_clients"] >= 1
    assert good.ask("cancel", request=12345)["result"] is None


def test_request_id_in_use_is_refused(good):
    good.open("a", "endless")
    number = good.complete("a", 0)
    good.raw({"id": number, "method": "close", "params": {"doc": "a"}})
    assert "in use" in good.reply(number)["error"]["message"]
    good.ask("close", doc="a")


def test_documents_of_two_clients_do_not_mix(address, good):
    other = Connection(address)
    other.hello("other")
    other.open("good", "other")
    assert other.reply(other.complete("good", 1))["result"]["text"] == "<o|ther>"
    other.close()


def test_lone_surrogates_survive(good):
    text = "a\ud800b\U0001f600\udc00"
    good.open("s", text)
    assert good.reply(good.complete("s", 3))["result"]["text"] == f"<{text[:3]}|{text[3:]}>"
    good.ask("edit", doc="s", base=1, version=2, edits=[[1, 2, "\udfff"]])
    assert good.reply(good.complete("s", 0, 2))["result"]["text"] == "<|a\udfffb\U0001f600\udc00>"


def test_cancel_stops_the_token_loop(address, good):
    good.open("endless", "endless")
    number = good.begin("endless")
    good.send("cancel", request=number)
    assert good.reply(number)["error"]["code"] == "cancelled"
    good.ask("close", doc="endless")
    count = good.ask("status")["result"]["num_checks"]
    time.sleep(0.1)
    assert good.ask("status")["result"]["num_checks"] == count


def test_client_that_leaves_stops_its_completion_and_frees_its_documents(address, good):
    leaver = Connection(address)
    leaver.hello("leaver")
    leaver.open("gone", "endless")
    leaver.begin("gone")
    leaver.close()
    deadline = time.monotonic() + LIMIT_S
    while not (status := good.ask("status")["result"])["is_idle"]:
        assert time.monotonic() < deadline
    assert "good" in status["texts"] and "gone" not in status["texts"]


def test_client_that_does_not_read_is_dropped_and_delays_nobody(address, good):
    slow = Connection(address)
    slow.hello("slow")
    slow.open("flood", "flood" + "x" * 1_000_000)
    numbers = [slow.complete("flood", 0)]
    # Partial texts that add up to 1 GB: what is not read is left out.
    reply = good.reply(good.complete("good", 0))
    assert reply["result"]["text"] == "<|good>"
    assert slow.reply(numbers[0])["result"]["text"].startswith("<|flood")
    # Replies are never left out: not reading these costs the connection.
    slow.open("big", "x" * 4_000_000)
    with pytest.raises((EOFError, ConnectionError)):
        for _ in range(8):
            slow.complete("big", 0)
            good.reply(good.complete("good", 0))
        while True:
            slow.receive()


def test_second_host_on_a_socket_is_refused(address):
    result = subprocess.run(
        [sys.executable, "-m", "tests.fakes", "--socket", address.socket, "--idle-s", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert result.returncode == 2 and "another engine host" in result.stderr
    assert "Traceback" not in result.stderr
    Connection(address).close()


def test_a_host_whose_socket_was_removed_is_found_again_and_keeps_its_clients(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    with killed(start_host(address)) as process:
        client = Connection(address)
        client.hello()
        client.open("good", "good")
        address.socket.unlink()
        deadline = time.monotonic() + LIMIT_S
        while not address.socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        other = Connection(address)
        assert other.hello("other")["result"]["pid"] == process.pid
        assert stat.S_IMODE(address.socket.stat().st_mode) == 0o600
        assert client.reply(client.complete("good", 2))["result"]["text"] == "<go|od>"
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    assert not address.socket.exists()


def test_stale_socket_of_a_dead_host_is_replaced_and_its_last_document_named(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    process = start_host(address)
    client = Connection(address)
    client.hello("me")
    client.open("fatal\ud800", "endless")
    client.begin("fatal\ud800")
    process.kill()
    process.wait()
    assert address.socket.exists()
    with killed(start_host(address)) as second:
        client = Connection(address)
        died_on = client.hello("me")["result"]["died_on"]
        assert died_on == {"pid": process.pid, "client": "me", "doc": "fatal\ud800"}
        second.kill()  # while it does nothing: nobody is to blame
        second.wait()
    with killed(start_host(address)) as third:
        client = Connection(address)
        assert client.hello("me")["result"]["died_on"] is None
        client.open("x", "endless")
        client.begin("x")
        third.send_signal(signal.SIGTERM)
        assert third.wait(LIMIT_S) == 0
    with killed(start_host(address)) as fourth:
        client = Connection(address)
        assert client.hello("me")["result"]["died_on"] is None  # it was told to end
        fourth.terminate()
        assert fourth.wait(LIMIT_S) == 0


def test_host_ends_when_the_last_client_has_been_gone_for_a_while(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    process, client, _ = start_impatient_host(address, 0.4)
    time.sleep(0.8)
    assert process.poll() is None
    client.close()
    assert process.wait(LIMIT_S) == 0
    assert not address.socket.exists()
    lock = FileLock(address.lock)
    assert lock.acquire()
    lock.release()


def test_a_guest_that_looks_does_not_keep_an_idle_host(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    process, guest, result = start_impatient_host(address, 0.6, engine=None)
    assert result == {"pid": process.pid, "engine": None, "died_on": None}
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            assert guest.ask("ping")["result"] is None
            assert guest.ask("status")["result"]["num_clients"] == 0
            time.sleep(0.05)
    assert process.wait(LIMIT_S) == 0
    assert process.stderr.read().count(b"\n") == 2  # that it serves, and that it ends


def test_a_guest_does_not_keep_a_client_from_its_settings(address, tmp_path):
    address = at_socket(tmp_path / "s.sock")
    with killed(start_host(address)) as process:
        first, guest, again = (Connection(address) for _ in range(3))
        first.hello("me")
        assert guest.hello("guest", engine=None)["result"]["engine"] == ENGINE
        result = again.hello("me", engine={**ENGINE, "device": "cuda:9"})["result"]
        assert result["engine"]["device"] == "cuda:9"
        process.terminate()
        assert process.wait(LIMIT_S) == 0


def test_ping_is_answered_while_the_engine_works(address, good):
    busy = Connection(address)
    busy.hello("busy")
    busy.open("busy", "endless")
    number = busy.begin("busy")
    for _ in range(3):
        assert busy.ask("ping") == {"id": busy.last_id, "result": None}
    busy.send("cancel", request=number)
    assert busy.reply(number)["error"]["code"] == "cancelled"
    busy.close()


def test_a_client_that_waits_for_room_hears_that_the_host_lives(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    process = start_host(address)
    flood = Connection(address)
    flood.hello("flood")
    flood.open("flood", "endless")
    flood.begin("flood")
    for version in range(2, 5):
        flood.send("replace", doc="flood", version=version, text="x" * 30_000_000)
    flood.send("ping")
    assert flood.receive() == {"event": "alive", "params": {"id": 0}}
    process.terminate()
    assert process.wait(LIMIT_S) == 0


def test_sigterm_ends_a_busy_host_cleanly(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    process = start_host(address)
    client = Connection(address)
    client.hello()
    client.open("a", "endless")
    client.begin("a")
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    assert b"Traceback" not in process.stderr.read()


def test_engine_settings_are_the_first_clients_until_it_is_alone(address, good):
    assert good.ask("status")["result"]["device"] == "cpu"
    other = Connection(address)
    result = other.hello("other", engine={**ENGINE, "device": "cuda:9"})["result"]
    assert result["engine"] == ENGINE
    other.close()


def test_engine_settings_change_when_the_only_client_comes_again(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    with killed(start_host(address)) as process:
        first, again = Connection(address), Connection(address)
        first.hello("me")
        first.open("a", "old engine")
        # The end of the first connection may be seen later than this.
        result = again.hello("me", engine={**ENGINE, "device": "cuda:9"})["result"]
        assert result["engine"]["device"] == "cuda:9"
        again.open("a", "new engine")
        assert again.reply(again.complete("a", 3))["result"]["text"] == "<new| engine>"
        assert again.ask("status")["result"]["device"] == "cuda:9"
        process.terminate()
        assert process.wait(LIMIT_S) == 0


def test_loopback_port_has_a_token_when_there_are_no_unix_sockets(tmp_path):
    code = (
        "from keyturn.engine.host import host; from keyturn.engine.wire import address\n"
        "host.at_socket = lambda path: address.Address(path, is_tcp=True)\n"
        "from tests.fakes import main; raise SystemExit(main())"
    )
    address = at_socket(tmp_path / "s.sock")
    with subprocess.Popen(
        [sys.executable, "-c", code, "--socket", address.socket, "--idle-s", "9"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    ) as process:
        for is_removed in (True, False):  # once: then it is written anew
            deadline = time.monotonic() + LIMIT_S
            while not (
                address.port_file.exists() and address.port_file.read_text().count("\n") == 2
            ):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            assert stat.S_IMODE(address.port_file.stat().st_mode) == 0o600
            if is_removed:
                address.port_file.unlink()
        port, token = address.port_file.read_text().split()
        for guess, is_right in (("", False), ("0" * len(token), False), (token, True)):
            client = Connection.__new__(Connection)
            client.socket = socket.create_connection(("127.0.0.1", int(port)), LIMIT_S)
            client.last_id, client.events = 0, []
            client.send("hello", **asdict(identity()), token=guess, client="c", engine=ENGINE)
            assert ("result" in client.receive()) is is_right
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    assert not address.port_file.exists()
