"""Verify: check every frame of a log against its checksum and its place.

Reads with pread, changes nothing, and works on a live log (up to committed_lsn)
as on a dead one (up to where recovery would go on).  Segments are checked side by
side, for each begins with a frame, and judged in their order.

This module knows frames in files and the bounds of a handle.  It may not know how the
bounds are found.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from shmlog.disk import directory, segment
from shmlog.disk.directory import Directory
from shmlog.disk.segments import list_segments, segment_path
from shmlog.disk.walk import Walk, Walker
from shmlog.errors import CorruptionError, FormatError
from shmlog.handle.readonly import ReadonlyLog
from shmlog.system import files

THREADS_MAX = 4
"""More than keep up with the memory of most machines only take cores from the writers."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verify() found; ok is the verdict, problem_lsn where the first problem is (None
    also for a problem of no one place)."""

    path: str
    ok: bool
    begin_lsn: int
    end_lsn: int
    """what there was to check"""
    records: int
    checked_bytes: int
    """what is good, up to the first problem"""
    problem_lsn: int | None = None
    problem: str = ""
    state: str = "live"
    """live, or the recovery case that a dead log is in; or corrupt: then recovery would refuse it, and
    nothing else was checked"""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check every frame of a live or dead log; changes nothing.

    The report says ok, how many records, and where the first problem is: a bad frame, or a
    segment file that is missing, cut, or not this log's. progress, if given, is called
    with (bytes done, bytes in all). Raises FileNotFoundError and FormatError when the
    directory is no log, RestartUnclearError as open() does.
    """
    where = directory.load(os.fsdecode(path), to_look=True)

    def corrupt(lsn: int | None, problem: str) -> VerifyReport:
        return VerifyReport(where.path, False, 0, 0, 0, 0, lsn, problem, "corrupt")

    try:
        with ReadonlyLog(where) as handle:
            while True:
                begin, end = handle._bounds()
                found = handle.recovery
                state, holes = (found.case.value, found.holes) if found else ("live", ())
                report = _check_frames(where, begin, end, state, progress, holes)
                if report.problem_lsn is None or report.problem_lsn >= handle.trimmed_lsn:
                    return report  # else it was trimmed meanwhile
    except CorruptionError as error:
        return corrupt(error.lsn, f"{error.path}: {error.reason}")
    except FormatError as error:
        return corrupt(_first_bad_segment(where), str(error))


def _check_frames(
    where: Directory,
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
        ranges += where.identity.geometry.segment_ranges(at, low)
        at = high
    for begin, end, walking in _walks(where, ranges):
        try:
            walk = walking.result()
        except FormatError as error:  # the file was replaced or cut
            bad, problem = begin, str(error)
        except FileNotFoundError:
            bad, problem = begin, f"{segment_path(where, begin)}: the segment is missing"
        else:
            records += walk.records
            bad, problem = walk.bad_lsn, walk.problem.text if walk.problem else ""
        if problem:
            return VerifyReport(
                where.path, False, begin_lsn, end_lsn, records, bad - begin_lsn, bad, problem, state
            )
        if progress is not None:
            progress(end - begin_lsn, end_lsn - begin_lsn)
    return VerifyReport(where.path, True, begin_lsn, end_lsn, records, end_lsn - begin_lsn, state=state)


def _first_bad_segment(where: Directory) -> int | None:
    """The first LSN of the first segment file that is none of this log's, or is cut; None
    if there is no such file."""
    identity = where.identity
    try:
        segments = list_segments(where)
    except FormatError:  # a name that is no segment's
        return None
    for first in segments:
        path = segment_path(where, first)
        try:
            with files.descriptor(files.open_file(path, writable=False, owner=where.owner)) as fd:
                segment.check(fd, path, identity.log_id, first, identity.geometry)
        except FormatError:
            return first
    return None


def _walks(where: Directory, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int, Future[Walk]]]:
    """Each range and its walk, in order; a few threads work ahead of the consumer."""
    threads = min(THREADS_MAX, os.cpu_count() or 1, len(ranges))
    if not threads:
        return
    own = threading.local()

    def walk(begin: int, end: int) -> Walk:
        if not hasattr(own, "walker"):
            own.walker = closing.enter_context(Walker(where))
        walker: Walker = own.walker
        return walker.walk(begin, end)

    # closed after the threads have ended
    with ExitStack() as closing, ThreadPoolExecutor(threads, "shmlog-verify") as pool:
        ahead: deque[tuple[int, int, Future[Walk]]] = deque()
        for begin, end in ranges:
            ahead.append((begin, end, pool.submit(walk, begin, end)))
            if len(ahead) > 2 * threads:
                yield ahead.popleft()
        yield from ahead
