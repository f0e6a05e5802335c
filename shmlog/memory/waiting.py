"""Waiting: for a watermark to reach an LSN, in any number of threads.

A wait raises the log-wide wanted word of its kind, rings the flusher if that sleeps,
and sleeps on the watermark itself (native/core/wait.h).  It comes back here once a
slice to look at what the core cannot know.

Invariants
  W1  Nobody sleeps longer than a slice without looking at the lease, the failure
      latch and the handle: a dead flusher is replaced by whoever waits for it.
  W2  Every wait ends by its deadline.

This module knows watermarks and bells.  It may not know records or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shmlog._native import DURABLE_SPIN_NS, WAIT_FAILED, WAIT_REACHED, WAIT_RING, WAIT_SLICE_NS
from shmlog.errors import ClosedError
from shmlog.format.layout import CB, PT
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import slot_offset

SLICE_S: Final = WAIT_SLICE_NS / 1e9


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be waited for, and the words that belong to it."""

    name: str
    watermark: int
    wanted: int
    sleep_word: int
    spin_ns: int


COMMITTED: Final = Kind(
    "committed", CB.COMMITTED_LSN, CB.WANTED_COMMITTED, CB.COMMIT_SLEEP, DURABLE_SPIN_NS // 4
)
DURABLE: Final = Kind("durable", CB.DURABLE_LSN, CB.WANTED_DURABLE, CB.SYNC_SLEEP, DURABLE_SPIN_NS)
REMOVED: Final = Kind("removed", CB.REMOVED_LSN, CB.WANTED_TRIMMED, CB.SYNC_SLEEP, 0)
ROOM: Final = Kind("room", CB.LIMIT_LSN, CB.WANTED_LIMIT, CB.COMMIT_SLEEP, 0)


class Waiting:
    """The waits of one participant."""

    def __init__(self, control: ControlBlock, number: int, ensure_flusher: Callable[[], None]) -> None:
        self._control = control
        self._waits = slot_offset(number, PT.WAITS)
        self._ensure_flusher = ensure_flusher
        self._closed = False

    def until(self, kind: Kind, lsn: int, deadline: float, give_up: Callable[[], bool] | None = None) -> bool:
        """Sleep until the watermark of `kind` is at least lsn.

        True when it is; False at the deadline (time.monotonic()), or once give_up(),
        asked every slice, says so.  Raises LogFailedError, and ClosedError within a slice
        of close()."""
        control = self._control
        bell = control.sync_bell if kind.sleep_word == CB.SYNC_SLEEP else control.commit_bell
        control.native.add(self._waits, 1)
        spin_ns = kind.spin_ns
        ring = True
        while True:
            left = min(SLICE_S, deadline - time.monotonic())
            slice_ns = int(left * 1e9) if left > 0 else 0
            end = control.native.wait(
                kind.watermark, kind.wanted, kind.sleep_word, lsn, ring, spin_ns, slice_ns
            )
            if end == WAIT_REACHED:
                return True
            if self._closed:
                raise ClosedError("the log has been closed while a thread waited")
            if end == WAIT_FAILED:
                raise control.failure()
            if end == WAIT_RING:
                bell.ring()
                ring = False
                continue
            if time.monotonic() >= deadline or (give_up is not None and give_up()):
                return False
            self._ensure_flusher()  # W1
            ring, spin_ns = True, 0

    def close(self) -> None:
        """Make every present and later wait raise ClosedError."""
        self._closed = True

    def reopen(self) -> None:
        """Take close() back: the handle could not be closed."""
        self._closed = False
