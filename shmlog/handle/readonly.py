"""Readonly: the handle on a log that is only looked at.

This module puts a reader behind a look.  It may not know how to append.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from shmlog.disk import directory
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import Recovery
from shmlog.errors import ClosedError
from shmlog.format.layout import CB
from shmlog.handle.reading import Reading
from shmlog.records.batch import Record
from shmlog.records.reader import CoreTags, Reader, Tags, core_tags
from shmlog.session.look import Dead, Live, Look
from shmlog.system.deadlines import check_timeout

LOOK_S = 0.05
"""How often tail() looks for another control block while no record comes."""


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

    def tail(
        self, start: int | None = None, timeout: float | None = None, *, tags: Tags = None
    ) -> Iterator[Record]:
        """As Log.tail(), but looks every few milliseconds: a reader without a participant
        slot cannot be woken.  Waits on a dead log too, and goes on with the records of every
        later session, until TimeoutError."""
        seconds = None if timeout is None else check_timeout(timeout)
        begin, _ = self._range(self.committed_lsn if start is None else start, None)
        return self._tail(begin, seconds, start is not None, core_tags(tags))

    def _tail(self, begin: int, seconds: float | None, named: bool, tags: CoreTags) -> Iterator[Record]:
        now = self._now()
        quiet_since = looked_at = time.monotonic()
        pause_s = 0.0005
        while True:
            if self._closed:
                raise ClosedError(f"the log {self.path} has been closed")
            _, committed = now.bounds()
            if committed > begin:
                yield from self._reader.records(begin, committed, committed, True, named, tags)
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
        self._close_reading()

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
