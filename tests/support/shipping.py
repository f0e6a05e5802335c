"""Shipping: a log whose every kind of frame must arrive, sinks with faults, and the comparison.

fill(log)                 records of all sizes, PAD, FILL, atomic batches
Faulty(sink, die_at=7)    kills its process at the seventh step of a sink; FaultyGroups, FaultyRecords
assert_shipped(log, NatsReader(...))

What happens to a log, a shipper or a server, and must end well whatever the engine: ship_a_copy(),
ship_logs_made_anew(), ship_to_one_rolled_back(), ship_to_one_killed(), ship_through_losses(). Of the
engine they know its Served, ship(log), which ships all, and arrived(log), which asserts that all is there.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import shmlog
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper
from shmlog.integrations.sinks import Tail
from support.processes import until
from support.serving import Served

SMALL = {"segment_bytes": 64 << 10, "window_bytes": 64 << 10}
Use = Callable[[shmlog.Log], None]


def fill(log: shmlog.Log, count: int = 300, seed: int = 1) -> None:
    """Append records that roll over segments, with what lies between records."""
    dice = random.Random(seed)
    for n in range(count):
        size = dice.choice([0, 1, 40, 200, 3000, 9000])
        if n % 17 == 5:
            log.append_many([dice.randbytes(size + k) for k in range(3)], tag=n % 3, atomic=True)
        elif n % 23 == 7:
            reservation = log.reserve(500, tag=9)
            reservation.abort()  # FILL
        else:
            log.append(dice.randbytes(size), tag=n % 3)
    log.wait_durable()


def records(batches: Iterable[shmlog.RecordBatch]) -> list[tuple[int, int, int, bytes]]:
    return [(r.lsn, r.time_ns, r.tag, bytes(r.data)) for batch in batches for r in batch]


def assert_shipped(
    log: shmlog.Log, batches: Iterable[shmlog.RecordBatch], tag: int | None = None, start: int | None = None
) -> None:
    """The batches are the log's records, each once, in order, byte for byte."""
    expected, found = records(log.read_batches(start, tag=tag)), records(batches)
    assert [r[0] for r in found] == [r[0] for r in expected]
    assert found == expected


class Faulty:
    """A sink that something happens to.  Events are counted: before tail, after it, before put, after it."""

    def __init__(
        self,
        sink: Any,
        die_at: int | None = None,
        happen: Callable[[int, str], None] | None = None,
    ) -> None:
        self._sink: Any = sink
        self._die_at, self._happen = die_at, happen
        self.events = 0

    @property
    def chunk_bytes_max(self) -> int:
        return int(self._sink.chunk_bytes_max)

    def _event(self, name: str) -> None:
        self.events += 1
        if self.events == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._happen is not None:
            self._happen(self.events, name)

    def tail(self) -> Tail | None:
        self._event("before tail")
        found: Tail | None = self._sink.tail()
        self._event("after tail")
        return found

    def put(self, chunk: bytes, tail: Tail) -> None:
        self._event("before put")
        self._sink.put(chunk, tail)
        self._event("after put")

    def idle(self) -> None:
        self._sink.idle()

    def close(self) -> None:
        self._sink.close()


class FaultyGroups(Faulty):
    """The same, for a sink that takes several chunks at once."""

    @property
    def chunks_max(self) -> int:
        return int(self._sink.chunks_max)

    def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
        self._event("before put")
        self._sink.put_chunks(chunks)
        self._event("after put")


class FaultyRecords(Faulty):
    """The same, for a sink that takes records."""

    @property
    def records_max(self) -> int:
        return int(self._sink.records_max)

    def put_records(self, records: shmlog.RecordBatch, begin_lsn: int, tail: Tail) -> None:
        self._event("before put")
        self._sink.put_records(records, begin_lsn, tail)
        self._event("after put")


# ---------------------------------------------------------------- what may happen


def assert_joined(log: shmlog.Log, batches: Iterable[shmlog.RecordBatch]) -> None:
    """What lies before a record belongs to the chunk before it."""
    end = 0
    for batch in batches:
        assert batch.lsn[0] == end, "what lies before a record belongs to the chunk before it"
        end = batch.next_lsn
    assert end == log.durable_lsn


def ship_a_copy(log_path: Path, copy: Path, longer: bool, ship: Use, arrived: Use) -> None:
    """A copy of the log went its own way: it is refused, and the original goes on."""
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 20)
    shutil.copytree(log_path, copy)
    with shmlog.open(log_path) as log:
        log.append(b"the original's", durable=True)
        ship(log)
        end = log.durable_lsn
    with shmlog.open(copy) as log:
        if longer:
            for _ in range(10):
                log.append(b"the copy's own", durable=True)
        before = log.durable_lsn
        with pytest.raises(shmlog.SourceDivergedError) as diverged:
            ship(log)
        assert diverged.value.lsn == end and (before > end) == longer
        assert ("durable only up to" in str(diverged.value)) == (not longer)
    with shmlog.open(log_path) as log:
        log.append(b"goes on")
        ship(log)
        arrived(log)


def ship_logs_made_anew(log_path: Path, ship: Use, arrived: Use) -> None:
    """Two logs, one after the other in one place."""
    ids = set()
    for _ in range(2):
        with shmlog.open(log_path, create=True, **SMALL) as log:
            fill(log, 10, seed=len(ids))
            ship(log)
            arrived(log)
            ids.add(log.log_id)
        shutil.rmtree(log_path)
    assert len(ids) == 2


def ship_to_one_rolled_back(
    server: Served, log: shmlog.Log, old: Path, ship: Use, arrived: Use, caplog: pytest.LogCaptureFixture
) -> None:
    """A server is given older files: it gets again what it lost, unless that was trimmed."""

    def roll_back() -> None:
        server.kill()
        shutil.rmtree(server.path / "data")
        shutil.copytree(old, server.path / "data")

    fill(log, 50)
    ship(log)
    server.kill()
    shutil.copytree(server.path / "data", old)
    server.start()
    fill(log, 50, seed=2)
    ship(log)
    roll_back()
    server.start()
    fill(log, 20, seed=3)
    ship(log)
    assert "shipping it again" in caplog.text
    arrived(log)
    roll_back()
    log.trim(log.durable_lsn)
    server.start()
    with pytest.raises(shmlog.TrimmedError):
        ship(log)


def ship_to_one_killed(server: Served, log: shmlog.Log, sink: Any, arrived: Use) -> None:
    """A server is killed and comes back: it is waited for."""
    fill(log, 50)
    with Shipper(log, sink, chunk_bytes=1 << 10) as shipper:
        loop = threading.Thread(target=shipper.run)
        loop.start()
        try:
            until(lambda: shipper.statistics.chunks > 3)
            server.kill()
            fill(log, 50, seed=2)
            until(lambda: shipper.statistics.retries > 0)
            server.start()
            until(lambda: shipper.statistics.position_lsn == log.durable_lsn)
        finally:
            shipper.stop()
            loop.join()
    arrived(log)


def ship_through_losses(shipper: Shipper, chunk_bytes: int, times: Callable[[], int]) -> None:
    """Step until all is shipped, whatever the engine loses; a chunk is cut otherwise the next time.
    times: how often it could have lost something."""
    while True:
        try:
            if not shipper.step():
                return
        except EngineError:
            shipper._chunk_bytes = chunk_bytes + chunk_bytes * (times() % 2)
