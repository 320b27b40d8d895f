"""Whether the engine host still answers; one that is stopped or hangs is ended, for another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# While a model loads, libraries come from the disk, and Python stands still for so long.
_LOADING_FACTOR = 6
_END_TIMEOUT_S = 5.0
# LOCAL_PEERPID of macOS, at level SOL_LOCAL.
_SOL_LOCAL, _LOCAL_PEERPID = 0, 2


class Watched(Protocol):
    """What is asked of the link to a host that is watched.

    Attributes:
        host: the host's reply to hello.
        socket: the connection's.
        heard_at: when a message came last, in seconds of time.monotonic.
    """

    host: dict[str, Any]
    socket: socket.socket
    heard_at: float

    def request(self, method: str, params: dict[str, Any]) -> asyncio.Future[Any]:
        """Send a request at once; the future ends with its result or an EngineError."""
        ...


class Heartbeat(NamedTuple):
    """How a host is watched.

    Attributes:
        every_s: it is asked so often.
        silence_s: it is given up after so long without a word.
    """

    every_s: float = 2.0
    silence_s: float = 10.0


HEARTBEAT = Heartbeat()


async def until_silent(link: Watched, heartbeat: Heartbeat, is_loading: Callable[[], bool]) -> None:
    """Return when a host has said nothing for too long, counted while this process ran.

    A gap in this process's own time (it was stopped, or the machine slept) is not counted.
    While a model loads, only a host that is stopped is given up as soon.
    """
    silent_s, looked_at = 0.0, time.monotonic()
    ping: asyncio.Future[object] | None = None
    while True:
        if ping is None or ping.done():
            ping = link.request("ping", {})
            ping.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        await asyncio.sleep(heartbeat.every_s)
        now = time.monotonic()
        if link.heard_at > looked_at:
            silent_s = 0.0
            elapsed_s = now - link.heard_at
        else:
            elapsed_s = now - looked_at
        silent_s += elapsed_s if elapsed_s < 2 * heartbeat.every_s else 0.0
        looked_at = now
        if silent_s < heartbeat.silence_s:
            continue
        is_late = silent_s >= _LOADING_FACTOR * heartbeat.silence_s or not is_loading()
        if is_late or is_stopped(link):
            return


def is_stopped(link: Watched) -> bool:
    """Return whether the host's process is stopped by a signal; False where that is not known."""
    pid = _pid_of(link)
    with contextlib.suppress(OSError, IndexError):
        # "pid (name) state ...", and the name may hold anything.
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return status.rpartition(")")[2].split()[0] in ("T", "t")
    return False


async def end_host(link: Watched) -> bool:
    """Kill the process at the other end of a link that is open still, and see it end.

    Returns:
        False when it could not be told for certain which process that is, or it is not the user's.
    """
    pid = _pid_of(link)
    if pid is None:
        return False
    if not hasattr(os, "pidfd_open"):
        if _is_open(link.socket):
            os.kill(pid, signal.SIGKILL)
        return True
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return True  # it has ended by itself
    try:
        # While the connection stands the host lives, and so the number is not another process's.
        if _is_open(link.socket):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            await asyncio.to_thread(select.select, [process], [], [], _END_TIMEOUT_S)
    except PermissionError:
        return False
    finally:
        os.close(process)
    return True


def _pid_of(link: Watched) -> int | None:
    """Return the process that listens at the other end, if both the system and the host say so."""
    connection = link.socket
    if connection is None or connection.family != getattr(socket, "AF_UNIX", None):
        return None
    try:
        if hasattr(socket, "SO_PEERCRED"):
            size = struct.calcsize("3i")
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            pid, user, _ = struct.unpack("3i", credentials)
            if user != os.getuid():
                return None
        elif sys.platform == "darwin":
            pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
        else:
            return None
    except OSError:
        return None
    # In another container the host has another number there than here.
    return pid if pid > 0 and link.host.get("pid", pid) == pid else None


def _is_open(connection: socket.socket) -> bool:
    poller = select.poll()
    poller.register(connection.fileno(), getattr(select, "POLLRDHUP", 0))
    return not poller.poll(0)
