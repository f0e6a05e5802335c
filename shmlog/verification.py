"""Verify: check every frame of a log against its checksum and its place.

Reads with pread, changes nothing, and works on a live log (up to committed_lsn)
as on a dead one (up to where recovery would go on).  Segments are checked side by
side, for each begins with a frame, and judged in their order.
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

from shmlog.directory import Directory
from shmlog.layout import PROBLEMS
from shmlog.scan import Scanner, Walk

THREADS_MAX = 4
"""More than keep up with the memory of most machines only take cores from the writers."""


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
    for end, walk in _walks(directory, ranges):
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


def _walks(directory: Directory, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, Walk]]:
    """Each range's end and walk, in order; a few threads work ahead of the consumer."""
    threads = min(THREADS_MAX, os.cpu_count() or 1, len(ranges))
    if not threads:
        return
    own = threading.local()

    def walk(begin: int, end: int) -> Walk:
        if not hasattr(own, "scanner"):
            own.scanner = closing.enter_context(Scanner(directory))
        scanner: Scanner = own.scanner
        return scanner.walk(begin, end)

    # closed after the threads have ended
    with ExitStack() as closing, ThreadPoolExecutor(threads, "shmlog-verify") as pool:
        ahead: deque[tuple[int, Future[Walk]]] = deque()
        for begin, end in ranges:
            ahead.append((end, pool.submit(walk, begin, end)))
            if len(ahead) > 2 * threads:
                done, found = ahead.popleft()
                yield done, found.result()
        for done, found in ahead:
            yield done, found.result()
