"""Unix sockets: stale ones, taken ones, directories in which others can write."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from precopy.unix_socket import listen_unix, peer_user


def code_of(path: str) -> str:
    with pytest.raises(OSError, match=r".") as caught:
        listen_unix(path)
    return errno.errorcode[caught.value.errno or 0]


def test_it_is_its_users_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    before = os.umask(0)
    try:
        with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            client.connect(path)
            assert peer_user(client) == os.getuid()
    finally:
        assert os.umask(before) == 0


def test_what_is_left_over_is_taken_away(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listen_unix(path).close()
    assert os.path.exists(path)
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_one_that_is_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listen_unix(path):
        assert code_of(path) == "EADDRINUSE"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    file, directory, link = tmp_path / "file", tmp_path / "directory", tmp_path / "link"
    file.write_text("mine")
    directory.mkdir()
    link.symlink_to(file)
    for path in (file, directory, link):
        assert code_of(str(path)) == "EADDRINUSE"
    assert file.read_text() == "mine"
    assert link.is_symlink()


@pytest.mark.parametrize(("mode", "code"), [(0o777, "EPERM"), (0o770, "EPERM"), (0o702, "EPERM")])
def test_a_directory_in_which_others_can_write(tmp_path: Path, mode: int, code: str) -> None:
    tmp_path.chmod(mode)
    assert code_of(str(tmp_path / "socket")) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_directory_in_which_they_cant_take_ones_place(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    listen_unix(str(tmp_path / "socket")).close()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert code_of(str(tmp_path / "no" / "socket")) == "ENOENT"


def test_the_longest_path(tmp_path: Path) -> None:
    room = 107 - len(str(tmp_path)) - 1
    listen_unix(str(tmp_path / ("x" * room))).close()
    assert code_of(str(tmp_path / ("x" * (room + 1)))) == "ENAMETOOLONG"


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listen_unix("socket").close()
    assert (tmp_path / "socket").is_socket()
