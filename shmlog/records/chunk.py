"""Chunk: raw frames of a log's records, with all that is needed to check them elsewhere.

    | prefix, 64 bytes | frame | frame | ...        frames as they are in the log, PAD and FILL left out

    0          8       12      16      32      40      48       52        60     64
    | SHMLOGCH | version | bytes | log id | begin | end | records | zeros | crc32c |

A chunk says that the records in it are all that its log holds (or all of the wanted tags) in
[begin, end). Chunks whose ends and beginnings meet are a log without gaps. The prefix names the log,
because a frame's checksum starts from its id; so a chunk is checked wherever it arrives, whatever
headers the carrier lost.

Invariants
  H11  Nothing that a chunk claims costs memory or time beyond its own bytes.
  H12  A chunk that decodes holds exactly the records that were encoded: one that is missing, that came
      twice, or that differs in header or payload is an error.

This module knows bytes.  It may not know where they are kept or sent.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final, NamedTuple

import numpy as np

from shmlog import _native
from shmlog._native import crc32c
from shmlog.errors import CorruptionError, FormatError
from shmlog.format.geometry import LSN_MAX
from shmlog.format.layout import FRAME_HEADER_BYTES, GRANULE_BYTES, Problem
from shmlog.records.batch import COLUMN_KINDS, RecordBatch

CHUNK_MAGIC: Final = b"SHMLOGCH"
CHUNK_VERSION: Final = 1
CHUNK_PREFIX: Final = struct.Struct("<8sII16sQQI8x")
"""magic, version, bytes of the prefix, log id, begin LSN, end LSN, records; a crc32c follows."""
CHUNK_PREFIX_BYTES: Final = CHUNK_PREFIX.size + 4
_SUM: Final = struct.Struct("<I")
_WHERE: Final = "a chunk"


class ChunkInfo(NamedTuple):
    """What a chunk says of itself."""

    log_id: str
    """of the log that its records are from, as in `shmlog info`"""
    begin_lsn: int
    end_lsn: int
    """where the next chunk begins"""
    records: int


def encode_chunk(batch: RecordBatch, log_id: str, begin_lsn: int, end_lsn: int) -> bytes:
    """The records of a batch as a chunk that covers [begin_lsn, end_lsn) of the log.

    batch: of read_batches() and its like, or a part of one; ascending, and inside the range. log_id:
    Log.log_id. ValueError for a range that does not hold the batch, or for records that were taken;
    OSError if the log's file was lost under the copying.
    """
    first = int(batch.lsn[0]) if len(batch) else begin_lsn
    last = batch[-1].next_lsn if len(batch) else begin_lsn
    if not 0 <= begin_lsn <= first <= last <= end_lsn <= LSN_MAX:
        raise ValueError(f"records from LSN {first} to {last} are not in [{begin_lsn}, {end_lsn})")
    frames = batch.frames()
    prefix = CHUNK_PREFIX.pack(
        CHUNK_MAGIC,
        CHUNK_VERSION,
        CHUNK_PREFIX_BYTES,
        uuid.UUID(log_id).bytes,
        begin_lsn,
        end_lsn,
        len(batch),
    )
    chunk = b"".join((prefix, _SUM.pack(crc32c(prefix)), frames))
    batch.check_memory()
    return chunk


def chunk_info(data: bytes | bytearray | memoryview) -> ChunkInfo:
    """What a chunk covers, by its prefix, whose checksum is checked; FormatError if it is no chunk."""
    prefix = bytes(memoryview(data)[:CHUNK_PREFIX_BYTES])
    if len(prefix) < CHUNK_PREFIX_BYTES or not prefix.startswith(CHUNK_MAGIC):
        raise FormatError(f"not a chunk of a log: it begins with {prefix[:8]!r}")
    if _SUM.unpack_from(prefix, CHUNK_PREFIX.size)[0] != crc32c(prefix[: CHUNK_PREFIX.size]):
        raise FormatError("the checksum of a chunk's prefix does not match")
    _, version, size, log_id, begin_lsn, end_lsn, records = CHUNK_PREFIX.unpack_from(prefix)
    if version != CHUNK_VERSION or size != CHUNK_PREFIX_BYTES:
        raise FormatError(f"a chunk of version {version}; this is version {CHUNK_VERSION}")
    if not begin_lsn <= end_lsn <= LSN_MAX:
        raise FormatError(f"a chunk of [{begin_lsn}, {end_lsn})")
    return ChunkInfo(log_id.hex(), begin_lsn, end_lsn, records)


def decode_chunk(data: bytes | bytearray | memoryview) -> RecordBatch:
    """The records of a chunk, each checked; in memory of their own.

    next_lsn of the batch is where the next chunk begins. FormatError for what is no chunk,
    CorruptionError with the LSN of a frame that is not what was appended.
    """
    info = chunk_info(data)
    frames = memoryview(data)[CHUNK_PREFIX_BYTES:]
    if info.records > frames.nbytes // FRAME_HEADER_BYTES:
        raise CorruptionError(
            _WHERE, info.begin_lsn, f"{info.records} records cannot be in {frames.nbytes} bytes"
        )
    columns = tuple(np.empty(info.records, kind) for kind in COLUMN_KINDS)
    places = np.empty(info.records, np.int64)
    seed = crc32c(bytes.fromhex(info.log_id))
    mapping, count, at, problem = _native.take_frames(
        frames, info.begin_lsn, info.end_lsn, seed, columns, places
    )
    if problem:
        raise CorruptionError(_WHERE, at, f"record {count} of {info.records}: {Problem(problem).text}")
    if info.records and int(columns[0][-1] - columns[0][0]) == int(places[-1] - places[0]):
        return RecordBatch(mapping, int(columns[0][0]) - FRAME_HEADER_BYTES, info.end_lsn, columns)
    return RecordBatch(mapping, places, info.end_lsn, columns, framed=True)


assert CHUNK_PREFIX_BYTES % GRANULE_BYTES == 0
