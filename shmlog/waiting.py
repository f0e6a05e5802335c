"""Waiting: for a watermark to reach an LSN, in any number of threads.

    thread ---\\                              store target in the slot, ring the
    thread ----+-- one of them leads: sleeps  flusher if it sleeps; on its own bell
    thread ---/    on the participant's bell  wake every thread whose wait is over

A participant has one semaphore and, for each kind of wait, one target word: the
lowest of its threads' targets.  The first waiting thread leads; when its own wait
is over it hands the lead to another.

Invariants
  W1  TARGET: a target is stored before the watermark is looked at for the last
      time, and the flusher stores the watermark before it looks at targets (all
      seq_cst).  So either the waiter sees the watermark or the flusher the target.
  W2  Nobody sleeps longer than a slice without looking at the lease, the failure
      latch and the handle: a dead flusher is replaced by whoever waits for it.
  W3  Every wait ends by its deadline.

This module knows watermarks and bells.  It may not know records or files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shmlog.control import ControlBlock
from shmlog.errors import ClosedError
from shmlog.layout import (
    CB_COMMIT_SLEEP,
    CB_COMMITTED_LSN,
    CB_DURABLE_LSN,
    CB_LIMIT_LSN,
    CB_SYNC_SLEEP,
    NO_LSN,
    PT_WAIT_COMMITTED,
    PT_WAIT_DURABLE,
    PT_WAIT_LIMIT,
    PT_WAITS,
    SLEEP_AWAKE,
)
from shmlog.participants import slot_offset

SLICE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be waited for: a watermark, and where its targets are kept."""

    name: str
    watermark: int
    target: int
    sleep_word: int


COMMITTED: Final = Kind("committed", CB_COMMITTED_LSN, PT_WAIT_COMMITTED, CB_COMMIT_SLEEP)
DURABLE: Final = Kind("durable", CB_DURABLE_LSN, PT_WAIT_DURABLE, CB_SYNC_SLEEP)
ROOM: Final = Kind("room", CB_LIMIT_LSN, PT_WAIT_LIMIT, CB_COMMIT_SLEEP)


@dataclass(eq=False, slots=True)
class _Wait:
    kind: Kind
    lsn: int
    gate: threading.Lock = field(default_factory=threading.Lock)
    done: bool = False
    leads: bool = False


def deadline_after(timeout_s: float) -> float:
    return time.monotonic() + timeout_s


class Waiting:
    """The waits of one participant."""

    def __init__(self, control: ControlBlock, number: int, ensure_flusher: Callable[[], None]) -> None:
        self._control = control
        self._number = number
        self._ensure_flusher = ensure_flusher
        self._mutex = threading.Lock()
        self._waits: list[_Wait] = []
        self._bell = control.slot_bell(number)
        self._bell.forget()
        self._closed = False

    def ring_commit(self) -> None:
        """Tell the flusher that something was published."""
        self._control.commit_bell.ring()

    def until(self, kind: Kind, lsn: int, deadline: float, give_up: Callable[[], bool] | None = None) -> bool:
        """Sleep until the watermark of `kind` is at least lsn.

        True when it is; False at the deadline (time.monotonic()), or once give_up()
        says so.  Raises LogFailedError and ClosedError."""
        native = self._control.native
        if native.load(kind.watermark) >= lsn:
            return True
        wait = _Wait(kind, lsn)
        wait.gate.acquire()
        native.add(slot_offset(self._number, PT_WAITS), 1)
        with self._mutex:
            self._waits.append(wait)
            wait.leads = len(self._waits) == 1
            self._publish_targets(kind)
        try:
            if not wait.leads:
                self._follow(wait, deadline)
            while wait.leads and not wait.done:
                self._lead(wait, deadline)
                if wait.done or time.monotonic() >= deadline or (give_up is not None and give_up()):
                    break
            return wait.done or native.load(kind.watermark) >= lsn
        finally:
            self._leave(wait)

    def close(self) -> None:
        """Make every present and later wait raise ClosedError."""
        self._closed = True
        self._bell.ring()
        with self._mutex:
            for wait in self._waits:
                if not wait.leads and wait.gate.locked():
                    wait.gate.release()

    # -------------------------------------------------------------- internals

    def _publish_targets(self, kind: Kind) -> None:
        """Store the lowest target of a kind, then ring the loop that serves it (W1)."""
        lowest = min((wait.lsn for wait in self._waits if wait.kind is kind), default=NO_LSN)
        self._control.set_target(self._number, kind.target, lowest)
        if lowest != NO_LSN and self._control.load(kind.sleep_word) != SLEEP_AWAKE:
            (self._control.sync_bell if kind is DURABLE else self._control.commit_bell).ring()

    def _settle(self) -> None:
        """Wake the threads whose waits are over.  Under the mutex."""
        levels: dict[int, int] = {}
        for wait in self._waits:
            word = wait.kind.watermark
            level = levels.get(word)
            if level is None:
                level = levels[word] = self._control.load(word)
            if not wait.done and level >= wait.lsn:
                wait.done = True
                if not wait.leads:
                    wait.gate.release()
        self._waits = [wait for wait in self._waits if not wait.done]

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("the log has been closed while a thread waited")
        if self._control.failed:
            raise self._control.failure()

    def _follow(self, wait: _Wait, deadline: float) -> None:
        """Sleep until done or promoted to lead."""
        while not wait.done and not wait.leads:
            if self._control.load(wait.kind.watermark) >= wait.lsn:  # W1, the follower's last look
                wait.done = True
                return
            self._check()
            left = deadline - time.monotonic()
            if left <= 0 or not wait.gate.acquire(timeout=min(left, 1.0)):
                if deadline <= time.monotonic():
                    return
            elif not wait.done and not wait.leads:
                self._check()

    def _lead(self, wait: _Wait, deadline: float) -> None:
        """One slice of the leader's sleep."""
        with self._mutex:
            self._settle()
            if wait.done:
                return
            for kind in {id(each.kind): each.kind for each in self._waits}.values():
                self._publish_targets(kind)
            self._settle()  # W1: the last look
            if wait.done:
                return
        self._check()
        left = min(SLICE_S, deadline - time.monotonic())
        if left > 0 and not self._bell.wait(left):
            self._ensure_flusher()  # W2
        with self._mutex:
            self._settle()

    def _leave(self, wait: _Wait) -> None:
        with self._mutex:
            if wait in self._waits:
                self._waits.remove(wait)
            self._control.set_target(
                self._number,
                wait.kind.target,
                min((each.lsn for each in self._waits if each.kind is wait.kind), default=NO_LSN),
            )
            if wait.leads and self._waits:
                heir = self._waits[0]
                heir.leads = True
                heir.gate.release()
