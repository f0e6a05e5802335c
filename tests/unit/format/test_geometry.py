"""Geometry: segments, offsets and sizes from LSNs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog.format.geometry import (
    PIECE_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    WINDOW_BYTES_MAX,
    WINDOW_BYTES_MIN,
    Geometry,
    frame_bytes,
)

GEOMETRY = Geometry(64 << 10, 64 << 10)
LSN = st.integers(0, 2**62 // 32).map(lambda granule: granule * 32)


@pytest.mark.parametrize("name", ["segment_bytes", "window_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1, 32 << 10, (64 << 10) + 1, 96 << 10, 2 << 30, 1 << 40])
def test_a_size_that_is_no_power_of_two_in_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a power of two.*not {value}"):
        Geometry(**{name: value})


@pytest.mark.parametrize("value", [65536.0, "65536", True, None])
def test_a_size_that_is_no_int_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="segment_bytes must be an int"):
        Geometry(segment_bytes=value)  # type: ignore[arg-type]


def test_the_smallest_and_the_largest_sizes_are_accepted() -> None:
    assert Geometry(SEGMENT_BYTES_MIN, WINDOW_BYTES_MIN).piece_bytes == SEGMENT_BYTES_MIN
    assert Geometry(SEGMENT_BYTES_MAX, WINDOW_BYTES_MAX).piece_bytes == PIECE_BYTES


@given(LSN)
def test_an_lsn_lies_in_the_segment_that_is_named_for_it(lsn: int) -> None:
    begin, end = GEOMETRY.segment_begin(lsn), GEOMETRY.segment_end(lsn)
    assert begin <= lsn < end
    assert begin % GEOMETRY.segment_bytes == 0
    assert end - begin == GEOMETRY.segment_bytes
    assert GEOMETRY.segment_no(lsn) * GEOMETRY.segment_bytes == begin
    assert GEOMETRY.file_offset(lsn) == 8192 + lsn - begin
    assert GEOMETRY.file_offset(lsn) < GEOMETRY.file_bytes


@given(LSN, st.integers(0, 200_000 // 32).map(lambda granule: granule * 32))
def test_a_range_cut_at_segments_is_the_same_range(begin: int, size: int) -> None:
    pieces = GEOMETRY.segment_ranges(begin, begin + size)
    assert sum(end - start for start, end in pieces) == size
    if pieces:
        assert pieces[0][0] == begin
        assert pieces[-1][1] == begin + size
    for (_, end), (start, _) in itertools.pairwise(pieces):
        assert end == start
        assert end % GEOMETRY.segment_bytes == 0
    for start, end in pieces:
        assert GEOMETRY.segment_no(start) == GEOMETRY.segment_no(end - 1)


@pytest.mark.parametrize(("payload", "stored"), [(0, 32), (1, 64), (32, 64), (33, 96), (96, 128)])
def test_a_frame_takes_its_header_and_whole_granules(payload: int, stored: int) -> None:
    assert frame_bytes(payload) == stored
