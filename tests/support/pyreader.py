"""A second reader of the format, in plain Python, sharing no line with the package.

Written from the format's description alone: struct, json, os and a CRC-32C.  What the
package writes must read the same here, and every checksum is checked.

    log = PyLog(path)
    log.log_id, log.segment_bytes
    log.segments()               first LSN -> SegmentHeader
    log.newest_mark()            Mark
    log.frames(begin, end)       every frame; BadFrame at the first that is not valid
    log.records(begin, end)      DATA frames only
    log.kept(happened)           what recovery has to keep of a log that nobody uses
    log.cursor(name)             a cursor's two copies; the valid one that is newest counts
    happened(then, now)          what happened between two origins: one of SINCE
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

DATA, PAD, FILL = 1, 2, 3
GOES_ON = 1
GRANULE = 32
SINCE = SAME_BOOT, RESTARTED, UNCLEAR, COPIED = "same boot", "restarted", "unclear", "another place"
VERSION = 2
SECTOR = 4096
HEADER_AREA = 2 * SECTOR
HEADERS = 0, SECTOR
MARKS = 512, SECTOR + 512
TOLERANCE_NS = 10_000_000
FRAME = struct.Struct("<IIQqIHBB")
SEGMENT = struct.Struct("<8sII16sQQQqI")
MARK = struct.Struct("<4sIQQQQ16sQQQQQI")
CURSOR = struct.Struct("<4sIQQI")
CURSOR_BYTES = 1024


class BadFrame(Exception):
    """Bytes that are no valid frame where one should be."""


class SegmentHeader(NamedTuple):
    first_lsn: int
    segment_bytes: int
    epoch: int
    created_ns: int


class Origin(NamedTuple):
    boot_id: bytes
    kernels: bool
    started_ns: int
    up_ns: int
    file_system: int
    inode: int
    born_ns: int


class Mark(NamedTuple):
    epoch: int
    durable_lsn: int
    sequence: int
    trimmed_lsn: int
    clean: bool
    origin: Origin


class Frame(NamedTuple):
    lsn: int
    time_ns: int
    tag: int
    writer: int
    kind: int
    flags: int
    payload: bytes
    end_lsn: int


class Kept(NamedTuple):
    """What recovery has to keep: everything below end_lsn but for the holes."""

    end_lsn: int
    holes: list[tuple[int, int]]
    dropped_bytes: int


class Cursor(NamedTuple):
    sequence: int
    lsn: int


def happened(then: Origin, now: Origin) -> str:
    """What happened since a mark of the first origin was written, for one who reads it now."""
    same_id, up = then.boot_id == now.boot_id, then.up_ns > 0 and now.up_ns > 0
    started = up and then.started_ns > 0 and now.started_ns > 0
    if then.kernels and now.kernels:
        found = SAME_BOOT if same_id else RESTARTED
    elif up and now.up_ns < then.up_ns:
        found = RESTARTED
    elif started and abs(now.started_ns - then.started_ns) <= TOLERANCE_NS:
        found = SAME_BOOT
    elif started or not same_id:
        found = UNCLEAR
    else:
        found = SAME_BOOT
    if then.inode == 0 or (then.inode, then.born_ns) != (now.inode, now.born_ns):
        return COPIED
    return COPIED if found != RESTARTED and then.file_system != now.file_system else found


class PyLog:
    """One log's files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with open(os.path.join(self.path, "shmlog.json"), "rb") as file:
            identity = json.load(file)
        assert identity["format"] == "shmlog", identity
        assert identity["version"] == VERSION, identity
        self.log_id = bytes.fromhex(identity["log_id"].replace("-", ""))
        self.segment_bytes: int = identity["segment_bytes"]
        self.window_bytes: int = identity["window_bytes"]
        self.created_ns: int = identity["created_ns"]
        self.seed = crc32c(self.log_id)

    def _segment_path(self, first: int) -> str:
        return os.path.join(self.path, "segments", f"{first:020d}.seg")

    def segments(self) -> dict[int, SegmentHeader]:
        found = {}
        for name in sorted(os.listdir(os.path.join(self.path, "segments"))):
            if not name.endswith(".seg"):
                continue
            first = int(name[:-4])
            area = self._read(first, 0, HEADER_AREA)
            copies = [area[at : at + SEGMENT.size] for at in HEADERS]
            whole = [copy for copy in copies if crc32c(copy[:-4]) == int.from_bytes(copy[-4:], "little")]
            assert whole, f"{name}: neither copy of the header is whole"
            magic, version, header_bytes, log_id, lsn, size, epoch, created, _ = SEGMENT.unpack(whole[0])
            assert (magic, version, header_bytes) == (b"SHMLOGSG", VERSION, HEADER_AREA), name
            assert (log_id, lsn, size) == (self.log_id, first, self.segment_bytes), name
            found[first] = SegmentHeader(lsn, size, epoch, created)
        return found

    def marks(self, first: int) -> list[Mark | None]:
        """Both copies of a segment's mark; None for one that is not whole, or does not count."""
        area = self._read(first, 0, HEADER_AREA)
        found: list[Mark | None] = []
        for parity, at in enumerate(MARKS):
            magic, flags, sequence, durable, trimmed, epoch, boot, *rest, checksum = MARK.unpack_from(
                area, at
            )
            whole = crc32c(area[at : at + MARK.size - 4], crc32c(self.log_id)) == checksum
            # only whole segments are trimmed, and what is durable ends with a frame
            within = trimmed % self.segment_bytes != 0 or durable % GRANULE != 0
            if magic != b"MARK" or not whole or within or trimmed > durable:
                found.append(None)
                continue
            assert sequence % 2 == parity, f"mark {sequence} of segment {first} is at {at}"
            origin = Origin(boot, bool(flags & 2), *rest)
            found.append(Mark(epoch, durable, sequence, trimmed, bool(flags & 1), origin))
        return found

    def newest_mark(self) -> Mark:
        return max(mark for first in self.segments() for mark in self.marks(first) if mark)

    def frames(self, begin: int, end: int) -> Iterator[Frame]:
        """Every frame of [begin, end); begin is a frame's LSN."""
        lsn = begin
        while lsn < end:
            first = lsn - lsn % self.segment_bytes
            bound = min(end, first + self.segment_bytes)
            image = self._read(first, HEADER_AREA + lsn - first, bound - lsn)
            base = lsn
            while lsn < bound:
                frame = self._frame(image, lsn - base, lsn)
                yield frame
                lsn = frame.end_lsn

    def records(self, begin: int, end: int) -> Iterator[Frame]:
        return (frame for frame in self.frames(begin, end) if frame.kind == DATA)

    def kept(self, happened: str) -> Kept:
        """Looks for the first frame that is not valid, from the beginning of the segment that
        the newest mark is about.  BadFrame if that is below the mark.  What is valid above it
        is kept too if the machine has not restarted since: the hole is a dead writer's.
        BadFrame if there is any and the log is a copy, or nobody knows about the machine."""
        vouched, segments = self.newest_mark().durable_lsn, self.segments()
        begin = max(0, vouched - 1)
        begin -= begin % self.segment_bytes
        stop = begin
        while stop in segments:
            stop += self.segment_bytes
        end, bad = self._whole(begin, stop)
        below = self._whole(begin, vouched)[1]  # where a frame begins that lies across the mark
        if end < vouched or below < vouched:
            bad = min(bad, below)
            raise BadFrame(f"at {bad}, and the newest mark vouches for all below {vouched}")
        holes = []
        if happened != RESTARTED:
            lsn = bad + GRANULE
            while lsn < stop:
                whole, bad = self._whole(lsn, stop)
                if whole > lsn:
                    holes.append((end, lsn))
                    end = whole
                lsn = max(bad, lsn) + GRANULE
        if holes and happened in (UNCLEAR, COPIED):
            raise BadFrame(f"at {holes[0][0]}, and there are frames above: {happened}")
        return Kept(end, holes, self._last_byte(end, stop) - end)

    def cursor(self, name: str) -> list[Cursor | None]:
        """Both copies of a cursor; None for one that is not whole."""
        with open(os.path.join(self.path, "cursors", name), "rb") as file:
            data = file.read()
        assert len(data) == CURSOR_BYTES, f"{name}: {len(data)} bytes"
        found: list[Cursor | None] = []
        for parity, at in enumerate((0, 512)):
            magic, version, sequence, lsn, checksum = CURSOR.unpack_from(data, at)
            whole = crc32c(data[at : at + CURSOR.size - 4], self.seed) == checksum
            valid = (magic, version) == (b"CURS", VERSION) and whole
            assert not valid or sequence % 2 == parity, f"copy {sequence} of cursor {name} is at {at}"
            found.append(Cursor(sequence, lsn) if valid else None)
        return found

    def _whole(self, begin: int, stop: int) -> tuple[int, int]:
        """Up to where whole frames and whole batches reach from begin on, and where the
        first frame that is not valid should be."""
        whole = lsn = begin
        try:
            for frame in self.frames(begin, stop):
                lsn = frame.end_lsn
                if not frame.flags & GOES_ON:
                    whole = lsn
        except BadFrame:
            pass
        return whole, lsn

    def _last_byte(self, begin: int, stop: int) -> int:
        """The end of the last granule of [begin, stop) that is not all zeros, or begin."""
        last = lsn = begin
        while lsn < stop:
            first = lsn - lsn % self.segment_bytes
            bound = min(stop, first + self.segment_bytes)
            used = len(self._read(first, HEADER_AREA + lsn - first, bound - lsn).rstrip(b"\0"))
            if used:
                last = lsn + -(-used // GRANULE) * GRANULE
            lsn = bound
        return last

    def _frame(self, image: bytes, at: int, lsn: int) -> Frame:
        if len(image) - at < FRAME.size:
            raise BadFrame(f"no room for a header at {lsn}")
        size, checksum, own, time_ns, tag, writer, kind, flags = FRAME.unpack_from(image, at)
        stored = (FRAME.size + size + 31) // 32 * 32
        if kind not in (DATA, PAD, FILL) or flags & ~GOES_ON or own != lsn or at + stored > len(image):
            raise BadFrame(f"at {lsn}: kind {kind}, flags {flags}, own LSN {own}, {size} bytes")
        body = image[at + FRAME.size : at + FRAME.size + size] if kind == DATA else b""
        seed = crc32c(body, self.seed)
        header = image[at : at + 4] + image[at + 8 : at + FRAME.size]
        if crc32c(header, seed) != checksum:
            raise BadFrame(f"at {lsn}: the checksum does not match")
        if kind == DATA and any(image[at + FRAME.size + size : at + stored]):
            raise BadFrame(f"at {lsn}: the padding is not zero")
        return Frame(lsn, time_ns, tag, writer, kind, flags, body, lsn + stored)

    def _read(self, first: int, offset: int, size: int) -> bytes:
        fd = os.open(self._segment_path(first), os.O_RDONLY)
        try:
            data = os.pread(fd, size, offset)
        finally:
            os.close(fd)
        assert len(data) == size, f"{self._segment_path(first)} ends early"
        return data
