"""Readonly: look at a log, live or dead, without joining it.

Nothing is written, no participant slot is taken, nobody can be delayed.

This module puts the reader and the control block's read-only view together.  It
may not know how to append.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from shmlog import control, directory, files
from shmlog import recovery as recovery_module
from shmlog.directory import Directory
from shmlog.errors import ClosedError
from shmlog.layout import CB_DURABLE_LSN
from shmlog.reader import Reader, Reading, Record
from shmlog.recovery import Recovery
from shmlog.waiting import check_timeout


class ReadonlyLog(Reading):
    """A log, live or dead, open for reading: no writes, no participant slot.

    Of a dead log it sees what recovery would keep; `recovery` says what that is.
    """

    def __init__(self, where: Directory) -> None:
        self.path = where.path
        self._directory = where
        self._reader = Reader(where)
        self._closed = False
        self._block: control.BlockView | None = control.view_block(
            where.identity, files.boot_id(), where.lock_path
        )
        self.recovery: Recovery | None = None
        if self._block is None:
            self.recovery = recovery_module.inspect(where, files.boot_id())
            self._reader = Reader(where, self.recovery.holes)

    def _bounds(self) -> tuple[int, int]:
        if self._closed:
            raise ClosedError(f"the log {self.path} has been closed")
        if self._block is not None:
            return self._block.bounds()
        assert self.recovery is not None
        return self.recovery.trimmed_lsn, self.recovery.end_lsn

    @property
    def live(self) -> bool:
        """Whether the log had a control block when it was opened."""
        return self._block is not None

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
        if self._block is not None:
            return self._block.load(CB_DURABLE_LSN)
        assert self.recovery is not None
        return self.recovery.vouched_lsn

    def tail(self, start: int | None = None, timeout: float | None = None) -> Iterator[Record]:
        """As Log.tail(), but looks every few milliseconds: a reader without a participant
        slot cannot be woken.  Of a dead log it ends with TimeoutError, or never."""
        seconds = None if timeout is None else check_timeout(timeout)
        begin, _ = self._range(self.committed_lsn if start is None else start, None)
        return self._tail(begin, seconds)

    def _tail(self, begin: int, seconds: float | None) -> Iterator[Record]:
        quiet_since, pause_s = time.monotonic(), 0.0005
        while True:
            _, committed = self._bounds()
            if committed > begin:
                yield from self._reader.records(begin, committed, committed)
                begin, quiet_since, pause_s = committed, time.monotonic(), 0.0005
                continue
            if seconds is not None and time.monotonic() - quiet_since >= seconds:
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

    Raises FileNotFoundError, FormatError, and CorruptionError of a dead log that is
    damaged below what it vouches for.
    """
    return ReadonlyLog(directory.load(os.fsdecode(path)))
