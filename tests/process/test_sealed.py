"""Sealed segments: the same bytes from every copy, and a log again when they are put together."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import assert_healthy
from support.shipping import SMALL, fill, records

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 150)
        yield log


def identity(log: shmlog.Log) -> bytes:
    return Path(log.path, "shmlog.json").read_bytes()


def sealed(log: shmlog.Log) -> list[shmlog.SealedSegment]:
    return list(log.sealed_segments())


def test_sealed_segments_hold_every_record_of_theirs(log: shmlog.Log) -> None:
    found = sealed(log)
    assert len(found) >= 3
    assert [s.first_lsn for s in found] == [n * log.segment_bytes for n in range(len(found))]
    assert found[-1].end_lsn <= log.durable_lsn < found[-1].end_lsn + log.segment_bytes
    expected = records(log.read_batches(0, found[-1].end_lsn))
    assert records(b for s in found for b in shmlog.decode_segment(s.data)) == expected
    assert sum(s.records for s in found) == len(expected)
    times = [t for s in found for t in s.times_ns]
    assert times == sorted(times)
    one = expected[len(expected) // 2]
    part = shmlog.decode_segment(found[one[0] // log.segment_bytes].data, one[0], one[0] + 1)
    assert records(part) == [one]
    tagged = records(b for s in found for b in shmlog.decode_segment(s.data, tags=1))
    assert tagged == [r for r in expected if r[2] == 1]


@pytest.mark.holds("H13")
def test_a_copy_whose_fillers_hold_other_bytes_has_the_same_sealed_segments(
    log_path: Path, tmp_path: Path
) -> None:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        reservation = log.reserve(500)  # the first frame is FILL
        reservation.buffer[:] = b"x" * 500
        reservation.abort()
        fill(log, 150)
    copy = tmp_path / "copy"
    shutil.copytree(log_path, copy)
    changed = 0
    for path in sorted((copy / "segments").iterdir()):
        data = bytearray(path.read_bytes())
        at = SEGMENT_HEADER_BYTES
        while at < len(data) and data[at + 30]:
            size = 32 + int.from_bytes(data[at : at + 4], "little")
            size += -size % 32
            if data[at + 30] in (2, 3) and size > 32:
                data[at + 32 : at + size] = random.Random(at).randbytes(size - 32)
                changed += 1
            at += size
        path.write_bytes(data)
    assert changed > 3
    found = []
    for path in (log_path, copy):
        with shmlog.open(path) as log:
            found.append(sealed(log))
    assert len(found[0]) >= 3 and found[0] == found[1]


def test_sealed_segments_make_a_log_that_goes_on(log: shmlog.Log, tmp_path: Path) -> None:
    segments = sealed(log)
    made = shmlog.assemble(tmp_path / "made", identity(log), (s.data for s in segments))
    assert (made.begin_lsn, made.segments) == (0, len(segments))
    expected = records(log.read_batches(0, made.end_lsn))
    log.close()
    report = shmlog.verify(tmp_path / "made")
    assert report.ok and report.end_lsn == made.end_lsn
    with shmlog.open_readonly(tmp_path / "made") as again:
        assert records(again.read_batches()) == expected
    with shmlog.open(tmp_path / "made") as again:
        assert again.recovery is not None and again.committed_lsn == made.end_lsn
        assert_healthy(again, 5)


def test_a_log_that_was_trimmed_is_assembled_from_where_it_begins(log: shmlog.Log, tmp_path: Path) -> None:
    log.trim(2 * log.segment_bytes)
    made = shmlog.assemble(tmp_path / "made", identity(log), (s.data for s in log.sealed_segments()))
    assert made.begin_lsn == log.trimmed_lsn == 2 * log.segment_bytes
    with pytest.raises(shmlog.TrimmedError):
        next(log.sealed_segments(0))
    expected = records(log.read_batches(None, made.end_lsn))
    log.close()
    with shmlog.open(tmp_path / "made") as again:
        assert again.trimmed_lsn == made.begin_lsn
        assert records(again.read_batches()) == expected


def test_an_atomic_batch_whose_end_is_in_no_segment_is_left_out(log_path: Path, tmp_path: Path) -> None:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        log.append_many([bytes(20_000)] * 2)
        begin = log.append(b"last of its own") + 64
        log.append_many([bytes(7_000)] * 4, atomic=True)
        log.wait_durable()
        (segment,) = log.sealed_segments()
        assert segment.records > 4
        made = shmlog.assemble(tmp_path / "made", identity(log), [segment.data])
    assert (made.end_lsn, made.dropped_bytes) == (begin, (64 << 10) - begin)
    with shmlog.open(tmp_path / "made") as again:
        assert [r[3] for r in records(again.read_batches())] == [
            bytes(20_000),
            bytes(20_000),
            b"last of its own",
        ]
        assert_healthy(again, 5)


def test_what_cannot_be_a_log_is_refused_and_leaves_nothing(log: shmlog.Log, tmp_path: Path) -> None:
    data = [s.data for s in log.sealed_segments()]
    bad = bytearray(data[1])
    bad[SEGMENT_HEADER_BYTES + 40000] ^= 1
    other = identity(log).replace(log.log_id[:8].encode(), b"00000000")
    target = tmp_path / "made"
    for segments, who, error in (
        ([data[0], data[2]], identity(log), shmlog.FormatError),
        ([data[0], bad], identity(log), shmlog.CorruptionError),
        ([data[0][:-1]], identity(log), shmlog.FormatError),
        ([], identity(log), shmlog.FormatError),
        (data, other, shmlog.FormatError),
    ):
        with pytest.raises(error):
            shmlog.assemble(target, who, segments)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]
    target.mkdir()
    with pytest.raises(FileExistsError):
        shmlog.assemble(target, identity(log), data)
