"""Framed messages over stdio or a loopback socket, read in a thread and handled on the loop.

Reading ahead lets a cancellation be seen while a handler waits; each message's handler starts
before the next message is handled, so that a request sees the text it was sent for.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from ..engine.wire.errors import BadRequest

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_MESSAGE_BYTES = 1 << 29
_CONTENT_LENGTH = re.compile(rb"(?i)^content-length:[ \t]*(\d{1,12})[ \t]*$", re.MULTILINE)
_END_OF_HEADER = b"\r\n\r\n"
_FIELD = re.compile(rb"[\w-]+:[^\r\n]*(?:\r\n|\r?\Z)")
_REMEDY = "editors start `keyturn serve` by themselves; run keyturn --help for other commands"
_WITHIN = "it ended within a message"
_MAX_HEADER_BYTES = 16_384
_MAX_TOKEN_BYTES = 1024
_TOKEN_SECONDS = 10
# The end of the stream tells that the client is gone, unless a child of its own has the stream too.
PARENT_SECONDS = 5.0

Read = Callable[[int], bytes]


class Session(Protocol):
    """What is served: one client's language server."""

    @property
    def exit_code(self) -> int | None:
        """The exit code once the client said `exit`."""

    @property
    def process_id(self) -> int | None:
        """The client's process, if it told."""

    def handle(self, body: bytes) -> None:
        """Handle one message; must not raise."""

    def leave(self) -> None:
        """Take it that the client said `exit`: the exit code is known from now on."""

    async def close(self) -> None:
        """Let go of everything; the client is gone."""


class Framed:
    """Messages framed by a Content-Length header, as LSP has them.

    Attributes:
        problem: what was amiss with the stream's end; None if it lies between two messages.
    """

    def __init__(self, read: Read, name: str = "the stream") -> None:
        """Read through `read(n)`, which returns at most n bytes and none at the end.

        Args:
            read: reads.
            name: what to call the stream where something is amiss with it.
        """
        self.name = name
        self.problem: str | None = "it ended before the first message"
        self._read = read
        self._buffer = bytearray()

    def next(self) -> bytes | None:
        """Return the next message's body; None at the end or when the stream makes no sense."""
        header = self._header()
        if header is None:
            return None
        match = _CONTENT_LENGTH.search(header.replace(b"\r\n", b"\n"))
        if match is None or int(match[1]) > MAX_MESSAGE_BYTES:
            self._note_no_header(header)
            return None
        body = self._exactly(int(match[1]))
        self.problem = _WITHIN if body is None else None
        return body

    def _header(self) -> bytes | None:
        """Return what stands before a body; None where the stream ends or no header begins.

        A first line that is none of a header is enough: whoever typed it waits for an answer. Line
        ends behind a message are passed over: some clients print it as a line.
        """
        held = self._buffer
        while (end := self._end_of_header()) < 0:
            is_field = _FIELD.match(held) is not None and len(held) <= _MAX_HEADER_BYTES
            if not is_field and (b"\n" in held or len(held) > _MAX_HEADER_BYTES):
                self._note_no_header(held)
                return None
            if not self._fill(65_536):
                if is_field:
                    self.problem = _WITHIN
                elif held:
                    self._note_no_header(held)
                return None
        return self._take(end + len(_END_OF_HEADER))

    def _end_of_header(self) -> int:
        if self.problem is None:
            del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))]
        return self._buffer.find(_END_OF_HEADER)

    def _note_no_header(self, data: bytes | bytearray) -> None:
        self.problem = f"{bytes(data[:80])!r} is no header with a Content-Length"

    def line(self, max_bytes: int) -> bytes | None:
        """Return one line without its end; None if it is longer or the stream ends."""
        line = self._until(b"\n", max_bytes)
        return None if line is None else line.rstrip(b"\r\n")

    def _until(self, mark: bytes, max_bytes: int) -> bytes | None:
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > max_bytes or not self._fill(65_536):
                return None
        return self._take(end + len(mark))

    def _exactly(self, num_bytes: int) -> bytes | None:
        while len(self._buffer) < num_bytes:
            if not self._fill(max(65_536, min(1 << 22, num_bytes - len(self._buffer)))):
                return None
        return self._take(num_bytes)

    def _fill(self, num_bytes: int) -> bool:
        try:
            data = self._read(num_bytes)
        except OSError as error:
            log.info("the client's stream ended: %s", error)
            data = b""
        self._buffer += data
        return bool(data)

    def _take(self, num_bytes: int) -> bytes:
        taken = bytes(self._buffer[:num_bytes])
        del self._buffer[:num_bytes]
        return taken


class Writer:
    """pygls' writer; a client that has gone is noted, not raised."""

    def __init__(self, write: Callable[[memoryview], int]) -> None:
        """Write through `write(data)`, which returns how many bytes it took."""
        self._write = write
        self._gone = False

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        rest = memoryview(data)
        while rest and not self._gone:
            try:
                rest = rest[self._write(rest) :]
            except OSError as error:
                self._gone = True
                log.info("the client is gone: %s", error)

    def close(self) -> None:
        """Write nothing from now on."""
        self._gone = True


async def serve(session: Session, frames: Framed) -> int:
    """Serve messages until the client says `exit` or goes; return the exit code."""
    loop = asyncio.get_running_loop()
    bodies: asyncio.Queue[bytes | None] = asyncio.Queue()

    def pump() -> None:
        try:
            while (body := frames.next()) is not None:
                loop.call_soon_threadsafe(bodies.put_nowait, body)
            loop.call_soon_threadsafe(bodies.put_nowait, None)
        except RuntimeError:  # the loop was closed: nobody listens any more
            return

    threading.Thread(target=pump, name="reader", daemon=True).start()
    while session.exit_code is None:
        try:
            async with asyncio.timeout(PARENT_SECONDS):
                body = await bodies.get()
        except TimeoutError:
            if is_alive(session.process_id):
                continue
            log.error(
                "process %s, which started this server, is gone; a client in another container "
                "or machine must send a processId of null",
                session.process_id,
            )
            session.leave()
            break
        if body is None:
            _leave(session, frames)
            break
        session.handle(body)
        await asyncio.sleep(0)
    await session.close()
    return 1 if session.exit_code is None else session.exit_code


def _leave(session: Session, frames: Framed) -> None:
    """End without `exit`, of which LSP says nothing: with the code that `exit` would have had."""
    session.leave()
    if frames.problem is not None:
        log.error("expected an LSP client on %s: %s; %s", frames.name, frames.problem, _REMEDY)
    elif session.exit_code:
        log.warning("%s ended without `shutdown` and `exit`", frames.name)


def is_alive(pid: int | None) -> bool:
    """Whether a process exists; True where that cannot be told."""
    if os.name == "nt" or pid is None or pid <= 0:  # on Windows os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def stdio() -> tuple[Framed, Writer]:
    """Take standard input and output for LSP; from now on prints go to standard error.

    Raises:
        BadRequest: one of them is closed.
    """
    try:
        source, target = os.dup(0), os.dup(1)
        os.dup2(2, 1)
    except OSError as error:
        raise BadRequest(
            f"standard input and output must be an LSP client's ({error}); {_REMEDY}"
        ) from None
    sys.stdout = sys.stderr
    if os.isatty(source):
        log.warning("waits for an LSP client on standard input; %s", _REMEDY)
    frames = Framed(lambda n: os.read(source, n), "standard input")
    return frames, Writer(lambda data: os.write(target, data))


def accept(host: str, port: int, token: str) -> tuple[Framed, Writer]:
    """Wait on a loopback port for one client whose first line is the token.

    Raises:
        OSError: the port cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        name = listener.getsockname()
        log.warning("listening on %s:%d", name[0], name[1])
        while True:
            connection, _ = listener.accept()
            connection.settimeout(_TOKEN_SECONDS)
            frames = Framed(connection.recv, "the connection")
            line = frames.line(_MAX_TOKEN_BYTES) or b""
            if hmac.compare_digest(line, token.encode()):
                connection.settimeout(None)
                return frames, Writer(connection.send)
            log.warning("a client without the token was turned away")
            connection.close()
