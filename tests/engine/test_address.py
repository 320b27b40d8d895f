"""Where the host is found, and who may look there."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from keyturn.engine.wire.address import (
    FileLock,
    Identity,
    at_socket,
    choose_address,
    default_address,
    make_folder,
    open_private,
)
from keyturn.engine.wire.errors import HostUnavailable

WHO = Identity(1, "0.1.0", "/opt/keyturn")


def choose(who=WHO, runtime_dir="/run/user/7", temp_dir="/tmp", user="7", has_unix_sockets=True):
    return choose_address(
        who,
        environ={"XDG_RUNTIME_DIR": runtime_dir} if runtime_dir is not None else {},
        temp_dir=temp_dir,
        user=user,
        has_unix_sockets=has_unix_sockets,
    )


def test_every_part_of_the_identity_names_another_socket():
    sockets = {
        choose(who).socket
        for who in (
            WHO,
            replace(WHO, protocol=2),
            replace(WHO, package="0.1.1"),
            replace(WHO, install="/opt/other"),
        )
    }
    assert len(sockets) == 4
    assert choose().socket == choose(replace(WHO)).socket


def test_runtime_folder_is_preferred_and_the_temporary_one_is_the_users_own():
    assert choose().socket.parent == Path("/run/user/7/keyturn")
    assert choose(runtime_dir=None).socket.parent == Path("/tmp/keyturn-7")
    assert choose(runtime_dir="").socket.parent == Path("/tmp/keyturn-7")
    assert choose(runtime_dir="relative").socket.parent == Path("/tmp/keyturn-7")


@pytest.mark.parametrize("length", [1, 50, 70, 71, 72, 73, 74, 75, 76, 90, 200])
def test_socket_path_is_short_when_folders_are_long(length):
    long = "/" + "x" * length
    for address in (choose(runtime_dir=long), choose(runtime_dir=None, temp_dir=long)):
        assert len(os.fsencode(address.socket)) < 100
    assert choose(runtime_dir="/" + "é" * 45).socket.parent == Path("/tmp/keyturn-7")


def test_given_socket_path_is_refused_when_too_long(tmp_path):
    with pytest.raises(HostUnavailable, match="shorter"):
        at_socket(tmp_path / ("x" * 100))


def test_files_differ(tmp_path):
    address = at_socket(tmp_path / "s.sock")
    files = {address.socket, address.port_file, address.lock, address.spawn_lock, address.log}
    assert len(files | {address.working}) == 6
    assert not choose().is_tcp and choose(has_unix_sockets=False).is_tcp
    assert default_address() == default_address()


def test_folder_is_made_for_the_owner_only(tmp_path):
    os.umask(os.umask(0))
    folder = tmp_path / "a" / "keyturn"
    make_folder(folder)
    make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folder_is_refused_when_it_is_open_to_others_a_link_or_a_file(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").touch()
    for name, why in (("open", "0755"), ("link", "no folder"), ("file", "cannot create folder")):
        with pytest.raises(HostUnavailable, match=why):
            make_folder(tmp_path / name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_folder_is_refused_when_it_is_another_users(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)
    with pytest.raises(HostUnavailable, match="12345"):
        make_folder(folder)


def test_private_file_is_not_opened_through_a_link(tmp_path):
    os.close(open_private(tmp_path / "own", os.O_WRONLY))
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        open_private(tmp_path / "link", os.O_WRONLY)
    assert not (tmp_path / "target").exists()


def test_lock_has_one_holder(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire() and not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
