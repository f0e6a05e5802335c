"""CRC-32C: both native paths against the crc32c package and the published check value."""

from __future__ import annotations

import random

import pytest
from crc32c import crc32c as reference

from shmlog import _native

PATHS = [_native.crc32c, _native.crc32c_table]
LANES = (8, 128, 2048)
"""Where the hardware path changes its ways: one word, three short lanes, three long ones."""
LENGTHS = sorted(
    {0, 1, 2, 3, 7}
    | {times * lane + off for lane in LANES for times in (1, 2, 3, 4, 6) for off in (-9, -8, -1, 0, 1, 8)}
    | {3 * 2048 + 3 * 128 + 8 + 5, 100_003}
)
DATA = random.Random(1).randbytes(max(LENGTHS) + 8)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_the_check_value_of_the_standard_is_found(path) -> None:  # type: ignore[no-untyped-def]
    assert path(b"123456789") == 0xE3069283


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_every_length_around_a_lane_boundary_is_right(path) -> None:  # type: ignore[no-untyped-def]
    for length in LENGTHS:
        if length >= 0:
            assert path(DATA[:length]) == reference(DATA[:length]), length


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_data_that_is_not_aligned_is_right(path) -> None:  # type: ignore[no-untyped-def]
    for offset in range(8):
        part = memoryview(DATA)[offset : offset + 7000]
        assert path(part) == reference(part), offset


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_a_seed_continues_an_earlier_checksum(path) -> None:  # type: ignore[no-untyped-def]
    for cut in (0, 1, 8, 129, 3 * 128, 6145):
        assert path(DATA[cut:9000], path(DATA[:cut])) == reference(DATA[:9000]), cut
