"""Where one user's engine host is found: socket, locks, log. No torch here.

The name is a hash of protocol version, package version and install path, so an upgrade or a second
installation never talks to the wrong host.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .errors import HostUnavailable
from .protocol import PROTOCOL_VERSION

# sockaddr_un holds 108 bytes on Linux, 104 on macOS and the BSDs.
_MAX_SOCKET_PATH_BYTES = 100


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same on both ends of a connection."""

    protocol: int
    package: str
    install: str


@dataclass(frozen=True, slots=True)
class Address:
    """The files of one engine host: its socket, and beside it what belongs to it.

    Attributes:
        socket: the Unix socket.
        is_tcp: there are no Unix sockets: the host listens on a loopback port instead.
    """

    socket: Path
    is_tcp: bool

    @property
    def port_file(self) -> Path:
        """Port and token, one a line, where there are no Unix sockets."""
        return self.socket.with_suffix(".port")

    @property
    def lock(self) -> Path:
        """Locked by the host for as long as it lives."""
        return self.socket.with_suffix(".lock")

    @property
    def spawn_lock(self) -> Path:
        """Locked by a server while it starts a host."""
        return self.socket.with_suffix(".spawn")

    @property
    def log(self) -> Path:
        """What the host says; kept across restarts."""
        return self.socket.with_suffix(".log")

    @property
    def working(self) -> Path:
        """Which document the host is working on: read by its successor if it dies."""
        return self.socket.with_suffix(".working")


def identity() -> Identity:
    """Return the identity of this installation."""
    return Identity(PROTOCOL_VERSION, version("keyturn"), str(Path(__file__).resolve().parents[2]))


def default_address() -> Address:
    """Return the address of this user's host for this installation; touches no file."""
    return choose_address(
        identity(),
        environ=os.environ,
        temp_dir=tempfile.gettempdir(),
        user=_user(),
        has_unix_sockets=hasattr(socket, "AF_UNIX"),
    )


def at_socket(path: Path) -> Address:
    """Return the address of a host with its socket at `path`.

    Raises:
        HostUnavailable: the path is too long for a socket.
    """
    address = Address(path.absolute(), not hasattr(socket, "AF_UNIX"))
    if not _fits(address):
        raise HostUnavailable(
            f"socket path {address.socket} has {_MAX_SOCKET_PATH_BYTES} bytes or more; "
            "choose a shorter one"
        )
    return address


def choose_address(
    who: Identity,
    *,
    environ: Mapping[str, str],
    temp_dir: str,
    user: str,
    has_unix_sockets: bool,
) -> Address:
    """Return the address for an identity; a pure function.

    $XDG_RUNTIME_DIR comes first, then a folder of the user's own under the temporary one; the
    first whose socket path is short enough is taken.
    """
    text = "\0".join([str(who.protocol), who.package, who.install])
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    runtime_dir = environ.get("XDG_RUNTIME_DIR", "")
    folders = [Path(runtime_dir, "keyturn")] if os.path.isabs(runtime_dir) else []
    folders += [Path(temp_dir, f"keyturn-{user}"), Path("/tmp", f"keyturn-{user}")]
    addresses = [Address(folder / f"{name}.sock", not has_unix_sockets) for folder in folders]
    return next((address for address in addresses if _fits(address)), addresses[-1])


def make_folder(folder: Path) -> None:
    """Create the folder of an address with mode 0700, or check that it is ours alone.

    Raises:
        HostUnavailable: it is a link, another user's, or open to others; or cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise HostUnavailable(
            f"cannot create folder {folder} for the engine's socket: {error}; "
            "set XDG_RUNTIME_DIR to a folder of yours alone"
        ) from None
    if not hasattr(os, "getuid"):
        return
    problem = None
    if not stat.S_ISDIR(found.st_mode):
        problem = "it is no folder"
    elif found.st_uid != os.getuid():
        problem = f"it belongs to user {found.st_uid}"
    elif found.st_mode & 0o077:
        problem = f"its mode is {stat.S_IMODE(found.st_mode):04o}, not 0700"
    if problem:
        raise HostUnavailable(
            f"folder {folder} cannot hold the engine's socket: {problem}; "
            "remove it or set XDG_RUNTIME_DIR"
        )


def open_private(path: Path, flags: int) -> int:
    """Open a file of an address, created with mode 0600; never follows a link."""
    flags |= os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags, 0o600)


class FileLock:
    """A lock that the operating system gives back when its holder dies."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is locked yet."""
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether it is held now."""
        fd = open_private(self.path, os.O_RDWR)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the lock back; its file stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _fits(address: Address) -> bool:
    return address.is_tcp or len(os.fsencode(address.socket)) < _MAX_SOCKET_PATH_BYTES


def _user() -> str:
    if hasattr(os, "getuid"):
        return str(os.getuid())
    return hashlib.sha256(str(Path.home()).encode()).hexdigest()[:8]
