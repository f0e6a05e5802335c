"""Sums: the checksum of a part, from the checksums of two beginnings.

    0 ............ a ............ e          CRC(a..e) from CRC(0..a) and CRC(0..e)

A CRC is linear: the state after A and then B is the state after A, moved on over as
many zero bytes as B has, xor the state that B alone leaves of zero.  Moving on over n
zero bytes is a matrix over the integers modulo 2; those for the powers of two are made
once, so that any n costs a few look-ups, however large it is (the method of zlib's
crc32_combine).

This module knows checksums.  It may not know of what.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from shmlog import _native

_ALL: Final = 0xFFFFFFFF
"""A CRC is the state it names, inverted."""
_POWERS: Final = 31
"""Lengths are below 2^31: no file has more frames' bytes than 2^30."""

_Table = tuple[list[int], list[int], list[int], list[int]]
"""A matrix, by the four bytes of the state that it moves on."""


def state_after(data: bytes | memoryview, state: int) -> int:
    """The state after these bytes too; it starts from zero."""
    return _native.crc32c(data, state ^ _ALL) ^ _ALL


def crc_of_part(seed: int, before: int, until: int, part_bytes: int) -> int:
    """The CRC of a part, started from seed; `before` is the state, started from zero, at the
    part's beginning, and `until` that at its end."""
    state, n, power = seed ^ _ALL ^ before, part_bytes, 0
    powers = _powers()
    while n:
        if n & 1:
            a, b, c, d = powers[power]
            state = a[state & 255] ^ b[state >> 8 & 255] ^ c[state >> 16 & 255] ^ d[state >> 24]
        n >>= 1
        power += 1
    return state ^ until ^ _ALL


@cache
def _powers() -> tuple[_Table, ...]:
    """The matrices for 1, 2, 4, 8 ... zero bytes."""
    columns = [_native.crc32c(b"\0", 1 << bit ^ _ALL) ^ _ALL for bit in range(32)]
    found = []
    for _ in range(_POWERS):
        a, b, c, d = table = _table(columns)
        found.append(table)
        columns = [a[v & 255] ^ b[v >> 8 & 255] ^ c[v >> 16 & 255] ^ d[v >> 24] for v in columns]
    return tuple(found)


def _table(columns: list[int]) -> _Table:
    def of_byte(first: int) -> list[int]:
        images = [0]
        for column in columns[first : first + 8]:
            images += [image ^ column for image in images]
        return images

    return of_byte(0), of_byte(8), of_byte(16), of_byte(24)
