"""Committing: the flusher's loop that lets the records of all writers be read.

    step (native/core/commit.h)   scan the bits from committed_lsn, store it, clear them,
                                  raise limit_lsn
    repair (holes)                what a dead writer left, once the scan stands there

While writers are busy and nobody waits it paces itself, so that they get the cores;
while somebody waits it watches for the next record; when idle it sleeps until it is
rung.

This module knows when to step and when to repair.  It may not know files or syncs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shmlog.flusher.holes import Busy, Hole, fill_hole, find_hole
from shmlog.format.geometry import Geometry
from shmlog.format.layout import CB, GRANULE_BYTES, NO_LSN, SLEEP_AWAKE, SLEEP_IDLE, SLEEP_PACING
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import Participants

PACE_S = 0.001
"""Between two commits while writers are busy and nobody waits: they get the cores."""
STUCK_S = 0.02
STUCK_WAITED_S = 0.005
"""The longest time between two looks at a range that a live writer is still copying: it may die
of it, and nothing rings then.  Without, and with, somebody who waits."""
SPIN_NS = 50_000
"""After a commit that somebody waited for: how long to watch for the next record."""
IDLE_AFTER_S = 0.01
IDLE_S = 0.25
RETIRE_EVERY_S = 0.1

log = logging.getLogger("shmlog.flusher")


class Committer:
    """The committing half of one flusher.

    memory(lsn): the writable bytes of the segment that holds lsn.  check(): raises if the
    control block is not to be believed.  on_commit(), on_tail(reserved_lsn): told of what
    the others of the flusher may have to do."""

    def __init__(
        self,
        control: ControlBlock,
        participants: Participants,
        number: int,
        geometry: Geometry,
        memory: Callable[[int], memoryview],
        check: Callable[[], None],
        on_commit: Callable[[], None],
        on_tail: Callable[[int], None],
    ) -> None:
        self._control = control
        self._native = control.native
        self._participants = participants
        self._number = number
        self._geometry = geometry
        self._memory = memory
        self._check = check
        self._on_commit = on_commit
        self._on_tail = on_tail
        self.told_to_stop = False

    def loop(self, linger: bool) -> None:
        """Until stop(), or, with linger=False, until the last participant has gone."""
        native = self._native
        previous = -1
        progress_at = retired_at = time.monotonic()
        stuck_s = PACE_S
        while not self.told_to_stop:
            committed, reserved, _, limit = self._control.step()
            now = time.monotonic()
            progressed = committed != previous
            if progressed:
                native.add(CB.COMMITS, 1)
                previous, progress_at, stuck_s = committed, now, PACE_S / 4
                self._on_commit()
            self._on_tail(reserved)
            if now - retired_at > RETIRE_EVERY_S:
                retired_at = now
                self._check()
                self._participants.retire_dead()
                if not linger and not self._participants.anybody():
                    return
            wanted = self._wanted()
            waited_for = wanted[0] > committed or wanted[1] > limit
            if progressed and waited_for and native.watch(committed, SPIN_NS):
                continue  # who is read as it writes is likely to go on
            if committed < reserved and (waited_for or not progressed):
                if not progressed and self.repair(committed):
                    continue
                stuck_s = min(stuck_s * 1.5, STUCK_WAITED_S if waited_for else STUCK_S)
                self._sleep(stuck_s, waited_for, committed, reserved, wanted)
            elif not waited_for and (progressed or now - progress_at < IDLE_AFTER_S):
                self._sleep(PACE_S, False, committed, reserved, wanted)
            elif self._sleep(IDLE_S, True, committed, reserved, wanted) and not waited_for:
                retired_at = 0.0  # rung for no record that is here: perhaps somebody has left

    def _wanted(self) -> tuple[int, int]:
        return self._native.load(CB.WANTED_COMMITTED), self._native.load(CB.WANTED_LIMIT)

    def _sleep(
        self, timeout_s: float, idle: bool, committed: int, reserved: int, wanted: tuple[int, int]
    ) -> bool:
        """Sleep on the commit bell unless something changed since it was looked at (WANTED);
        idle: also be rung by the next append (SLEEP).  Whether it was rung."""
        native = self._native
        native.store(CB.COMMIT_SLEEP, SLEEP_IDLE if idle else SLEEP_PACING)
        rung = False
        if self._wanted() == wanted and not (idle and self._moved(committed, reserved)):
            rung = self._control.commit_bell.wait(timeout_s)
        native.store(CB.COMMIT_SLEEP, SLEEP_AWAKE)
        return rung

    def _moved(self, committed: int, reserved: int) -> bool:
        if self._control.reserved_lsn != reserved:
            return True
        end = committed + GRANULE_BYTES
        return committed < reserved and self._native.scan(committed, end, False) == end

    def _blocked(self, g: int) -> None:
        """Say since when the scan stands at g: who waits looks there for whom to name."""
        native = self._native
        if native.load(CB.BLOCKED_LSN) != g:
            native.store(CB.BLOCKED_LSN, NO_LSN)
            native.store(CB.BLOCKED_NS, time.time_ns())
            native.store(CB.BLOCKED_LSN, g)

    def repair(self, g: int) -> bool:
        """Fill the hole at g if there is one; whether the scan should go on at once."""
        self._check()  # a tail that is out of order bounds nothing that could be looked through
        found = find_hole(self._native, self._participants, g)
        if isinstance(found, Busy):
            self._blocked(g)
            return False
        if isinstance(found, Hole):
            self._check()
            log.warning("filling [%d, %d): its writer died", found.begin, found.end)
            seed, memory = self._control.identity.seed, self._memory
            fill_hole(self._native, self._participants, self._number, found, self._geometry, seed, memory)
        return True
