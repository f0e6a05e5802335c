"""Walk: check the frames of segment files that nobody vouches for.

Files are read with pread into one buffer that stays in the processor's cache,
never through a map: a file that is cut off or gone meanwhile is an error here,
not a fault.  Holes of sparse files are skipped, not read.

The bytes may be anybody's, so what they claim costs nothing: memory is the same
whatever a header says of a payload's length, and time is linear in the bytes.

  X1  A frame that does not fit the view that shows it is checked by _Sums: every byte
      of a segment is summed once, and a payload's checksum is two look-ups.
  X2  A view grows with what was found valid since the walk or search began.  Else
      frames that are valid and such that are not, in turn, would cost a chunk each.

This module knows files and frames.  It may not know marks or what is repaired.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from shmlog import _native
from shmlog.disk import segment
from shmlog.disk.directory import Directory
from shmlog.disk.segments import segment_path
from shmlog.errors import FormatError
from shmlog.format.geometry import frame_bytes
from shmlog.format.layout import FRAME_HEADER_BYTES, GRANULE_BYTES, Problem
from shmlog.format.sums import crc_of_part, state_after
from shmlog.system import files

CHUNK_BYTES = 1 << 20
FIRST_CHUNK_BYTES = 4096
SUM_STEP_BYTES = 1024
_SUMS_READ_BYTES = 256 << 10
_FRAME = struct.Struct("<II22xBB")
"""payload bytes, checksum, kind, flags"""
_HEADER = struct.Struct("<IIQqIHBB")
"""payload bytes, checksum, LSN, time (ns), tag, writer, kind, flags"""
_KIND_DATA = _native.LAYOUT["KIND_DATA"]
_GOES_ON = _native.LAYOUT["FLAG_BATCH_GOES_ON"]
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


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says of itself."""

    end_lsn: int
    """where the next frame should be"""
    group: tuple[int, int]
    """(time_ns, writer): the same in all frames of an atomic batch"""
    batch_goes_on: bool


class Walker:
    """Reads the segment files of one log; a context manager."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._geometry = directory.identity.geometry
        self._seed = directory.identity.seed
        self._buffer = bytearray(CHUNK_BYTES)
        self._first = -1
        self._fd = -1
        self._sums: _Sums | None = None
        self._extent = -1, -1

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
            count, at, end, problem = self._walk_chunk(low, bound, _chunk_bytes(low - begin))
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
                view = self._read(at, high, _chunk_bytes(at - begin))
                found = self._find_in(view, at, stop)
                if found is not None:
                    return found
                at += len(view)
        return None

    def header(self, lsn: int) -> FrameHeader:
        """What the frame at lsn says of itself; nothing is checked."""
        payload_bytes, _, _, time_ns, _, writer, _, flags = _HEADER.unpack(
            self._read(lsn, lsn + FRAME_HEADER_BYTES, FRAME_HEADER_BYTES)
        )
        return FrameHeader(lsn + frame_bytes(payload_bytes), (time_ns, writer), bool(flags & _GOES_ON))

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

    def _walk_chunk(self, at: int, bound: int, most: int) -> tuple[int, int, int, Problem]:
        """Walk as far as one chunk shows, or over one frame that is larger."""
        view = self._read(at, bound, most)
        end = at + len(view)
        count, stopped, whole, found = _native.walk(view, at, at, end, self._seed, True, -1, False, None)
        problem = Problem(found)
        if problem not in _TOO_SHORT or end == bound:
            return count, stopped, whole, problem
        if stopped > at:
            return count, stopped, whole, Problem.VALID
        header = bytes(view[:FRAME_HEADER_BYTES])
        problem = self._check_large(at, bound, header)
        if problem:
            return 0, at, at, problem
        payload_bytes, _, kind, goes_on = _FRAME.unpack(header)
        stopped = at + frame_bytes(payload_bytes)
        return int(kind == _KIND_DATA), stopped, at if goes_on else stopped, Problem.VALID

    def _find_in(self, view: memoryview, base: int, stop: int) -> int | None:
        """As find, for what begins in one view."""
        end, at = base + len(view), base
        while at < end:
            near = min(end, at + FIRST_CHUNK_BYTES)  # a longer payload is left to _Sums: X1
            found = _native.find_frame(view, base, at, near, self._seed)
            if found is None:
                at = near
                continue
            header = bytes(view[found - base : found - base + FRAME_HEADER_BYTES])
            if not self._check_large(found, min(stop, self._geometry.segment_end(found)), header):
                return found
            at = found + GRANULE_BYTES  # it only looked like one
        return None

    def _check_large(self, lsn: int, bound: int, header: bytes) -> Problem:
        """Rules (4) and (5) for a frame that a view may not show whole."""
        payload_bytes, checksum, kind, _ = _FRAME.unpack(header)
        if lsn + frame_bytes(payload_bytes) > bound:
            return Problem.BAD_LENGTH
        crc = self._seed
        if kind == _KIND_DATA:
            fd, offset = self._open(lsn), self._geometry.file_offset(lsn)
            if self._sums is None or not self._sums.covers(offset):
                self._sums = _Sums(fd, segment_path(self._directory, lsn), offset)
            crc = self._sums.crc(self._seed, offset + FRAME_HEADER_BYTES, payload_bytes)
        crc = _native.crc32c(header[:4] + header[8:], crc)
        return Problem.VALID if crc == checksum else Problem.BAD_CHECKSUM

    def _data(self, begin: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of [begin, stop) that are not holes of their files."""
        for low, high in self._geometry.segment_ranges(begin, stop):
            fd = self._open(low)
            base = low - self._geometry.file_offset(low)
            at = low
            while at < high:
                data, hole = at, self._extent[1]
                if (
                    not self._extent[0] <= at < hole
                ):  # to find a hole may cost the file system a look at each page
                    try:
                        data = base + os.lseek(fd, at - base, os.SEEK_DATA)
                        hole = base + os.lseek(fd, data - base, os.SEEK_HOLE)
                    except OSError as error:
                        if error.errno == errno.ENXIO:
                            break
                        data, hole = at, high  # a file system that cannot tell
                    self._extent = data, hole
                data = max(at, data - data % GRANULE_BYTES)
                if data < high:
                    yield data, min(hole, high)
                at = max(hole, data + GRANULE_BYTES)

    def _read(self, lsn: int, bound: int, most: int) -> memoryview:
        """The file's bytes from lsn on: `most` of them, or up to bound."""
        view = memoryview(self._buffer)[: min(most, bound - lsn)]
        fd, offset = self._open(lsn), self._geometry.file_offset(lsn)
        _fill(view, fd, segment_path(self._directory, lsn), offset)
        return view

    def _open(self, lsn: int) -> int:
        first = self._geometry.segment_begin(lsn)
        if first != self._first:
            self._close()
            self._fd, self._first = self._open_segment(first), first
        return self._fd

    def _open_segment(self, first: int) -> int:
        path = segment_path(self._directory, first)
        fd = files.open_file(path, writable=False, owner=self._directory.owner)
        try:
            segment.check(fd, path, self._directory.identity.log_id, first, self._geometry)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._first = -1
        self._sums, self._extent = None, (-1, -1)


class _Sums:
    """The sums of one open file's bytes from a place on, at steps, made as far as they are
    asked for.  4 MiB for the largest segment."""

    def __init__(self, fd: int, path: str, begin: int) -> None:
        self._fd = fd
        self._path = path
        self._begin = begin
        self._states = array("I", [0])
        self._buffer = bytearray(_SUMS_READ_BYTES)

    def covers(self, offset: int) -> bool:
        return offset >= self._begin

    def crc(self, seed: int, offset: int, size: int) -> int:
        """The CRC of `size` bytes of the file, started from seed."""
        if size <= 2 * SUM_STEP_BYTES:  # what two sums would read
            return _native.crc32c(self._read(offset, size), seed)
        return crc_of_part(seed, self._state(offset), self._state(offset + size), size)

    def _state(self, offset: int) -> int:
        """The state after the bytes up to offset, started from zero."""
        step, rest = divmod(offset - self._begin, SUM_STEP_BYTES)
        while step >= len(self._states):
            self._extend(step)
        return state_after(self._read(offset - rest, rest), self._states[step])

    def _extend(self, step: int) -> None:
        state, have = self._states[-1], len(self._states) - 1
        size = min((step - have) * SUM_STEP_BYTES, len(self._buffer))
        view = self._read(self._begin + have * SUM_STEP_BYTES, size)
        for at in range(0, size, SUM_STEP_BYTES):
            state = state_after(view[at : at + SUM_STEP_BYTES], state)
            self._states.append(state)

    def _read(self, offset: int, size: int) -> memoryview:
        view = memoryview(self._buffer)[:size]
        _fill(view, self._fd, self._path, offset)
        return view


def _chunk_bytes(progress: int) -> int:
    """X2: how much to read after so many bytes of the same walk or search."""
    return min(CHUNK_BYTES, max(FIRST_CHUNK_BYTES, 4 * progress - 4 * progress % GRANULE_BYTES))


def _fill(view: memoryview, fd: int, path: str, offset: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise FormatError(f"{path} ends at byte {offset + done}, and more was expected")
        done += got
