"""A log's directory: what lies in it is the log's own, or it is refused."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shmlog.disk import directory, recovery, segment
from shmlog.disk.directory import Directory
from shmlog.disk.segments import list_segments, newest_mark, segment_path
from shmlog.errors import FormatError
from shmlog.format import marks
from shmlog.format.geometry import Geometry

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
