"""The records every contender appends, and the digest of what it reads back.

    byte   0        4        8                    size
           | writer | index  | 7 38 69 100 ...      |     (31 j + 7) mod 256

A writer cycles through a small pool of such payloads, made before the clock
starts. The Rust and Java programs make the very same ones, so that one digest
(count, and the sum of the CRC-32s, which does not depend on the order) checks
every contender: a fast wrong answer is noticed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

RECORD_BYTES_MIN = 8
POOL_BYTES_MAX = 8 << 20
POOL_COUNT_MIN = 4
POOL_COUNT_MAX = 1024

_HEADER = struct.Struct("<II")
_CHECKSUM_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Digest:
    """How many records, and the sum of their CRC-32s."""

    count: int = 0
    checksum: int = 0

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.count + other.count, (self.checksum + other.checksum) & _CHECKSUM_MASK)


def payload(writer_no: int, index: int, record_bytes: int) -> bytes:
    """The payload number `index` of one writer's pool."""
    if record_bytes < RECORD_BYTES_MIN:
        raise ValueError(f"a record needs {RECORD_BYTES_MIN} bytes, got {record_bytes}")
    period = bytes((31 * j + 7) % 256 for j in range(256))
    pattern = period * (record_bytes // 256 + 1)
    return _HEADER.pack(writer_no, index) + pattern[_HEADER.size : record_bytes]


def pool_count(record_bytes: int) -> int:
    """How many different payloads a writer cycles through; a power of two."""
    count = max(POOL_COUNT_MIN, min(POOL_COUNT_MAX, POOL_BYTES_MAX // record_bytes))
    return 1 << (count.bit_length() - 1)


def pool(writer_no: int, record_bytes: int) -> list[bytes]:
    """The payloads that one writer cycles through."""
    return [payload(writer_no, index, record_bytes) for index in range(pool_count(record_bytes))]


def expected_digest(writer_no: int, count: int, record_bytes: int) -> Digest:
    """The digest of the first `count` records of one writer."""
    checksums = [zlib.crc32(data) for data in pool(writer_no, record_bytes)]
    laps, rest = divmod(count, len(checksums))
    return Digest(count, (laps * sum(checksums) + sum(checksums[:rest])) & _CHECKSUM_MASK)


def expected_of_all(counts: Iterable[tuple[int, int]], record_bytes: int) -> Digest:
    """The digest of the records of several writers, given as (writer_no, count)."""
    digests = (expected_digest(writer_no, count, record_bytes) for writer_no, count in counts)
    return sum(digests, Digest())


def digest_of(records: Iterable[bytes | memoryview]) -> Digest:
    """The digest of records as they were read back."""
    count = 0
    checksum = 0
    for data in records:
        count += 1
        checksum += zlib.crc32(data)
    return Digest(count, checksum & _CHECKSUM_MASK)
