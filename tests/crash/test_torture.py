"""Torture: writers and the flusher killed again and again, for a million records.

Each life of a writer notes what append() returned in a file of its own, with os.write,
so that a kill cannot take it back.  At the end every noted append must be there exactly
once, whole, in its writer's order; a life may leave at most one record more, published
but not yet returned when it was killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import (
    HEAD_BYTES,
    Child,
    Wire,
    assert_healthy,
    kill_flusher,
    payload,
    until,
    whose,
)
from support.pyreader import PyLog

import shmlog
from shmlog._native import crc32c

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

WRITERS = 4
NOTE = struct.Struct("<QII")
"""LSN, payload CRC, payload bytes"""


def _write(wire: Wire, path: Path, life: int, side: Path, count: int) -> None:
    """Append `count` records, noting each, now and then by batch or reservation."""
    fd = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    rng = random.Random(life)
    with shmlog.open(path) as log:
        wire.say(os.getpid())
        sequence = 0
        while sequence < count:
            kind = rng.random()
            batch = []
            for n in range(20 if kind < 0.02 else 1):
                size = HEAD_BYTES + int(rng.random() ** 6 * 3000)
                batch.append(payload(life, sequence + n, size))
            if kind < 0.02:
                lsns = log.append_many(batch, life).tolist()
            elif kind < 0.04:
                with log.reserve(len(batch[0]), life) as reservation:
                    reservation.buffer[:] = batch[0]
                lsns = [reservation.lsn]
            else:
                lsns = [log.append(batch[0], life, durable=kind > 0.999)]
            notes = [NOTE.pack(lsn, crc32c(data), len(data)) for lsn, data in zip(lsns, batch, strict=True)]
            os.write(fd, b"".join(notes))
            sequence += len(batch)


def _notes(side: Path) -> list[tuple[int, int, int]]:
    data = side.read_bytes() if side.exists() else b""
    assert len(data) % NOTE.size == 0
    return list(NOTE.iter_unpack(data))


def _torture(path: Path, sides: Path, total: int, kills: int) -> dict[int, Path]:
    """Run WRITERS writers until `total` records are noted, killing one of them, or the
    flusher, `kills` times on the way; each life's side file."""
    found: dict[int, Path] = {}
    each = total // WRITERS

    def noted() -> int:
        return sum(side.stat().st_size for side in found.values() if side.exists()) // NOTE.size

    with shmlog.open(path) as log, contextlib.ExitStack() as stack:
        children: dict[int, Child] = {}

        def start(writer: int, count: int) -> None:
            life = len(found) + 1
            found[life] = sides / f"{life}"
            children[writer] = stack.enter_context(Child(_write, path, life, found[life], count))
            children[writer].hear()

        lives: list[int] = [1]
        for writer in range(WRITERS):
            start(writer, each)
        marks = (0, 0)
        for n in range(kills):
            goal = (n + 1) * total // (kills + 2)
            until(lambda: noted() >= goal or children[0].status is not None, "records are noted", 300)  # noqa: B023
            if n % 3 == 2:
                kill_flusher(log)
                continue
            if n % 6 == 4:
                children[0].stop()  # killed while it stands still
            children[0].kill()
            done = sum(len(_notes(found[life])) for life in lives)
            lives.append(len(found) + 1)
            start(0, max(1, each - done))
            now = (log.durable_lsn, log.committed_lsn)
            assert now[0] >= marks[0] and now[1] >= marks[1], "a mark went back"
            marks = now
        for child in children.values():
            child.result(1000)
        log.wait_durable(timeout=60)
        assert len(found) == WRITERS + kills - kills // 3, "so many writers were killed and replaced"
        assert log.statistics().flushers > kills // 3
    return found


def _records(log: shmlog.Log) -> Iterator[tuple[int, int, int, int, int]]:
    for record in log.read():
        life, sequence = whose(record.data)
        yield record.lsn, life, sequence, crc32c(record.data), len(record.data)


def _check(path: Path, found: dict[int, Path], total: int) -> None:
    noted = {life: _notes(side) for life, side in found.items()}
    assert sum(map(len, noted.values())) >= total // WRITERS * WRITERS - WRITERS
    with shmlog.open(path) as log:
        log.wait_committed()
        counts = dict.fromkeys(noted, 0)
        last = -1
        for lsn, life, sequence, crc, size in _records(log):
            assert lsn > last
            last = lsn
            assert sequence == counts[life], f"life {life}: record {sequence} where {counts[life]} should be"
            if sequence < len(noted[life]):
                assert noted[life][sequence] == (lsn, crc, size)
            counts[life] += 1
        for life, notes in noted.items():
            extra = counts[life] - len(notes)
            assert 0 <= extra <= 20, f"life {life}: {counts[life]} records, {len(notes)} were returned"
        assert shmlog.verify(path).ok
        assert_healthy(log)
        end = log.committed_lsn
    _check_with_another_reader(path, noted, end)


def _check_with_another_reader(path: Path, noted: dict[int, list[tuple[int, int, int]]], end: int) -> None:
    """The files, read by code that shares nothing with the library."""
    expected = {lsn: (crc, size) for notes in noted.values() for lsn, crc, size in notes}
    for record in PyLog(path).records(0, end):
        if record.lsn in expected:
            assert expected.pop(record.lsn) == (crc32c(record.payload), len(record.payload))
    assert not expected


def _run(path: Path, sides: Path, total: int, kills: int, segment_bytes: int) -> None:
    sides.mkdir()
    shmlog.open(path, create=True, segment_bytes=segment_bytes, window_bytes=1 << 20).close()
    _check(path, _torture(path, sides, total, kills), total)


def test_thirty_thousand_records_survive_killed_writers_and_flushers(log_path: Path, tmp_path: Path) -> None:
    _run(log_path, tmp_path / "sides", 30_000, 9, 256 << 10)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_million_records_survive_killed_writers_and_flushers(log_path: Path, tmp_path: Path) -> None:
    _run(log_path, tmp_path / "sides", 1_000_000, 90, 16 << 20)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_million_records_over_thousands_of_rolls_survive_killed_writers(
    log_path: Path, tmp_path: Path
) -> None:
    _run(log_path, tmp_path / "sides", 1_000_000, 60, 64 << 10)
