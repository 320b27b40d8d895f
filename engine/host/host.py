"""The engine host: one process per user that serves every server over a local socket.

The event loop parses and submits; the scheduler's thread works. What one client does wrong costs
that client's connection and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import hmac
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..wire import protocol
from ..wire.address import (
    Address,
    FileLock,
    at_socket,
    default_address,
    identity,
    make_folder,
    open_private,
)
from ..wire.config import EngineConfig
from ..wire.errors import BadRequest, EngineError, HostUnavailable
from .engine_protocol import HostedEngine, MakeEngine
from .held_document import Job
from .scheduler import Scheduler
from .working_file import WorkingFile

log = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0
# So often a host looks whether clients still find it.
_LOOK_EVERY_S = 2.0
# A host that ends closes its socket at once and gives its lock back when its work has stopped.
_TAKE_OVER_S = _STOP_TIMEOUT_S + 1
# A client that has not read this much has hung; replies are small, so it is far behind.
_MAX_UNREAD_BYTES = 8 * 1024 * 1024
# What only shows that something goes on is left out before; pieces of text never are.
_MANY_UNREAD_BYTES = 256 * 1024
# What a client may have waiting here; more of it stays in the socket until jobs are done.
_MAX_QUEUED_BYTES = protocol.MAX_MESSAGE_BYTES
# A client that waits for room hears so often that the host lives.
_ALIVE_S = 1.0
# Counted for every request beside its size, for what it costs as objects.
_REQUEST_BYTES = 1024


def main(socket_path: Path | None, idle_s: float, make_engine: MakeEngine | None = None) -> int:
    """Serve until the last client has been gone for `idle_s` seconds, or SIGTERM.

    Args:
        socket_path: where; None is this user's own place for this installation.
        idle_s: seconds.
        make_engine: makes the engine, in the worker thread; None imports the real one.

    Raises:
        HostUnavailable: another host serves that socket, or it cannot be created.
    """
    if socket_path is None:
        address = default_address()
        make_folder(address.socket.parent)
    else:
        address = at_socket(socket_path)
    lock = FileLock(address.lock)
    deadline = time.monotonic() + _TAKE_OVER_S
    try:
        while not lock.acquire():
            if time.monotonic() > deadline or _answers(address):
                raise HostUnavailable(f"another engine host serves {address.socket}; use that one")
            time.sleep(0.05)
    except OSError as error:
        raise HostUnavailable(f"cannot use socket {address.socket}: {error}") from None
    faulthandler.enable()
    try:
        asyncio.run(_serve(address, idle_s, make_engine or _make_real_engine))
    finally:
        lock.release()
    return 0


def _answers(address: Address) -> bool:
    if address.is_tcp:
        return False  # the time will tell
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        return probe.connect_ex(os.fspath(address.socket)) == 0


async def _serve(address: Address, idle_s: float, make_engine: MakeEngine) -> None:
    await Host(address, idle_s, make_engine).serve()


def _make_real_engine(config: EngineConfig) -> HostedEngine:
    from ..engine import Engine  # torch only from here on

    return Engine(config)


class Host:
    """All clients of one process, and the scheduler they share."""

    def __init__(self, address: Address, idle_s: float, make_engine: MakeEngine) -> None:
        """Start the engine's thread; called in the event loop, with the address's lock held."""
        self.address = address
        self.config: EngineConfig | None = None
        self.connections: set[Client] = set()
        self.clients: set[Client] = set()  # those that keep the host alive
        self.token = secrets.token_hex(16) if address.is_tcp else ""
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.working = WorkingFile(address.working)
        self.scheduler = Scheduler(
            make_engine, self.working.note, lambda: _post(self.loop, self.ended.set), idle_s
        )
        self._idle_s = idle_s
        self._idle_timer: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        """Serve until idle for long enough, told to end, or the engine's thread ends."""
        for name in ("SIGTERM", "SIGINT"):
            with contextlib.suppress(NotImplementedError):  # Windows
                self.loop.add_signal_handler(getattr(signal, name), self.ended.set)
        server = await self._listen()
        log.info("engine host %d serves %s", os.getpid(), self.address.socket)
        self.note_clients()
        while not await self._has_ended_soon():
            if not self._found_at.exists():
                server = await self._listen_again(server)
        server.close()
        for client in list(self.connections):
            client.close()
        self.address.socket.unlink(missing_ok=True)
        self.address.port_file.unlink(missing_ok=True)
        await asyncio.to_thread(self.scheduler.stop, _STOP_TIMEOUT_S)
        self.working.close()
        log.info("engine host %d ends", os.getpid())

    def note_clients(self) -> None:
        """End the host when it has had no client for a while."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_timer = None
        if not self.clients:
            self._idle_timer = self.loop.call_later(self._idle_s, self.ended.set)

    def take(self, client: Client, config: EngineConfig) -> None:
        """Run the engine as the first client asks; later ones share it as it is."""
        # A client that asks again may come before the end of its last connection is seen.
        is_alone = all(other.name == client.name or other.is_guest for other in self.clients)
        if self.config is None or (config != self.config and is_alone):
            self.config = config
            self.scheduler.configure(config)

    def status(self) -> dict[str, Any]:
        """Return what the host does, as plain data."""
        return {**self.scheduler.status(), "pid": os.getpid(), "num_clients": len(self.clients)}

    @property
    def _found_at(self) -> Path:
        return self.address.port_file if self.address.is_tcp else self.address.socket

    async def _has_ended_soon(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self.ended.wait()
        return self.ended.is_set()

    async def _listen_again(self, server: asyncio.Server) -> asyncio.Server:
        """Be found again where what cleans temporary folders has removed the socket's name.

        This host holds the lock, so no other can serve those who come.
        """
        try:
            found = await self._listen()
        except OSError:  # the folder is gone, too; who looks for a host makes it anew
            return server
        server.close()
        log.warning("%s was removed: made anew", self._found_at)
        return found

    async def _listen(self) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Client(self, reader, writer).serve()

        if self.address.is_tcp:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            self.address.port_file.unlink(missing_ok=True)
            with open(open_private(self.address.port_file, os.O_WRONLY), "w") as file:
                file.write(f"{port}\n{self.token}\n")
            return server
        # The lock is ours, so a socket that is there belongs to a dead host.
        self.address.socket.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(serve, self.address.socket)
        finally:
            os.umask(umask)


class Client:
    """One connection."""

    def __init__(
        self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Take over a connection that has said nothing yet."""
        self.name = ""
        self.is_guest = True
        self._host = host
        self._reader = reader
        self._writer = writer
        self._jobs: dict[int, Job] = {}
        self._queued_bytes = 0
        self._has_room = asyncio.Event()

    async def serve(self) -> None:
        """Answer requests until the connection ends."""
        self._host.connections.add(self)
        try:
            if await self._hello():
                while (received := await protocol.read_message(self._reader)) is not None:
                    request = self._for_engine(received[0])
                    if request is not None:
                        job = self._job(request, received[1] + _REQUEST_BYTES)
                        self._host.scheduler.submit(job)
                        await self._wait_for_room()
        except EngineError as error:
            self.send(protocol.reply(None, error))
        except Exception:
            log.exception("a client's connection failed")
        finally:
            self._leave()

    def send(self, message: dict[str, Any], droppable: bool = False) -> None:
        """Send without waiting; a client that does not read loses its connection."""
        transport = self._writer.transport
        num_unread = transport.get_write_buffer_size()
        if transport.is_closing() or (droppable and num_unread > _MANY_UNREAD_BYTES):
            return
        if num_unread > _MAX_UNREAD_BYTES:
            log.warning("client %s left %d bytes unread: dropped", self.name, num_unread)
            transport.abort()
            return
        transport.write(protocol.pack(message))

    def close(self) -> None:
        """End the connection after what was sent."""
        self._writer.close()

    async def _hello(self) -> bool:
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                received = await protocol.read_message(self._reader, protocol.MAX_HELLO_BYTES)
        except TimeoutError:
            raise BadRequest(f"no hello within {_HELLO_TIMEOUT_S:g} s") from None
        if received is None:
            return False
        hello = protocol.parse_request(received[0])
        if hello.method != "hello":
            raise BadRequest(f"the first request must be hello, not {hello.method}")
        params, host = hello.params, self._host
        if not hmac.compare_digest(params["token"].encode(errors="replace"), host.token.encode()):
            raise BadRequest("hello.token is wrong")
        for name, ours in asdict(identity()).items():
            if params[name] != ours:
                raise BadRequest(f"hello.{name} is {params[name]!r:.80}, this host has {ours!r}")
        self.name = params["client"]
        if params["engine"] is not None:
            self.is_guest = False
            host.take(self, protocol.from_plain(EngineConfig, params["engine"]))
            self._join()
        result = {
            "pid": os.getpid(),
            "engine": host.config and asdict(host.config),
            "died_on": host.working.died_on,
        }
        self.send(protocol.reply(hello.id, result))
        return True

    def _join(self) -> None:
        self._host.clients.add(self)
        self._host.note_clients()

    def _for_engine(self, message: dict[str, Any]) -> protocol.Request | None:
        """Answer at once what needs no engine; return a request that does."""
        try:
            request = protocol.parse_request(message)
            if request.id in self._jobs:
                raise BadRequest(f"request id {request.id} is in use")
        except BadRequest as error:
            request_id = message.get("id")
            self.send(protocol.reply(request_id if type(request_id) is int else None, error))
            return None
        host, method = self._host, request.method
        if method == "cancel":
            job = self._jobs.get(request.params["request"])
            if job is not None:
                host.scheduler.cancel(job, "cancelled by the client")
            self.send(protocol.reply(request.id, None))
        elif method == "status":
            self.send(protocol.reply(request.id, host.status()))
        elif method == "ping":
            self.send(protocol.reply(request.id, None))
        elif method == "hello":
            self.send(protocol.reply(request.id, BadRequest("hello came twice")))
        else:
            return request
        return None

    def _job(self, request: protocol.Request, num_bytes: int) -> Job:
        """Return a job for the engine, noted here until it is finished."""
        loop = self._host.loop
        self._join()  # from its first work on a guest keeps the host alive too
        job = Job(
            client=self,
            request=request,
            on_result=lambda result: _post(loop, self._finish, request.id, num_bytes, result),
            on_event=lambda name, **fields: _post(
                loop, self.send, protocol.event(name, id=request.id, **fields), name != "text"
            ),
        )
        self._jobs[request.id] = job
        self._queued_bytes += num_bytes
        return job

    async def _wait_for_room(self) -> None:
        """Read no more while too much of this client's is queued."""
        while self._queued_bytes > _MAX_QUEUED_BYTES:
            self._has_room.clear()
            try:
                async with asyncio.timeout(_ALIVE_S):
                    await self._has_room.wait()
            except TimeoutError:  # pings wait behind this request
                self.send(protocol.event("alive", id=0), droppable=True)

    def _finish(self, request_id: int, num_bytes: int, result: object) -> None:
        del self._jobs[request_id]
        self._queued_bytes -= num_bytes
        self._has_room.set()
        self.send(protocol.reply(request_id, result))

    def _leave(self) -> None:
        self._writer.close()
        self._host.connections.discard(self)
        if self in self._host.clients:
            for job in self._jobs.values():
                self._host.scheduler.cancel(job, "the client is gone")
            self._host.scheduler.forget(self)
            self._host.clients.discard(self)
            self._host.note_clients()


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    """Call in the loop's thread; a loop that has ended needs no call."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def run() -> int:
    """Serve as a server that spawns this process asks."""
    parser = argparse.ArgumentParser(prog="keyturn-engine")
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--idle-s", type=float, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return main(args.socket, args.idle_s)
    except EngineError as error:
        log.error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(run())
