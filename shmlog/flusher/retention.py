"""Retention: the flusher's part in keeping a log within its budget and age.

    preparing    room(first)   before a segment's file is made: wait until the budget pays for it
    syncing      step(trim)    how far should be given up, how far may be; trim, as trim() does

       removed_lsn                            first         of N = budget / file bytes files
       |   gone   |  kept  ...   |  tail  |  to be made  |  the last may end at removed + N segments

Invariants
  H1  Nothing is given up that a cursor needs, unless it is told to be: trimming_lsn says how far
      a trim may go before the cursors are read the last time; who makes a cursor writes its
      place, and then looks at trimming_lsn. One of the two sees the other.
  H2  No file is made that the budget does not pay for. So a log stays within it however fast
      its writers are: they wait for room, as for a full disk.
  H3  What retention.json says is followed within a second; a file that is damaged changes
      nothing, it is logged.

This module knows how much is kept.  It may not know how files are made or removed.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from shmlog._native import LAYOUT
from shmlog.disk import cursors, settings
from shmlog.disk.directory import Directory
from shmlog.disk.segments import segment_path
from shmlog.errors import FormatError
from shmlog.format.layout import CB, FRAME_HEADER_BYTES
from shmlog.format.retention import Retention
from shmlog.memory.control import ControlBlock
from shmlog.system import files

LOOK_S = 0.5
"""How often the file's stamp, and the age of what is oldest, are looked at."""
HELD_S = 0.01, 0.25
"""Between two tries while room waits for what is held back: at first, at most."""
SPARE_SHARE = 8
"""Of so many files one is given up before it must be, for fewer and larger trims."""

log = logging.getLogger("shmlog.flusher")


class Keeper:
    """The retention of one flusher."""

    def __init__(self, control: ControlBlock, directory: Directory) -> None:
        self._control = control
        self._native = control.native
        self._directory = directory
        self._geometry = directory.identity.geometry
        self._wanted: list[int] = []
        self._freed = threading.Condition()
        self._ended = False
        self._stamp: settings.Stamp | None = None
        self._look_at = self._try_at = 0.0
        self._pause_s = HELD_S[0]
        self.retention = Retention()
        self._follow()

    # ------------------------------------------------------- the preparing loops

    def begin(self) -> None:
        self._ended = False

    def end(self) -> None:
        """Let whoever waits in room() go, with OSError (ECANCELED)."""
        with self._freed:
            self._ended = True
            self._freed.notify_all()

    def forget_end(self) -> None:
        """Once the loops have ended: that they were told to is no reason why there is no room."""
        self._native.compare_exchange(CB.FULL_ERRNO, errno.ECANCELED, 0)

    def room(self, first: int) -> None:
        """Wait until the budget pays for the segment file that begins at `first` (H2)."""
        if self._fits(first):
            return
        with self._freed:
            self._wanted.append(first)
        try:
            self._try_at = 0.0
            self._control.sync_bell.ring()
            with self._freed:
                while not self._fits(first):
                    if self._ended or self._control.failed:
                        self._native.store(CB.FULL_ERRNO, errno.ECANCELED)
                        raise OSError(errno.ECANCELED, "the flusher ends")
                    self._freed.wait(LOOK_S)
        finally:
            with self._freed:
                self._wanted.remove(first)

    def _fits(self, first: int) -> bool:
        return self._native.load(CB.REMOVED_LSN) >= self._needed(first + self._geometry.segment_bytes)

    def _needed(self, end: int) -> int:
        """What must be gone so that files up to `end` are within the budget."""
        most = self.retention.segments_max(self._geometry)
        return 0 if most is None else max(0, end - most * self._geometry.segment_bytes)

    # ------------------------------------------------------------- the sync loop

    def step(self, trim: Callable[[int], None]) -> float:
        """Give up what should go and may; seconds until there may be more to do."""
        now = time.monotonic()
        if now >= self._look_at:
            self._follow()
            self._look_at = now + LOOK_S
            self._try_at = 0.0 if self.retention.limits else now + LOOK_S
        if now >= self._try_at:
            self._try_at = now + (self._try(trim) if self.retention.limits else LOOK_S)
        return max(0.0, min(self._look_at, self._try_at) - now)

    def _try(self, trim: Callable[[int], None]) -> float:
        geometry, native = self._geometry, self._native
        prepared = native.load(CB.PREPARED_LSN)
        with self._freed:
            ends = [first + geometry.segment_bytes for first in self._wanted]
        made = geometry.segment_end(prepared - 1) if prepared else 0
        must = self._needed(max([made, *ends]))
        removed = native.load(CB.REMOVED_LSN)
        should = must
        if must > removed:
            spare = (self.retention.segments_max(geometry) or 0) // SPARE_SHARE
            should += spare * geometry.segment_bytes
        should = max(should, self._aged())
        if should > removed:
            self._give_up(must, should, trim)
        held = native.load(CB.REMOVED_LSN) < must
        native.store(CB.BUDGET_HELD, int(held))
        with self._freed:
            self._freed.notify_all()
        self._pause_s = min(2 * self._pause_s, HELD_S[1]) if held else HELD_S[0]
        return self._pause_s if held else LOOK_S

    def _give_up(self, must: int, should: int, trim: Callable[[int], None]) -> None:
        """Trim up to `should` as far as it is durable and no cursor needs it; up to `must` even
        so, if it is to go on (when_full="trim")."""
        geometry, native, control = self._geometry, self._native, self._control
        durable = control.durable_lsn
        target = min(should, geometry.segment_begin(max(0, durable - 1)))
        if target < must:  # nobody else may be waiting for it
            native.raise_to(CB.WANTED_DURABLE, min(control.committed_lsn, must + 1))
        forced = min(must, target) if self.retention.when_full == "trim" else 0
        target = max(forced, min(target, self._protected()))
        if target <= control.trimmed_lsn:
            return
        native.raise_to(CB.TRIMMING_LSN, target)  # H1
        target = max(forced, min(target, self._protected()))
        if target > control.trimmed_lsn:
            trim(target)

    def _protected(self) -> int:
        """Where the segment begins that the hindmost cursor needs; the log's end if there is none."""
        end = self._control.committed_lsn
        if self.retention.cursors == "ignore":
            return end
        try:
            lsns = [lsn for _, lsn in cursors.places(self._directory)]
        except (FormatError, OSError) as problem:
            log.error("nothing is given up: %s", problem)
            return 0
        return self._geometry.segment_begin(min([end, *lsns]))

    def _aged(self) -> int:
        """Up to where everything is older than it is kept: segment by segment, by the time of the
        first frame behind it."""
        if self.retention.age is None:
            return 0
        before_ns = time.time_ns() - int(self.retention.age * 1e9)
        size, control = self._geometry.segment_bytes, self._control
        end = control.trimmed_lsn
        while end + size < control.durable_lsn and self._time_ns(end + size) < before_ns:
            end += size
        return end

    def _time_ns(self, lsn: int) -> int:
        path, offset = segment_path(self._directory, lsn), self._geometry.file_offset(lsn)
        with files.descriptor(files.open_file(path, writable=False)) as fd:
            header = os.pread(fd, FRAME_HEADER_BYTES, offset)
        at = LAYOUT["FR_TIME_NS"]
        return int.from_bytes(header[at : at + 8], "little", signed=True)

    def _follow(self) -> None:
        """Read the file again if it has changed (H3)."""
        try:
            stamp = settings.stamp(self._directory)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self.retention = settings.load_retention(self._directory) or Retention()
        except (FormatError, OSError) as problem:
            log.error("what is kept stays as it was: %s", problem)
            return
        log.info("retention: %s", self.retention)
        self._native.store(CB.BUDGET_BYTES, self.retention.bytes or 0)
