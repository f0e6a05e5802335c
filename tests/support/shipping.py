"""Shipping: a log whose every kind of frame must arrive, sinks with faults, and the comparison.

fill(log)                 records of all sizes, PAD, FILL, atomic batches
Faulty(sink, die_at=7)    kills its process at the seventh step of a sink; FaultyGroups, FaultyRecords
assert_shipped(log, NatsReader(...))
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import shmlog
from shmlog.integrations.ship import Tail

SMALL = {"segment_bytes": 64 << 10, "window_bytes": 64 << 10}


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
