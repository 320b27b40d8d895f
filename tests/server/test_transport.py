import asyncio
import os
import socket
import subprocess
import sys
import threading

import pytest

from keyturn.server import transport
from keyturn.server.transport import Framed, Writer, serve


def frames_of(data: bytes, piece: int = 7) -> Framed:
    rest = bytearray(data)

    def read(n: int) -> bytes:
        taken = bytes(rest[: min(n, piece)])
        del rest[: len(taken)]
        return taken

    return Framed(read)


def test_messages_are_read_however_they_are_split() -> None:
    data = b"Content-Length: 2\r\n\r\n{}content-length:3\r\nContent-Type: x\r\n\r\nabc"
    for piece in (1, 2, 5, 1000):
        frames = frames_of(data, piece)
        assert [frames.next(), frames.next(), frames.next()] == [b"{}", b"abc", None]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it ended before the first message"),
        (b"Content-Length: 5\r\n\r\nab", "it ended within a message"),
        (b"Content-Length: 5\r\n", "it ended within a message"),
        (b"Content-Length: 5", "it ended within a message"),
        (b"Content-Type: x\r\n\r\nabc", "'Content-Type: x"),
        (b"Content-Length: -1\r\n\r\nabc", "'Content-Length: -1"),
        (b"Content-Length: 999999999999\r\n\r\nabc", "'Content-Length: 999999999999"),
        (b"GET / HTTP/1.1\r\n\r\n", "'GET / HTTP/1.1"),
        (b"hello", "'hello' is no header with a Content-Length"),
        (b"x" * 100_000, "'xxx"),
        (b"x:" * 100_000, "'x:x:"),
    ],
)
@pytest.mark.parametrize("piece", [1, 10_000])
def test_a_stream_that_ends_or_makes_no_sense_is_the_end(data, problem, piece) -> None:
    frames = frames_of(data, piece)
    assert frames.next() is None
    assert problem in (frames.problem or "")


@pytest.mark.parametrize("line", [b"hello\n", b"\n", b"[]\r\n", b"Content-Length: 5\n"])
def test_what_begins_no_header_is_not_waited_on(line) -> None:
    rest = [line]

    def read(_: int) -> bytes:
        assert rest, "it reads on"
        return rest.pop()

    frames = Framed(read)
    assert frames.next() is None
    assert "is no header" in (frames.problem or "")


@pytest.mark.parametrize("piece", [1, 10_000])
def test_line_ends_between_two_messages_are_passed_over(piece) -> None:
    data = framed(b"a") + b"\n" + framed(b"b") + b"\r\n\r\n" + framed(b"c") + b"\n"
    frames = frames_of(data, piece)
    assert [frames.next() for _ in range(4)] == [b"a", b"b", b"c", None]
    assert frames.problem is None


def test_an_end_between_two_messages_is_no_problem() -> None:
    frames = frames_of(framed(b"a"))
    assert [frames.next(), frames.next(), frames.problem] == [b"a", None, None]


def test_a_client_that_has_gone_is_not_an_error_for_the_writer() -> None:
    written = []

    def write(data: memoryview) -> int:
        if len(written) == 2:
            raise BrokenPipeError
        written.append(bytes(data[:3]))
        return min(3, len(data))

    writer = Writer(write)
    writer.write(b"abcdefghi")
    writer.write(b"more")
    assert written == [b"abc", b"def"]


class Session:
    def __init__(self):
        self.exit_code = None
        self.process_id = None
        self.events = []

    def handle(self, body: bytes) -> None:
        self.events.append(body)
        if body == b"exit":
            self.exit_code = 0
        asyncio.ensure_future(self.start(body))

    def leave(self) -> None:
        self.exit_code = 0 if b"shutdown" in self.events else 1

    async def start(self, body: bytes) -> None:
        self.events.append(b"started " + body)

    async def close(self) -> None:
        self.events.append(b"closed")


def framed(*bodies: bytes) -> bytes:
    return b"".join(b"Content-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies)


def test_a_handler_starts_before_the_next_message_is_handled() -> None:
    session = Session()
    assert asyncio.run(serve(session, frames_of(framed(b"a", b"b"), 1000))) == 1
    assert session.events == [b"a", b"started a", b"b", b"started b", b"closed"]


def test_the_end_of_the_stream_is_an_exit() -> None:
    for bodies, code in (((b"a",), 1), ((b"a", b"shutdown"), 0)):
        session = Session()
        assert asyncio.run(serve(session, frames_of(framed(*bodies)))) == code
        assert session.events[-1] == b"closed"


def test_nothing_is_handled_after_exit() -> None:
    session = Session()
    assert asyncio.run(serve(session, frames_of(framed(b"exit", b"b"), 1000))) == 0
    assert b"b" not in session.events


def test_the_server_ends_when_the_process_that_started_it_has(monkeypatch) -> None:
    monkeypatch.setattr(transport, "PARENT_SECONDS", 0.02)
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    source, target = os.pipe()  # stays open, as in a child of the parent's that has it too
    session = Session()
    session.process_id = parent.pid

    async def run() -> int:
        serving = asyncio.ensure_future(serve(session, Framed(lambda n: os.read(source, n))))
        os.write(target, framed(b"a"))
        await asyncio.sleep(0.2)
        assert not serving.done()
        parent.communicate(b"\n")
        return await asyncio.wait_for(serving, 60)

    try:
        assert asyncio.run(run()) == 1
    finally:
        os.close(target)
        parent.kill()
    assert session.events == [b"a", b"started a", b"closed"]


@pytest.mark.parametrize("pid", [None, 0, -1, os.getpid(), 2**70])
def test_a_process_is_taken_to_live_unless_it_certainly_does_not(pid) -> None:
    assert transport.is_alive(pid)


def test_tcp_turns_away_a_client_without_the_token() -> None:
    ports = []
    result = []
    original = socket.create_server

    def create_server(address, **options):
        server = original(address, **options)
        ports.append(server.getsockname()[1])
        ready.set()
        return server

    ready = threading.Event()
    transport.socket.create_server = create_server
    try:
        thread = threading.Thread(
            target=lambda: result.append(transport.accept("127.0.0.1", 0, "secret" * 4)),
            daemon=True,
        )
        thread.start()
        assert ready.wait(60)
    finally:
        transport.socket.create_server = original
    for line in (b"wrong\n", b"x" * 5000, b"\n", b"Content-Length: 2\r\n\r\n{}"):
        with socket.create_connection(("127.0.0.1", ports[0])) as stranger:
            stranger.sendall(line)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(60)
            try:
                assert stranger.recv(1) == b""
            except ConnectionResetError:
                pass
    friend = socket.create_connection(("127.0.0.1", ports[0]))
    friend.sendall(b"secret" * 4 + b"\r\n" + framed(b"{}"))
    thread.join(60)
    frames, writer = result[0]
    assert frames.next() == b"{}"
    writer.write(b"hello")
    assert friend.recv(5) == b"hello"
    friend.close()
