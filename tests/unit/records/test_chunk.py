"""A chunk: what was encoded is decoded, whole and checked, or it is an error."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pytest
from crc32c import crc32c

import shmlog
from shmlog.records.chunk import CHUNK_PREFIX, CHUNK_PREFIX_BYTES

SIZES = [0, 1, 31, 32, 33, 200, 5000]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[shmlog.Log]:
    path = tmp_path_factory.mktemp("chunks") / "log"
    with shmlog.open(path, create=True, segment_bytes=64 << 10, window_bytes=64 << 10) as log:
        for n in range(60):
            log.append(bytes([n]) * SIZES[n % len(SIZES)], tag=n % 3)
        log.append_many([b"a", b"b" * 100, b"c"], atomic=True)
        log.wait_durable()
        yield log


def whole(log: shmlog.Log, tag: int | None = None) -> tuple[shmlog.RecordBatch, bytes]:
    batch = next(log.read_batches(tag=tag))
    return batch, shmlog.encode_chunk(batch, log.log_id, 0, batch.next_lsn)


def sealed(prefix: bytes) -> bytes:
    return prefix + struct.pack("<I", crc32c(prefix))


@pytest.mark.parametrize("tag", [None, 1])
def test_a_chunk_decodes_to_what_was_encoded(log: shmlog.Log, tag: int | None) -> None:
    batch, chunk = whole(log, tag)
    found = shmlog.decode_chunk(chunk)
    for column in ("lsn", "time_ns", "tag", "writer", "nbytes"):
        assert np.array_equal(getattr(found, column), getattr(batch, column))
    assert [bytes(r.data) for r in found] == [bytes(r.data) for r in batch]
    assert found.next_lsn == batch.next_lsn
    assert bytes(found.frames()) == bytes(batch.frames()) == chunk[CHUNK_PREFIX_BYTES:]
    assert shmlog.chunk_info(chunk) == (log.log_id, 0, batch.next_lsn, len(batch))


def test_parts_of_a_batch_have_the_frames_of_the_whole(log: shmlog.Log) -> None:
    batch, _ = whole(log)
    assert b"".join(batch[n : n + 7].frames() for n in range(0, len(batch), 7)) == bytes(batch.frames())
    assert bytes(batch[batch.tag == 1].frames()) == b"".join(r.frames() for r in (batch[n : n + 1] for n in
        np.flatnonzero(batch.tag == 1)))  # fmt: skip


@pytest.mark.parametrize("tag", [None, 7])
def test_equal_payloads_of_a_chunk_are_one_array(log: shmlog.Log, tag: int | None) -> None:
    rows = np.arange(100, dtype="<f8")
    lsns = log.append_array(rows, tag=7)
    log.append(b"another", tag=8)
    last = log.append_array(rows[:3] + 0.5, tag=7)
    log.wait_committed()
    found = list(log.read_batches(int(lsns[0]), tag=7 if tag else None))
    got = []
    for batch in found:
        batch = batch[batch.tag == 7]
        chunk = shmlog.encode_chunk(batch, log.log_id, int(batch.lsn[0]), batch.next_lsn)
        got += shmlog.decode_chunk(chunk).array("<f8").tolist()
    assert got == [*rows.tolist(), 0.5, 1.5, 2.5]
    assert len(last) == 3


def test_no_records_are_a_chunk_too(log: shmlog.Log) -> None:
    chunk = shmlog.encode_chunk(log.take([]), log.log_id, 64, 4096)
    assert len(chunk) == CHUNK_PREFIX_BYTES
    found = shmlog.decode_chunk(chunk)
    assert (len(found), found.next_lsn) == (0, 4096)


@pytest.mark.holds("H12")
def test_no_changed_byte_of_a_header_or_payload_is_decoded(log: shmlog.Log) -> None:
    batch, chunk = whole(log)
    padding = set()
    at = CHUNK_PREFIX_BYTES
    for size in batch.nbytes.tolist():
        end = at + 32 + size
        at = end + -end % 32
        padding |= set(range(end, at))
    for place in range(0, len(chunk), 13):
        if place not in padding:
            bad = bytearray(chunk)
            bad[place] ^= 0x10
            with pytest.raises((shmlog.CorruptionError, shmlog.FormatError)):
                shmlog.decode_chunk(bad)


@pytest.mark.holds("H12")
def test_a_frame_that_is_missing_or_came_twice_is_an_error(log: shmlog.Log) -> None:
    batch, chunk = whole(log)
    frames = [bytes(batch[n : n + 1].frames()) for n in range(len(batch))]
    prefix = chunk[:CHUNK_PREFIX_BYTES]
    for wrong in (frames[1:], frames[:-1], frames[:5] + frames[6:], frames[:5] + frames[4:], frames[::-1]):
        with pytest.raises(shmlog.CorruptionError):
            shmlog.decode_chunk(prefix + b"".join(wrong))
    assert len(shmlog.decode_chunk(prefix + b"".join(frames))) == len(batch)


@pytest.mark.holds("H11")
def test_a_count_of_records_that_cannot_be_takes_no_memory() -> None:
    prefix = CHUNK_PREFIX.pack(b"SHMLOGCH", 1, CHUNK_PREFIX_BYTES, bytes(16), 0, 1 << 40, (1 << 32) - 1)
    with pytest.raises(shmlog.CorruptionError, match="4294967295 records"):
        shmlog.decode_chunk(sealed(prefix) + bytes(64))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SHMLOGCH",
        bytes(64),
        sealed(CHUNK_PREFIX.pack(b"SHMLOGCH", 2, 64, bytes(16), 0, 64, 0)),
        sealed(CHUNK_PREFIX.pack(b"SHMLOGCH", 1, 64, bytes(16), 64, 0, 0)),
        sealed(CHUNK_PREFIX.pack(b"SHMLOGCH", 1, 64, bytes(16), 0, (1 << 64) - 1, 0)),
    ],
)
def test_what_is_no_chunk_is_a_format_error(data: bytes) -> None:
    with pytest.raises(shmlog.FormatError):
        shmlog.decode_chunk(data)


def test_another_logs_frames_do_not_pass_for_this_ones(log: shmlog.Log) -> None:
    batch, _ = whole(log)
    with pytest.raises(shmlog.CorruptionError, match="checksum"):
        shmlog.decode_chunk(shmlog.encode_chunk(batch, "00" * 16, 0, batch.next_lsn))


def test_a_range_that_does_not_hold_the_records_is_refused(log: shmlog.Log) -> None:
    batch, _ = whole(log)
    for begin, end in ((64, batch.next_lsn), (0, batch.next_lsn - 32), (0, 1 << 63)):
        with pytest.raises(ValueError, match="are not in"):
            shmlog.encode_chunk(batch, log.log_id, begin, end)


def test_records_out_of_order_or_taken_have_no_frames(log: shmlog.Log) -> None:
    batch, _ = whole(log)
    for wrong in (batch[::-1], batch[[3, 1]], log.take(batch.lsn[:3])):
        with pytest.raises(ValueError, match="no frames"):
            wrong.frames()
