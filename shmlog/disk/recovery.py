"""Recovery: what a log is worth when its control block is gone.

Works from the files alone, under the set-up byte, and returns a plain value from
which the block is made.  The newest valid mark vouches for everything below it.
Frames are checked from the beginning of the segment that holds the mark, up to
the first that is not valid, at p.  What follows is in ROWS, a row for each case.

In every case but CLEAN: what lies between the mark and the end is rewritten, not
merely synced again (after a failed sync the kernel may call lost pages clean);
all above the end is zeroed and later segments are removed (an old frame up there
names the right LSN and must not come back); all of it is synced before the mark
that vouches for it.  So being interrupted anywhere leads to the same end.

An atomic batch that is not complete counts as not valid from its first frame.

This module knows marks and what follows from them.  It may not know the control
block.
"""

from __future__ import annotations

import enum
import errno
import os
import time
from dataclasses import dataclass, field, replace

from shmlog import _native
from shmlog.disk import cursors, failure, segment
from shmlog.disk.directory import Directory
from shmlog.disk.failure import Failure
from shmlog.disk.segments import list_segments, newest_mark, segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import CorruptionError, FormatError
from shmlog.format.geometry import PAGE_BYTES
from shmlog.format.layout import GRANULE_BYTES, KIND_FILL, SEGMENT_HEADER_BYTES
from shmlog.format.marks import Mark
from shmlog.system import files

REWRITE_BYTES = 8 << 20
"""At once: it is read, written, synced and asked for before the next."""


class Case(enum.Enum):
    """What a log can be found as; ROWS says when."""

    EMPTY = "empty"
    CORRUPT = "corrupt"
    CLEAN = "clean"
    INTACT = "intact"
    HOLES = "holes"
    RESTART = "restart"
    TORN = "torn"


@dataclass(frozen=True, slots=True)
class Row:
    """A case, the facts that make it (None: either way), and both in words."""

    case: Case
    mark_and_p: str
    machine: str
    action: str
    segments: bool = True
    below_mark: bool | None = False
    left_clean: bool | None = False
    same_boot: bool | None = None
    frames_above: bool | None = None
    anything_above: bool | None = None


ROWS = (
    Row(
        Case.EMPTY,
        "no segment, nor a cursor above LSN 0",
        "any",
        "begin at LSN 0",
        segments=False,
        below_mark=None,
        left_clean=None,
    ),
    Row(
        Case.CORRUPT,
        "p < mark",
        "any",
        "CorruptionError; nothing is touched",
        below_mark=True,
        left_clean=None,
    ),
    Row(
        Case.CLEAN,
        "p = mark, marked clean, only zeros above p",
        "any",
        "nothing was lost; go on from p",
        left_clean=True,
    ),
    Row(
        Case.INTACT,
        "p >= mark, no more valid frames",
        "same boot",
        "go on from p",
        same_boot=True,
        frames_above=False,
    ),
    Row(
        Case.HOLES,
        "p >= mark, valid frames above p",
        "same boot",
        "a dead writer's hole: FILL up to the next valid frame, and look on",
        same_boot=True,
        frames_above=True,
    ),
    Row(
        Case.RESTART,
        "p >= mark, only zeros above p",
        "restarted",
        "go on from p, epoch + 1",
        same_boot=False,
        anything_above=False,
    ),
    Row(
        Case.TORN,
        "p >= mark, anything else above p",
        "restarted",
        "drop it, report it, epoch + 1",
        same_boot=False,
        anything_above=True,
    ),
)
FACTS = ("segments", "below_mark", "left_clean", "same_boot", "frames_above", "anything_above")


def matching(**facts: bool) -> list[Row]:
    """The rows that the facts satisfy: one, whatever they are."""
    return [row for row in ROWS if all(getattr(row, name) in (None, facts[name]) for name in FACTS)]


def judge(
    *,
    segments: bool = True,
    below_mark: bool = False,
    left_clean: bool = False,
    same_boot: bool = False,
    frames_above: bool = False,
    anything_above: bool = False,
) -> Case:
    """The case that the facts make.  `left_clean`: p = mark, marked clean, nothing above."""
    (row,) = matching(
        segments=segments,
        below_mark=below_mark,
        left_clean=left_clean,
        same_boot=same_boot,
        frames_above=frames_above,
        anything_above=anything_above,
    )
    return row.case


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovery found, and where the log goes on."""

    case: Case
    end_lsn: int
    """every frame below it is valid (or the log was trimmed)"""
    trimmed_lsn: int
    vouched_lsn: int
    epoch: int
    holes: tuple[tuple[int, int], ...] = ()
    """ranges that dead writers left, to be filled"""
    dropped_bytes: int = 0
    """from end_lsn to the last byte that was not zero"""
    reason: str = ""
    """why the first invalid frame was not valid"""
    mark: Mark | None = field(default=None, repr=False)
    failure: Failure | None = None
    """the log had failed: not everything that was appended may have been durable"""


def inspect(directory: Directory, boot_id: bytes) -> Recovery:
    """Find the case, touching nothing.  CorruptionError and FormatError as in the table."""
    return replace(_find_case(directory, boot_id), failure=failure.find(directory))


def _find_case(directory: Directory, boot_id: bytes) -> Recovery:
    geometry = directory.identity.geometry
    segments = list_segments(directory)
    if judge(segments=bool(segments)) is Case.EMPTY:
        if cursors.furthest_lsn(directory) > 0:  # there was more
            raise CorruptionError(segment_path(directory, 0), 0, "every segment is missing")
        return Recovery(Case.EMPTY, 0, 0, 0, 1)
    mark = newest_mark(directory, segments, check=True)
    if mark is None:
        raise FormatError(f"{directory.segments_path}: no segment holds a valid mark")
    vouched, trimmed, size = mark.durable_lsn, mark.trimmed_lsn, geometry.segment_bytes
    # Of what was trimmed, any file may be there still: their removal is made durable in any order.
    present = set(segments)
    for first in range(geometry.segment_begin(trimmed), vouched, size):
        if first not in present:
            raise CorruptionError(segment_path(directory, first), first, "the segment is missing")
    begin = geometry.segment_begin(max(0, vouched - 1))
    if begin not in present:
        raise CorruptionError(segment_path(directory, begin), begin, "the segment is missing")
    stop = begin
    while stop in present:
        stop += size
    same_boot = mark.boot_id == boot_id
    holes: list[tuple[int, int]] = []
    with Walker(directory) as walker:
        walk = walker.walk(begin, stop)
        end, reason = walk.end_lsn, walk.problem.text
        if judge(below_mark=end < vouched) is Case.CORRUPT:
            raise CorruptionError(segment_path(directory, walk.bad_lsn), walk.bad_lsn, reason)
        while same_boot and (above := walker.find(walk.bad_lsn + GRANULE_BYTES, stop)) is not None:
            walk = walker.walk(above, stop)
            if walk.end_lsn > above:  # not the frames of an incomplete batch
                holes.append((end, above))
                end = walk.end_lsn
        dropped = walker.last_byte(end, stop) - end
    case = judge(
        left_clean=mark.clean and end == vouched and dropped <= 0,
        same_boot=same_boot,
        frames_above=bool(holes),
        anything_above=dropped > 0,
    )
    found = Recovery(case, end, trimmed, vouched, mark.epoch, mark=mark)
    if case is Case.HOLES:
        return replace(found, holes=tuple(holes))
    if case is Case.RESTART:
        return replace(found, epoch=mark.epoch + 1)
    if case is Case.TORN:
        return replace(found, epoch=mark.epoch + 1, dropped_bytes=dropped, reason=reason)
    return found


def recover(directory: Directory, boot_id: bytes) -> Recovery:
    """Inspect, then make the files agree with what was found.  The caller holds the
    set-up byte and knows that nobody is alive.  OSError: the disk does not take what is in
    memory, and nothing more is vouched for."""
    found = inspect(directory, boot_id)
    directory.sync_names()
    _make_durable(directory, found, boot_id)
    if found.failure is not None:
        failure.forget(directory)
    return found


def _make_durable(directory: Directory, found: Recovery, boot_id: bytes) -> None:
    if found.case is Case.EMPTY or found.mark is None:
        return
    if found.case is Case.CLEAN and found.mark.boot_id == boot_id:
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
            _rewrite(fd, 0, SEGMENT_HEADER_BYTES)
            _rewrite(fd, SEGMENT_HEADER_BYTES + low - first, SEGMENT_HEADER_BYTES + high - first)
            if first == last:
                files.zero(fd, SEGMENT_HEADER_BYTES + end - first, geometry.file_bytes)
            os.fsync(fd)
    files.sync_directory(directory.segments_path)
    path = segment_path(directory, last)
    mark = found.mark.next(
        epoch=found.epoch, durable_lsn=end, trimmed_lsn=found.trimmed_lsn, clean=False, boot_id=boot_id
    )
    with files.descriptor(files.open_file(path, writable=True)) as fd:
        segment.write_mark(fd, mark, identity.log_id)
        os.fsync(fd)
    for first in segments:  # only now: until then an older mark may be all that is on disk
        if first + geometry.segment_bytes <= found.trimmed_lsn:
            os.unlink(segment_path(directory, first))


def _rewrite(fd: int, low: int, high: int) -> None:
    """Store [low, high) of a file over itself and sync it, so that it is written whatever
    the kernel believes of it.

    That it says so is not enough where a write failed before: ext4 then takes a
    preallocated extent for one that was written, and it reads as zeros once it has left
    memory.  So it is asked, while the bytes are at hand."""
    for begin in range(low // PAGE_BYTES * PAGE_BYTES, high, REWRITE_BYTES):
        data = os.pread(fd, min(REWRITE_BYTES, -(-high // PAGE_BYTES) * PAGE_BYTES - begin), begin)
        end = begin + len(data)
        files.write_all(fd, data, begin)
        os.fsync(fd)
        if not files.never_written(fd, begin, end):
            continue
        for at in range(begin, end, PAGE_BYTES):  # no other page: what is on disk stays there
            if files.never_written(fd, at, at + PAGE_BYTES):
                _native.punch_hole(fd, at, PAGE_BYTES)
                files.write_all(fd, data[at - begin : at - begin + PAGE_BYTES], at)
        os.fsync(fd)
        if files.never_written(fd, begin, end):
            raise OSError(errno.EIO, f"bytes {begin} to {end} of a segment cannot be written")
