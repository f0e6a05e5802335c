"""Flusher: the one process that commits, syncs, prepares and repairs for all.

Three loops, each in a thread of its own, none of which waits for another:

    commit    (committing) scan the bits from committed_lsn, store it, clear, raise the
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
  F5  run() does not return while a loop of it lives, however long a system call takes:
      the caller gives the lease up then, and a loop that wakes later would store the
      words of the next flusher.  It waits on, rather than end the process: killed from
      outside it holds the lease just as long, for the kernel closes LOCK only after the
      last thread has left it.
  F6  A thread that gets no memory while it starts never says that it has, and CPython 3.11
      waits for it for ever.  The process ends instead: its lease has to be another's.

This module knows the order of a flusher's life.  It may not know how the process was
started or how its log was joined.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Sequence

from shmlog.disk.directory import Directory
from shmlog.errors import AttachError, LogFailedError
from shmlog.flusher.committing import PACE_S, Committer
from shmlog.flusher.open_segments import OpenSegments
from shmlog.flusher.preparing import Preparer
from shmlog.flusher.retention import Keeper
from shmlog.flusher.syncing import Syncer
from shmlog.format.layout import CB, SLEEP_AWAKE
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import Participants

LOOPS_END_S = 60.0
"""How often a flusher that ends says that a loop of it still has not ended."""
STARTING_S = 10.0
"""The loops' threads are given up for lost after so long."""
BRIEF_S = 10.0
"""A flusher that breaks within so long counts as one that did not come to serve."""

log = logging.getLogger("shmlog.flusher")


class Flusher:
    """One flusher's life: run() returns when stop() was called or, with linger=False,
    when the last participant has gone.  beside: loops in threads of their own, as its own."""

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
        beside: Sequence[Callable[[threading.Event], None]] = (),
    ) -> None:
        self._beside = beside
        self._round_at = [0.0, 0.0]
        self._geometry = directory.identity.geometry
        self._control = control
        self._native = control.native
        self._participants = participants
        self._linger = linger
        self._keeper = Keeper(control, directory)
        self._segments = OpenSegments(directory, mode, self._keeper.room)
        self._syncer = Syncer(control, self._segments, self._geometry, boot_id, sync_interval, self._retain)
        self._preparer = Preparer(
            control,
            self._segments,
            self._geometry,
            lambda: self._syncer.mark,
            self._syncer.fail,
            participants.totals,
        )
        self._committer = Committer(
            control,
            participants,
            number,
            self._geometry,
            self._segments.memory,
            self._check,
            self._syncer.committed,
            self._ask,
        )
        self._ending = threading.Event()
        self._broken: BaseException | None = None

    # ------------------------------------------------------------------- life

    def run(self) -> bool:
        """Serve until stopped or no longer needed.  True: the last participant had gone;
        the caller may finish() under the set-up byte, having looked again."""
        self._ending.clear()
        self._keeper.begin()
        self._take_over()
        starts, served_at = self._native.load(CB.STARTS), time.monotonic()
        loops = (self._syncer.loop, self._preparer.loop, self._preparer.next_loop, *self._beside)
        threads = [threading.Thread(target=self._guarded, args=(loop,), daemon=True) for loop in loops]
        try:
            self._start(threads)
            self._serves(0, 0)
            self._committer.loop(self._linger)
        finally:
            self._ending.set()
            self._preparer.wake()
            self._keeper.end()
            self._control.sync_bell.ring()
            for thread in threads:
                if thread.ident is not None:  # it was started
                    self._outlive(thread)
            self._keeper.forget_end()
        if self._broken is not None:
            brief = time.monotonic() - served_at < BRIEF_S
            self._serves(time.monotonic_ns(), starts + 1 if brief else 1)
            raise self._broken
        return not self._participants.anybody()

    def _start(self, threads: list[threading.Thread]) -> None:
        faulthandler.dump_traceback_later(STARTING_S, exit=True, file=2)  # F6
        try:
            for thread in threads:
                thread.start()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _serves(self, starting_ns: int, starts: int) -> None:
        """Say to those who start flushers how long to wait with the next: not at all should this
        one die, once it serves; and longer each time if it breaks by itself."""
        self._native.store(CB.STARTING_NS, starting_ns)
        self._native.store(CB.STARTS, starts)

    def stands_s(self) -> float | None:
        """Seconds since the slower of committing and syncing came round last, which each does every
        second though there be nothing to do; None: one has not yet."""
        last = min(self._round_at)
        return time.monotonic() - last if last else None

    def _ask(self, reserved: int) -> None:
        self._round_at[0] = time.monotonic()
        self._preparer.ask(reserved)

    def _retain(self, trim: Callable[[int], None]) -> float:
        self._round_at[1] = time.monotonic()
        return self._keeper.step(trim)

    def stop(self) -> None:
        """End run() soon; callable from a signal handler."""
        self._committer.told_to_stop = True
        self._control.commit_bell.ring()

    @property
    def stopped(self) -> bool:
        """Whether stop() was called."""
        return self._committer.told_to_stop

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
        try:
            self._check()
        except AttachError as damage:  # nobody needs the block any more: the files are recovered
            log.error("not marked clean: %s", damage)
            return
        while (g := self._control.step()[0]) < self._control.reserved_lsn:
            if not self._committer.repair(g):
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
        self._segments.give_back(end)
        self._syncer.sync_mark(clean=True)

    def _check(self) -> None:
        """Serve no block that was cut or overwritten: the files are all there is (F3)."""
        vouched = self._syncer.mark.durable_lsn  # before durable_lsn, which it follows
        if self._control.lost or self._control.durable_lsn < vouched:
            raise AttachError("the control block was cut or overwritten; what is in the files is recovered")
        try:
            self._control.bounds()
        except LogFailedError as damage:
            self._control.fail(errno.EFAULT, vouched)
            raise AttachError(f"{damage.what}; what is in the files is recovered") from None

    def close(self) -> None:
        self._native.store(CB.COMMIT_SLEEP, SLEEP_AWAKE)
        self._native.store(CB.SYNC_SLEEP, SLEEP_AWAKE)
        self._segments.close()

    def _outlive(self, thread: threading.Thread) -> None:
        """Wait until it has ended, for as long as it takes (F5)."""
        waited_s = 0.0
        thread.join(LOOPS_END_S)
        while thread.is_alive():
            waited_s += LOOPS_END_S
            log.error("a loop has not ended within %g s: is the disk stuck? The lease is kept", waited_s)
            thread.join(LOOPS_END_S)

    def _guarded(self, loop: Callable[[threading.Event], None]) -> None:
        try:
            loop(self._ending)
        except BaseException as error:
            log.exception("a loop of the flusher ended")
            if isinstance(error, LogFailedError):  # the block is damaged: no other flusher could serve it
                self._control.fail(errno.EFAULT, self._syncer.mark.durable_lsn)
            self._broken = error
            self.stop()

    def _take_over(self) -> None:
        """Open what is live, and go on where a dead flusher stopped."""
        durable, prepared = self._control.durable_lsn, self._native.load(CB.PREPARED_LSN)
        begin, size = self._geometry.segment_begin(durable), self._geometry.segment_bytes
        for first in range(begin, prepared, size):  # no list: of a damaged block it would have no end
            self._segments.get(first)
        first = self._native.load(CB.GENERATION) == 1 and self._native.load(CB.SYNCS) == 0
        self._syncer.take_over(first and self._participants.maker_lives())
