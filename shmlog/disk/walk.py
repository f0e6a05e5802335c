"""Walk: check the frames of segment files that nobody vouches for.

Files are read with pread into one buffer that stays in the processor's cache,
never through a map: a file that is cut off or gone meanwhile is an error here,
not a fault.  Holes of sparse files are skipped, not read.

This module knows files and frames.  It may not know marks or what is repaired.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from shmlog import _native
from shmlog.disk import segment
from shmlog.disk.directory import Directory
from shmlog.disk.segments import segment_path
from shmlog.errors import FormatError
from shmlog.format.layout import GRANULE_BYTES, Problem
from shmlog.system import files

CHUNK_BYTES = 1 << 20
_TOO_SHORT = (Problem.BAD_LENGTH, Problem.OUT_OF_BOUNDS)


@dataclass(frozen=True, slots=True)
class Walk:
    """How far valid frames reach from where a walk began."""

    end_lsn: int
    """of the last whole frame or batch"""
    bad_lsn: int
    """where the first frame that is not valid should be, or the bound"""
    problem: Problem
    """VALID: the bound was reached"""
    records: int


class Walker:
    """Reads the segment files of one log; a context manager."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._geometry = directory.identity.geometry
        self._seed = directory.identity.seed
        self._buffer = bytearray(CHUNK_BYTES)
        self._first = -1
        self._fd = -1

    def __enter__(self) -> Walker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def walk(self, begin: int, stop: int) -> Walk:
        """Check every frame from begin up to the first that is not valid, or stop."""
        at, whole, records, batch_open = begin, begin, 0, False
        while at < stop:
            bound = min(stop, self._geometry.segment_end(at))
            low = at
            count, at, end, problem = self._walk_chunk(low, bound)
            records += count
            if end > low or not batch_open:
                whole = end
            batch_open = whole < at
            if problem:
                return Walk(whole, at, problem, records)
        return Walk(whole, at, Problem.VALID, records)

    def find(self, begin: int, stop: int) -> int | None:
        """The LSN of the next valid frame at or above begin, at granule steps."""
        for low, high in self._data(begin, stop):
            at = low
            while at < high:
                view = self._read(at, high, CHUNK_BYTES)
                end = at + len(view)
                found = _native.find_frame(view, at, at, end, self._seed)
                if found is None:
                    at = end
                elif self._walk_chunk(found, self._geometry.segment_end(found))[1] > found:
                    return found
                else:  # it only looked like one that is larger than what was read
                    at = found + GRANULE_BYTES
        return None

    def last_byte(self, begin: int, stop: int) -> int:
        """The end of the last granule of [begin, stop) that is not all zeros, or begin."""
        last = begin
        for low, high in self._data(begin, stop):
            at = low
            while at < high:
                data = bytes(self._read(at, high, CHUNK_BYTES))
                if data != bytes(len(data)):  # rstrip is slow where there is much to strip
                    last = at + -(-len(data.rstrip(b"\0")) // GRANULE_BYTES) * GRANULE_BYTES
                at += len(data)
        return last

    # -------------------------------------------------------------- internals

    def _walk_chunk(self, at: int, bound: int) -> tuple[int, int, int, Problem]:
        """Walk as far as one chunk shows; a frame larger than that is read whole."""
        size = CHUNK_BYTES
        while True:
            view = self._read(at, bound, size)
            end = at + len(view)
            count, stopped, whole, found = _native.walk(view, at, at, end, self._seed, True, -1, False, None)
            problem = Problem(found)
            if problem not in _TOO_SHORT or end == bound:
                return count, stopped, whole, problem
            if stopped > at:
                return count, stopped, whole, Problem.VALID
            size *= 4

    def _data(self, begin: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of [begin, stop) that are not holes of their files."""
        for low, high in self._geometry.segment_ranges(begin, stop):
            fd = self._open(low)
            base = low - self._geometry.file_offset(low)
            at = low
            while at < high:
                try:
                    data = base + os.lseek(fd, at - base, os.SEEK_DATA)
                    hole = base + os.lseek(fd, data - base, os.SEEK_HOLE)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        break
                    data, hole = at, high  # a file system that cannot tell
                data = max(at, data - data % GRANULE_BYTES)
                if data < high:
                    yield data, min(hole, high)
                at = max(hole, data + GRANULE_BYTES)

    def _read(self, lsn: int, bound: int, most: int) -> memoryview:
        """The file's bytes from lsn on: `most` of them, or up to bound."""
        size = min(most, bound - lsn)
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        fd, offset, done = self._open(lsn), self._geometry.file_offset(lsn), 0
        while done < size:
            got = os.preadv(fd, [view[done:]], offset + done)
            if not got:
                path = segment_path(self._directory, lsn)
                raise FormatError(f"{path} ends at byte {offset + done}, within LSN {lsn} to {bound}")
            done += got
        return view

    def _open(self, lsn: int) -> int:
        first = self._geometry.segment_begin(lsn)
        if first != self._first:
            self._close()
            path = segment_path(self._directory, first)
            fd = files.open_file(path, writable=False)
            try:
                segment.check(fd, path, self._directory.identity.log_id, first, self._geometry)
            except BaseException:
                os.close(fd)
                raise
            self._fd, self._first = fd, first
        return self._fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._first = -1
