"""Writer: what an append does when it cannot go straight through.

The append paths themselves are in the native core, which calls _slow for whatever
is rare: no room, a segment that is not mapped, a fork, a fault, a sleeping
flusher, a durable wait.  A refused append has given its claim up before it comes
here, so that its wait cannot block the repair of what it waits for.

This module knows why an append waits.  It may not know how a log is opened.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable

from shmlog import _native
from shmlog.control import ControlBlock
from shmlog.directory import Directory
from shmlog.errors import LogFailedError, LogFullError, RecordTooLargeError
from shmlog.layout import CB_FULL_ERRNO, CB_PREPARE_TRIES
from shmlog.participants import Participants
from shmlog.segments import map_segment
from shmlog.waiting import DURABLE, ROOM, Waiting

EFAULT = 14


def check_timeout(timeout: object) -> float:
    """A timeout in seconds, or TypeError / ValueError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must not be negative: {timeout}")
    return min(float(timeout), 1e9)


class Writer(_native.Writer):
    """The write half of a handle."""

    def __init__(self, directory: Directory, timeout: float, on_stale: Callable[[], None]) -> None:
        geometry = directory.identity.geometry
        super().__init__(directory.identity.seed, geometry.segment_bytes, geometry.window_bytes)
        self._directory = directory
        self._timeout = timeout
        self._on_stale = on_stale
        self._map_lock = threading.Lock()

    def bind(self, control: ControlBlock, participants: Participants, number: int, waiting: Waiting) -> None:
        """Write as participant `number` from now on."""
        self._control = control
        self._participants = participants
        self._waiting = waiting
        self._map_lock = threading.Lock()
        self._attach(control.native, number)

    def seal(self, deadline: float) -> None:
        """Refuse appends from now on and wait for those in flight."""
        while busy := self._seal():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{busy} appends or reservations of this handle are still open")
            time.sleep(0.0005)
        self._unmap()

    def _slow(self, reason: int, lsn: int, timeout: float | None, deadline: float | None, /) -> float | None:
        """Resolve what stopped an append, or raise.  Returns the append's deadline."""
        if reason == _native.SLOW_BELL:
            self._waiting.ring_commit()
            return deadline
        if deadline is None:
            deadline = time.monotonic() + (self._timeout if timeout is None else check_timeout(timeout))
        if reason == _native.SLOW_ROOM:
            self._wait_for_room(lsn, deadline)
        elif reason == _native.SLOW_MAP:
            self._map_segment(lsn)
        elif reason == _native.SLOW_DURABLE:
            if not self._waiting.until(DURABLE, lsn + 1, deadline):
                raise TimeoutError(f"appended at LSN {lsn}, but not known to be durable: the wait ran out")
        elif reason == _native.SLOW_STALE:
            self._on_stale()
        elif reason == _native.SLOW_CLAIMS:
            if time.monotonic() >= deadline:
                raise TimeoutError("every claim of this handle is taken by its threads and open reservations")
            time.sleep(0.0002)
        elif reason == _native.SLOW_LARGE:
            raise RecordTooLargeError(
                f"{lsn} bytes are too large for one record or atomic batch of this log:"
                f" the limit is {self.record_bytes_max}"
            )
        else:
            self._control.fail(EFAULT, lsn)
            raise LogFailedError(EFAULT, lsn, "a segment file was changed or lost under the log")
        return deadline

    def _map_segment(self, lsn: int) -> None:
        with self._map_lock:
            self._drop_below(self._control.committed_lsn)
            mapping = map_segment(self._directory, lsn, writable=True)
            self._map(self._directory.identity.geometry.segment_no(lsn), mapping)

    def _wait_for_room(self, end: int, deadline: float) -> None:
        control = self._control
        tries = control.load(CB_PREPARE_TRIES)

        def disk_is_full() -> bool:  # and was tried anew since we asked
            return bool(control.load(CB_FULL_ERRNO)) and control.load(CB_PREPARE_TRIES) > tries + 1

        if not self._waiting.until(ROOM, end, deadline, disk_is_full):
            raise LogFullError(self._why_full(end))

    def _why_full(self, end: int) -> str:
        """Name what holds the room back."""
        control = self._control
        errno = control.load(CB_FULL_ERRNO)
        if errno:
            return f"no room for [.., {end}): the flusher cannot prepare more: {os.strerror(errno)}"
        committed, limit = control.committed_lsn, control.limit_lsn
        text = f"no room up to LSN {end}: the limit is {limit}, committed {committed}, window full"
        for number in range(self._participants.high):
            if any(claim.begin == committed for claim in self._participants.claims(number)):
                who = self._participants.describe(number)
                name = f"participant {number} (pid {who.pid}, {who.name})"
                return f"{text}; {name} has not finished LSN {committed}"
        return f"{text}; is the flusher running?"
