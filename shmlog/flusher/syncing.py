"""Syncing: the flusher's loop that makes committed records durable.

At once when somebody waits, else every sync_interval; when idle, one settle sync
carries the last mark to disk.  The cycle itself is native/core/sync.h.

Invariants
  S1  A sync that failed is latched for every process before anything else happens,
      and never tried again.
  S2  A mark says what the last sync made durable, never what this one will.
  S3  The kernel may have told a dead flusher of a page that it could not write, and
      called the page clean: whichever of its threads synced, with an intent or not. So
      what was prepared when this flusher took over (the zeros above the tail were synced
      too) is written anew, read back from the disk, and its frames checked, as soon as it
      is committed: nobody stores to it any more then (disk/rewriting says why no less
      will do).  What does not hold is a failure: it is gone from memory.
  S4  No mark is written from watermarks that are out of order: two such marks go over both
      copies, and the files alone are no log any more.
  S5  Nothing is called durable in a file that has lost its name: whoever removed the log's
      directory under its users has removed that record, too.

This module knows durable_lsn and marks.  It may not know bits or claims.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from shmlog import _native
from shmlog.disk import segment
from shmlog.disk.failure import Failure
from shmlog.flusher.open_segments import OpenSegments
from shmlog.format.geometry import Geometry
from shmlog.format.layout import CB, NO_LSN, SLEEP_AWAKE, SLEEP_IDLE
from shmlog.format.marks import MARK_SLOTS, Mark
from shmlog.format.origin import Origin
from shmlog.memory.control import ControlBlock
from shmlog.system import machine

SPIN_NS = 50_000
"""After a sync that somebody waited for: how long to watch for the next such wait."""
QUIET_NS, GATHER_NS = 15_000, 100_000
"""Where several wait at a time: a sync begins once nobody has joined them for so long; at the latest
after so long, or as long as the last sync took if that is less."""
PATIENCE_S = 0.0002, 0.01
"""Between looks at a record that is waited for but still being copied: at first, at most."""
SEGMENTS_MAX = 32
"""In one sync cycle, beside the one that holds durable_lsn."""
SETTLE_AFTER_S = 1.0
NAP_S = 1.0

log = logging.getLogger("shmlog.flusher")


class Syncer:
    """The sync half of one flusher.  retain(trim): give up what should go, and say in how many
    seconds there may be more to do."""

    def __init__(
        self,
        control: ControlBlock,
        segments: OpenSegments,
        geometry: Geometry,
        boot_id: bytes,
        interval_s: float,
        retain: Callable[[Callable[[int], None]], float] = lambda trim: NAP_S,
    ) -> None:
        self._control = control
        self._native = control.native
        self._segments = segments
        self._geometry = geometry
        self._log_id = control.identity.log_id
        self._interval_s = interval_s
        self._retain = retain
        self._sleeps_long = False
        self._suspect_lsn = 0
        self._ahead: Mark | None = None
        self._crowd = False
        self._left_half_done = False
        newest = segments.newest_mark()
        self.mark = Mark(
            epoch=control.load(CB.EPOCH),
            durable_lsn=min(newest.durable_lsn, control.durable_lsn) if newest else 0,
            sequence=newest.sequence if newest else 1,  # the next one goes over the older copy
            trimmed_lsn=control.trimmed_lsn,
            origin=segments.origin(boot_id),
        )

    def take_over(self, trusted: bool) -> None:
        """Distrust every page that a dead flusher may have synced (S3).  trusted: there was none
        before, and whoever prepared the first piece lives."""
        durable, intent = self._control.durable_lsn, self._native.load(CB.INTENT_LSN)
        self._suspect_lsn = max(self._native.load(CB.PREPARED_LSN), self._control.reserved_lsn)
        if trusted:
            self._suspect_lsn = 0
        if intent != NO_LSN:
            log.warning("the last flusher died in a sync of [%d, %d)", durable, intent)
        self._left_half_done = True

    def _finish_what_is_half_done(self) -> None:
        """What a dead flusher may have begun: names that it gave, files that were trimmed.  Before
        anything is called durable, but in the loop that may wait for the disk: readers and writers
        are not to wait for it."""
        if self._left_half_done:
            self._left_half_done = False
            self._segments.sync_names()
            self.finish_trim()

    def committed(self) -> None:
        """Told by the commit loop that there is something to sync one day."""
        if self._sleeps_long:
            self._sleeps_long = False
            self._control.sync_bell.ring()

    def loop(self, stop: threading.Event) -> None:
        native, control = self._native, self._control
        last_sync = changed_at = time.monotonic()
        patience_s = PATIENCE_S[0]
        took_s = 0.0  # by the last sync, if somebody waited for it
        self._finish_what_is_half_done()
        while not stop.is_set() and not control.failed:
            if native.load(CB.WANTED_TRIMMED) > control.trimmed_lsn:
                self.trim(native.load(CB.WANTED_TRIMMED))
            retain_in = self._retain(self.trim)
            if took_s:
                self._watch(took_s)
                took_s = 0.0
            committed, durable = control.committed_lsn, control.durable_lsn
            wanted = native.load(CB.WANTED_DURABLE)
            if wanted > durable:
                committed = control.step()[0]
            now = time.monotonic()
            due_in = last_sync + self._interval_s - now
            if committed > durable and (wanted > durable or due_in <= 0):
                self.sync(committed)
                last_sync = changed_at = time.monotonic()
                patience_s = PATIENCE_S[0]
                took_s = last_sync - now if wanted > durable else 0.0
                self._crowd |= native.load(CB.WANTED_DURABLE) > committed
                continue
            timeout_s = NAP_S
            if wanted > durable:
                timeout_s = patience_s = min(patience_s * 1.5, PATIENCE_S[1])
            elif committed > durable:
                timeout_s = due_in
            elif self.mark.durable_lsn < durable:
                timeout_s = changed_at + SETTLE_AFTER_S - now
                if timeout_s <= 0:
                    self.sync_mark(clean=False)
                    continue
            self._sleep(min(timeout_s, retain_in), wanted, committed, durable)
        if control.failed and not control.lost:  # by whomever: the others cannot leave a note
            self._note(control.load(CB.FAILED_ERRNO), control.load(CB.FAILED_LSN))

    def _watch(self, sync_s: float) -> None:
        """Who waited is likely to come again: watch for that, when all that can be done before the
        next sync is done.  Where several come, those who were just woken get a moment to share it."""
        control, native, durable = self._control, self._native, self._control.durable_lsn
        self._ahead = self._vouching(durable, control.trimmed_lsn)
        if native.spin(CB.WANTED_DURABLE, durable + 1, SPIN_NS) and self._crowd:
            most_ns = min(GATHER_NS, int(sync_s * 1e9))
            self._crowd = native.settle(CB.WANTED_DURABLE, QUIET_NS, most_ns)

    def _sleep(self, timeout_s: float, wanted: int, committed: int, durable: int) -> None:
        """Sleep on the sync bell unless something changed since it was looked at (WANTED)."""
        native = self._native
        self._ahead, self._crowd = None, False
        self._sleeps_long = committed == durable
        native.store(CB.SYNC_SLEEP, SLEEP_IDLE)
        nothing_new = (
            native.load(CB.WANTED_DURABLE) == wanted
            and native.load(CB.WANTED_TRIMMED) <= self._control.trimmed_lsn
            and (not self._sleeps_long or self._control.committed_lsn == committed)
        )
        if nothing_new:
            self._control.sync_bell.wait(timeout_s)
        native.store(CB.SYNC_SLEEP, SLEEP_AWAKE)
        self._sleeps_long = False

    def sync(self, target: int) -> None:
        """Make everything below target durable, or latch the failure; a few segments at a
        time when a dead flusher has left many."""
        geometry, control = self._geometry, self._control
        self._finish_what_is_half_done()
        while (durable := control.durable_lsn) < target and not control.failed:
            most = geometry.segment_end(durable) + SEGMENTS_MAX * geometry.segment_bytes
            self._sync_some(durable, min(target, most))

    def _sync_some(self, durable: int, target: int) -> None:
        """One cycle: [durable, target)."""
        geometry = self._geometry
        trimmed, _ = self._control.bounds()  # S4
        if durable < self._suspect_lsn:
            try:
                self._segments.rewrite(durable, target)
            except OSError as problem:
                log.error("what a dead flusher left cannot be made durable: %s", problem)
                self.fail(problem.errno or errno.EIO)
                return
        self.mark = self._vouching(durable, trimmed)
        if target <= geometry.segment_end(durable):
            fds: tuple[int, ...] = (self._segments.get(durable).sync_fd,)
        else:
            ranges = geometry.segment_ranges(durable, target)
            fds = tuple(self._segments.get(first).sync_fd for first, _ in ranges)
        if not _native.has_name(fds[0]):  # S5
            self.fail(errno.ENOENT)
            return
        error = self._native.sync(fds, self.mark.encode(self._log_id), self._mark_offset, target)
        if error == errno.ECANCELED:  # the preparing side saw an error, perhaps of the same pages
            return
        if error:
            self.fail(error)
        else:
            self._segments.close_below(durable)

    def _vouching(self, durable: int, trimmed: int) -> Mark:
        """The next mark (S2); the one that is in hand if it says just that."""
        ahead, self._ahead = self._ahead, None
        sequence = self.mark.sequence + 1
        if ahead and (ahead.sequence, ahead.durable_lsn, ahead.trimmed_lsn) == (sequence, durable, trimmed):
            return ahead
        return Mark(self.mark.epoch, durable, sequence, trimmed, False, self._origin())

    def sync_mark(self, clean: bool) -> None:
        """Carry the last mark to disk: then the disk itself vouches for all of it."""
        durable, (trimmed, _) = self._control.durable_lsn, self._control.bounds()  # S4
        self.mark = self.mark.next(
            durable_lsn=durable, trimmed_lsn=trimmed, clean=clean, origin=self._origin()
        )
        last = max(0, durable - 1)
        if not self._segments.exists(last):
            return
        fd = self._segments.get(last).sync_fd
        try:
            segment.write_mark(fd, self.mark, self._log_id)
            os.fdatasync(fd)
        except OSError as error:
            self.fail(error.errno or errno.EIO)

    def _origin(self) -> Origin:
        """As the last mark's, now: the later its time, the surer a restart is told by it."""
        origin = self.mark.origin
        return origin.at(*machine.clocks()) if origin.up_ns else origin

    def trim(self, before: int) -> None:
        """Give up whole segments below `before`, but never the one that holds the newest
        mark: first the watermark, so that nobody begins
        to read there, then a durable mark that says so, then the files."""
        control = self._control
        trimmed, committed = control.bounds()
        if before > committed:  # no caller asks for that (Log.trim): the word was overwritten
            log.error("a trim of LSN %d is ignored: only %d is committed", before, committed)
            self._native.compare_exchange(CB.WANTED_TRIMMED, before, trimmed)
            return
        target = self._geometry.segment_begin(min(before, max(0, control.durable_lsn - 1)))
        if target > control.trimmed_lsn:
            self._native.store(CB.TRIMMED_LSN, target)
        self.finish_trim()
        if control.failed:
            return
        # what cannot be trimmed, the segment of `before` itself, is not asked for again
        self._native.compare_exchange(CB.WANTED_TRIMMED, before, control.trimmed_lsn)

    def finish_trim(self) -> None:
        """Remove the files below trimmed_lsn, perhaps for a flusher that died before it did."""
        control = self._control
        target = control.trimmed_lsn
        if target > control.load(CB.REMOVED_LSN):
            self.sync_mark(clean=False)
            if control.failed:
                return
            log.info("trimmed up to LSN %d: %d files removed", target, self._segments.remove_below(target))
            self._native.store(CB.REMOVED_LSN, target)
            self._native.wake(CB.REMOVED_LSN)

    def fail(self, error: int) -> None:
        """Latch a failed sync for every process (S1), then note it for those who come when
        the control block has gone."""
        durable = self._control.durable_lsn
        self._control.fail(error, durable)
        log.error("a sync failed, the log takes no more appends: %s", os.strerror(error))
        self._note(error, durable)

    def _note(self, error: int, lsn: int) -> None:
        self._segments.note_failure(Failure(error, lsn))

    @property
    def _mark_offset(self) -> int:
        return MARK_SLOTS.offset(self.mark.sequence)
