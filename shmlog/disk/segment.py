"""Segment: one preallocated file of a fixed LSN range, its header and its marks.

    00000000000067108864.seg
    0 ......... 512 ........ 1024 ....... 4096 ............ 4096 + segment_bytes
    | header    | mark, even | mark, odd  | frames ...

The header is written once.  A mark says what was durable after the *last* sync;
it is written before the next one, so the disk itself comes to say it.  Two copies
are written in turn; the newest valid one counts.

This module knows one file.  It may not know which segments there are.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace

from crc32c import crc32c

from shmlog.errors import FormatError
from shmlog.format.geometry import LSN_MAX, Geometry
from shmlog.format.layout import (
    CHECKSUM,
    FORMAT_VERSION,
    GRANULE_BYTES,
    MARK,
    MARK_CLEAN,
    MARK_MAGIC,
    MARK_OFFSETS,
    SEGMENT_HEADER,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
)
from shmlog.system import files


def file_name(first_lsn: int) -> str:
    return f"{first_lsn:020d}.seg"


def parse_name(name: str) -> int | None:
    """The first LSN that a segment's name says, or None for any other name."""
    stem = name.removesuffix(".seg")
    return int(stem) if len(name) == 24 and len(stem) == 20 and stem.isascii() and stem.isdigit() else None


@dataclass(frozen=True, slots=True)
class Header:
    log_id: bytes
    first_lsn: int
    segment_bytes: int
    epoch: int
    created_ns: int

    def encode(self) -> bytes:
        body = SEGMENT_HEADER.pack(
            SEGMENT_MAGIC,
            FORMAT_VERSION,
            SEGMENT_HEADER_BYTES,
            self.log_id,
            self.first_lsn,
            self.segment_bytes,
            self.epoch,
            self.created_ns,
        )
        return body + CHECKSUM.pack(crc32c(body))


def decode_header(data: bytes, path: str) -> Header:
    """The header in a segment's first bytes; FormatError says what is wrong."""
    if len(data) < SEGMENT_HEADER.size + CHECKSUM.size:
        raise FormatError(f"{path} is too short for a segment: {len(data)} bytes")
    body = data[: SEGMENT_HEADER.size]
    magic, version, header_bytes, log_id, first_lsn, segment_bytes, epoch, created_ns = SEGMENT_HEADER.unpack(
        body
    )
    if magic != SEGMENT_MAGIC:
        raise FormatError(f"{path} is not a segment: it begins with {magic!r}")
    if CHECKSUM.unpack_from(data, SEGMENT_HEADER.size)[0] != crc32c(body):
        raise FormatError(f"{path}: the header's checksum does not match")
    if version != FORMAT_VERSION or header_bytes != SEGMENT_HEADER_BYTES:
        raise FormatError(f"{path} has format version {version}; this is version {FORMAT_VERSION}")
    return Header(log_id, first_lsn, segment_bytes, epoch, created_ns)


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """What a segment file vouches for.  Compares by age."""

    epoch: int
    durable_lsn: int
    sequence: int
    trimmed_lsn: int = 0
    clean: bool = False
    boot_id: bytes = bytes(16)

    def encode(self, log_id: bytes) -> bytes:
        flags = MARK_CLEAN if self.clean else 0
        body = MARK.pack(
            MARK_MAGIC, flags, self.sequence, self.durable_lsn, self.trimmed_lsn, self.epoch, self.boot_id
        )
        return body + CHECKSUM.pack(crc32c(body, crc32c(log_id)))

    def next(self, **changes: object) -> Mark:
        return replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]


def decode_mark(data: bytes, log_id: bytes) -> Mark | None:
    """The mark at the start of `data`, or None if it is not a whole one of this log."""
    if len(data) < MARK.size + CHECKSUM.size:
        return None
    body = data[: MARK.size]
    magic, flags, sequence, durable_lsn, trimmed_lsn, epoch, boot_id = MARK.unpack(body)
    if magic != MARK_MAGIC or CHECKSUM.unpack_from(data, MARK.size)[0] != crc32c(body, crc32c(log_id)):
        return None
    if trimmed_lsn > durable_lsn or trimmed_lsn % GRANULE_BYTES:
        return None  # no flusher wrote this
    if max(durable_lsn, sequence, epoch) > LSN_MAX:
        return None
    return Mark(epoch, durable_lsn, sequence, trimmed_lsn, bool(flags & MARK_CLEAN), boot_id)


def newest_mark(header_page: bytes, log_id: bytes) -> Mark | None:
    marks = [decode_mark(header_page[offset:], log_id) for offset in MARK_OFFSETS]
    return max((mark for mark in marks if mark), default=None)


def write_mark(fd: int, mark: Mark, log_id: bytes) -> None:
    """Overwrite the older copy.  Not durable until the file is synced."""
    files.write_all(fd, mark.encode(log_id), MARK_OFFSETS[mark.sequence % 2])


def create(path: str, header: Header, mark: Mark, geometry: Geometry, mode: int) -> int:
    """Make a segment file of full (sparse) size with its header and first mark; the
    caller syncs it and owns the descriptor.

    Written under a temporary name: a segment that is there is whole."""
    temporary = path + ".tmp"
    if os.path.lexists(temporary):
        os.unlink(temporary)  # left by a flusher that died here; only the lease holder creates
    fd = files.create_file(temporary, mode)
    try:
        os.ftruncate(fd, geometry.file_bytes)
        files.allocate(fd, 0, SEGMENT_HEADER_BYTES)
        files.write_all(fd, header.encode(), 0)
        write_mark(fd, mark, header.log_id)
        os.fsync(fd)
        os.rename(temporary, path)
        try:
            files.sync_directory(os.path.dirname(path))
        except BaseException:  # the next try must make the directory dirty again
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(fd: int, path: str, log_id: bytes, first_lsn: int, geometry: Geometry) -> bytes:
    """The header page of an open segment file, or FormatError."""
    page = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
    header = decode_header(page, path)
    if header.log_id != log_id:
        raise FormatError(f"{path} belongs to another log: {header.log_id.hex()}, not {log_id.hex()}")
    if header.first_lsn != first_lsn or header.segment_bytes != geometry.segment_bytes:
        raise FormatError(
            f"{path} says it begins at LSN {header.first_lsn} with {header.segment_bytes} bytes,"
            f" not at {first_lsn} with {geometry.segment_bytes}"
        )
    size = os.fstat(fd).st_size
    if size != geometry.file_bytes:
        raise FormatError(f"{path} has {size} bytes, not {geometry.file_bytes}")
    return page
