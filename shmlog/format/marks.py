"""Marks: what a segment file says of itself, in its first 8192 bytes.

    0 ...... 512 ......... 4096 .... 4608 ....... 8192
    | header | mark, even  | header  | mark, odd  | frames ...

The header is written once, twice.  A mark says what was durable after the *last* sync;
it is written before the next one, so the disk itself comes to say it.  Each half is a
4096-byte sector of its own and says it all: a write goes to one of them, and a disk that
loses what it was writing loses that one.

This module knows bytes.  It may not know files.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, replace
from typing import Final

from shmlog._native import crc32c
from shmlog.errors import FormatError
from shmlog.format.geometry import LSN_MAX
from shmlog.format.layout import FORMAT_VERSION, GRANULE_BYTES, SEGMENT_HEADER_BYTES
from shmlog.format.origin import NOWHERE, Origin
from shmlog.format.slots import CHECKSUM, Slots

SEGMENT_MAGIC: Final = b"SHMLOGSG"
SEGMENT_HEADER: Final = struct.Struct("<8sII16sQQQq")
"""magic, format version, header bytes, log id, first LSN, segment bytes, epoch, created
(ns); a crc32c over them follows."""
SECTOR_BYTES: Final = 4096
"""The largest that a disk may tear or lose as one."""
HEADER_OFFSETS: Final = (0, SECTOR_BYTES)

MARK_MAGIC: Final = b"MARK"
MARK_SLOTS: Final = Slots(struct.Struct("<4sIQQQQ16sQQQQQ"), (512, SECTOR_BYTES + 512))
"""magic, flags, sequence, durable LSN, trimmed LSN, epoch; its origin: boot id, when the
machine started, for how long it was up, file system, inode and birth of LOCK."""
MARK_CLEAN: Final = 1
MARK_KERNELS_BOOT_ID: Final = 2


@dataclass(frozen=True, slots=True)
class Header:
    """Whose a segment file is, and which LSNs it holds."""

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
    """The header in a segment's first bytes, of its first copy that is whole; FormatError
    says what is wrong with the first if none is."""
    try:
        return _decode_header(data, path)
    except FormatError:
        for offset in HEADER_OFFSETS[1:]:
            with contextlib.suppress(FormatError):
                return _decode_header(data[offset:], path)
        raise


def _decode_header(data: bytes, path: str) -> Header:
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
    origin: Origin = NOWHERE

    def encode(self, log_id: bytes) -> bytes:
        """The bytes of one copy; MARK_SLOTS.offset(sequence) says where they go."""
        origin = self.origin
        flags = MARK_CLEAN * self.clean | MARK_KERNELS_BOOT_ID * origin.kernels
        return MARK_SLOTS.encode(
            crc32c(log_id),
            MARK_MAGIC,
            flags,
            self.sequence,
            self.durable_lsn,
            self.trimmed_lsn,
            self.epoch,
            origin.boot_id,
            origin.started_ns,
            origin.up_ns,
            origin.file_system,
            origin.inode,
            origin.born_ns,
        )

    def next(self, **changes: object) -> Mark:
        return replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]


def decode_mark(data: bytes, log_id: bytes) -> Mark | None:
    """The mark at the start of `data`, or None if it is not a whole one of this log."""
    fields = MARK_SLOTS.decode(data, crc32c(log_id))
    if fields is None:
        return None
    magic, flags, sequence, durable_lsn, trimmed_lsn, epoch, boot_id, *rest = fields
    if magic != MARK_MAGIC or trimmed_lsn > durable_lsn or (trimmed_lsn | durable_lsn) % GRANULE_BYTES:
        return None  # no flusher wrote this
    if max(durable_lsn, sequence, epoch) > LSN_MAX:
        return None
    origin = Origin(boot_id, bool(flags & MARK_KERNELS_BOOT_ID), *rest)
    return Mark(epoch, durable_lsn, sequence, trimmed_lsn, bool(flags & MARK_CLEAN), origin)


def newest_mark(header_area: bytes, log_id: bytes, segment_bytes: int = GRANULE_BYTES) -> Mark | None:
    """The newest whole mark of a segment's first bytes, or None if there is none of this log.
    One that says it was trimmed within a segment does not count: no flusher wrote it."""
    found = [decode_mark(header_area[offset:], log_id) for offset in MARK_SLOTS.offsets]
    return max((mark for mark in found if mark and mark.trimmed_lsn % segment_bytes == 0), default=None)
