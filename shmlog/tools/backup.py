"""Backup: a copy of a live or dead log that opens by itself, and grows with later ones.

    target/    LOCK         its set-up byte is held for as long as a backup is under way
               backup.json  of which log, and how far; before anything else
               segments/    frames, each checked, and sealed for the copy's own log id
               shmlog.json  last of the first backup: until then nothing opens

A later backup goes on where the earlier one ended: it writes frames above the mark, in their
order, makes them durable, reads them back, and only then writes the mark that vouches for them.

Invariants
  I1  Whatever interrupts a backup leaves nothing that opens, or the earlier one, perhaps with
      more of the records that followed: always a prefix of the log.
  I2  Nobody has written to an earlier backup that is added to: its newest mark is the one
      that backup.json names.
  I3  The copy ends at a durable point: a live log's durable_lsn, of a dead one what recovery
      would keep. Files that are trimmed meanwhile are read to their end, for they are open;
      else it is noticed: TrimmedError.

This module knows two logs.  It may not know how either is used.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from shmlog import _native
from shmlog.disk import cursors, descent, directory, segment
from shmlog.disk.descent import Descent
from shmlog.disk.directory import Directory
from shmlog.disk.segments import find_marks, list_segments, segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import AttachError, CorruptionError, FormatError, TrimmedError
from shmlog.format.identity import Identity
from shmlog.format.layout import KIND_FILL, Problem
from shmlog.format.marks import Header, Mark
from shmlog.handle.readonly import ReadonlyLog
from shmlog.session.attachment import somebody_lives
from shmlog.session.look import view_of
from shmlog.system import files
from shmlog.system.deadlines import deadline_after
from shmlog.system.locks import LockFile, take_setup

CHUNK_BYTES: Final = 8 << 20
OPEN_FILES_MAX: Final = 256
"""Opened before anything is copied, so that a trim does not take them away."""
TARGET_PATIENCE_S: Final = 30.0
_TOO_SHORT = (Problem.BAD_LENGTH, Problem.OUT_OF_BOUNDS)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What backup() did."""

    path: str
    target: str
    log_id: str
    """the copy's"""
    begin_lsn: int
    end_lsn: int
    """every record of the log between them is in the copy, and durable"""
    added_from_lsn: int
    """begin_lsn, or where the earlier backup ended"""
    records: int
    """that were added"""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def backup(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    same_id: bool = False,
) -> BackupReport:
    """Copy a live or dead log, up to a durable point, to a directory that opens by itself.

    target: absent, an empty directory, or an earlier backup of the same log, to which what is new
    is added. Every frame is checked on the way and read back; the copy gets a log id of its own
    unless same_id, which is for a copy that takes the log's place. progress, if given, is called
    with (bytes done, bytes in all). Named cursors are copied, the retention is not.

    Raises FileNotFoundError, FormatError (no log, or the target is something else or was written
    to), AttachError (somebody has the target open), CorruptionError of a damaged log,
    TrimmedError if what is to be added was given up, OSError.
    """
    source = directory.load(os.fsdecode(path))
    place = os.path.abspath(os.fsdecode(target))
    if os.path.realpath(place) == os.path.realpath(source.path):
        raise ValueError(f"{place} is the log itself")
    mode = source.mode()
    with contextlib.suppress(FileExistsError):
        files.make_directory(place, files.directory_mode(mode))
    files.check_directory(place)
    descent.check_strangers(place)
    lock = LockFile(os.path.join(place, "LOCK"), mode)
    try:
        take_setup(lock, deadline_after(TARGET_PATIENCE_S))
        if somebody_lives(lock):
            raise AttachError(f"{place} is in use")
        return _Copy(source, place, mode, same_id, progress).run()
    finally:
        lock.close()


class _Copy:
    """One backup under way; the target's set-up byte is held."""

    def __init__(
        self, source: Directory, place: str, mode: int, same_id: bool, progress: Progress | None
    ) -> None:
        self._source = source
        self._geometry = source.identity.geometry
        self._place = place
        self._mode = mode
        self._progress = progress or (lambda done, whole: None)
        self._source_id = source.identity.log_id.hex()
        self._earlier, self._mark = self._look_at_target(same_id)
        log_id = source.identity.log_id if same_id else uuid.uuid4().bytes
        identity = self._earlier.identity if self._earlier else replace(source.identity, log_id=log_id)
        self._target = Directory(place, identity)

    def run(self) -> BackupReport:
        with ReadonlyLog(self._source) as log, contextlib.ExitStack() as closing:
            begin, committed = log._bounds()
            end = min(log.durable_lsn, committed) if log.live else committed
            holes = log.recovery.holes if log.recovery else ()
            at = self._check_earlier(begin, end)
            self._prepare(at)
            opened: dict[int, int] = {}
            for first, _ in self._geometry.segment_ranges(at, end)[:OPEN_FILES_MAX]:
                opened[self._geometry.segment_begin(first)] = closing.enter_context(
                    files.descriptor(self._open_source(log, first))
                )
            records = 0
            for low, high in self._geometry.segment_ranges(at, end):
                first = self._geometry.segment_begin(low)
                with contextlib.ExitStack() as own:
                    fd = opened.get(first)
                    if fd is None:
                        fd = own.enter_context(files.descriptor(self._open_source(log, low)))
                    records += self._copy_segment(fd, low, high, holes, at, end)
            places = cursors.places(self._source)
        self._vouch(begin, end, at)
        self._copy_cursors(places, end)
        return BackupReport(
            self._source.path, self._place, self._target.identity.log_id.hex(), begin, end, at, records
        )

    # ------------------------------------------------------------------ before

    def _look_at_target(self, same_id: bool) -> tuple[Directory | None, Mark]:
        """The earlier backup and its newest mark, or None and the first mark (I2)."""
        note = descent.load(self._place)
        if note is not None and note.source_id != self._source_id:
            raise FormatError(f"{self._place} is a backup of another log, {note.source_id}")
        if note is None or not directory.exists(self._place):
            return None, Mark(1, 0, 1)
        found = directory.load(self._place)
        if (found.identity.log_id == self._source.identity.log_id) != same_id:
            has = "no id of its own" if not same_id else "an id of its own"
            raise ValueError(f"the earlier backup {self._place} has {has}; same_id must be as it was")
        if view_of(found, files.boot_id()) is not None:
            raise AttachError(f"{self._place} was opened and not closed: its control block is there")
        marks = find_marks(found, list_segments(found), check=True)
        newest = max(filter(None, marks.values()), default=Mark(1, 0, 1))
        if descent.key(newest) not in (note.mark, note.pending):
            raise FormatError(f"{self._place} has been written to since: it is no backup any more")
        return found, newest

    def _check_earlier(self, begin: int, end: int) -> int:
        """Where to go on: the segment's beginning, or where the earlier backup ends."""
        if self._earlier is None:
            return begin
        at = self._mark.durable_lsn
        if at < begin:
            raise TrimmedError(at, begin)
        if at > end:
            raise FormatError(f"{self._place} ends at LSN {at}, but the log at {end}: they have parted")
        low = max(begin, self._geometry.segment_begin(max(0, at - 1)))
        if low < at and self._headers(self._source, low, at) != self._headers(self._earlier, low, at):
            raise FormatError(f"the records of {self._place} are not those of the log: they have parted")
        return at

    def _headers(self, where: Directory, begin: int, end: int) -> list[bytes]:
        """The columns of the records of a part of one segment, all that must be alike in both."""
        import numpy as np

        kinds = (np.uint64, np.int64, np.uint32, np.uint16, np.uint32)
        with files.descriptor(files.open_file(segment_path(where, begin), writable=False)) as fd:
            data = os.pread(fd, end - begin, self._geometry.file_offset(begin))
        columns = tuple(np.zeros((end - begin) // 32 + 1, kind) for kind in kinds)
        bound = begin + len(data) // 32 * 32
        count, stopped, _, problem = _native.walk(
            data, begin, begin, bound, where.identity.seed, True, -1, False, columns
        )
        if stopped < end:
            raise CorruptionError(segment_path(where, stopped), stopped, Problem(problem).text)
        return [column[:count].tobytes() for column in columns]

    def _prepare(self, at: int) -> None:
        """Take back what an interrupted backup left above `at`, and say that one is under way."""
        target = self._target
        if self._earlier is None:
            note = Descent(self._source_id, 0, None)
            descent.store(self._place, note, self._mode)
        with contextlib.suppress(FileExistsError):
            files.make_directory(target.segments_path, files.directory_mode(self._mode))
        files.check_part(target.segments_path)
        last = self._geometry.segment_begin(max(0, at - 1)) if self._earlier is not None else -1
        for name in sorted(os.listdir(target.segments_path), reverse=True):  # I1: the highest first
            first = segment.parse_name(name)
            path = os.path.join(target.segments_path, name)
            if first is None or first > last:
                os.unlink(path)
            elif first == last:
                with files.descriptor(files.open_file(path, writable=True)) as fd:
                    begin = self._geometry.file_offset(first) + at - first
                    files.zero(fd, begin, self._geometry.file_bytes)
                    os.fsync(fd)
        files.sync_directory(target.segments_path)

    # ------------------------------------------------------------------ copying

    def _open_source(self, log: ReadonlyLog, lsn: int) -> int:
        path = segment_path(self._source, lsn)
        try:
            fd = files.open_file(path, writable=False)
        except FileNotFoundError:
            if log.trimmed_lsn > lsn:
                raise TrimmedError(lsn, log.trimmed_lsn) from None
            raise CorruptionError(path, lsn, "the segment is missing") from None
        try:
            identity = self._source.identity
            segment.check(fd, path, identity.log_id, self._geometry.segment_begin(lsn), self._geometry)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _copy_segment(
        self, fd: int, begin: int, end: int, holes: tuple[tuple[int, int], ...], start: int, stop: int
    ) -> int:
        """Copy [begin, end) of one segment, durably and read back; how many records."""
        path, records = segment_path(self._target, begin), 0
        with files.descriptor(self._open_target(path, begin)) as out:
            for low, high, hole in _cut(begin, end, holes):
                if hole:
                    seed = self._target.identity.seed
                    header = _native.filler(KIND_FILL, low, high - low, time.time_ns(), 0, seed)
                    files.write_all(out, header, self._geometry.file_offset(low))
                    continue
                at = low
                while at < high:
                    count, data = self._sealed(fd, at, high)
                    files.write_all(out, data, self._geometry.file_offset(at))
                    records, at = records + count, at + len(data)
                    self._progress(at - start, stop - start)
            os.fsync(out)
        with Walker(self._target) as walker:
            walk = walker.walk(begin, end)
        if walk.end_lsn < end:
            raise CorruptionError(path, walk.bad_lsn, f"read back from the copy: {walk.problem.text}")
        return records

    def _sealed(self, fd: int, at: int, end: int) -> tuple[int, memoryview]:
        """(how many records, frames from `at` on, checked and sealed for the copy): about a chunk,
        or one frame that is larger."""
        seed, own = self._source.identity.seed, self._target.identity.seed
        most = CHUNK_BYTES
        while True:
            bound = min(end, at + most)
            data = bytearray(os.pread(fd, bound - at, self._geometry.file_offset(at)))
            whole = len(data) == bound - at
            count, stopped, found = _native.reseal(data, at, at, at + len(data) // 32 * 32, seed, own)
            problem = Problem(found)
            if stopped > at and (problem in _TOO_SHORT or not problem):
                return count, memoryview(data)[: stopped - at]
            if problem not in _TOO_SHORT or bound == end or not whole:
                raise CorruptionError(segment_path(self._source, stopped), stopped, problem.text)
            most *= 2

    def _open_target(self, path: str, lsn: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            return files.open_file(path, writable=True)
        geometry, first = self._geometry, self._geometry.segment_begin(lsn)
        identity: Identity = self._target.identity
        header = Header(identity.log_id, first, geometry.segment_bytes, self._mark.epoch, time.time_ns())
        return segment.create(path, header, self._mark, geometry, self._mode)

    # ------------------------------------------------------------------- after

    def _vouch(self, begin: int, end: int, at: int) -> None:
        """Write the mark that vouches for all of it, and what must be there before and after."""
        target = self._target
        mark = self._mark
        if end and (end > at or begin > mark.trimmed_lsn or not mark.clean):
            origin = target.origin(files.boot_id())
            mark = mark.next(durable_lsn=end, trimmed_lsn=begin, clean=True, origin=origin)
        old = descent.key(self._mark) if self._earlier is not None else None
        note = Descent(self._source_id, at, old, descent.key(mark))
        descent.store(self._place, note, self._mode)
        last = segment_path(target, max(0, end - 1))
        if end:
            with files.descriptor(files.open_file(last, writable=True)) as fd:
                segment.write_mark(fd, mark, target.identity.log_id)
                os.fsync(fd)
        if self._earlier is None:
            where = directory.identity_path(self._place)
            files.write_atomically(where, target.identity.encode(), self._mode)
        note = Descent(self._source_id, end, descent.key(mark))
        descent.store(self._place, note, self._mode)
        for first in list_segments(target):
            if first + self._geometry.segment_bytes <= begin:
                os.unlink(segment_path(target, first))
        for name in filter(descent.TEMPORARY.fullmatch, os.listdir(self._place)):
            os.unlink(os.path.join(self._place, name))

    def _copy_cursors(self, places: list[tuple[str, int]], end: int) -> None:
        """Those of the log, where they are, or at the copy's end."""
        target = self._target
        with contextlib.suppress(FileExistsError):
            files.make_directory(target.cursors_path, files.directory_mode(self._mode))
        files.check_part(target.cursors_path)
        for name, lsn in places:
            cursors.put(target, name, min(lsn, end), self._mode)
        for name, path in cursors.paths(target):
            if name not in dict(places):
                os.unlink(path)


def _cut(begin: int, end: int, holes: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int, bool]]:
    """[begin, end), cut where holes begin and end; and whether each part is one."""
    at = begin
    for low, high in holes:
        low, high = max(low, begin), min(high, end)
        if low < high:
            if at < low:
                yield at, low, False
            yield low, high, True
            at = high
    if at < end:
        yield at, end, False
