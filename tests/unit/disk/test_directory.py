"""A log's directory: what lies in it is the log's own, or it is refused."""

from __future__ import annotations

import errno
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import shmlog
from shmlog.disk import directory, recovery, segment
from shmlog.disk.directory import Directory
from shmlog.disk.segments import list_segments, newest_mark, segment_path
from shmlog.errors import FormatError
from shmlog.format import marks
from shmlog.format.geometry import Geometry
from shmlog.system import surroundings
from shmlog.tools.create import create

GEOMETRY = Geometry(64 << 10, 64 << 10)
MARK = marks.Mark(epoch=1, durable_lsn=2 << 16, sequence=2, trimmed_lsn=1 << 16)


@pytest.fixture
def where(tmp_path: Path) -> Directory:
    return directory.create(str(tmp_path / "log"), GEOMETRY, 0o600)


@pytest.mark.parametrize("name", ["segments", "cursors"])
def test_a_directory_that_is_a_link_is_refused(where: Directory, tmp_path: Path, name: str) -> None:
    path = Path(where.path, name)
    if path.exists():
        path.rmdir()
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match=f"{name} is a symbolic link"):
        directory.load(where.path)


@pytest.mark.parametrize("name", ["segments", "cursors"])
def test_a_file_where_a_directory_should_be_is_refused(where: Directory, name: str) -> None:
    path = Path(where.path, name)
    if path.exists():
        path.rmdir()
    path.write_bytes(b"")
    with pytest.raises(FormatError, match=f"{name} is not a directory"):
        directory.load(where.path)


@pytest.mark.parametrize("name", ["segments", "cursors"])
def test_a_directory_within_that_anybody_may_write_to_is_refused(where: Directory, name: str) -> None:
    path = Path(where.path, name)
    path.mkdir(exist_ok=True)
    path.chmod(0o777)
    with pytest.raises(PermissionError, match=f"{name} may be written by anybody"):
        directory.load(where.path)


def _with_marks(where: Directory, *found: marks.Mark) -> None:
    header = marks.Header(where.identity.log_id, 1 << 16, 64 << 10, 1, 0)
    fd = segment.create(segment_path(where, 1 << 16), header, found[0], GEOMETRY, 0o600)
    for mark in found[1:]:
        segment.write_mark(fd, mark, where.identity.log_id)
    os.close(fd)


def test_a_mark_that_was_trimmed_within_a_segment_does_not_count(where: Directory) -> None:
    _with_marks(where, MARK, replace(MARK, sequence=3, trimmed_lsn=(1 << 16) + 32))
    assert newest_mark(where, list_segments(where), check=True) == MARK


def test_a_log_whose_only_mark_was_trimmed_within_a_segment_is_refused(where: Directory) -> None:
    _with_marks(where, replace(MARK, trimmed_lsn=(1 << 16) + 32))
    with pytest.raises(FormatError, match="no segment holds a valid mark"):
        recovery.inspect(where, bytes(16))


@pytest.mark.crash
def test_a_directory_of_many_files_is_refused_in_the_time_of_a_listing(where: Directory) -> None:
    """5,000 names of segments: empty files, the first of which is looked at."""
    for n in range(5_000):
        os.mknod(segment_path(where, n * GEOMETRY.segment_bytes), 0o600)
    began = time.monotonic()
    with pytest.raises(FormatError, match="too short"):
        recovery.inspect(where, bytes(16))
    assert time.monotonic() - began < 3


def test_a_disk_that_cannot_say_whether_there_is_a_log_is_told_as_it_is(
    where: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        if path.endswith("shmlog.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    for make in (False, True):
        with pytest.raises(OSError, match="Input/output error"):
            shmlog.open(where.path, create=make)


def test_a_path_that_cannot_be_looked_up_is_not_said_to_hold_no_log(tmp_path: Path) -> None:
    for make in (False, True):
        with pytest.raises(OSError, match="File name too long"):
            shmlog.open(tmp_path / ("x" * 300), create=make)


def test_a_link_to_nowhere_is_no_log_and_none_is_made_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for make in (False, True):
        with pytest.raises(FormatError, match="is a file"):
            shmlog.open(tmp_path / "link", create=make)
    assert not (tmp_path / "nowhere").exists()


def test_a_log_on_a_network_file_system_is_warned_of_before_it_is_made_and_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "file_system", lambda _: "nfs4")
    path = tmp_path / "log"
    with warnings.catch_warnings():
        warnings.simplefilter("error", shmlog.NetworkFileSystemWarning)
        with pytest.raises(shmlog.NetworkFileSystemWarning, match="nfs4"):
            shmlog.open(path, create=True)
        with pytest.raises(shmlog.NetworkFileSystemWarning, match="nfs4"):
            create(path, None, None, 0o600)
    assert not path.exists()
    for _ in range(2):
        with pytest.warns(shmlog.NetworkFileSystemWarning, match="nfs4") as seen:
            shmlog.open(path, create=True).close()
        assert seen[0].filename == __file__, "it is the caller's line that is named"
    with shmlog.open_readonly(path) as log:
        assert not list(log.read())
