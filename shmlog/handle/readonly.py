"""Readonly: the handle on a log that is only looked at.

This module puts a reader behind a look.  It may not know how to append.
"""

from __future__ import annotations

import contextlib
import os
import time

from shmlog.disk import directory
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import Recovery
from shmlog.errors import ClosedError
from shmlog.format.layout import CB
from shmlog.handle.awaiting import Awaiting
from shmlog.handle.watch import Source, Watch, Watched
from shmlog.memory.participants import Table
from shmlog.memory.statistics import Statistics, at_rest, blocked_by, gather
from shmlog.records.reader import Reader
from shmlog.session.look import Dead, Live, Look
from shmlog.system.locks import LEASE_BYTE, LockView

LOOK_S = 0.05
"""How often tail() looks for another control block while no record comes."""
WATCH_S = 0.25
"""The same, of a watch."""


class ReadonlyLog(Awaiting):
    """A log, live or dead, open for reading: no writes, no participant slot.

    Of a dead log it sees what recovery would keep; `recovery` says what that is.  Each
    use sees the log as it is then: a session that began or ended meanwhile is noticed.
    Raises FileNotFoundError and FormatError at the next use when the log was removed or
    replaced by another.
    """

    def __init__(self, where: Directory) -> None:
        self.path = where.path
        self._directory = where
        self._closed = False
        self._eyes = Look(where)
        self._seen: Live | Dead | None = None
        self._trimmed = 0
        self._look()

    def _look(self) -> Live | Dead:
        now = self._eyes.again()
        if now is not self._seen:
            self._trimmed = max(self._trimmed, now.bounds()[0])  # a trim that was not durable is begun again
            holes = now.recovery.holes if isinstance(now, Dead) else ()
            self._reader = Reader(self._directory, holes)  # first: the bounds may include the holes
            self._seen = now
        return now

    def _now(self) -> Live | Dead:
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
        return isinstance(self._seen, Live)

    @property
    def recovery(self) -> Recovery | None:
        """What recovery would keep, if the log was dead when it was last used."""
        return self._seen.recovery if isinstance(self._seen, Dead) else None

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
        return now.block.load(CB.DURABLE_LSN) if isinstance(now, Live) else now.recovery.vouched_lsn

    def statistics(self) -> Statistics:
        """As Log.statistics(); of a dead log what recovery would keep, and counters of zero."""
        now = self._now()
        if isinstance(now, Dead):
            failure = now.recovery.failure
            durable, failed = now.recovery.vouched_lsn, str(failure) if failure else None
            return at_rest(self._bounds(), durable, self._retention(), self._places, failed)
        with LockView(self._directory.lock_path, self._directory.owner) as lock:
            table, runs = Table(now.block.load, lock.locked), lock.locked(LEASE_BYTE)
            return gather(now.block.load, table, runs, self._retention(), self._places)

    def _held_back(self) -> str:
        now = self._seen
        if not isinstance(now, Live):
            return ""
        with contextlib.suppress(OSError), LockView(self._directory.lock_path, self._directory.owner) as lock:
            who = blocked_by(now.block.load, Table(now.block.load, lock.locked))
            return f"; {who}" if who else ""
        return ""

    def _wait_beyond(self, begin: int, seconds: float | None) -> int:
        now = self._now()
        quiet_since = looked_at = time.monotonic()
        pause_s = 0.0005
        while (committed := now.bounds()[1]) <= begin:
            if self._closed:
                raise ClosedError(f"the log {self.path} has been closed")
            at = time.monotonic()
            if at - looked_at >= LOOK_S:
                now, looked_at = self._look(), at
                continue
            if seconds is not None and at - quiet_since >= seconds:
                raise TimeoutError(
                    f"no record was committed at LSN {begin} for {seconds:g} s{self._held_back()}"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.01)
        return committed

    def watch(self) -> Watch:
        """As Log.watch(), but for being looked at now and then: nobody wakes a reader without a
        participant slot.  Readable at least every quarter of a second while armed."""
        self._now()
        return Watch(self._watched, self._watermark)

    def _watched(self) -> Source:
        now = self._now()
        if isinstance(now, Live):
            return Source(now.block.mapping, WATCH_S, None)
        return Source(None, LOOK_S, None)

    def _watermark(self, kind: Watched) -> int:
        return self.committed_lsn if kind == "committed" else self.durable_lsn

    def _look_after(self) -> None:
        self._now()

    def close(self) -> None:
        """Close the handle; views stay valid."""
        self._closed = True
        self._close_reading()
        self._close_waits()

    def __enter__(self) -> ReadonlyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "live" if self.live else "dead"
        return f"<shmlog.ReadonlyLog {self.path!r}, {state}>"


def open_readonly(path: str | os.PathLike[str]) -> ReadonlyLog:
    """Open a live or dead log for reading only; needs no right to write to it.  Another user's
    log may be opened by root, and by a group that its mode lets read.

    Raises FileNotFoundError, FormatError, CorruptionError of a dead log that is damaged
    below what it vouches for, and AttachError of a log in use whose control block is not
    here or not its owner's. PermissionError if this user may not look at the log.
    """
    return ReadonlyLog(directory.load(os.fsdecode(path), to_look=True))
