"""Whether an engine host could start here: tried as a server would do it, and taken back."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..engine.wire.address import Address, at_socket, make_folder, open_private
from ..engine.wire.errors import HostUnavailable

_IMPORT_TIMEOUT_S = 60.0


def try_place(address: Address) -> None:
    """Try folder, files, socket and program of a host; files and hosts that are there stay as is.

    Raises:
        HostUnavailable: one of them cannot be used; the message says which, and the remedy.
    """
    at_socket(address.socket)
    folder = address.socket.parent
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        make_folder(folder)
        for path in (address.lock, address.spawn_lock, address.log, address.working):
            if path.exists() or path.is_symlink():
                _try(f"open {path}", lambda path=path: _open_and_close(path))
        # Names no longer than the socket's own.
        probe = folder / f"try-{os.getpid()}.tmp"
        _try(f"write into folder {folder}", lambda: _write(probe))
        _try(f"make a socket in folder {folder}", lambda: _listen(probe, address.is_tcp))
        _try(f"start {sys.executable}", lambda: _import_host(folder))
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


def _try(what: str, act: Callable[[], None]) -> None:
    try:
        act()
    except (OSError, subprocess.SubprocessError) as error:
        raise HostUnavailable(
            f"cannot {what} for the engine host: {error}; make that possible, or set "
            "XDG_RUNTIME_DIR to a folder of yours alone"
        ) from None


def _open_and_close(path: Path) -> None:
    os.close(open_private(path, os.O_RDWR))


def _write(path: Path) -> None:
    file = open_private(path, os.O_RDWR | os.O_EXCL)
    try:
        os.write(file, b"x")
    finally:
        os.close(file)
        path.unlink()


def _listen(path: Path, is_tcp: bool) -> None:
    with socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX) as probe:
        if is_tcp:
            probe.bind(("127.0.0.1", 0))
        else:
            probe.bind(os.fspath(path))
            path.unlink()
        probe.close()


def _import_host(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-P", "-c", "import keyturn.engine.host.host"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=folder,
        timeout=_IMPORT_TIMEOUT_S,
        check=True,
    )
