"""Files: nothing is followed, shared or blocked on, and what appears appears whole."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from shmlog.errors import FormatError
from shmlog.system import files
from shmlog.system.locks import LockFile


@pytest.mark.parametrize("writable", [False, True])
def test_a_symbolic_link_is_not_followed(tmp_path: Path, writable: bool) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(FormatError, match="link is a symbolic link"):
        files.open_file(str(tmp_path / "link"), writable)


def test_a_dangling_symbolic_link_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FormatError, match="symbolic link"):
        files.open_file(str(tmp_path / "link"), writable=False)


def test_a_file_with_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.link(tmp_path / "file", tmp_path / "other")
    with pytest.raises(FormatError, match="has other names"):
        files.open_file(str(tmp_path / "file"), writable=True)


@pytest.mark.parametrize("writable", [False, True])
def test_a_fifo_is_refused_without_blocking(tmp_path: Path, writable: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="is not a regular file"):
        files.open_file(str(tmp_path / "fifo"), writable)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a regular file"):
        files.open_file(str(tmp_path), writable=False)


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FormatError):
        files.open_file(str(tmp_path / "fifo"), writable=False)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_missing_file_is_the_machines_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.open_file(str(tmp_path / "nothing"), writable=False)


def test_a_file_that_exists_is_not_created_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(FileExistsError):
        files.create_file(str(tmp_path / "file"), 0o600)
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_created_file_has_the_mode_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(files.create_file(str(tmp_path / "file"), 0o644))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_small_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    assert files.read_small(str(tmp_path / "file"), limit=11) == bytes(11)
    with pytest.raises(FormatError, match="longer than 10 bytes"):
        files.read_small(str(tmp_path / "file"), limit=10)


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomically(str(path), b"first, and longer", 0o600)
    files.write_atomically(str(path), b"second", 0o600)
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "rename", "pwrite"])
def test_an_atomic_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    files.write_atomically(str(path), b"old", 0o600)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space"):
        files.write_atomically(str(path), b"new", 0o600)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_the_kernel_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, bytes(data[:3]), offset))
    with files.descriptor(files.create_file(str(tmp_path / "file"), 0o600)) as fd:
        files.write_all(fd, b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0" + b"0123456789"


@pytest.mark.parametrize("punch", [True, False])
def test_a_zeroed_range_reads_as_zeros_and_its_neighbours_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, punch: bool
) -> None:
    if not punch:
        monkeypatch.setattr(files._native, "punch_hole", lambda *_: False)
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 20_000)
    with files.descriptor(files.open_file(str(path), writable=True)) as fd:
        files.zero(fd, 4000, 13_001)
        files.zero(fd, 5, 5)
    assert path.read_bytes() == b"\xff" * 4000 + bytes(9001) + b"\xff" * 6999


def test_a_directory_that_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="may be written by anybody"):
        files.check_directory(str(tmp_path))


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError, match=f"file belongs to user {other - 1}, not to {other}"):
        files.open_file(str(path), writable=False)
    with pytest.raises(PermissionError, match="file belongs to user"):
        LockFile(str(path))
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_file_to_append_to_is_made_and_then_added_to(tmp_path: Path) -> None:
    for text in (b"one", b"two"):
        with files.descriptor(files.open_to_append(str(tmp_path / "file"), 0o640)) as fd:
            os.write(fd, text)
    assert (tmp_path / "file").read_bytes() == b"onetwo"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("there", ["a link", "a dangling link", "a FIFO", "a second name"])
def test_nothing_is_appended_to_what_is_no_file_of_the_log(tmp_path: Path, there: str) -> None:
    path, victim = tmp_path / "file", tmp_path / "victim"
    if there != "a dangling link":
        victim.write_bytes(b"mine")
    if there == "a FIFO":
        os.mkfifo(path)
    elif there == "a second name":
        os.link(victim, path)
    else:
        path.symlink_to(victim)
    # of a FIFO that nobody reads, the machine says so itself
    with pytest.raises(OSError if there == "a FIFO" else FormatError):
        files.open_to_append(str(path), 0o600)
    assert victim.exists() == (there != "a dangling link")


def test_the_boot_id_stays_the_same() -> None:
    assert len(files.boot_id()) == 16
    assert files.boot_id() == files.boot_id()


def test_what_was_allocated_and_never_written_is_told(tmp_path: Path) -> None:
    fd = files.create_file(str(tmp_path / "x"), 0o600)
    try:
        files.allocate(fd, 0, 1 << 20)
        os.fsync(fd)
        if not files.never_written(fd, 0, 1 << 20):
            pytest.skip("this file system does not tell")
        os.pwrite(fd, b"x" * 8192, 16384)
        os.fdatasync(fd)
        assert not files.never_written(fd, 16384, 24576)
        assert not files.never_written(fd, 17000, 24000)
        assert files.never_written(fd, 8192, 24576)
        assert files.never_written(fd, 16384, 24577)
    finally:
        os.close(fd)
