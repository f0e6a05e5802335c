"""Flusher: the one process that commits, syncs, prepares and repairs for all.

Three loops, each in a thread of its own, none of which waits for another:

    commit    scan the bits from committed_lsn, store it, clear, raise the limit;
              find holes; wake readers and writers
    sync      store the intent, write the vouched mark, fdatasync, store durable_lsn;
              wake who waited
    prepare   allocate, fault in and sync the next piece ahead of the tail

Invariants
  F1  Whoever runs this holds the lease byte of LOCK.  A suspended flusher still
      holds it, so there is never a second one, nor a stale one.
  F2  A sync that failed is latched for every process before anything else happens,
      and never tried again.
  F3  The intent is in shared memory before fdatasync is called.  A successor that
      finds one must assume that the kernel told the dead flusher of an error and
      has forgotten it: it dirties every page from durable_lsn to the intent anew.
  F4  Each segment's descriptors are open before the first store into it can happen:
      limit_lsn reaches a piece only after it was prepared here.
  F5  prepare and sync use descriptors of their own: an error is reported once to
      each, so neither can take the other's.
  F6  The mark says what the last sync made durable, never what this one will.

This module knows the protocol's flusher side.  It may not know how the process
was started or how its log directory was attached.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass

from shmlog import _native, files, segment
from shmlog.control import ControlBlock
from shmlog.directory import Directory
from shmlog.geometry import LSN_MAX, PAGE_BYTES
from shmlog.holes import Busy, Hole, fill_hole, find_hole
from shmlog.layout import (
    CB_COMMIT_SLEEP,
    CB_COMMITS,
    CB_COMMITTED_LSN,
    CB_DURABLE_LSN,
    CB_EPOCH,
    CB_FULL_ERRNO,
    CB_INTENT_LSN,
    CB_LIMIT_LSN,
    CB_PREPARE_TRIES,
    CB_PREPARED_LSN,
    CB_ROLLS,
    CB_SYNC_NS,
    CB_SYNC_SLEEP,
    CB_SYNCS,
    CB_WANTED_COMMITTED,
    CB_WANTED_DURABLE,
    CB_WANTED_LIMIT,
    NO_LSN,
    SEGMENT_HEADER_BYTES,
    SLEEP_AWAKE,
    SLEEP_IDLE,
    SLEEP_PACING,
)
from shmlog.participants import Participants
from shmlog.segments import list_segments, segment_path

PACE_S = 0.001
"""Between two commits while writers are busy and nobody waits: they get the cores."""
STUCK_S = 0.05
"""The longest time between two looks at a range that a live writer is still copying."""
SPIN_NS = 50_000
"""After a sync that somebody waited for: how long to watch for the next such wait."""
IDLE_AFTER_S = 0.01
IDLE_S = 0.25
SETTLE_AFTER_S = 1.0
RETIRE_EVERY_S = 0.1
AHEAD_PIECES = 3

log = logging.getLogger("shmlog.flusher")


@dataclass(slots=True)
class _Open:
    """A live segment as the flusher holds it (F4, F5)."""

    sync_fd: int
    prepare_fd: int
    mapping: _native.Mapping
    memory: memoryview

    def close(self) -> None:
        os.close(self.sync_fd)
        os.close(self.prepare_fd)


class Flusher:
    """One flusher's life: run() returns when stop() was called or, with linger=False,
    when the last participant has gone and everything is durable."""

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
        self._directory = directory
        self._identity = directory.identity
        self._geometry = directory.identity.geometry
        self._control = control
        self._native = control.native
        self._participants = participants
        self._number = number
        self._mode = mode
        self._sync_interval = sync_interval
        self._linger = linger
        self._open: dict[int, _Open] = {}
        self._open_lock = threading.Lock()
        self._step_lock = threading.Lock()
        self._stop = threading.Event()
        self._prepare_wanted = threading.Event()
        self._told_to_stop = False
        self._sync_sleeps_long = False
        self._broken: BaseException | None = None
        durable = control.durable_lsn
        self._mark = self._newest_mark() or segment.Mark(control.load(CB_EPOCH), 0, 0)
        self._mark = self._mark.next(
            epoch=control.load(CB_EPOCH),
            durable_lsn=min(self._mark.durable_lsn, durable),
            trimmed_lsn=control.trimmed_lsn,
            clean=False,
            boot_id=boot_id,
        )

    # ------------------------------------------------------------------- life

    def run(self) -> bool:
        """Serve until stopped or no longer needed.  True: the last participant has gone,
        everything is durable, and the caller, who must hold the set-up byte if
        it wants this to stay so, may take the block down."""
        self._stop.clear()
        self._take_over()
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self._sync_loop, self._prepare_loop)
        ]
        for thread in threads:
            thread.start()
        try:
            self._commit_loop()
        finally:
            self._stop.set()
            self._prepare_wanted.set()
            self._control.sync_bell.ring()
            for thread in threads:
                thread.join(timeout=60.0)
        if self._broken is not None:
            raise self._broken
        return self._deserted()

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
        self._step()
        if not self._control.failed:
            self._sync(self._control.committed_lsn)
        if not self._control.failed:
            self._sync_mark(clean=False)

    def finish(self) -> None:
        """Everybody has gone (the caller holds the set-up byte): fill the last holes,
        make all durable, mark the log clean, give back what was prepared for nothing."""
        while (g := self._step()[0]) < self._control.reserved_lsn:
            if not self._repair(g):
                time.sleep(PACE_S)
        if self._control.failed:
            log.error("not marked clean: %s", self._control.failure())
            return
        self._sync(self._control.committed_lsn)
        if self._control.failed:
            return
        self._give_back()
        self._sync_mark(clean=True)

    def close(self) -> None:
        self._native.store(CB_COMMIT_SLEEP, SLEEP_AWAKE)
        self._native.store(CB_SYNC_SLEEP, SLEEP_AWAKE)
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def _guarded(self, loop):  # type: ignore[no-untyped-def]
        try:
            loop()
        except BaseException as error:
            log.exception("%s ended", loop.__name__)
            self._broken = error
            self.stop()

    def _deserted(self) -> bool:
        return not self._participants.anybody()

    def _take_over(self) -> None:
        """Open what is live, and honour an intent that a dead flusher left (F3)."""
        native, geometry = self._native, self._geometry
        durable, prepared = self._control.durable_lsn, native.load(CB_PREPARED_LSN)
        for first, _ in geometry.segment_ranges(geometry.segment_begin(durable), prepared):
            self._opened(first)
        intent = native.load(CB_INTENT_LSN)
        if intent == NO_LSN:
            return
        log.warning("the last flusher died in a sync: rewriting [%d, %d)", durable, intent)
        for first, end in geometry.segment_ranges(durable, intent):
            opened = self._opened(first)
            at = geometry.file_offset(first) // PAGE_BYTES * PAGE_BYTES
            opened.mapping.touch(at, geometry.file_offset(first) + end - first - at)
        for first, _ in geometry.segment_ranges(durable, intent):
            self._opened(first).mapping.touch(0, PAGE_BYTES)

    def _newest_mark(self) -> segment.Mark | None:
        newest = None
        for first in reversed(list_segments(self._directory)):
            path = segment_path(self._directory, first)
            with files.descriptor(files.open_file(path, writable=False)) as fd:
                page = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
            mark = segment.newest_mark(page, self._identity.log_id)
            if mark and (newest is None or mark > newest):
                newest = mark
        return newest

    # ----------------------------------------------------------------- commit

    def _step(self) -> tuple[int, int, int, int]:
        with self._step_lock:
            return self._native.commit_step()

    def _commit_loop(self) -> None:
        native, control = self._native, self._control
        previous = previous_limit = -1
        progress_at = retire_at = time.monotonic()
        stuck_s = PACE_S
        while not self._told_to_stop:
            committed, reserved, _, limit = self._step()
            now = time.monotonic()
            progressed = committed != previous
            if limit != previous_limit:
                previous_limit = limit
                native.wake(CB_LIMIT_LSN)
            if progressed:
                native.wake(CB_COMMITTED_LSN)
                native.add(CB_COMMITS, 1)
                previous = committed
                progress_at, stuck_s = now, PACE_S / 4
                if self._sync_sleeps_long:
                    control.sync_bell.ring()
            self._ask_to_prepare(reserved)
            if now - retire_at > RETIRE_EVERY_S:
                retire_at = now
                self._retire()
                if not self._linger and self._deserted():
                    return
            waited_for = native.load(CB_WANTED_COMMITTED) > committed or native.load(CB_WANTED_LIMIT) > limit
            if committed < reserved and not progressed:
                if self._repair(committed):
                    continue
                stuck_s = min(stuck_s * 1.5, STUCK_S)
                self._sleep(stuck_s, waited_for, committed, reserved)
            elif progressed and not waited_for:
                self._sleep(PACE_S, False, committed, reserved)
            elif waited_for:
                self._sleep(IDLE_S, True, committed, reserved)
            elif now - progress_at < IDLE_AFTER_S:
                self._sleep(PACE_S, False, committed, reserved)
            elif self._sleep(IDLE_S, True, committed, reserved):
                retire_at = 0.0  # rung: perhaps somebody has left

    def _sleep(self, timeout_s: float, idle: bool, committed: int, reserved: int) -> bool:
        """Sleep on the commit bell; idle: also be rung by the next append (SLEEP)."""
        native = self._native
        native.store(CB_COMMIT_SLEEP, SLEEP_IDLE if idle else SLEEP_PACING)
        rung = False
        moved = idle and (
            self._control.reserved_lsn != reserved
            or (committed < reserved and native.scan(committed, committed + 32, False) != committed)
        )
        if not moved:
            rung = self._control.commit_bell.wait(timeout_s)
        native.store(CB_COMMIT_SLEEP, SLEEP_AWAKE)
        return rung

    def _repair(self, g: int) -> bool:
        """Fill the hole at g if there is one; whether the scan should go on at once."""
        found = find_hole(self._native, self._participants, g)
        if isinstance(found, Busy):
            return False
        if isinstance(found, Hole):
            log.warning("filling [%d, %d): its writer died", found.begin, found.end)
            seed = self._identity.seed
            fill_hole(
                self._native, self._participants, self._number, found, self._geometry, seed, self._memory
            )
        return True

    def _retire(self) -> None:
        participants = self._participants
        for number in range(participants.high):
            if participants.used(number) and not participants.alive(number):
                committed, reserved = self._control.committed_lsn, self._control.reserved_lsn
                participants.retire(number, committed, reserved)

    def _memory(self, lsn: int) -> memoryview:
        return self._opened(self._geometry.segment_begin(lsn)).memory

    # ------------------------------------------------------------------- sync

    def _sync_loop(self) -> None:
        native, control = self._native, self._control
        last_sync = changed_at = time.monotonic()
        patience_s = 0.0002
        while not self._stop.is_set() and not control.failed:
            committed, durable = control.committed_lsn, control.durable_lsn
            wanted = native.load(CB_WANTED_DURABLE)
            if wanted > durable:
                committed = self._step()[0]
            now = time.monotonic()
            due_in = last_sync + self._sync_interval - now
            if committed > durable and (wanted > durable or due_in <= 0):
                self._sync(committed)
                last_sync = changed_at = time.monotonic()
                patience_s = 0.0002
                if wanted > durable:  # who waited is likely to come again
                    native.spin(CB_WANTED_DURABLE, committed + 1, SPIN_NS)
                continue
            timeout_s = IDLE_S * 4
            if wanted > durable:  # what it waits for is still being copied
                timeout_s = patience_s = min(patience_s * 1.5, 0.01)
            elif committed > durable:
                timeout_s = due_in
            elif self._mark.durable_lsn < durable:
                timeout_s = changed_at + SETTLE_AFTER_S - now
                if timeout_s <= 0:
                    self._sync_mark(clean=False)
                    continue
            self._sync_sleeps_long = committed == durable
            native.store(CB_SYNC_SLEEP, SLEEP_IDLE)
            if native.load(CB_WANTED_DURABLE) == wanted and (
                not self._sync_sleeps_long or control.committed_lsn == committed
            ):
                control.sync_bell.wait(timeout_s)
            native.store(CB_SYNC_SLEEP, SLEEP_AWAKE)
            self._sync_sleeps_long = False

    def _sync(self, target: int) -> None:
        """Make [durable_lsn, target) durable, or latch the failure (F2, F3, F6)."""
        control, native, geometry = self._control, self._native, self._geometry
        durable = control.durable_lsn
        if target <= durable:
            return
        started = time.monotonic_ns()
        native.store(CB_INTENT_LSN, target)
        self._mark = self._mark.next(durable_lsn=durable, trimmed_lsn=control.trimmed_lsn)
        for first, _ in geometry.segment_ranges(durable, target):
            if not self._sync_segment(first, durable):
                return
        if control.failed:  # the prepare loop saw an error, perhaps of the same pages
            return
        native.store(CB_DURABLE_LSN, target)
        native.wake(CB_DURABLE_LSN)
        native.store(CB_INTENT_LSN, NO_LSN)
        native.add(CB_SYNCS, 1)
        native.add(CB_SYNC_NS, time.monotonic_ns() - started)
        self._close_below(durable)

    def _sync_segment(self, lsn: int, durable: int) -> bool:
        opened = self._opened(self._geometry.segment_begin(lsn))
        try:
            segment.write_mark(opened.sync_fd, self._mark, self._identity.log_id)
            os.fdatasync(opened.sync_fd)
        except OSError as error:
            self._fail(error, durable)
            return False
        return True

    def _sync_mark(self, clean: bool) -> None:
        """Carry the last mark to disk: then the disk itself vouches for all of it."""
        durable = self._control.durable_lsn
        self._mark = self._mark.next(durable_lsn=durable, trimmed_lsn=self._control.trimmed_lsn, clean=clean)
        last = durable - 1 if durable else 0
        if self._exists(last):
            self._sync_segment(last, durable)

    def _fail(self, error: OSError, durable: int) -> None:
        with self._step_lock:  # so that no commit step raises the limit again
            self._control.fail(error.errno or 5, durable)
        log.error("a sync failed, the log is closed to appends: %s", error)

    # ---------------------------------------------------------------- prepare

    def _ask_to_prepare(self, reserved: int) -> None:
        if self._goal(reserved) > self._native.load(CB_PREPARED_LSN):
            self._prepare_wanted.set()

    def _goal(self, reserved: int) -> int:
        """How far should be prepared: some pieces ahead, or as far as a writer wants."""
        wanted = min(self._native.load(CB_WANTED_LIMIT), reserved + self._geometry.window_bytes)
        return max(reserved + AHEAD_PIECES * self._geometry.piece_bytes - 1, wanted)

    def _prepare_loop(self) -> None:
        native = self._native
        while not self._stop.is_set() and not self._control.failed:
            prepared = native.load(CB_PREPARED_LSN)
            if self._goal(self._control.reserved_lsn) <= prepared:
                self._prepare_wanted.wait(IDLE_S * 4)
                self._prepare_wanted.clear()
                continue
            end = self._geometry.piece_end(prepared)
            try:
                if end > LSN_MAX:
                    raise OSError(27, "the log's address space is used up")
                self._prepare(prepared, end)
            except OSError as error:
                if native.load(CB_FULL_ERRNO) != error.errno:
                    log.error("cannot prepare [%d, %d): %s", prepared, end, error)
                native.store(CB_FULL_ERRNO, error.errno or 5)
                native.add(CB_PREPARE_TRIES, 1)
                self._stop.wait(0.1)
                continue
            if self._control.failed:
                return
            native.store(CB_FULL_ERRNO, 0)
            native.store(CB_PREPARED_LSN, end)
            self._step()
            native.wake(CB_LIMIT_LSN)
            if self._goal(self._control.reserved_lsn) <= end:
                self._sync_piece(end)

    def _prepare(self, begin: int, end: int) -> None:
        geometry = self._geometry
        first = geometry.segment_begin(begin)
        opened = self._opened(first, create=True)
        at = geometry.file_offset(begin) // PAGE_BYTES * PAGE_BYTES
        stop = geometry.file_offset(begin) + end - begin
        files.allocate(opened.prepare_fd, at, stop)
        opened.mapping.populate(at, stop - at)

    def _sync_piece(self, end: int) -> None:
        """Write the zeros of what was prepared, while nobody is near it: a later sync of
        a record there then writes a page or two and changes no extent. When writers
        come too fast for that, they are not made to wait for the disk."""
        try:
            os.fdatasync(self._opened(self._geometry.segment_begin(end - 1)).prepare_fd)
        except OSError as error:
            self._fail(error, self._control.durable_lsn)

    # --------------------------------------------------------------- segments

    def _exists(self, lsn: int) -> bool:
        return os.path.lexists(segment_path(self._directory, lsn))

    def _opened(self, first: int, create: bool = False) -> _Open:
        with self._open_lock:
            opened = self._open.get(first)
            if opened is None:
                opened = self._open[first] = self._open_segment(first, create)
            return opened

    def _open_segment(self, first: int, create: bool) -> _Open:
        path, geometry = segment_path(self._directory, first), self._geometry
        if create and not os.path.lexists(path):
            header = segment.Header(
                self._identity.log_id, first, geometry.segment_bytes, self._mark.epoch, time.time_ns()
            )
            sync_fd = segment.create(path, header, self._mark, geometry, self._mode)
            self._native.add(CB_ROLLS, 1)
        else:
            sync_fd = files.open_file(path, writable=True)
        try:
            segment.check(sync_fd, path, self._identity.log_id, first, geometry)
            prepare_fd = files.open_file(path, writable=True)
            mapping = _native.Mapping(sync_fd, geometry.file_bytes, True)
        except BaseException:
            os.close(sync_fd)
            raise
        return _Open(sync_fd, prepare_fd, mapping, memoryview(mapping))

    def _close_below(self, lsn: int) -> None:
        """Let go of segments whose last sync is behind us."""
        with self._open_lock:
            for first in [first for first in self._open if first + self._geometry.segment_bytes <= lsn]:
                self._open.pop(first).close()

    def _give_back(self) -> None:
        """Free what was prepared beyond the end of a log that is being closed."""
        geometry, end = self._geometry, self._control.durable_lsn
        keep = geometry.segment_begin(max(0, end - 1))
        for first in list_segments(self._directory):
            if first > keep:
                os.unlink(segment_path(self._directory, first))
                with self._open_lock:
                    if first in self._open:
                        self._open.pop(first).close()
        if self._exists(keep):
            offset = SEGMENT_HEADER_BYTES + end - keep
            page_end = -(-offset // PAGE_BYTES) * PAGE_BYTES
            with contextlib.suppress(OSError):
                _native.punch_hole(self._opened(keep).sync_fd, page_end, geometry.file_bytes - page_end)
        files.sync_directory(self._directory.segments_path)
