"""Segment: one preallocated file of a fixed LSN range.

    00000000000067108864.seg      named by its first LSN
    | headers and marks, 8192 bytes | frames, segment_bytes |

This module knows one file.  It may not know which segments there are.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from shmlog.errors import FormatError
from shmlog.format.geometry import Geometry
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import HEADER_OFFSETS, MARK_SLOTS, Header, Mark, decode_header
from shmlog.system import files


def file_name(first_lsn: int) -> str:
    return f"{first_lsn:020d}.seg"


def parse_name(name: str) -> int | None:
    """The first LSN that a segment's name says, or None for any other name."""
    stem = name.removesuffix(".seg")
    return int(stem) if len(name) == 24 and len(stem) == 20 and stem.isascii() and stem.isdigit() else None


def write_mark(fd: int, mark: Mark, log_id: bytes) -> None:
    """Overwrite the older copy.  Not durable until the file is synced."""
    files.write_all(fd, mark.encode(log_id), MARK_SLOTS.offset(mark.sequence))


def write_header(fd: int, header: Header) -> None:
    """Write both copies.  Without looking: a read of a new file would read ahead, and the pages
    of the first frames come in large folios, of which a sync writes all for a small record."""
    for offset in HEADER_OFFSETS:
        files.write_all(fd, header.encode(), offset)


def create(path: str, header: Header, mark: Mark, geometry: Geometry, mode: int) -> int:
    """Make a segment file of full (sparse) size with its header and first mark, both copies;
    the caller syncs it and owns the descriptor.

    Written under a temporary name: a segment that is there is whole."""
    temporary = path + ".tmp"
    if os.path.lexists(temporary):
        os.unlink(temporary)  # left by a flusher that died here; only the lease holder creates
    fd = files.create_file(temporary, mode)
    try:
        os.ftruncate(fd, geometry.file_bytes)
        files.allocate(fd, 0, SEGMENT_HEADER_BYTES)
        write_header(fd, header)
        other = replace(mark, sequence=mark.sequence - 1 if mark.sequence else 1)
        for copy in (mark, other):  # the next one may go over either
            write_mark(fd, copy, header.log_id)
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
    """The first SEGMENT_HEADER_BYTES of an open segment file, or FormatError."""
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
