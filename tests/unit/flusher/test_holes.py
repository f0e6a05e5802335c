"""Looking for holes at places where there are none."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from shmlog import _native
from shmlog.flusher.holes import Hole, find_hole
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, PT
from shmlog.memory.participants import Participants
from shmlog.system.locks import LockFile

WINDOW_BYTES = 128 << 10


@pytest.mark.parametrize(
    ("g", "committed", "reserved", "found"),
    [
        (0, 0, 0, None),
        (0, 0, 64, Hole(0, 64)),
        (64, 128, 256, None),  # another thread has committed it
        (64, 10 * WINDOW_BYTES, 11 * WINDOW_BYTES, None),  # long ago
    ],
)
def test_a_hole_is_looked_for_only_where_the_commit_stands(
    tmp_path: Path, g: int, committed: int, reserved: int, found: Hole | None
) -> None:
    block = mmap.mmap(-1, CB.HEADER_BYTES + PARTICIPANT_COUNT * PT.BYTES + WINDOW_BYTES // 32 // 8)
    control = _native.Control(block, WINDOW_BYTES, PARTICIPANT_COUNT)
    control.store(CB.COMMITTED_LSN, committed)
    control.store(CB.RESERVED_LSN, reserved)
    lock = LockFile(str(tmp_path / "LOCK"))
    try:
        assert find_hole(control, Participants(control, lock), g) == found
    finally:
        lock.close()
