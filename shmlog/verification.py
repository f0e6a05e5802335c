"""Verify: check every frame of a log against its checksum and its place.

Reads with pread, changes nothing, and works on a live log (up to committed_lsn)
as on a dead one (up to where recovery would go on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shmlog import _native
from shmlog.directory import Directory
from shmlog.layout import PROBLEMS, SEGMENT_HEADER_BYTES
from shmlog.recovery import read_segment


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verify() found; ok is the verdict."""

    path: str
    ok: bool
    begin_lsn: int
    end_lsn: int
    records: int
    checked_bytes: int
    problem_lsn: int | None = None
    problem: str = ""
    state: str = "live"
    """live, or the recovery case that a dead log is in"""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_frames(
    directory: Directory,
    begin_lsn: int,
    end_lsn: int,
    state: str,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check [begin_lsn, end_lsn), both of them frame boundaries; stops at the first
    problem.  progress(done_bytes, all_bytes) is called after each segment."""
    geometry, seed = directory.identity.geometry, directory.identity.seed
    records = 0
    for begin, end in geometry.segment_ranges(begin_lsn, end_lsn):
        first = geometry.segment_begin(begin)
        image = memoryview(read_segment(directory, first))[SEGMENT_HEADER_BYTES:]
        count, at, _, problem = _native.walk(image, first, begin, end, seed, True, -1, False, None)
        records += count
        if problem:
            return VerifyReport(
                directory.path,
                False,
                begin_lsn,
                end_lsn,
                records,
                at - begin_lsn,
                at,
                PROBLEMS[problem],
                state,
            )
        if progress is not None:
            progress(end - begin_lsn, end_lsn - begin_lsn)
    return VerifyReport(directory.path, True, begin_lsn, end_lsn, records, end_lsn - begin_lsn, state=state)
