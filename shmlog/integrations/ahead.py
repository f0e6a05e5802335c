"""Ahead: the durable records from a position on, cut into what is put at once.

    log    | record | record | PAD | record | FILL .... end
    part   |  first part           |  second part         |        a part ends where the next record begins
              the engine takes it  |  is being prepared

What lies between two records and is none belongs to the part before it (I14 of ship): so the end of a part
is known only when the next record is seen, and the last part ends at the end.

Invariants, after those of ship
  I26  What is cut next begins at the position that is asked for, whatever error or interrupt came
       between; else it is read again from there: nothing is left out.
  I27  What was prepared is given out only where it continues the position, and prepared once.

This module knows records, sizes and what a sink can take.  It may not know engines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

import shmlog
from shmlog.integrations.sinks import GroupSink, RecordSink, Sink, Tail, last_of

CHUNK_PREFIX_BYTES: Final = 64
"""Of a chunk are not frames."""
GROUP_BYTES: Final = 1 << 20
"""Chunks that are put at once are together about so large at most."""
GAP_BYTES: Final = 16 << 20
"""So much without a wanted record is shipped as a chunk without records: the position moves on."""
RECORDS_MAX: Final = 1 << 30


class Part(NamedTuple):
    """What is put in one piece, and what the tail is after it."""

    begin_lsn: int
    tail: Tail
    records: shmlog.RecordBatch
    chunk: bytes
    """empty, where the engine takes records"""
    bytes: int


class _Cut:
    """The records of [begin, end), some at a time; knows where the next one begins (I14)."""

    def __init__(self, log: shmlog.Log, begin: int, end: int, tags: int | Iterable[int] | None) -> None:
        self._end = end
        self._batches: Iterator[shmlog.RecordBatch] = log.read_batches(begin, end, tags)
        self._batch: shmlog.RecordBatch | None = None
        self._advance()

    @property
    def more(self) -> bool:
        """Whether next() has another."""
        return self._batch is not None

    def _advance(self) -> None:
        self._at = 0
        self._batch = next(self._batches, None)
        if self._batch is not None:
            granules = (self._batch.nbytes.astype(np.int64) + 63) // 32
            self._sizes = (granules * 32).cumsum()

    def next(self, most_bytes: int, most: int) -> tuple[shmlog.RecordBatch | None, int]:
        """As many of the next records as fit, at least one, and where the next one after them begins;
        None: there are no more."""
        batch, at = self._batch, self._at
        if batch is None:
            return None, self._end
        before = int(self._sizes[at - 1]) if at else 0
        stop = max(at + 1, int(np.searchsorted(self._sizes, before + most_bytes, "right")))
        stop = min(stop, at + most)
        part = batch[at:stop]
        self._at = stop
        if stop >= len(batch):
            self._advance()
        return part, self._end if self._batch is None else int(self._batch.lsn[self._at])


class Ahead:
    """What is put next.  seen_lsn is durable_lsn when it last looked."""

    def __init__(
        self,
        log: shmlog.Log,
        sink: Sink | RecordSink,
        shipper_id: str,
        tags: int | Iterable[int] | None,
        chunk_bytes: int,
    ) -> None:
        self._log, self._sink, self._shipper_id, self._chunk_bytes = log, sink, shipper_id, chunk_bytes
        self._tags = None if tags is None else tags if isinstance(tags, (int, range)) else frozenset(tags)
        self._groups = sink if isinstance(sink, GroupSink) else None
        self._records = sink if isinstance(sink, RecordSink) else None
        self._cut: _Cut | None = None
        self._at: int | None = None  # where what is cut next begins
        self._given: Tail | None = None
        self._prepared: list[Part] = []
        self.seen_lsn = 0

    def parts(self, position: int, last: tuple[int, int] | None) -> list[Part]:
        """What follows the position, whose last record is that one; empty: nothing is durable yet.

        More than one chunk only where more is waiting, and is taken at once. RecordTooLargeError,
        TrimmedError, CorruptionError: none was left out, and the next call says it again.
        """
        found, self._prepared = self._prepared, []
        if not found or found[0].begin_lsn != position:
            found = self._gather(position, last)
        self._given = found[-1].tail if found else None
        return found

    def prepare(self) -> None:
        """Gather what follows the last parts(), if it is known that there is more; never raises."""
        given, self._given = self._given, None  # once: what was prepared must not be passed over
        if given is None or self._cut is None or not self._cut.more:
            return
        with contextlib.suppress(Exception):  # parts() meets it again
            self._prepared = self._gather(given.end_lsn, given.last)

    def forget(self) -> None:
        """The position may be another one."""
        self._cut, self._given, self._prepared = None, None, []

    def _gather(self, begin: int, last: tuple[int, int] | None) -> list[Part]:
        if begin != self._at:
            self._cut = None  # it is cut for another position
        self._at = None  # I26: until this ends well
        most = 1 if self._groups is None else self._groups.chunks_max
        parts: list[Part] = []
        room = GROUP_BYTES
        while not parts or (
            len(parts) < most and room >= parts[-1].bytes and self._cut is not None and self._cut.more
        ):
            found = self._next(begin, last)
            if found is None:
                break
            try:
                parts.append(self._shaped(begin, *found))
                room -= parts[-1].bytes
            except shmlog.RecordTooLargeError:
                if not parts:
                    raise
                self._cut = None  # what is before it goes first
                break
            begin, last = found[1].end_lsn, found[1].last
        self._at = begin
        return parts

    def _next(self, begin: int, last: tuple[int, int] | None) -> tuple[shmlog.RecordBatch, Tail] | None:
        """The records that follow, and what the tail is after them; None: nothing is durable yet."""
        part = None
        while part is None:
            if self._cut is None:
                self.seen_lsn = self._log.durable_lsn
                if self.seen_lsn <= begin:
                    return None
                self._cut = _Cut(self._log, begin, self.seen_lsn, self._tags)
            most_bytes = min(self._chunk_bytes, self._sink.chunk_bytes_max) - CHUNK_PREFIX_BYTES
            most = RECORDS_MAX if self._records is None else self._records.records_max
            part, end = self._cut.next(most_bytes, most)
            if part is None:
                self._cut = None
                if end - begin >= GAP_BYTES:
                    part = self._log.take([])
                elif self._log.durable_lsn <= self.seen_lsn:
                    return None
        return part, Tail(end, self._shipper_id, last_of(part) if len(part) else last)

    def _shaped(self, begin: int, records: shmlog.RecordBatch, tail: Tail) -> Part:
        """In the form that the engine takes."""
        frames, chunk = records.frames(), b""
        size = CHUNK_PREFIX_BYTES + frames.nbytes
        if self._records is None:
            chunk = shmlog.join_frames(frames, len(records), self._log.log_id, begin, tail.end_lsn)
            records.check_memory()
        if size > self._sink.chunk_bytes_max:
            raise shmlog.RecordTooLargeError(
                f"the record at LSN {records.lsn[0]} takes {size} bytes, and the engine takes"
                f" {self._sink.chunk_bytes_max} at most"
            )
        return Part(begin, tail, records, chunk, size)
