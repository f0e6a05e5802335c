"""Sinks: what an engine is for a shipper, and what it is given.

    tail()               Tail: up to where it holds the log, by whom, and the last record
    put, put_chunks      chunks, each with the tail that it makes
    put_records          records, with the tail that they make

This module knows positions.  It may not know any engine, or how a log is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import shmlog


class ConflictError(Exception):
    """The engine's position is not where the write continues it; nothing was written."""


class Tail(NamedTuple):
    """What an engine holds of a log: up to where, and who put it there."""

    end_lsn: int
    shipper: str
    last: tuple[int, int] | None
    """LSN and checksum of the last record; None if there is no record yet"""


class Place(Protocol):
    """One log's place in an engine."""

    chunk_bytes_max: int
    """The largest chunk that the engine takes, or the most that the frames of one put_records() take."""

    def tail(self) -> Tail | None:
        """What is there, as whoever decides in the engine has it; the next put continues it.
        EngineError."""
        ...

    def idle(self) -> None:
        """There is nothing to put; called at least every second, while that is so."""
        ...

    def close(self) -> None: ...


class Sink(Place, Protocol):
    """A place that takes chunks."""

    def put(self, chunk: bytes, tail: Tail) -> None:
        """Add a chunk, and with it what the tail is then, on the condition that nothing was added since
        the last tail() or put(). Returns when it is safe. ConflictError, EngineError."""
        ...


@runtime_checkable
class WaitingSink(Protocol):
    """A place that lets the shipper work while it waits."""

    meanwhile: Callable[[], None]
    """Every put may call this once, when the data is on its way: what follows is made ready. It raises
    nothing."""


def nothing() -> None:
    """What there is to do meanwhile, until a shipper says it."""


@runtime_checkable
class GroupSink(Sink, Protocol):
    """A place that takes several chunks at once, too."""

    @property
    def chunks_max(self) -> int:
        """The most chunks of one put_chunks(); the next tail() may change it."""
        ...

    def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
        """Add all of these, or none, as put()."""
        ...


@runtime_checkable
class RecordSink(Place, Protocol):
    """A place that takes a message a record."""

    records_max: int
    """The most records of one put_records()."""

    def put_records(self, records: shmlog.RecordBatch, begin_lsn: int, tail: Tail) -> None:
        """Add all of these, or none, as Sink.put(). They are what there is in [begin_lsn, tail.end_lsn);
        none, if only the position moves."""
        ...


def last_of(batch: shmlog.RecordBatch) -> tuple[int, int]:
    """LSN and frame checksum of a batch's last record."""
    last, frames = batch[-1], batch.frames()
    (checksum,) = struct.unpack_from("<I", frames, frames.nbytes - (last.next_lsn - last.lsn) + 4)
    return last.lsn, checksum
