"""Appending: what an append does when it cannot go straight through.

The append paths themselves are in the native core, which calls _slow for whatever
is rare: no room, a segment that is not mapped, a fork, a fault, a sleeping
flusher, a durable wait.  A refused append has given its claim up before it comes
here, so that its wait cannot block the repair of what it waits for.

This module knows why an append waits.  It may not know how a log is opened.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmlog import _native
from shmlog.disk import cursors
from shmlog.disk.directory import Directory
from shmlog.disk.segments import map_segment
from shmlog.errors import FormatError, LogFailedError, LogFullError, RecordTooLargeError, errno_text
from shmlog.format.layout import CB, NO_LSN
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import Participants
from shmlog.memory.statistics import blocked_by
from shmlog.memory.waiting import DURABLE, ROOM, Waiting
from shmlog.session.flushers import trouble
from shmlog.system.deadlines import check_timeout, poll
from shmlog.system.processes import describe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


MAPPING_S = 1.0
"""An append that may not wait maps its segment all the same.  One that is still not through
after so long never will be: an overwritten tail led to a higher segment in the same place."""


class Appending(_native.Writer):
    """The appending half of a handle."""

    def __init__(self, directory: Directory, timeout: float, on_stale: Callable[[], None]) -> None:
        geometry = directory.identity.geometry
        super().__init__(directory.identity.seed, geometry.segment_bytes, geometry.window_bytes)
        self._directory = directory
        self._timeout = timeout
        self._on_stale = on_stale

    def _bind(self, control: ControlBlock, participants: Participants, number: int, waiting: Waiting) -> None:
        """Write as participant `number` from now on."""
        self._control = control
        self._participants = participants
        self._waiting = waiting
        self._attach(control.native, number)

    def _use_first(self, mapping: _native.Mapping, lsn: int) -> None:
        """Append through the map of the segment that holds lsn."""
        self._map(self._directory.identity.geometry.segment_no(lsn), mapping)

    def _seal_until(self, deadline: float) -> None:
        """Refuse appends from now on and wait for those in flight."""
        if not poll(lambda: not self._seal(), deadline, pause_max_s=0.0005):
            raise TimeoutError(f"{self._seal()} appends or reservations of this handle are still open")
        self._unmap()

    def append_array(
        self, rows: npt.ArrayLike, /, tag: int = 0, *, durable: bool = False, timeout: float | None = None
    ) -> npt.NDArray[np.uint64]:
        """Append each row of a C-contiguous array as one record; LSNs of shape (len(rows),).

        The record is the row's bytes: of an array of shape (n, ...), of any dtype that holds
        no Python objects, structured ones too, a record has rows.nbytes // n bytes.
        Equal records in a row are read back as one array without a copy. Blocking and
        errors as append(); ValueError if the array is not C-contiguous.
        """
        import numpy as np

        if not isinstance(rows, np.ndarray):
            raise TypeError(f"append_array() takes a NumPy array, not {type(rows).__name__}")
        if rows.dtype.hasobject:
            raise TypeError(f"an array of Python objects cannot be appended: {rows.dtype}")
        if not rows.ndim:
            raise ValueError("append_array() takes an array of at least one dimension")
        if not rows.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous; np.ascontiguousarray makes a copy that is")
        if not rows.nbytes:
            plain = np.empty((len(rows), 0), np.uint8)
        else:  # as bytes: not every dtype can be exported as a buffer
            plain = rows.reshape(-1).view(np.uint8).reshape(len(rows), -1)
        return self._append_rows(plain, tag, durable=durable, timeout=timeout)

    def _slow(self, reason: int, lsn: int, timeout: float | None, deadline: float | None, /) -> float | None:
        """Resolve what stopped an append, or raise.  Returns the append's deadline."""
        if reason == _native.SLOW_BELL:
            self._control.commit_bell.ring()
            return deadline
        if reason == _native.SLOW_SYNC_BELL:
            self._control.sync_bell.ring()
            return deadline
        if deadline is None:
            deadline = time.monotonic() + (self._timeout if timeout is None else check_timeout(timeout))
        if reason == _native.SLOW_ROOM:
            self._wait_for_room(lsn, deadline)
        elif reason == _native.SLOW_MAP:
            trimmed, committed = self._control.bounds()  # damaged: no segment is the tail's
            self._map_segment(lsn)
            grace_s = 0.0 if lsn < committed else MAPPING_S
            if time.monotonic() >= deadline + grace_s:
                raise TimeoutError(f"the log went on past LSN {lsn} (trimmed {trimmed}): the append ran out")
        elif reason == _native.SLOW_DURABLE:
            if not self._waiting.until(DURABLE, lsn + 1, deadline):
                who = blocked_by(self._control.load, self._participants)
                why = (f"; {who}" if who else "") + trouble(self._directory, self._control)
                raise TimeoutError(
                    f"appended at LSN {lsn}, but not known to be durable: the wait ran out{why}"
                )
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
            self._control.fail(errno.EFAULT, lsn)
            raise LogFailedError(errno.EFAULT, lsn, "a segment file was changed or lost under the log")
        return deadline

    def _map_segment(self, lsn: int) -> None:
        """Map the segment that holds lsn.  No lock is held: a finalizer or a signal handler may run
        anywhere in here, and append.  Threads that come here at once map the segment once each;
        _drop_below and _map run no Python code, so they take turns under the GIL, and of mappings
        of one segment the first stays (A4: others copy through it)."""
        self._drop_below(self._control.committed_lsn)
        try:
            mapping = map_segment(self._directory, lsn, writable=True)
        except FileNotFoundError:
            if lsn < self._control.trimmed_lsn:
                return  # the log went on without us, and the tail is elsewhere
            raise
        self._map(self._directory.identity.geometry.segment_no(lsn), mapping)

    def _wait_for_room(self, end: int, deadline: float) -> None:
        control = self._control
        tries = control.load(CB.PREPARE_TRIES)

        def disk_is_full() -> bool:  # and was tried anew since we asked
            return bool(control.load(CB.FULL_ERRNO)) and control.load(CB.PREPARE_TRIES) > tries + 1

        if not self._waiting.until(ROOM, end, deadline, disk_is_full):
            raise LogFullError(self._why_full(end))

    def _why_over_budget(self) -> str:
        """Name the cursor that keeps retention from making room."""
        control = self._control
        why = f"the budget of {control.load(CB.BUDGET_BYTES)} bytes is used up"
        trimmed, behind = control.trimmed_lsn, []
        for name, path in cursors.paths(self._directory):
            with contextlib.suppress(FileNotFoundError, FormatError):
                place = cursors.look(path, self._directory.identity.seed)
                behind += [(place.lsn, name, path)] if place else []
        if not behind:
            return f"{why}, and only {control.durable_lsn} is durable"
        lsn, name, path = min(behind)
        holder = min(cursors.holders(path), default=None)
        who = f", open in {describe(holder)}" if holder is not None else ""
        return f"{why}: the cursor {name!r}{who} still needs LSN {lsn}, and the log begins at {trimmed}"

    def _why_full(self, end: int) -> str:
        """Name what holds the room back."""
        control = self._control
        full_errno = control.load(CB.FULL_ERRNO)
        if full_errno:
            return f"no room for [.., {end}): the flusher cannot prepare more: {errno_text(full_errno)}"
        committed, limit = control.committed_lsn, control.limit_lsn
        full = end > committed + self._directory.identity.geometry.window_bytes
        why = "the window is full" if full else "no more is prepared"
        text = f"no room up to LSN {end}: the limit is {limit}, committed {committed}, {why}"
        if not full and control.load(CB.BUDGET_HELD):
            return f"no room up to LSN {end}: {self._why_over_budget()}"
        flusher = describe(control.load(CB.FLUSHER_PID))
        if flusher.endswith("stopped"):
            return f"{text}; the flusher is {flusher}"
        who = blocked_by(control.load, self._participants)
        if who is not None:
            return f"{text}; {who}"
        why = trouble(self._directory, control)
        if not why and (intent := control.load(CB.INTENT_LSN)) != NO_LSN:
            why = f" A sync up to LSN {intent} has begun and not ended"
        return f"{text}; is the flusher running?{why}"
