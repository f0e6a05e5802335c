"""Recovery: what a log is worth when its control block is gone.

Works from the files alone, under the set-up byte, and returns a plain value from
which the block is made.  The newest valid mark vouches for everything below it.
Frames are checked from the beginning of the segment that holds the mark, up to
the first that is not valid, at p.  What follows is in the table of cases.

In every case but CLEAN: what lies between the mark and the end is rewritten, not
merely synced again (after a failed sync the kernel may call lost pages clean);
all above the end is zeroed and later segments are removed (an old frame up there
names the right LSN and must not come back); all of it is synced before the mark
that vouches for it.  So being interrupted anywhere leads to the same end.

An atomic batch that is not complete counts as not valid from its first frame.  A
segment that may hold the newest mark and holds none is damage, for its two copies
are never written at the same time.  A log that was written in another place is
checked from its first segment on before a mark says that it was written here: an
older file may be torn, too, when they were copied one after the other.

This module knows marks and what follows from them.  It may not know the control
block.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from dataclasses import dataclass, field, replace

from shmlog import _native
from shmlog.disk import cursors, failure, segment
from shmlog.disk.cases import Above, Case, judge
from shmlog.disk.directory import Directory
from shmlog.disk.failure import Failure
from shmlog.disk.rewriting import write_anew
from shmlog.disk.segments import find_marks, list_segments, segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import CorruptionError, FormatError, RestartUnclearError
from shmlog.format.layout import GRANULE_BYTES, KIND_FILL, SEGMENT_HEADER_BYTES
from shmlog.format.marks import Mark, decode_header
from shmlog.format.origin import Origin, Since, since
from shmlog.system import files

WAS_COPIED = (
    "this directory is a copy of the log; if it was made while the log was written to, restore one that was"
    " made while nobody wrote, or of all files at one instant"
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovery found, and where the log goes on."""

    case: Case
    end_lsn: int
    """every frame below it is valid (or the log was trimmed)"""
    trimmed_lsn: int
    vouched_lsn: int
    """up to where the newest mark vouched for it"""
    epoch: int
    """one more each time that the log is recovered after a restart of the machine"""
    holes: tuple[tuple[int, int], ...] = ()
    """ranges that dead writers left, to be filled"""
    dropped_bytes: int = 0
    """from end_lsn to the last byte that was not zero"""
    reason: str = ""
    """why the first invalid frame was not valid"""
    mark: Mark | None = field(default=None, repr=False)
    failure: Failure | None = None
    """the log had failed: not everything that was appended may have been durable"""


def inspect(
    directory: Directory, boot_id: bytes, *, restarted: bool | None = None, whole: bool = False
) -> Recovery:
    """Find the case, touching nothing.  CorruptionError, RestartUnclearError and FormatError as
    in the table.

    restarted: whether the machine restarted since, from somebody who knows.  whole: of a log
    that was written in another place, check what its newest mark says of older segments, too."""
    here = directory.origin(boot_id)
    return replace(_find_case(directory, here, restarted, whole), failure=failure.find(directory))


def _find_case(directory: Directory, here: Origin, restarted: bool | None, whole: bool) -> Recovery:
    geometry = directory.identity.geometry
    segments = list_segments(directory)
    if judge(segments=bool(segments)) is Case.EMPTY:
        if cursors.furthest_lsn(directory) > 0:  # there was more
            raise CorruptionError(segment_path(directory, 0), 0, "every segment is missing")
        return Recovery(Case.EMPTY, 0, 0, 0, 1)
    mark = _newest_mark(directory, segments)
    vouched, trimmed = mark.durable_lsn, mark.trimmed_lsn
    happened = since(mark.origin, here, restarted)
    was_copied = f"; {WAS_COPIED}" if happened is Since.COPIED else ""
    begin = stop = geometry.segment_begin(max(0, vouched - 1))
    while stop in segments:
        stop += geometry.segment_bytes
    if whole and was_copied:
        begin = geometry.segment_begin(trimmed)
    holes: list[tuple[int, int]] = []
    with Walker(directory) as walker:
        below = walk = walker.walk(begin, vouched)  # apart: a frame that lies across the mark is damage
        if below.bad_lsn >= vouched:
            walk = walker.walk(max(begin, vouched), stop)
        end, bad, reason = walk.end_lsn, walk.bad_lsn, walk.problem.text
        if end <= vouched:
            end = below.end_lsn  # less than the mark's if it lies within a batch
        if judge(below_mark=end < vouched) is Case.CORRUPT:
            raise CorruptionError(segment_path(directory, bad), bad, reason + was_copied)
        if happened is not Since.RESTARTED:
            while (above := walker.find(walk.bad_lsn + GRANULE_BYTES, stop)) is not None:
                walk = walker.walk(above, stop)
                if walk.end_lsn > above:  # not the frames of an incomplete batch
                    holes.append((end, above))
                    end = walk.end_lsn
        dropped = walker.last_byte(end, stop) - end
        if was_copied:  # else what lies above a gap was to be removed, and somebody died over it
            for first in segments:
                if first > stop and walker.last_byte(first, first + geometry.segment_bytes) > first:
                    reason = "the segment is missing" + was_copied
                    raise CorruptionError(segment_path(directory, stop), stop, reason)
    case = judge(
        left_clean=mark.clean and end == vouched and dropped <= 0,
        happened=happened,
        above=Above.FRAMES if holes else Above.BYTES if dropped > 0 else Above.NOTHING,
    )
    found = Recovery(case, end, trimmed, vouched, mark.epoch, mark=mark)
    if case is Case.COPY:
        reason = f"{reason}, and records lie above it{was_copied}"
        raise CorruptionError(segment_path(directory, bad), bad, reason)
    if case is Case.UNCLEAR:
        raise RestartUnclearError(segment_path(directory, bad), bad)
    if case is Case.HOLES:
        return replace(found, holes=tuple(holes))
    if case is Case.RESTART:
        return replace(found, epoch=mark.epoch + 1)
    if case is Case.TORN:
        return replace(found, epoch=mark.epoch + 1, dropped_bytes=dropped, reason=reason)
    return found


def _newest_mark(directory: Directory, segments: list[int]) -> Mark:
    """The newest mark of them all; CorruptionError if a segment that it vouches for is missing,
    or one that may have held a newer mark holds none."""
    geometry, marks = directory.identity.geometry, find_marks(directory, segments, check=True)
    mark = max(filter(None, marks.values()), default=None)
    if mark is None:
        raise FormatError(f"{directory.segments_path}: no segment holds a valid mark")
    vouched, size = mark.durable_lsn, geometry.segment_bytes
    begin = geometry.segment_begin(max(0, vouched - 1))
    # Of what was trimmed, any file may be there still: their removal is made durable in any order.
    vouched_for = range(geometry.segment_begin(mark.trimmed_lsn), vouched, size)
    for first in itertools.chain(vouched_for, (begin,)):  # no list: of a forged mark it would have no end
        if first not in marks:
            raise CorruptionError(segment_path(directory, first), first, "the segment is missing")
    for first in segments:
        if first >= begin and marks[first] is None:
            path = segment_path(directory, first)
            raise CorruptionError(path, first, "both copies of the segment's mark are damaged")
    return mark


def recover(directory: Directory, boot_id: bytes, *, restarted: bool | None = None) -> Recovery:
    """Inspect, then make the files agree with what was found.  The caller holds the
    set-up byte and knows that nobody is alive.  OSError: the disk does not take what is in
    memory, and nothing more is vouched for."""
    found = inspect(directory, boot_id, restarted=restarted, whole=True)
    directory.sync_names()
    _make_durable(directory, found, directory.origin(boot_id))
    if found.failure is not None:
        failure.forget(directory)
    return found


def _make_durable(directory: Directory, found: Recovery, here: Origin) -> None:
    if found.case is Case.EMPTY or found.mark is None:
        return
    if found.case is Case.CLEAN and found.mark.origin.beside(here):
        return
    identity, end = directory.identity, found.end_lsn
    geometry = identity.geometry
    last = geometry.segment_begin(max(0, end - 1))
    segments = list_segments(directory)
    for first in segments:
        path = segment_path(directory, first)
        if first + geometry.segment_bytes <= found.trimmed_lsn:
            continue
        if first > last:
            os.unlink(path)
            continue
        low, high = max(first, found.vouched_lsn), min(end, first + geometry.segment_bytes)
        if first != last and low >= high:
            continue
        with files.descriptor(files.open_file(path, writable=True)) as fd:
            for begin, stop in found.holes:
                for lsn, part_end in geometry.segment_ranges(begin, stop):
                    if geometry.segment_begin(lsn) == first:
                        header = _native.filler(
                            KIND_FILL, lsn, part_end - lsn, time.time_ns(), 0, identity.seed
                        )
                        files.write_all(fd, header, geometry.file_offset(lsn))
            segment.write_header(fd, decode_header(os.pread(fd, SEGMENT_HEADER_BYTES, 0), path))
            write_anew(fd, 0, SEGMENT_HEADER_BYTES, alone=True)
            write_anew(
                fd, SEGMENT_HEADER_BYTES + low - first, SEGMENT_HEADER_BYTES + high - first, alone=True
            )
            if first == last:
                files.zero(fd, SEGMENT_HEADER_BYTES + end - first, geometry.file_bytes)
            os.fsync(fd)
    files.sync_directory(directory.segments_path)
    _check_again(directory, found)
    path = segment_path(directory, last)
    mark = found.mark.next(
        epoch=found.epoch, durable_lsn=end, trimmed_lsn=found.trimmed_lsn, clean=False, origin=here
    )
    with files.descriptor(files.open_file(path, writable=True)) as fd:
        segment.write_mark(fd, mark, identity.log_id)
        os.fsync(fd)
    for first in segments:  # only now: until then an older mark may be all that is on disk
        if first + geometry.segment_bytes <= found.trimmed_lsn:
            os.unlink(segment_path(directory, first))


def _check_again(directory: Directory, found: Recovery) -> None:
    """OSError unless what is about to be vouched for is what was found valid: pages that the
    kernel took for clean may have been dropped since (Z1)."""
    begin = max(found.vouched_lsn, found.trimmed_lsn)
    with Walker(directory) as walker:
        walk = walker.walk(begin, found.end_lsn)
    if walk.end_lsn < found.end_lsn:
        path = segment_path(directory, walk.bad_lsn)
        raise OSError(errno.EIO, f"LSN {walk.bad_lsn} was lost from memory: {walk.problem.text}", path)
