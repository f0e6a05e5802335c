"""Geometry: how LSNs map to segments and offsets.

    LSN   0 ........ S ......... 2S ......... 3S          S = segment_bytes
          | seg 0    | seg 1     | seg 2      |
                          ^ lsn: segment 1, file offset 8192 + lsn - S

This module knows numbers.  It may not know files or shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmlog.format.layout import CB, FRAME_HEADER_BYTES, GRANULE_BYTES, PT, SEGMENT_HEADER_BYTES

SEGMENT_BYTES_DEFAULT = 64 << 20
WINDOW_BYTES_DEFAULT = 64 << 20
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 64 << 10, 1 << 30
WINDOW_BYTES_MIN, WINDOW_BYTES_MAX = 64 << 10, 1 << 30
WINDOW_SEGMENTS_MAX = 1024
PARTICIPANT_COUNT = 1024
PIECE_BYTES = 8 << 20
"""A segment is allocated and faulted in by pieces of this size, ahead of the tail."""
PAGE_BYTES = 4096
LSN_MAX = 1 << 62
"""No LSN is handed out at or above it: arithmetic on LSNs cannot overflow."""


def _power_of_two(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value & (value - 1) or not low <= value <= high:
        raise ValueError(f"{name} must be a power of two from {low} to {high}, not {value}")
    return value


@dataclass(frozen=True, slots=True)
class Geometry:
    """A log's fixed sizes, in bytes."""

    segment_bytes: int = SEGMENT_BYTES_DEFAULT
    window_bytes: int = WINDOW_BYTES_DEFAULT

    def __post_init__(self) -> None:
        _power_of_two("segment_bytes", self.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
        _power_of_two("window_bytes", self.window_bytes, WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
        if self.window_bytes > WINDOW_SEGMENTS_MAX * self.segment_bytes:
            raise ValueError(
                f"window_bytes={self.window_bytes} is more than {WINDOW_SEGMENTS_MAX} segments of"
                f" {self.segment_bytes} bytes: the flusher holds them all open"
            )

    @classmethod
    def of(cls, segment_bytes: int | None, window_bytes: int | None) -> Geometry:
        """With the defaults for what is None."""
        return cls(
            SEGMENT_BYTES_DEFAULT if segment_bytes is None else segment_bytes,
            WINDOW_BYTES_DEFAULT if window_bytes is None else window_bytes,
        )

    @property
    def piece_bytes(self) -> int:
        return min(PIECE_BYTES, self.segment_bytes)

    @property
    def file_bytes(self) -> int:
        return SEGMENT_HEADER_BYTES + self.segment_bytes

    @property
    def control_bytes(self) -> int:
        return CB.HEADER_BYTES + PARTICIPANT_COUNT * PT.BYTES + self.window_bytes // GRANULE_BYTES // 8

    def segment_no(self, lsn: int) -> int:
        return lsn // self.segment_bytes

    def segment_begin(self, lsn: int) -> int:
        return lsn - lsn % self.segment_bytes

    def segment_end(self, lsn: int) -> int:
        return self.segment_begin(lsn) + self.segment_bytes

    def piece_end(self, lsn: int) -> int:
        return lsn - lsn % self.piece_bytes + self.piece_bytes

    def file_offset(self, lsn: int) -> int:
        return SEGMENT_HEADER_BYTES + lsn % self.segment_bytes

    def segment_ranges(self, begin: int, end: int) -> list[tuple[int, int]]:
        """[begin, end) cut at the segment boundaries."""
        ranges = []
        while begin < end:
            stop = min(end, self.segment_end(begin))
            ranges.append((begin, stop))
            begin = stop
        return ranges


def frame_bytes(payload_bytes: int) -> int:
    """What a record of so many bytes takes in the log."""
    return -(-(FRAME_HEADER_BYTES + payload_bytes) // GRANULE_BYTES) * GRANULE_BYTES
