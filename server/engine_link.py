"""One connection to the engine host, which is started when there is none.

A host is spawned under a file lock and detached: it must outlive this server, and must not hold
its stdin and stdout open (a language client would wait for their end).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..engine.wire import protocol
from ..engine.wire.address import Address, FileLock, identity, make_folder, open_private
from ..engine.wire.config import EngineConfig
from ..engine.wire.errors import BadRequest, EngineError, HostUnavailable
from .heartbeat import Heartbeat, end_host, until_silent

# The log keeps what a crashed host said; beyond this it starts anew, with one older file kept.
_MAX_LOG_BYTES = 1_000_000
_POLL_S = 0.02

OnEvent = Callable[[str, dict[str, Any]], None]


class Link:
    """Requests and their replies over one connection.

    Attributes:
        host: the host's reply to hello.
        socket: the connection's.
        reason: why it ended, or is going to end.
        heard_at: when a message came last, in seconds of time.monotonic.
        closed: done when the connection has ended, whoever ended it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start to read."""
        self.host: dict[str, Any] = {}
        self.socket: socket.socket = writer.get_extra_info("socket")
        self.heard_at = 0.0
        self._writer = writer
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._on_event: dict[int, OnEvent] = {}
        self._last_id = 0
        self.reason = "the engine host was lost"
        self.closed = asyncio.ensure_future(self._read(reader))

    def request(
        self, method: str, params: dict[str, Any], on_event: OnEvent | None = None
    ) -> asyncio.Future[Any]:
        """Send a request at once; the future ends with its result or an EngineError.

        Cancelling the future cancels the request in the host. It is done already, with BadRequest,
        if the request is too large to be sent, and with HostUnavailable if the link has ended.
        """
        self._last_id += 1
        request_id = self._last_id
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.closed.done():
            reply.set_exception(HostUnavailable(self.reason))
            return reply
        try:
            self._writer.write(protocol.pack(protocol.request(request_id, method, params)))
        except BadRequest as error:
            reply.set_exception(error)
            return reply
        self._replies[request_id] = reply
        if on_event is not None:
            self._on_event[request_id] = on_event
        reply.add_done_callback(lambda reply: self._forget(request_id, reply))
        return reply

    def close(self) -> None:
        """End the connection; what waits for a reply ends with `reason`."""
        self._writer.close()
        self.closed.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (received := await protocol.read_message(reader)) is not None:
                self.heard_at = time.monotonic()
                self._take(received[0])
        except Exception as error:  # a host that talks nonsense is as good as lost
            self.reason = f"the engine host was lost: {error}"
        finally:
            self._writer.close()
            for reply in list(self._replies.values()):
                if not reply.done():
                    reply.set_exception(HostUnavailable(self.reason))

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            params = message["params"]
            on_event = self._on_event.get(params.pop("id"))
            if on_event is not None:
                on_event(message["event"], params)
            return
        error = protocol.error_of(message)
        if message.get("id") is None:
            raise error or BadRequest("a reply without an id")
        reply = self._replies.get(message["id"])
        if reply is None or reply.done():
            return
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(message["result"])

    def _forget(self, request_id: int, reply: asyncio.Future[Any]) -> None:
        del self._replies[request_id]
        self._on_event.pop(request_id, None)
        if reply.cancelled() and not self.closed.done():
            self.request("cancel", {"request": request_id}).add_done_callback(ignore)


def ignore(reply: asyncio.Future[Any]) -> None:
    """Take note of a reply nobody waits for."""
    if not reply.cancelled():
        reply.exception()


async def connect(
    address: Address,
    client: str,
    engine: EngineConfig,
    *,
    command: Sequence[str] | None,
    idle_s: float,
    timeout_s: float,
    heartbeat: Heartbeat,
) -> Link:
    """Return a link to the host at an address, which is spawned if nothing answers.

    Args:
        address: where.
        client: this server's name, for as long as it lives.
        engine: how the engine is to run; the host's first client decides.
        command: starts a host; None is the real one. `--socket` and `--idle-s` are appended.
        idle_s: how long a spawned host stays without clients.
        timeout_s: for the whole of it.
        heartbeat: a host that is stopped, and so does not say hello, is ended after its silence.

    Raises:
        HostUnavailable: no host could be started or reached; the message says why.
    """
    make_folder(address.socket.parent)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                link, token = await _reach(address, command, idle_s)
                try:
                    hello = asyncio.ensure_future(_hello(link, token, client, engine))
                    silence = asyncio.ensure_future(until_silent(link, heartbeat, lambda: True))
                    both = {hello, silence}
                    try:
                        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        silence.cancel()
                        hello.cancel()
                    if hello.done():
                        link.host = hello.result()
                        return link
                    if not await end_host(link):
                        raise HostUnavailable("the engine host does not say hello; end its process")
                    link.close()
                except BaseException:
                    link.close()
                    raise
    except TimeoutError:
        raise HostUnavailable(
            f"the engine host did not answer within {timeout_s:g} s; its log is {address.log}"
        ) from None
    except OSError as error:
        raise HostUnavailable(
            f"the engine host cannot be started: {error}; run keyturn doctor"
        ) from None
    except EngineError as error:
        raise HostUnavailable(f"{error}; the host's log is {address.log}") from None


async def look(address: Address, timeout_s: float) -> dict[str, Any] | None:
    """Return the status of the host at an address, None if none runs; nothing is changed by it.

    "engine" in it is the EngineConfig in force, as plain data, None while there is none.

    Raises:
        HostUnavailable: one runs but does not answer in time, or refuses.
    """
    try:
        async with asyncio.timeout(timeout_s):
            link = await join(address, None)
            try:
                return {**await link.request("status", {}), "engine": link.host["engine"]}
            finally:
                link.close()
    except TimeoutError:
        raise HostUnavailable(
            f"the engine host does not answer within {timeout_s:g} s; its log is {address.log}"
        ) from None
    except (OSError, ValueError):
        return None
    except EngineError as error:
        raise HostUnavailable(f"{error}; the host's log is {address.log}") from None


async def join(address: Address, engine: EngineConfig | None) -> Link:
    """Return a link to a host that runs already; None for the engine takes it as it is.

    Raises:
        OSError, ValueError: none runs.
        EngineError: it refuses.
    """
    link, token = await _open(address)
    try:
        link.host = await _hello(link, token, secrets.token_hex(8), engine)
    except BaseException:
        link.close()
        raise
    return link


async def _hello(
    link: Link, token: str, client: str, engine: EngineConfig | None
) -> dict[str, Any]:
    about = {"token": token, "client": client, "engine": engine and asdict(engine)}
    return await link.request("hello", {**asdict(identity()), **about})


async def _reach(
    address: Address, command: Sequence[str] | None, idle_s: float
) -> tuple[Link, str]:
    """Connect, or spawn and connect; of several servers one spawns and the others wait for it."""
    lock = FileLock(address.spawn_lock)
    process: subprocess.Popen[bytes] | None = None
    try:
        while True:
            with contextlib.suppress(OSError, ValueError):
                return await _open(address)
            if process is None and lock.acquire():
                with contextlib.suppress(OSError, ValueError):
                    return await _open(address)  # another server has just spawned one
                process = _spawn(address, command, idle_s)
            if process is not None and process.returncode is not None:
                raise HostUnavailable(
                    f"the engine host ended with code {process.returncode}: {_last_line(address)}"
                )
            await asyncio.sleep(_POLL_S)
    finally:
        lock.release()


async def _open(address: Address) -> tuple[Link, str]:
    if not address.is_tcp:
        return Link(*await asyncio.open_unix_connection(address.socket)), ""
    port, token = address.port_file.read_text().split()
    return Link(*await asyncio.open_connection("127.0.0.1", int(port))), token


def _spawn(
    address: Address, command: Sequence[str] | None, idle_s: float
) -> subprocess.Popen[bytes]:
    # -P: a folder named "keyturn" where the editor was started must not shadow the package.
    command = command or [sys.executable, "-P", "-m", "keyturn.engine.host.host"]
    with contextlib.suppress(OSError):
        if address.log.stat().st_size > _MAX_LOG_BYTES:
            address.log.replace(address.log.with_suffix(".log.1"))
    log = open_private(address.log, os.O_WRONLY | os.O_APPEND)
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
    try:
        process = subprocess.Popen(
            [*command, "--socket", str(address.socket), "--idle-s", str(idle_s)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=address.socket.parent,
            start_new_session=True,
            creationflags=flags,
        )
    finally:
        os.close(log)
    # A host that dies before this server must not stay as a zombie.
    threading.Thread(target=process.wait, name="host-exit", daemon=True).start()
    return process


def _last_line(address: Address) -> str:
    with contextlib.suppress(OSError):
        lines = address.log.read_bytes()[-4096:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no log")
    return "no log"
