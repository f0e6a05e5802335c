"""Readonly: look at a log, live or dead, without joining it.

Nothing is written, no participant slot is taken, nobody can be delayed.  What bounds
the records changes as the log's users come and go:

    control block   locks of LOCK   bounds
    -------------   -------------   ------------------------------------------------
    there           any             the block's watermarks, also once it was replaced
    not there       held            those of the last look: a session begins or ends;
                                    at the first look AttachError if none appears
    not there       free            what recovery would keep, found anew after a session

Invariants
  R1  The files are not judged while they are written: a record that is being copied
      would look like a hole.
  R2  The bounds never go back.

This module puts the reader and the control block's read-only view together.  It
may not know how to append.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from shmlog.disk import directory
from shmlog.disk import recovery as recovery_module
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import Recovery
from shmlog.disk.segments import list_segments, segment_path
from shmlog.errors import AttachError, ClosedError, CorruptionError, FormatError, ShmlogError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, SEGMENT_HEADER_BYTES
from shmlog.memory import control
from shmlog.memory.waiting import check_timeout
from shmlog.records.reader import Reader, Reading, Record
from shmlog.system import files
from shmlog.system.files import FIRST_PARTICIPANT_BYTE, LEASE_BYTE, LockView

PATIENCE_S = 2.0
LOOK_S = 0.05
"""How often tail() looks for another control block while no record comes."""


class _Live(NamedTuple):
    """Bounded by the watermarks of a control block."""

    block: control.BlockView
    created_ns: int

    def bounds(self) -> tuple[int, int]:
        return self.block.bounds()


class _Dead(NamedTuple):
    """Bounded by what recovery would keep of files that had this stamp."""

    recovery: Recovery
    stamp: tuple[list[int], bytes]

    def bounds(self) -> tuple[int, int]:
        return self.recovery.trimmed_lsn, self.recovery.end_lsn


class ReadonlyLog(Reading):
    """A log, live or dead, open for reading: no writes, no participant slot.

    Of a dead log it sees what recovery would keep; `recovery` says what that is.  Each
    use sees the log as it is then: a session that began or ended meanwhile is noticed.
    Raises FileNotFoundError and FormatError at the next use when the log was removed or
    replaced by another.
    """

    def __init__(self, where: Directory) -> None:
        self.path = where.path
        self._directory = where
        self._boot_id = files.boot_id()
        self._closed = False
        self._seen: _Live | _Dead | None = None
        self._trimmed = 0
        self._look()

    def _look(self) -> _Live | _Dead:
        """What bounds the log now, by the table above."""
        seen = self._seen
        view = self._view()
        if view is None:
            if seen is not None:
                self._check_place()
                if self._in_use():
                    return seen
            else:
                view = self._wait_for_block()
        if view is None:
            stamp = self._stamp()
            if isinstance(seen, _Dead) and seen.stamp == stamp:
                return seen
            try:
                found = recovery_module.inspect(self._directory, self._boot_id)
            except (ShmlogError, FileNotFoundError):
                if seen is None or (self._view() is None and self._stamp() == stamp):
                    raise
                return seen
            view = self._view()
            if view is None:  # R1: nobody came meanwhile
                if seen is None or self._stamp() == stamp:
                    return self._turn_to(_Dead(found, stamp), found.holes)
                return seen
        created_ns = view.load(CB.CREATED_NS)
        if isinstance(seen, _Live) and seen.created_ns == created_ns:
            return seen
        return self._turn_to(_Live(view, created_ns), ())

    def _wait_for_block(self) -> control.BlockView | None:
        """At the first look: None if nobody uses the log; else its block, which may be about
        to be made (R1)."""
        deadline = time.monotonic() + PATIENCE_S
        while self._in_use():
            if (view := self._view()) is not None:
                return view
            if time.monotonic() >= deadline:
                raise AttachError(
                    f"{self.path} is in use, but its control block is not here:"
                    " it was removed, or its users are in another container"
                )
            time.sleep(0.005)
        return self._view()

    def _turn_to(self, now: _Live | _Dead, holes: tuple[tuple[int, int], ...]) -> _Live | _Dead:
        committed = now.bounds()[1]
        if self._seen is not None and committed < self._seen.bounds()[1]:  # R2
            path = segment_path(self._directory, committed)
            raise CorruptionError(path, committed, "records that could be read have been lost")
        self._trimmed = max(self._trimmed, now.bounds()[0])  # a trim that was not durable is begun again
        self._reader = Reader(self._directory, holes)  # first: the bounds may include the holes
        self._seen = now
        return now

    def _view(self) -> control.BlockView | None:
        where = self._directory
        return control.view_block(where.identity, self._boot_id, where.lock_path)

    def _check_place(self) -> None:
        try:
            found = directory.load(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "the log has been removed", self.path) from None
        if found.identity != self._directory.identity:
            raise FormatError(f"{self.path} has been replaced by another log")

    def _in_use(self) -> bool:
        """Whether a lock of LOCK is held."""
        try:
            with LockView(self._directory.lock_path) as lock:
                return lock.locked(LEASE_BYTE, FIRST_PARTICIPANT_BYTE + PARTICIPANT_COUNT)
        except FileNotFoundError:
            return False

    def _stamp(self) -> tuple[list[int], bytes]:
        """Differs after every session that ended in order: its last mark is in the last segment."""
        segments = list_segments(self._directory)
        if not segments:
            return segments, b""
        try:
            fd = files.open_file(segment_path(self._directory, segments[-1]), writable=False)
        except FileNotFoundError:  # a session has begun and removed it
            return segments, b""
        with files.descriptor(fd):
            return segments, os.pread(fd, SEGMENT_HEADER_BYTES, 0)

    def _now(self) -> _Live | _Dead:
        if self._closed:
            raise ClosedError(f"the log {self.path} has been closed")
        return self._look()

    def _bounds(self) -> tuple[int, int]:
        trimmed, committed = self._now().bounds()
        self._trimmed = max(self._trimmed, trimmed)
        return self._trimmed, committed

    @property
    def live(self) -> bool:
        """Whether the log had a control block when it was last used."""
        return isinstance(self._seen, _Live)

    @property
    def recovery(self) -> Recovery | None:
        """What recovery would keep, if the log was dead when it was last used."""
        return self._seen.recovery if isinstance(self._seen, _Dead) else None

    @property
    def committed_lsn(self) -> int:
        """Records below it can be read."""
        return self._bounds()[1]

    @property
    def trimmed_lsn(self) -> int:
        """Records below it may be gone."""
        return self._bounds()[0]

    @property
    def durable_lsn(self) -> int:
        """Every record below it survives power loss."""
        now = self._now()
        return now.block.load(CB.DURABLE_LSN) if isinstance(now, _Live) else now.recovery.vouched_lsn

    def tail(self, start: int | None = None, timeout: float | None = None) -> Iterator[Record]:
        """As Log.tail(), but looks every few milliseconds: a reader without a participant
        slot cannot be woken.  Waits on a dead log too, and goes on with the records of every
        later session, until TimeoutError."""
        seconds = None if timeout is None else check_timeout(timeout)
        begin, _ = self._range(self.committed_lsn if start is None else start, None)
        return self._tail(begin, seconds, start is not None)

    def _tail(self, begin: int, seconds: float | None, named: bool) -> Iterator[Record]:
        now = self._now()
        quiet_since = looked_at = time.monotonic()
        pause_s = 0.0005
        while True:
            if self._closed:
                raise ClosedError(f"the log {self.path} has been closed")
            _, committed = now.bounds()
            if committed > begin:
                yield from self._reader.records(begin, committed, committed, named=named)
                named = False
                begin, quiet_since, pause_s = committed, time.monotonic(), 0.0005
                continue
            at = time.monotonic()
            if at - looked_at >= LOOK_S:
                now, looked_at = self._look(), at
                continue
            if seconds is not None and at - quiet_since >= seconds:
                raise TimeoutError(f"no record was committed at LSN {begin} for {seconds:g} s")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.01)

    def close(self) -> None:
        """Close the handle; views stay valid."""
        self._closed = True
        self._reader.close()

    def __enter__(self) -> ReadonlyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "live" if self.live else "dead"
        return f"<shmlog.ReadonlyLog {self.path!r}, {state}>"


def open_readonly(path: str | os.PathLike[str]) -> ReadonlyLog:
    """Open a live or dead log for reading only; needs no right to write to it.

    Raises FileNotFoundError, FormatError, CorruptionError of a dead log that is damaged
    below what it vouches for, and AttachError of a log in use whose control block is not
    here or not this user's.
    """
    return ReadonlyLog(directory.load(os.fsdecode(path)))
