"""Watermarks: those of a handle, what they are and how they are waited for.

This module knows the words and the waits.  It may not know how the handle joined.
"""

from __future__ import annotations

import operator

from shmlog.format.layout import CB
from shmlog.handle.awaiting import AwaitingWriter
from shmlog.handle.watch import Source, Watch, Watched
from shmlog.memory.statistics import blocked_by
from shmlog.memory.waiting import COMMITTED, DURABLE, Kind, Waiting
from shmlog.session import flushers
from shmlog.session.attachment import Attachment
from shmlog.system.deadlines import check_timeout, deadline_after

KINDS: dict[Watched, Kind] = {"committed": COMMITTED, "durable": DURABLE}


class Watermarks(AwaitingWriter):
    """The watermarks of a handle that is a participant."""

    _waiting: Waiting

    def _attached(self) -> Attachment:
        """This process's attachment; ClosedError if there is none."""
        raise NotImplementedError

    def _ensure_flusher(self) -> None:
        """Start a flusher if there should be one and is none."""
        raise NotImplementedError

    @property
    def reserved_lsn(self) -> int:
        """The tail: where the next record will go."""
        return self._attached().control.reserved_lsn

    @property
    def committed_lsn(self) -> int:
        """Readers see every record below it."""
        return self._attached().control.committed_lsn

    @property
    def durable_lsn(self) -> int:
        """Every record below it survives power loss."""
        return self._attached().control.durable_lsn

    @property
    def trimmed_lsn(self) -> int:
        """Records below it may be gone."""
        return self._attached().control.trimmed_lsn

    def _oldest(self) -> int:
        """What nobody is about to give up: at or above trimmed_lsn."""
        control = self._attached().control
        return max(control.trimmed_lsn, min(control.load(CB.TRIMMING_LSN), control.committed_lsn))

    def wait_durable(self, lsn: int | None = None, timeout: float | None = None) -> None:
        """Wait until the record at lsn would survive power loss.

        lsn: a record's LSN as append() returned it; None: everything appended so far, by
        anybody. timeout: seconds, default the handle's. Raises TimeoutError,
        LogFailedError, ClosedError, and ValueError when nothing was reserved at lsn.
        """
        self._wait(DURABLE, lsn, timeout)

    def wait_committed(self, lsn: int | None = None, timeout: float | None = None) -> None:
        """Wait until readers see the record at lsn; arguments and errors as wait_durable()."""
        self._wait(COMMITTED, lsn, timeout)

    def _wait(self, kind: Kind, lsn: int | None, timeout: float | None) -> None:
        joined = self._attached()
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        target = self._target(lsn)
        if not self._waiting.until(kind, target, deadline_after(seconds)):
            has = joined.control.load(kind.watermark)
            raise TimeoutError(
                f"LSN {target} is not {kind.name} after {seconds:g} s: {kind.name} up to {has}"
                f"{self._held_back()}"
            )

    def _held_back(self) -> str:
        """What to add to the error of a wait that ran out: who holds the watermarks back, and why
        no flusher serves."""
        joined = self._attached()
        who = blocked_by(joined.control.load, joined.participants)
        return (f"; {who}" if who else "") + flushers.trouble(self._directory, joined.control)

    def _target(self, lsn: int | None) -> int:
        reserved = self._attached().control.reserved_lsn
        if lsn is None:
            return reserved
        number = operator.index(lsn)
        if not 0 <= number <= reserved:
            raise ValueError(f"nothing has been appended at LSN {number}: the log ends at {reserved}")
        return min(number + 1, reserved)

    def _bounds(self) -> tuple[int, int]:
        return self._attached().control.bounds()

    def _wait_beyond(self, begin: int, seconds: float | None) -> int:
        deadline = deadline_after(3600.0 if seconds is None else seconds)
        while (committed := self._bounds()[1]) <= begin:
            reached = self._waiting.until(COMMITTED, begin + 1, deadline)
            if not reached and seconds is not None:
                raise TimeoutError(
                    f"no record was committed at LSN {begin} for {seconds:g} s{self._held_back()}"
                )
            deadline = deadline if reached else deadline_after(3600.0)
        return committed

    def watch(self) -> Watch:
        """A descriptor that becomes readable with a watermark, for event loops of any kind.

        Belongs to this process; in a forked child, and after close(), make another.
        """
        self._attached()
        return Watch(self._watched, self._watermark)

    def _watched(self) -> Source:
        control = self._attached().control
        return Source(control.native, 0.0, (control.commit_bell, control.sync_bell))

    def _watermark(self, kind: Watched) -> int:
        control = self._attached().control
        if control.failed:
            raise control.failure()
        return control.load(KINDS[kind].watermark)

    def _look_after(self) -> None:
        self._attached()
        self._ensure_flusher()
