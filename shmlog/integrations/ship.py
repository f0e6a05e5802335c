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
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final

import shmlog
from shmlog.integrations.ahead import Ahead, Part
from shmlog.integrations.repeating import DURABLE_S, EngineError, Repeating
from shmlog.integrations.reporter import Reporter
from shmlog.integrations.sinks import ConflictError, RecordSink, Sink, Tail, WaitingSink, last_of

CHUNK_BYTES: Final = 256 << 10
COMMIT_S: Final = 1.0
"""How often the cursor follows the position."""

_logger = logging.getLogger("shmlog.ship")


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
        self._puts_records = isinstance(sink, RecordSink)
        self._ahead = Ahead(log, sink, self.shipper_id, tags, chunk_bytes)
        if isinstance(sink, WaitingSink):
            sink.meanwhile = self._ahead.prepare
        self._tail: Tail | None = None
        self._known = False  # whether _tail is the engine's
        self._position = self._floor = self._cursor.lsn
        self._wrote = False
        self._committed_at = 0.0
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
            parts = self._ahead.parts(self._position, self._tail.last if self._tail else None)
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
        self._known = False
        self._ahead.forget()
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

    def _put(self, parts: list[Part]) -> None:
        if self._puts_records:
            self._sink.put_records(parts[0].records, parts[0].begin_lsn, parts[0].tail)
        elif len(parts) > 1:
            self._sink.put_chunks([(part.chunk, part.tail) for part in parts])
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
        return self._ahead.seen_lsn + 1

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
