"""The completion bitmap against a set of granules."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shmlog import _native
from shmlog.format.layout import CB, PT, STATE_FAILED, STATE_RUNNING

GRANULES = 256
WINDOW = GRANULES * 32


def control() -> tuple[_native.Control, mmap.mmap]:
    block = mmap.mmap(-1, CB.HEADER_BYTES + PT.BYTES + GRANULES // 8)
    return _native.Control(block, WINDOW, 1), block


class Bitmap(RuleBasedStateMachine):
    """Reserve, publish in any order, commit: what a set and four integers say."""

    @initialize(begin=st.integers(0, 3 * GRANULES))
    def make(self, begin: int) -> None:
        self.control, self.block = control()
        for word in (CB.RESERVED_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN, CB.LIMIT_LSN):
            self.control.store(word, begin * 32)
        self.control.store(CB.PREPARED_LSN, 1 << 40)
        self.control.store(CB.STATE, STATE_RUNNING)
        self.committed = self.tail = begin
        self.limit = begin
        self.open: list[tuple[int, int]] = []
        self.published: set[int] = set()

    @rule(size=st.integers(1, 140))
    def reserve(self, size: int) -> None:
        if self.tail + size <= self.limit:
            self.open.append((self.tail, self.tail + size))
            self.tail += size
            self.control.store(CB.RESERVED_LSN, self.tail * 32)

    @rule(which=st.integers(0, 100))
    def publish(self, which: int) -> None:
        if self.open:
            begin, end = self.open.pop(which % len(self.open))
            self.control.publish(begin * 32, end * 32)
            self.published |= set(range(begin, end))

    @rule()
    def commit(self) -> None:
        while self.committed in self.published:
            self.committed += 1
        self.limit = self.committed + GRANULES
        expected = (self.committed * 32, self.tail * 32, self.committed * 32, self.limit * 32)
        assert self.control.commit_step() == expected
        for word, value in zip((CB.COMMITTED_LSN, CB.RESERVED_LSN, CB.CLEARED_LSN), expected, strict=False):
            assert self.control.load(word) == value
        assert self.control.load(CB.LIMIT_LSN) == expected[3]

    @rule(ahead=st.integers(0, GRANULES), length=st.integers(0, GRANULES))
    def scan(self, ahead: int, length: int) -> None:
        begin = self.committed + ahead
        end = min(begin + length, self.committed + GRANULES)
        if begin > end:
            return
        live = {granule for granule in self.published if granule >= self.committed}
        for wanted in (True, False):
            found = next((g for g in range(begin, end) if (g in live) == wanted), end)
            assert self.control.scan(begin * 32, end * 32, wanted) == found * 32

    @invariant()
    def the_words_hold_the_live_bits_and_no_others(self) -> None:
        live = {granule % GRANULES for granule in self.published if granule >= self.committed}
        uncommitted = int.from_bytes(self.block[CB.HEADER_BYTES + PT.BYTES :], "little")
        assert {bit for bit in range(GRANULES) if uncommitted >> bit & 1} == live


Bitmap.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_the_bitmap_agrees_with_a_set_of_granules = Bitmap.TestCase


@given(st.integers(0, 10 * GRANULES), st.integers(1, GRANULES))
def test_publishing_sets_the_bits_of_the_range_alone(first: int, size: int) -> None:
    it, block = control()
    it.publish(first * 32, (first + size) * 32)
    bits = int.from_bytes(block[CB.HEADER_BYTES + PT.BYTES :], "little")
    assert {bit for bit in range(GRANULES) if bits >> bit & 1} == {
        g % GRANULES for g in range(first, first + size)
    }


def test_clearing_that_a_dead_flusher_left_is_finished_first() -> None:
    it, block = control()
    it.publish(0, 70 * 32)
    it.store(CB.RESERVED_LSN, 70 * 32)
    it.store(CB.COMMITTED_LSN, 70 * 32)
    it.store(CB.PREPARED_LSN, 1 << 40)
    it.store(CB.STATE, STATE_RUNNING)
    assert it.commit_step() == (70 * 32, 70 * 32, 70 * 32, 70 * 32 + WINDOW)
    assert not any(block[CB.HEADER_BYTES + PT.BYTES :])


@pytest.mark.parametrize("bits", [b"\0", b"\xff"])
@pytest.mark.parametrize("reserved", [0, 1 << 62, 2**64 - 32])
@pytest.mark.parametrize("cleared", [0, 1 << 62, 2**64 - 32])
@pytest.mark.parametrize("committed", [0, 1 << 62, 2**64 - 32])
def test_a_step_over_watermarks_that_cannot_be_ends(
    committed: int, cleared: int, reserved: int, bits: bytes
) -> None:
    """A damaged block: the words are no bound for a loop, the window is."""
    it, block = control()
    block[CB.HEADER_BYTES + PT.BYTES :] = bits * (GRANULES // 8)
    it.store(CB.STATE, STATE_RUNNING)
    for word, value in (
        (CB.COMMITTED_LSN, committed),
        (CB.CLEARED_LSN, cleared),
        (CB.RESERVED_LSN, reserved),
    ):
        it.store(word, value)
    assert it.commit_step()[0] <= committed + WINDOW


@pytest.mark.holds("B3", "L1")
def test_the_limit_stays_below_what_is_prepared() -> None:
    it, _ = control()
    it.store(CB.STATE, STATE_RUNNING)
    it.store(CB.PREPARED_LSN, 96)
    assert it.commit_step()[3] == 96


def test_a_failed_log_lets_nothing_be_reserved() -> None:
    it, _ = control()
    it.store(CB.PREPARED_LSN, 1 << 40)
    it.store(CB.STATE, STATE_RUNNING)
    assert it.commit_step()[3] == WINDOW
    it.store(CB.STATE, STATE_FAILED)
    assert it.commit_step()[3] == 0


@pytest.mark.parametrize("bounds", [(32, 0), (0, WINDOW + 32), (1, 32), (0, 33)])
def test_a_range_that_is_none_is_refused(bounds: tuple[int, int]) -> None:
    it, _ = control()
    with pytest.raises(ValueError, match="no range of granules"):
        it.publish(*bounds)
    with pytest.raises(ValueError, match="no range of granules"):
        it.scan(*bounds, True)


@pytest.mark.parametrize("offset", [4, 1 << 40, 2**64 - 8])
def test_a_word_outside_of_the_block_is_refused(offset: int) -> None:
    it, _ = control()
    with pytest.raises(IndexError, match=f"no word at offset {offset}"):
        it.load(offset)
    with pytest.raises(IndexError, match="no word"):
        it.store(offset, 1)


@pytest.mark.parametrize(
    ("size", "window", "slots"), [(8192, 2047, 1), (8192, 1024, 1), (4096, 8192, 1), (8192, 2048, 0)]
)
def test_a_block_that_cannot_hold_the_bitmap_is_refused(size: int, window: int, slots: int) -> None:
    with pytest.raises(ValueError):
        _native.Control(mmap.mmap(-1, size), window, slots)
