"""Two copies written in turn: the newer one whole, or the older one still there."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog.format.slots import Slots

SLOTS = Slots(struct.Struct("<4sQ"), (0, 64))
SEED = 7
U64 = st.integers(0, 2**64 - 1)


def _file(*values: int) -> bytearray:
    """What the values leave, written one after another."""
    data = bytearray(128)
    for sequence, value in enumerate(values):
        at = SLOTS.offset(sequence)
        copy = SLOTS.encode(SEED, b"test", value)
        data[at : at + len(copy)] = copy
    return data


@given(U64, U64)
def test_both_copies_are_read_back(older: int, newer: int) -> None:
    found = [value for _, value in SLOTS.copies(bytes(_file(older, newer)), SEED)]
    assert found == [older, newer]


@pytest.mark.parametrize("byte", range(SLOTS.copy_bytes))
def test_a_torn_write_spoils_the_copy_that_it_was_over_and_no_other(byte: int) -> None:
    data = _file(1, 2)
    data[SLOTS.offset(1) + byte] ^= 0x10
    assert [value for _, value in SLOTS.copies(bytes(data), SEED)] == [1]


def test_the_copies_of_another_log_are_none_of_this_one() -> None:
    assert not list(SLOTS.copies(bytes(_file(1, 2)), SEED + 1))


def test_a_copy_that_is_cut_short_is_none() -> None:
    data = bytes(_file(1, 2))
    assert SLOTS.decode(data[: SLOTS.copy_bytes - 1], SEED) is None
    assert [value for _, value in SLOTS.copies(data[:64], SEED)] == [1]
