"""Locks of single bytes, as two open files see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmlog.system.locks import LockFile


def test_a_lock_is_seen_by_other_open_files_and_not_by_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    one, other = LockFile(path), LockFile(path)
    assert one.try_lock(7)
    assert one.try_lock(7)
    assert not other.try_lock(7)
    assert other.locked(7)
    assert other.locked(2, 6)
    assert not other.locked(2, 5)
    assert not one.locked(7)
    one.close()
    assert not other.locked(7)
    assert other.try_lock(7)
    other.close()


def test_a_closed_lock_file_says_so(tmp_path: Path) -> None:
    lock = LockFile(str(tmp_path / "LOCK"))
    lock.close()
    lock.close()
    with pytest.raises(ValueError, match="closed"):
        lock.try_lock(0)
