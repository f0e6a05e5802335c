"""Slots: one value in two checksummed copies, written in turn.

    offset 0            512
           | even copy  | odd copy  |        copy: body | crc32c of the body

The copy with sequence q is written at the even place if q is even, so a write goes
over the older copy: torn, it spoils that one only, and the newer value is still there.
The checksum starts from the log's seed, so another log's copy is none.

This module knows bytes.  It may not know what a value means, or which file holds it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from shmlog._native import crc32c

CHECKSUM: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the two copies are, and what a body is made of."""

    body: struct.Struct
    offsets: tuple[int, int]

    @property
    def copy_bytes(self) -> int:
        return self.body.size + CHECKSUM.size

    def offset(self, sequence: int) -> int:
        """Where the copy with this sequence is written."""
        return self.offsets[sequence % 2]

    def encode(self, seed: int, *fields: Any) -> bytes:
        body = self.body.pack(*fields)
        return body + CHECKSUM.pack(crc32c(body, seed))

    def decode(self, data: bytes, seed: int) -> tuple[Any, ...] | None:
        """The fields of the copy at the start of `data`, or None if it is not whole."""
        if len(data) < self.copy_bytes:
            return None
        body = data[: self.body.size]
        if CHECKSUM.unpack_from(data, self.body.size)[0] != crc32c(body, seed):
            return None
        return self.body.unpack(body)

    def copies(self, data: bytes, seed: int) -> Iterator[tuple[Any, ...]]:
        """The fields of each copy in `data` that is whole."""
        for offset in self.offsets:
            fields = self.decode(data[offset:], seed)
            if fields is not None:
                yield fields
