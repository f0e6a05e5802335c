"""Flusher: the one process that commits, syncs, prepares and repairs for all.

Three loops, each in a thread of its own, none of which waits for another:

    commit    (here) scan the bits from committed_lsn, store it, clear, raise the
              limit; find holes; wake readers and writers
    sync      (syncing) intent, mark, fdatasync, durable_lsn; wake who waits for it
    prepare   (preparing) allocate and fault in the next piece ahead of the tail

Invariants
  F1  Whoever runs this holds the lease byte of LOCK.  A suspended flusher still
      holds it, so there is never a second one, nor a stale one.
  F2  The flusher never waits for a live writer except by looking again; what a dead
      one left is filled (holes).
  F3  The files never follow a damaged control block: it is looked at again before a
      hole is filled or anything is removed.
  F4  What is given back was taken back first: should this flusher die before the block
      goes, who joins the block may not append into files that are no more.

This module knows the protocol's flusher side.  It may not know how the process
was started or how its log directory was attached.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shmlog.disk.directory import Directory
from shmlog.errors import AttachError
from shmlog.flusher.holes import Busy, Hole, fill_hole, find_hole
from shmlog.flusher.open_segments import LiveSegments
from shmlog.flusher.preparing import Preparer
from shmlog.flusher.syncing import Syncer
from shmlog.format.layout import CB, GRANULE_BYTES, SLEEP_AWAKE, SLEEP_IDLE, SLEEP_PACING
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import Participants

PACE_S = 0.001
"""Between two commits while writers are busy and nobody waits: they get the cores."""
STUCK_S = 0.05
"""The longest time between two looks at a range that a live writer is still copying."""
SPIN_NS = 50_000
"""After a commit that somebody waited for: how long to watch for the next record."""
IDLE_AFTER_S = 0.01
IDLE_S = 0.25
RETIRE_EVERY_S = 0.1
LOOPS_END_S = 60.0

log = logging.getLogger("shmlog.flusher")


class Flusher:
    """One flusher's life: run() returns when stop() was called or, with linger=False,
    when the last participant has gone."""

    def __init__(
        self,
        directory: Directory,
        control: ControlBlock,
        participants: Participants,
        number: int,
        boot_id: bytes,
        mode: int,
        sync_interval: float,
        linger: bool,
    ) -> None:
        self._identity = directory.identity
        self._geometry = directory.identity.geometry
        self._control = control
        self._native = control.native
        self._participants = participants
        self._number = number
        self._linger = linger
        self._live = LiveSegments(directory, mode)
        self._syncer = Syncer(control, self._live, self._geometry, boot_id, sync_interval)
        self._preparer = Preparer(
            control, self._live, self._geometry, lambda: self._syncer.mark, self._syncer.fail
        )
        self._ending = threading.Event()
        self._told_to_stop = False
        self._broken: BaseException | None = None

    # ------------------------------------------------------------------- life

    def run(self) -> bool:
        """Serve until stopped or no longer needed.  True: the last participant had gone;
        the caller may finish() under the set-up byte, having looked again."""
        self._ending.clear()
        self._take_over()
        loops = (self._syncer.loop, self._preparer.loop, self._preparer.next_loop)
        threads = [threading.Thread(target=self._guarded, args=(loop,), daemon=True) for loop in loops]
        for thread in threads:
            thread.start()
        try:
            self._commit_loop()
        finally:
            self._ending.set()
            self._preparer.wake()
            self._control.sync_bell.ring()
            for thread in threads:
                thread.join(timeout=LOOPS_END_S)
        if self._broken is not None:
            raise self._broken
        if any(thread.is_alive() for thread in threads):
            raise TimeoutError(f"a loop has not ended within {LOOPS_END_S:g} s: is the disk stuck?")
        return not self._participants.anybody()

    def stop(self) -> None:
        """End run() soon; callable from a signal handler."""
        self._told_to_stop = True
        self._control.commit_bell.ring()

    @property
    def stopped(self) -> bool:
        """Whether stop() was called."""
        return self._told_to_stop

    def settle(self) -> None:
        """Commit what is published and make it durable, mark included."""
        self._control.step()
        if not self._control.failed:
            self._syncer.sync(self._control.committed_lsn)
        if not self._control.failed:
            self._syncer.sync_mark(clean=False)

    def finish(self) -> None:
        """Everybody has gone (the caller holds the set-up byte): fill the last holes,
        make all durable, mark the log clean, give back what was prepared for nothing."""
        self._check()
        while (g := self._control.step()[0]) < self._control.reserved_lsn:
            if not self._repair(g):
                time.sleep(PACE_S)
        if not self._control.failed:
            self._syncer.sync(self._control.committed_lsn)
        if self._control.failed:
            log.error("not marked clean: %s", self._control.failure())
            return
        self._check()
        end = self._control.durable_lsn
        for word in (CB.LIMIT_LSN, CB.PREPARED_LSN):  # F4
            self._native.store(word, end)
        self._live.give_back(end)
        self._syncer.sync_mark(clean=True)

    def _check(self) -> None:
        """Serve no block that was cut or overwritten: the files are all there is (F3)."""
        vouched = self._syncer.mark.durable_lsn  # before durable_lsn, which it follows
        if self._control.lost or self._control.durable_lsn < vouched:
            raise AttachError("the control block was cut or overwritten; what is in the files is recovered")

    def close(self) -> None:
        self._native.store(CB.COMMIT_SLEEP, SLEEP_AWAKE)
        self._native.store(CB.SYNC_SLEEP, SLEEP_AWAKE)
        self._live.close()

    def _guarded(self, loop: Callable[[threading.Event], None]) -> None:
        try:
            loop(self._ending)
        except BaseException as error:
            log.exception("a loop of the flusher ended")
            self._broken = error
            self.stop()

    def _take_over(self) -> None:
        """Open what is live, and go on where a dead flusher stopped."""
        durable, prepared = self._control.durable_lsn, self._native.load(CB.PREPARED_LSN)
        for first, _ in self._geometry.segment_ranges(self._geometry.segment_begin(durable), prepared):
            self._live.get(first)
        self._live.sync_names()
        self._syncer.take_over()

    # ----------------------------------------------------------------- commit

    def _commit_loop(self) -> None:
        native = self._native
        previous = -1
        progress_at = retired_at = time.monotonic()
        stuck_s = PACE_S
        while not self._told_to_stop:
            committed, reserved, _, limit = self._control.step()
            now = time.monotonic()
            progressed = committed != previous
            if progressed:
                native.add(CB.COMMITS, 1)
                previous, progress_at, stuck_s = committed, now, PACE_S / 4
                self._syncer.committed()
            self._preparer.ask(reserved)
            if now - retired_at > RETIRE_EVERY_S:
                retired_at = now
                self._check()
                self._participants.retire_dead()
                if not self._linger and not self._participants.anybody():
                    return
            wanted = self._wanted()
            waited_for = wanted[0] > committed or wanted[1] > limit
            if progressed and waited_for and native.watch(committed, SPIN_NS):
                continue  # who is read as it writes is likely to go on
            if committed < reserved and not progressed:
                if self._repair(committed):
                    continue
                stuck_s = min(stuck_s * 1.5, STUCK_S)
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

    def _repair(self, g: int) -> bool:
        """Fill the hole at g if there is one; whether the scan should go on at once."""
        found = find_hole(self._native, self._participants, g)
        if isinstance(found, Busy):
            return False
        if isinstance(found, Hole):
            self._check()
            log.warning("filling [%d, %d): its writer died", found.begin, found.end)
            seed, memory = self._identity.seed, self._live.memory
            fill_hole(self._native, self._participants, self._number, found, self._geometry, seed, memory)
        return True
