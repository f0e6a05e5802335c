"""Assemble: a log's directory out of sealed segments.

    path.assembling/      segments/*.seg, with marks; LOCK; shmlog.json
    path                  the same, renamed when all of it is durable: a log, or nothing

The last segment may end within an atomic batch. What is there of it is left out, as recovery leaves out
a batch that is not whole.

This module knows what a log's directory needs.  It may not know where the segments come from.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from shmlog.disk import segment
from shmlog.disk.directory import Directory, identity_path
from shmlog.disk.segments import segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import CorruptionError, FormatError
from shmlog.format.identity import decode_identity
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import Mark, decode_header
from shmlog.system import files


@dataclass(frozen=True, slots=True)
class Assembled:
    """What a log's directory was made of."""

    path: str
    begin_lsn: int
    end_lsn: int
    """where the log goes on"""
    segments: int
    dropped_bytes: int
    """of an atomic batch whose end was in no segment"""


def assemble(
    path: str | os.PathLike[str], identity: bytes, segments: Iterable[bytes | bytearray], mode: int = 0o600
) -> Assembled:
    """Make a log at path from the bytes of its shmlog.json and of sealed segments, ascending and without
    a gap.  Every frame is checked.

    FileExistsError if something is there; FormatError for segments that are not one log's, or leave a
    gap; CorruptionError for a frame that is not what was appended. Nothing is left after an error.
    """
    target = os.path.abspath(os.fsdecode(path))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "something is there already", target)
    making = target + ".assembling"
    if os.path.lexists(making):
        shutil.rmtree(making)
    where = Directory(making, decode_identity(identity, "the archive's shmlog.json"))
    try:
        for part in (making, where.segments_path):
            files.make_directory(part, files.directory_mode(mode))
        begin, end, count, epoch = _write_segments(where, segments, mode)
        with Walker(where) as walker:
            walk = walker.walk(begin, end)
        if walk.problem:
            raise CorruptionError(segment_path(where, walk.bad_lsn), walk.bad_lsn, walk.problem.text)
        _finish(where, begin, walk.end_lsn, end, epoch)
        os.close(files.create_file(where.lock_path, mode))
        files.write_atomically(identity_path(making), identity, mode)
        for part in (where.segments_path, making):
            files.sync_directory(part)
        os.rename(making, target)
        files.sync_directory(os.path.dirname(target))
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return Assembled(target, begin, walk.end_lsn, count, end - walk.end_lsn)


def _write_segments(
    where: Directory, segments: Iterable[bytes | bytearray], mode: int
) -> tuple[int, int, int, int]:
    """(first LSN, end, how many, greatest epoch)."""
    geometry, begin, end, epoch = where.identity.geometry, -1, 0, 1
    count = 0
    for data in segments:
        header = decode_header(bytes(data[:SEGMENT_HEADER_BYTES]), "a sealed segment")
        begin = header.first_lsn if begin < 0 else begin
        if header.first_lsn != (end if count else begin):
            raise FormatError(f"a segment begins at LSN {header.first_lsn}, and not at {end}")
        path = segment_path(where, header.first_lsn)
        with files.descriptor(files.create_file(path, mode)) as fd:
            files.write_all(fd, memoryview(data), 0)
            segment.check(fd, path, where.identity.log_id, header.first_lsn, geometry)
            os.fsync(fd)
        count, end, epoch = count + 1, header.first_lsn + geometry.segment_bytes, max(epoch, header.epoch)
    if not count:
        raise FormatError("there is no segment to make a log of")
    return begin, end, count, epoch


def _finish(where: Directory, begin: int, whole: int, end: int, epoch: int) -> None:
    """Remove what is above the last whole batch, and let marks vouch for the rest."""
    geometry = where.identity.geometry
    for first in range(begin, end, geometry.segment_bytes):
        path = segment_path(where, first)
        if first >= whole and first > begin:
            os.unlink(path)
            continue
        with files.descriptor(files.open_file(path, writable=True)) as fd:
            if whole < first + geometry.segment_bytes:
                files.zero(fd, geometry.file_offset(whole), geometry.file_bytes)
            for sequence in (1, 2):
                mark = Mark(epoch, whole, sequence, begin, clean=True)
                segment.write_mark(fd, mark, where.identity.log_id)
            os.fsync(fd)
