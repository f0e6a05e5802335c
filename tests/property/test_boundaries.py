"""Sizes at every boundary: of a granule, a record, a batch, a segment, the window."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.pyreader import DATA, FILL, PAD, PyLog

import shmlog

SEGMENT = WINDOW = 64 << 10
RECORD_MAX = WINDOW // 2 - 32


def stored(size: int) -> int:
    return (32 + size + 31) // 32 * 32


def fill_up_to(log: shmlog.Log, left: int) -> None:
    """Append so that `left` bytes of the present segment remain."""
    while (room := SEGMENT - log.reserved_lsn % SEGMENT) != left:
        want = room - left if room > left else room
        log.append(bytes(min(want, RECORD_MAX + 32) - 32))


@pytest.fixture
def log(log_path: Path):  # type: ignore[no-untyped-def]
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT, window_bytes=WINDOW, timeout=20) as log:
        yield log


def test_a_record_at_the_end_of_a_segment_fits_or_goes_behind_a_pad(log: shmlog.Log) -> None:
    expected, pads = [], []
    for left, size in itertools.product((32, 64, 96, 1024), (0, 1, 31, 32, 33, 63, 64, 65, 991, 992, 993)):
        fill_up_to(log, left)
        end = log.reserved_lsn
        lsn = log.append(b"r" * size, 1)
        fits = stored(size) <= left
        assert lsn == end + (0 if fits else left), (left, size)
        expected.append((lsn, b"r" * size))
        pads += [] if fits else [end]
    log.wait_durable()
    assert [(r.lsn, bytes(r.data)) for r in log.read() if r.tag] == expected
    second = PyLog(log.path)
    frames = list(second.frames(0, log.committed_lsn))
    assert [(frame.lsn, frame.payload) for frame in frames if frame.kind == DATA and frame.tag] == expected
    assert [frame.lsn for frame in frames if frame.kind == PAD] == pads


def test_the_largest_record_fits_and_one_byte_more_does_not(log: shmlog.Log) -> None:
    assert log.record_bytes_max == RECORD_MAX
    for left in (SEGMENT, RECORD_MAX + 32, RECORD_MAX, 32):
        fill_up_to(log, left)
        for size in (RECORD_MAX - 1, RECORD_MAX):
            data = np.random.default_rng(size).bytes(size)
            lsn = log.append(data, durable=True)
            assert bytes(next(iter(log.read(lsn))).data) == data
        before = log.reserved_lsn
        with pytest.raises(shmlog.RecordTooLargeError, match=f"{RECORD_MAX + 1} bytes.*{RECORD_MAX}"):
            log.append(bytes(RECORD_MAX + 1))
        with pytest.raises(shmlog.RecordTooLargeError):
            log.reserve(RECORD_MAX + 1)
        with pytest.raises(shmlog.RecordTooLargeError):
            log.append_many([b"", bytes(RECORD_MAX + 1)])
        with pytest.raises(shmlog.RecordTooLargeError):
            log.append_array(np.zeros((1, RECORD_MAX + 1), np.uint8))
        assert log.reserved_lsn == before, "nothing may be reserved by a refused append"


def test_an_atomic_batch_as_large_as_may_be_is_whole_even_across_a_segment(log: shmlog.Log) -> None:
    batch = [bytes([n]) * (992 - 32) for n in range(32)] + [b""]
    assert sum(stored(len(data)) for data in batch) < WINDOW // 2
    batch.append(bytes(WINDOW // 2 - sum(stored(len(data)) for data in batch) - 32))
    fill_up_to(log, 10_016)
    lsns = log.append_many(batch, atomic=True)
    log.wait_durable()
    frames = list(PyLog(log.path).frames(int(lsns[0]), log.committed_lsn))
    assert [frame.payload for frame in frames if frame.kind == DATA] == batch
    assert [frame.flags for frame in frames] == [1] * (len(frames) - 1) + [0], "a PAD inside belongs to it"
    assert PAD in {frame.kind for frame in frames}
    with pytest.raises(shmlog.RecordTooLargeError):
        log.append_many([*batch, b""], atomic=True)


def test_a_batch_whose_frames_fill_a_segment_exactly_goes_on_in_the_next(log: shmlog.Log) -> None:
    fill_up_to(log, 1024)
    end = log.reserved_lsn
    lsns = log.append_many([bytes(480), bytes(480), b"next"], tag=1)
    assert lsns.tolist() == [end, end + 512, end + 1024]
    assert log.reserved_lsn == end + 1024 + 64
    log.wait_durable()
    kinds = [frame.kind for frame in PyLog(log.path).frames(end, log.committed_lsn)]
    assert kinds == [DATA, DATA, DATA]


def test_an_empty_batch_and_an_empty_array_append_nothing(log: shmlog.Log) -> None:
    assert log.append_many([]).tolist() == []
    assert log.append_array(np.empty((0, 8))).tolist() == []
    assert log.reserved_lsn == 0


def test_empty_records_fill_a_segment_to_its_last_granule(log: shmlog.Log) -> None:
    lsns = log.append_many([b""] * (SEGMENT // 32 + 1))
    assert lsns.tolist() == list(range(0, SEGMENT + 32, 32))
    log.wait_committed()
    assert [r.lsn for r in log.read()] == lsns.tolist()


def test_a_batch_many_windows_long_is_appended_in_order(log: shmlog.Log) -> None:
    rows = np.arange(5 * WINDOW // 8, dtype=np.uint64).reshape(-1, 4)
    lsns = log.append_array(rows)
    log.wait_durable()
    found = np.concatenate([batch.array((np.uint64, 4)) for batch in log.read_batches()])
    assert (found == rows).all()
    assert (np.diff(lsns.astype(np.int64)) > 0).all()


@pytest.mark.parametrize("left", [64, 96, 4096])
def test_an_aborted_reservation_behind_a_pad_is_passed_over(log: shmlog.Log, left: int) -> None:
    fill_up_to(log, left)
    end = log.reserved_lsn
    reservation = log.reserve(left)
    assert reservation.lsn == end + left
    reservation.abort()
    after = log.append(b"after", 9)
    log.wait_durable()
    assert [r.lsn for r in log.read() if r.tag == 9] == [after]
    kinds = [frame.kind for frame in PyLog(log.path).frames(end, log.committed_lsn)]
    assert kinds == [PAD, FILL, DATA]
