"""Verify: check every frame of a log against its checksum and its place.

Reads with pread, changes nothing, and works on a live log (up to committed_lsn)
as on a dead one (up to where recovery would go on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shmlog.directory import Directory
from shmlog.layout import PROBLEMS
from shmlog.scan import Scanner


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
        """The same as plain values, for JSON."""
        return asdict(self)


def check_frames(
    directory: Directory,
    begin_lsn: int,
    end_lsn: int,
    state: str,
    progress: Callable[[int, int], None] | None = None,
    holes: tuple[tuple[int, int], ...] = (),
) -> VerifyReport:
    """Check [begin_lsn, end_lsn), both of them frame boundaries, but for the holes that
    recovery would fill; stops at the first problem.  progress(done_bytes, all_bytes) is
    called after each segment."""
    records = 0
    ranges, at = [], begin_lsn
    for low, high in (*holes, (end_lsn, end_lsn)):
        ranges += directory.identity.geometry.segment_ranges(at, low)
        at = high
    with Scanner(directory) as scanner:
        for begin, end in ranges:
            walk = scanner.walk(begin, end)
            records += walk.records
            if walk.problem:
                checked, bad = walk.bad_lsn - begin_lsn, walk.bad_lsn
                problem = PROBLEMS[walk.problem]
                return VerifyReport(
                    directory.path, False, begin_lsn, end_lsn, records, checked, bad, problem, state
                )
            if progress is not None:
                progress(end - begin_lsn, end_lsn - begin_lsn)
    return VerifyReport(directory.path, True, begin_lsn, end_lsn, records, end_lsn - begin_lsn, state=state)
