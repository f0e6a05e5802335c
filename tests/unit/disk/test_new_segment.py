"""A new segment file: its name appears at once, and is durable before anybody uses it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shmlog.disk import segment
from shmlog.format.geometry import Geometry
from shmlog.format.marks import Header, Mark

GEOMETRY = Geometry(64 << 10, 64 << 10)
HEADER = Header(bytes(range(16)), 0, 64 << 10, 1, 0)


def _create(path: Path) -> int:
    return segment.create(str(path), HEADER, Mark(1, 0, 0), GEOMETRY, 0o600)


def test_a_new_segments_name_is_synced_after_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, rename, fsync = [], os.rename, os.fsync

    def noted_fsync(fd: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def noted_rename(old: str, new: str) -> None:
        steps.append(f"{old} to {new}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    path = tmp_path / "x.seg"
    os.close(_create(path))
    assert steps == [f"{path}.tmp", f"{path}.tmp to {path}", str(tmp_path)]


def test_a_segment_whose_making_was_interrupted_has_no_segments_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(fd: int) -> None:
        raise OSError(errno.EIO, "the disk has gone")

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(OSError, match="the disk has gone"):
        _create(tmp_path / f"{0:020d}.seg")
    assert [name for name in os.listdir(tmp_path) if segment.parse_name(name) is not None] == []
