"""Sealed: a whole segment that will not change any more, as bytes that are the same from whomever.

    file       | header, mark, header, mark | frame | PAD or FILL: whatever was there | frame ...
    canonical  | header, zeros, header, zeros | frame | PAD or FILL: zeros            | frame ...

Marks and the payloads of PAD and FILL differ between copies of a log that hold the same records. Without
them two who archive the same log make the same object, and one can be compared with the other.

Invariants
  H13  Equal records make equal bytes: nothing in them depends on who looks, when, or on which copy.

This module knows segments and frames.  It may not know where they are kept.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from shmlog import _native
from shmlog._native import crc32c
from shmlog.errors import CorruptionError
from shmlog.format.geometry import frame_bytes
from shmlog.format.layout import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Problem
from shmlog.format.marks import HEADER_OFFSETS, decode_header
from shmlog.records.batch import COLUMN_KINDS, RecordBatch
from shmlog.records.reader import BATCH_RECORDS, CoreTags, Tags, core_tags

_PAYLOAD_BYTES: Final = struct.Struct("<I")
_KIND: Final = _native.LAYOUT["FR_KIND"]
_FILLERS: Final = (_native.LAYOUT["KIND_PAD"], _native.LAYOUT["KIND_FILL"])


class SealedSegment(NamedTuple):
    """A segment of which every byte is durable."""

    first_lsn: int
    end_lsn: int
    records: int
    times_ns: tuple[int, int]
    """the least and the greatest of the records'; zeros if there is none"""
    crc32c: int
    """of the data"""
    data: bytearray


def seal(page: bytes | memoryview, path: str) -> SealedSegment:
    """A segment file's bytes in their canonical form, every frame checked.  CorruptionError."""
    data = bytearray(page)
    header = decode_header(bytes(data[:SEGMENT_HEADER_BYTES]), path)
    data[:SEGMENT_HEADER_BYTES] = bytes(SEGMENT_HEADER_BYTES)
    for offset in HEADER_OFFSETS:
        data[offset : offset + len(header.encode())] = header.encode()
    first, end = header.first_lsn, header.first_lsn + header.segment_bytes
    count, low, high = 0, 0, 0
    with memoryview(data) as view:
        _clear_gaps(view, first, first, end)
        for columns, at in _runs(view, first, first, end, crc32c(header.log_id), path, None):
            if len(columns[0]):
                least, most = int(columns[1].min()), int(columns[1].max())
                low, high = (min(low, least), max(high, most)) if count else (least, most)
                count += len(columns[0])
            _clear_gaps(view, first, at, end)
    return SealedSegment(first, end, count, (low, high), crc32c(data), data)


def _clear_gaps(view: memoryview, first: int, at: int, end: int) -> None:
    """Zero the payloads of the PAD and FILL frames that follow each other from `at` on.  What is wrong
    with one is for the walk to say."""
    while at < end:
        offset = SEGMENT_HEADER_BYTES + at - first
        size = frame_bytes(_PAYLOAD_BYTES.unpack_from(view, offset)[0])
        if view[offset + _KIND] not in _FILLERS or at + size > end:
            return
        view[offset + FRAME_HEADER_BYTES : offset + size] = bytes(size - FRAME_HEADER_BYTES)
        at += size


def decode_segment(
    data: bytes | bytearray | memoryview, start: int = 0, stop: int | None = None, tags: Tags = None
) -> Iterator[RecordBatch]:
    """Yield the records of a sealed segment that begin in [start, stop), each checked; in memory of their
    own.

    start: the LSN of a record, or below the segment. FormatError for what is no segment, CorruptionError
    for a frame that is not what was appended.
    """
    header = decode_header(bytes(memoryview(data)[:SEGMENT_HEADER_BYTES]), "a segment")
    first, end = header.first_lsn, header.first_lsn + header.segment_bytes
    if len(data) != SEGMENT_HEADER_BYTES + header.segment_bytes:
        raise CorruptionError("a segment", first, f"it has {len(data)} bytes")
    fd = os.memfd_create("shmlog")
    try:
        os.truncate(fd, len(data))
        os.pwrite(fd, data, 0)
        mapping = _native.Mapping(fd, len(data), False)
    finally:
        os.close(fd)
    view, bound = memoryview(mapping), end if stop is None else min(stop, end)
    seed, wanted = crc32c(header.log_id), core_tags(tags)
    for columns, at in _runs(view, first, max(first, start), end, seed, "a segment", wanted, bound):
        if len(columns[0]):
            yield RecordBatch.of_segment(mapping, first, at, columns)


def _runs(
    view: memoryview,
    first: int,
    begin: int,
    end: int,
    seed: int,
    path: str,
    tags: CoreTags,
    stop: int | None = None,
) -> Iterator[tuple[tuple[npt.NDArray[Any], ...], int]]:
    """(columns, where the walk stopped), up to each PAD or FILL."""
    at, bound = begin, end if stop is None else stop
    frames = view[SEGMENT_HEADER_BYTES:]
    while at < bound:
        columns = tuple(np.empty(min(BATCH_RECORDS, (end - at) // 32 + 1), kind) for kind in COLUMN_KINDS)
        count, at, _, problem = _native.walk(frames, first, at, end, seed, True, tags, True, columns, bound)
        yield tuple(column[:count] for column in columns), at
        if problem:
            raise CorruptionError(path, at, Problem(problem).text)
