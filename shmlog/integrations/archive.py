"""Archive: a log's sealed segments to an object store, which keeps them after the log trims them.

    log       | seg | seg | seg | seg ... durable_lsn         a segment below durable_lsn is sealed
    store     | .seg .json | .seg .json | .seg                the third is not there before its sidecar is
    cursor    | .......... | ......... |

Invariants, after those of ship
  I20  Every object is put create-only; what is there already must be equal, or it is another log's. A
       store that would put over it is found out before anything is put.
  I21  A sidecar is put after its segment was read back and compared. Without it there is no segment.
  I22  The log is trimmed only below what has a sidecar, and never beyond another cursor.

This module knows objects and sealed segments.  It may not know how either is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import shmlog
from shmlog.integrations.objects import Sidecar, Store, archived_until, segment_path, sidecar_path
from shmlog.integrations.repeating import EngineError, Repeating

_logger = logging.getLogger("shmlog.archive")


@dataclass(frozen=True, slots=True)
class ArchiveStatistics:
    """What an archiver has done since it was made."""

    position_lsn: int = 0
    """up to here the archive has it"""
    segments: int = 0
    records: int = 0
    bytes: int = 0
    trimmed_lsn: int = 0


class Archiver(Repeating):
    """Archives one log's sealed segments.  A context manager.

    name: of the cursor that keeps what is not archived. trim: give up in the log what is archived, but
    for the latest keep_bytes.
    """

    def __init__(
        self,
        log: shmlog.Log,
        store: Store,
        *,
        name: str = "archive",
        trim: bool = False,
        keep_bytes: int = 0,
    ) -> None:
        self._cursor = log.cursor(name)  # first: it may be open elsewhere
        super().__init__(log)
        self._store = store
        self._trim, self._keep_bytes = trim, keep_bytes
        self._ready = False
        self._position = self._cursor.lsn
        self.statistics = ArchiveStatistics(self._position, trimmed_lsn=log.trimmed_lsn)

    def step(self) -> bool:
        """Archive one segment; False if none is sealed.  Blocks as long as the store takes.

        EngineError: nothing is lost, call again, best after a pause. SourceDivergedError, TrimmedError,
        CorruptionError: it cannot go on. ValueError: the store cannot be an archive.
        """
        if not self._ready:
            self._begin()
        segment = next(self._log.sealed_segments(self._position), None)
        if segment is None:
            return False
        self._put(segment)
        self._position = segment.end_lsn
        self._cursor.commit(segment.end_lsn)
        if self._trim:
            self._trim_log()
        was = self.statistics
        self.statistics = ArchiveStatistics(
            self._position,
            was.segments + 1,
            was.records + segment.records,
            was.bytes + len(segment.data),
            self._log.trimmed_lsn,
        )
        return True

    @property
    def position_lsn(self) -> int:
        """Up to here the archive has the log."""
        return self._position

    def _wanted_lsn(self) -> int:
        return self._position + self._log.segment_bytes

    def _begin(self) -> None:
        """Probe the store, and find where the archive ends."""
        log_id = self._log.log_id
        self._store.probe(log_id)
        identity = Path(self._log.path, "shmlog.json").read_bytes()
        self._put_equal(f"{log_id}/shmlog.json", identity, 0)
        position = archived_until(self._store, log_id)
        if position is None:
            position = self._log.trimmed_lsn
        elif position < self._cursor.lsn:
            _logger.warning(
                "the archive ends at LSN %d, and had %d: archiving it again", position, self._cursor.lsn
            )
        elif position > self._log.durable_lsn:
            raise shmlog.SourceDivergedError(
                position, f"it is durable only up to LSN {self._log.durable_lsn}"
            )
        self._check_last(position)
        self._position, self._ready = position, True
        self.statistics = replace(self.statistics, position_lsn=position)

    def _check_last(self, position: int) -> None:
        """I16: the last archived segment must be the log's, if the log still has it."""
        first = position - self._log.segment_bytes
        if first < self._log.trimmed_lsn:
            return
        segment = next(self._log.sealed_segments(first))
        sidecar = Sidecar.of(self._log.log_id, segment)
        if self._store.get(sidecar_path(self._log.log_id, first)) != sidecar.encode():
            raise shmlog.SourceDivergedError(
                position, f"the segment at LSN {first} is another in the archive"
            )

    def _put(self, segment: shmlog.SealedSegment) -> None:
        """I20, I21."""
        log_id, first = self._log.log_id, segment.first_lsn
        self._put_equal(segment_path(log_id, first), segment.data, first)
        sidecar = Sidecar.of(log_id, segment)
        self._put_equal(sidecar_path(log_id, first), sidecar.encode(), first)

    def _put_equal(self, path: str, data: bytes | bytearray, lsn: int) -> None:
        created = self._store.create(path, data)
        if self._store.holds(path, data):
            return
        if created:
            raise EngineError(f"store: {path} was put, and what was read back is not it")
        raise shmlog.SourceDivergedError(lsn, f"{path} is there already, and holds something else")

    def _trim_log(self) -> None:
        """I22."""
        held = [cursor.lsn for cursor in self._log.cursors()]
        target = min([self._position - self._keep_bytes, *held])
        if target > self._log.trimmed_lsn:
            self._log.trim(target)

    def close(self) -> None:
        """Let go of the cursor; the log stays open.  Idempotent."""
        if self._close_bell():
            self._cursor.close()

    def __enter__(self) -> Archiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
