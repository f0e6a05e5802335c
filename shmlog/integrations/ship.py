"""Ship: a log's records to an engine that keeps them on other machines: all, once, in order.

    log       | ........ durable_lsn ... committed_lsn
    engine    | chunk | chunk | chunk |              E: where its last chunk ends
    cursor    | ................. |                  at or below E; the log is kept from here on

Invariants
  I11  Only what is below durable_lsn leaves the host. After a power cut the LSNs above it come back
      with other records.
  I12  The engine holds the position, written in one with the data. The cursor bounds it from below,
      and keeps the log from being trimmed.
  I13  Every write is conditional on the position that it continues.
  I14  A chunk begins where the one before it ends. What lies between two records and is none (PAD, FILL,
      other tags) belongs to the chunk before it.
  I15  The cursor never passes what the engine has acknowledged, unless max_held_bytes asks for that.
  I16  At every start, and after every error, the last record that the engine holds must still be in the
      log, by its LSN and its frame's checksum.

    E, as the engine has it                     what is done
    cursor <= E <= durable_lsn, and I16         go on from E
    E < cursor: the engine lost records         rewind to E, and say so; TrimmedError if they are gone
    E > durable_lsn, or not I16                 SourceDivergedError; never go on
    nothing there                               begin at the cursor
    another log's id                            another place in the engine

This module knows a log's public names and a sink.  It may not know any engine.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import shmlog
from shmlog.integrations.ahead import Ahead, Part
from shmlog.integrations.repeating import DURABLE_S, EngineError, Repeating
from shmlog.integrations.reporter import Reporter

CHUNK_BYTES: Final = 256 << 10
CHUNK_PREFIX_BYTES: Final = 64
"""Of a chunk are not frames."""
RECORDS_MAX: Final = 1 << 30
GROUP_BYTES: Final = 1 << 20
"""Chunks that are put at once are together about so large at most."""
GAP_BYTES: Final = 16 << 20
"""So much without a wanted record is shipped as a chunk without records: the position moves on."""
COMMIT_S: Final = 1.0
"""How often the cursor follows the position."""

_logger = logging.getLogger("shmlog.ship")


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


@dataclass(frozen=True, slots=True)
class ShipStatistics:
    """What a shipper has done since it was made."""

    position_lsn: int = 0
    """up to here the engine has it"""
    chunks: int = 0
    records: int = 0
    bytes: int = 0
    """of chunks"""
    retries: int = 0
    """errors of the engine"""
    resyncs: int = 0
    """positions that were asked for anew"""
    last_error: str = ""
    failing: bool = False
    """whether the last attempt was an error of the engine"""
    released_lsn: int = 0
    """below it the log was let go of by max_held_bytes, shipped or not"""


def last_of(batch: shmlog.RecordBatch) -> tuple[int, int]:
    """LSN and frame checksum of a batch's last record."""
    frame = batch[len(batch) - 1 :].frames()
    return int(batch.lsn[-1]), int(struct.unpack_from("<I", frame, 4)[0])


class Shipper(Repeating):
    """Ships one log to one sink, from one process.  A context manager.

    sink: it is its own whether it takes chunks or records. name: of the cursor that keeps what is not yet
    shipped. tags: only these records; the position moves over the others. max_held_bytes: give up keeping
    for the engine what is more than this behind, and say so; None: never. step() for programs with a loop
    of their own, else run().
    """

    def __init__(
        self,
        log: shmlog.Log,
        sink: Sink | RecordSink,
        *,
        name: str = "ship",
        tags: int | Iterable[int] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        max_held_bytes: int | None = None,
    ) -> None:
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be positive: {chunk_bytes}")
        self.shipper_id = secrets.token_hex(8)
        self._cursor = log.cursor(name)  # first: it may be open elsewhere
        super().__init__(log)
        self._sink: Any = sink
        self._groups = sink if isinstance(sink, GroupSink) else None
        self._records = sink if isinstance(sink, RecordSink) else None
        self._records_max = RECORDS_MAX if self._records is None else self._records.records_max
        self._tags = None if tags is None else tags if isinstance(tags, (int, range)) else frozenset(tags)
        self._chunk_bytes = chunk_bytes
        self._tail: Tail | None = None
        self._known = False  # whether _tail is the engine's
        self._position = self._floor = self._cursor.lsn
        self._wrote = False
        self._ahead: Ahead | None = None
        self._committed_at = 0.0
        self._seen = 0  # durable_lsn when _next() last looked
        self._max_held_bytes, self._released = max_held_bytes, 0
        self._reporter = Reporter(log.path, name)
        self.statistics = ShipStatistics(self._position)

    # ------------------------------------------------------------------ steps

    def step(self) -> bool:
        """Ship one chunk, or find out where to go on; False if there is nothing to ship.

        Blocks as long as the engine takes. EngineError: nothing is lost, call again, best after a
        pause. FencedError: another shipper has taken over. SourceDivergedError, TrimmedError,
        CorruptionError, RecordTooLargeError: it cannot go on; nothing was left out.
        """
        self._release()
        try:
            if not self._known:
                self._resume()
            parts = self._gather()
            if not parts:
                self._commit(DURABLE_S)
                self._sink.idle()
                self._reporter.say(self)
                return False
            self._put(parts)
        except ConflictError:
            self._forget()
            return True
        except EngineError as error:
            self._forget()
            was = self.statistics
            self.statistics = replace(was, retries=was.retries + 1, last_error=str(error), failing=True)
            self._reporter.say(self)
            raise
        self._tail, self._position, self._wrote = parts[-1].tail, parts[-1].tail.end_lsn, True
        was = self.statistics
        self.statistics = replace(
            was,
            position_lsn=self._position,
            failing=False,
            chunks=was.chunks + len(parts),
            records=was.records + sum(len(part.records) for part in parts),
            bytes=was.bytes + sum(part.bytes for part in parts),
        )
        self._commit(COMMIT_S)
        self._reporter.say(self)
        return True

    def _forget(self) -> None:
        """The position is the engine's to say."""
        self._known, self._ahead = False, None
        self.statistics = replace(self.statistics, resyncs=self.statistics.resyncs + 1)

    def _resume(self) -> None:
        """The table above."""
        tail = self._sink.tail()
        if tail is None:
            if self._wrote:
                _logger.warning("the engine lost all that it had acknowledged")
            position = self._floor
        else:
            if self._wrote and tail.shipper != self.shipper_id:
                raise shmlog.FencedError(tail.end_lsn, tail.shipper)
            position = tail.end_lsn
            self._check_source(tail)
            if position < self._cursor.lsn and not self._released:
                _logger.warning(
                    "the engine has LSN %d last, and the cursor is at %d: shipping it again",
                    position,
                    self._cursor.lsn,
                )
        self._tail, self._position, self._known = tail, position, True
        self.statistics = replace(self.statistics, position_lsn=position)

    def _check_source(self, tail: Tail) -> None:
        """I16.  A last record that was trimmed since cannot be looked at; it is believed."""
        durable = self._log.durable_lsn
        if tail.end_lsn > durable:
            raise shmlog.SourceDivergedError(tail.end_lsn, f"it is durable only up to LSN {durable}")
        if tail.last is None or tail.last[0] < self._log.trimmed_lsn:
            return
        lsn = tail.last[0]
        try:
            here = next(self._log.read_batches(lsn, lsn + 1, records=1))
        except (ValueError, StopIteration, shmlog.CorruptionError) as error:
            raise shmlog.SourceDivergedError(
                tail.end_lsn, f"no valid record begins at LSN {lsn}, where the engine's last one did"
            ) from error
        if last_of(here) != tail.last:
            raise shmlog.SourceDivergedError(tail.end_lsn, f"another record is at LSN {lsn}")

    def _gather(self) -> list[Part]:
        """What is put next, in one: more than one chunk only where more is waiting, and is taken."""
        parts: list[Part] = []
        most = self._groups.chunks_max if self._groups is not None else 1
        begin, last = self._position, self._tail.last if self._tail else None
        room = GROUP_BYTES
        while not parts or (
            len(parts) < most and room >= parts[-1].bytes and self._ahead is not None and self._ahead.more
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
                self._ahead = None  # what is before it goes first
                break
            begin, last = found[1].end_lsn, found[1].last
        return parts

    def _next(self, begin: int, last: tuple[int, int] | None) -> tuple[shmlog.RecordBatch, Tail] | None:
        """The records that follow, and what the tail is after them; None: nothing is durable yet."""
        part = None
        while part is None:
            if self._ahead is None:
                self._seen = self._log.durable_lsn
                if self._seen <= begin:
                    return None
                self._ahead = Ahead(self._log, begin, self._seen, self._tags)
            most_bytes = min(self._chunk_bytes, self._sink.chunk_bytes_max) - CHUNK_PREFIX_BYTES
            part, end = self._ahead.part(most_bytes, self._records_max)
            if part is None:
                self._ahead = None
                if end - begin >= GAP_BYTES:
                    part = self._log.take([])
                elif self._log.durable_lsn <= self._seen:
                    return None
        return part, Tail(end, self.shipper_id, last_of(part) if len(part) else last)

    def _shaped(self, begin: int, records: shmlog.RecordBatch, tail: Tail) -> Part:
        """In the form that the engine takes."""
        chunk, size = b"", CHUNK_PREFIX_BYTES + records.frames().nbytes
        if self._records is None:
            chunk = shmlog.encode_chunk(records, self._log.log_id, begin, tail.end_lsn)
        if size > self._sink.chunk_bytes_max:
            raise shmlog.RecordTooLargeError(
                f"the record at LSN {records.lsn[0]} takes {size} bytes, and the engine takes"
                f" {self._sink.chunk_bytes_max} at most"
            )
        return Part(begin, tail, records, chunk, size)

    def _put(self, parts: list[Part]) -> None:
        if self._records is not None:
            self._records.put_records(parts[0].records, parts[0].begin_lsn, parts[0].tail)
        elif self._groups is not None and len(parts) > 1:
            self._groups.put_chunks([(part.chunk, part.tail) for part in parts])
        else:
            self._sink.put(parts[0].chunk, parts[0].tail)

    def _commit(self, seconds: float) -> None:
        """The cursor follows, not more often than that."""
        now = time.monotonic()
        if self._position < self._released:
            return  # what was let go of is not held again
        if self._known and self._cursor.lsn != self._position and now - self._committed_at >= seconds:
            self._cursor.commit(self._position)
            self._committed_at = now

    def _release(self) -> None:
        """Let go of what is too much to hold, by whole segments: writers' room before the engine's."""
        limit, committed = self._max_held_bytes, self._log.committed_lsn
        if limit is None or committed - max(self._cursor.lsn, self._log.trimmed_lsn) <= limit:
            return
        size = self._log.segment_bytes
        lsn = min((committed - limit + size - 1) // size * size, self._log.durable_lsn // size * size)
        if lsn <= max(self._cursor.lsn, self._position):
            return
        self._cursor.commit(lsn)
        self._released = lsn
        self.statistics = replace(self.statistics, released_lsn=lsn)
        _logger.error(
            "more than %d bytes are not shipped: the log is let go of below LSN %d, and the engine has it"
            " only up to %d; what is trimmed of that before it is shipped cannot be shipped any more",
            limit,
            lsn,
            self._position,
        )

    def _wanted_lsn(self) -> int:
        return self._seen + 1

    def _settle(self) -> None:
        self._commit(0.0)
        self._reporter.say(self, at_once=True)

    @property
    def lag(self) -> shmlog.Lag:
        """How far the engine is behind committed_lsn: bytes, records, seconds.  Reads the headers
        between."""
        self._cursor.seek(max(self._position, self._log.trimmed_lsn))
        return self._cursor.lag

    def close(self) -> None:
        """Let go of cursor and sink; the log stays open.  Idempotent."""
        if self._close_bell():
            self._cursor.close()
            self._sink.close()

    def __enter__(self) -> Shipper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
