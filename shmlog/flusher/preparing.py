"""Preparing: the flusher's loop that readies pieces of segments ahead of the tail.

A piece is allocated and faulted in before limit_lsn reaches it, so that no writer
waits for a file, meets a full disk in a store, or rolls slowly.  Once the tail
leaves time for it, its zeros are written: a later sync of a record there then
writes a page or two and changes no extent.  Writers that come too fast for that
are not made to wait for the disk.  While large records come, which make their pages
themselves, a piece is only allocated.  The next segment's file is made, and its name
made durable, by a thread of its own while the present one is half full.

This module knows prepared_lsn.  It may not know what is written into a piece.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from shmlog.flusher.open_segments import OpenSegment, OpenSegments
from shmlog.format.geometry import LSN_MAX, PAGE_BYTES, Geometry
from shmlog.format.layout import CB
from shmlog.format.marks import Mark
from shmlog.memory.control import ControlBlock
from shmlog.system import files

REST_PIECES = 1
"""Of a log that nobody writes to, or slowly: ten of them should not take half a gigabyte."""
AHEAD_PIECES = 3
"""When pieces are wanted in quick succession; twice as many each time that they are again."""
LARGE_BYTES = 32768
"""Records of this size go in by a system call that makes the pages (native/core/large.h): zeros
before them would cost more than the records."""
QUIET_S = 0.05
"""No piece was wanted for so long: time to write the zeros of those that are ready."""
RETRY_S = 0.1
NAP_S = 1.0

log = logging.getLogger("shmlog.flusher")


class Preparer:
    """The preparing half of one flusher."""

    def __init__(
        self,
        control: ControlBlock,
        segments: OpenSegments,
        geometry: Geometry,
        newest_mark: Callable[[], Mark],
        fail: Callable[[int], None],
        written: Callable[[], tuple[int, ...]],
    ) -> None:
        self._control = control
        self._native = control.native
        self._segments = segments
        self._geometry = geometry
        self._newest_mark = newest_mark
        self._fail = fail
        self._written = written
        self._before: tuple[int, ...] = (0, 0)
        self._large = False
        self._wanted = threading.Event()
        self._ahead_pieces = REST_PIECES
        self._zeros: list[int] = []
        self._next_lsn = -1
        self._next_wanted = threading.Event()

    def wake(self) -> None:
        self._wanted.set()
        self._next_wanted.set()

    def ask(self, reserved: int) -> None:
        """Told by the commit loop where the tail is."""
        if self._goal(reserved) > self._native.load(CB.PREPARED_LSN):
            self._wanted.set()

    def _goal(self, reserved: int) -> int:
        """How far should be prepared: some pieces ahead, or as far as a writer waits for."""
        wanted = min(self._native.load(CB.WANTED_LIMIT), reserved + self._geometry.window_bytes)
        return max(reserved + self._ahead_pieces * self._geometry.piece_bytes - 1, wanted)

    def loop(self, stop: threading.Event) -> None:
        native, control = self._native, self._control
        ready_at = wanted_at = 0.0  # when enough was ready; the same, once more was wanted
        while not stop.is_set() and not control.failed:
            prepared = native.load(CB.PREPARED_LSN)
            if self._goal(control.reserved_lsn) <= prepared:
                if not self._wanted.wait(QUIET_S if self._zeros else NAP_S):
                    self._sync_zeros()
                    self._ahead_pieces = REST_PIECES
                else:
                    wanted_at = ready_at
                self._wanted.clear()
                continue
            now = time.monotonic()
            if wanted_at and now - wanted_at < QUIET_S:
                most = self._geometry.window_bytes // self._geometry.piece_bytes
                self._ahead_pieces = max(AHEAD_PIECES, min(2 * self._ahead_pieces, most))
            wanted_at = 0.0
            end = self._geometry.piece_end(prepared)
            try:
                self._prepare(prepared, end)
            except OSError as error:
                self._report(error, prepared, end)
                stop.wait(RETRY_S)
                continue
            native.store(CB.FULL_ERRNO, 0)
            native.store(CB.PREPARED_LSN, end)
            control.step()
            native.wake(CB.LIMIT_LSN)
            ready_at = time.monotonic()

    def next_loop(self, stop: threading.Event) -> None:
        """Make the next segment's file ahead of need; if that fails, loop() will meet and
        report the same error when it needs it."""
        while not stop.is_set():
            self._next_wanted.wait(NAP_S)
            self._next_wanted.clear()
            if self._next_lsn >= 0 and not self._control.failed and not stop.is_set():
                with contextlib.suppress(OSError):
                    self._make(self._next_lsn)
                self._next_lsn = -1

    def _make(self, lsn: int) -> OpenSegment:
        opened, made = self._segments.get_or_create(lsn, self._newest_mark())
        if made:
            self._native.add(CB.ROLLS, 1)
        return opened

    def _prepare(self, begin: int, end: int) -> None:
        if end > LSN_MAX:
            raise OSError(errno.EFBIG, "the log's address space is used up")
        geometry = self._geometry
        opened = self._make(begin)
        size = os.fstat(opened.prepare_fd).st_size
        if size != geometry.file_bytes:  # allocating would make it whole again, with zeros for records
            self._fail(errno.EFAULT)
            raise OSError(errno.EFAULT, f"a segment file has {size} bytes, not {geometry.file_bytes}")
        at = geometry.file_offset(begin) // PAGE_BYTES * PAGE_BYTES
        stop = geometry.file_offset(begin) + end - begin
        files.allocate(opened.prepare_fd, at, stop)
        if not self._records_are_large():
            opened.mapping.populate(at, stop - at)
            opened.mapping.forget(at, stop - at)  # in the page cache for all; not in this process
        first = geometry.segment_begin(begin)
        if first not in self._zeros:
            self._zeros.append(first)
        if end - first >= geometry.segment_bytes // 2:
            self._next_lsn = first + geometry.segment_bytes
            self._next_wanted.set()

    def _records_are_large(self) -> bool:
        """Whether most of what was written since it was last known came in large records."""
        now = self._written()
        records, payload = now[0] - self._before[0], now[1] - self._before[1]
        if payload >= self._geometry.piece_bytes // 4 or payload < 0:
            self._large = records > 0 and payload >= records * LARGE_BYTES // 2
            self._before = now
        return self._large

    def _report(self, error: OSError, begin: int, end: int) -> None:
        """Let waiting writers see why there is no room."""
        if self._native.load(CB.FULL_ERRNO) != error.errno:
            log.error("cannot prepare [%d, %d): %s", begin, end, error)
        self._native.store(CB.FULL_ERRNO, error.errno or errno.EIO)
        self._native.add(CB.PREPARE_TRIES, 1)

    def _sync_zeros(self) -> None:
        for first in self._zeros:
            opened = self._segments.opened(first)
            if opened is not None:
                try:
                    opened.sync_zeros()
                except OSError as error:
                    self._fail(error.errno or errno.EIO)
        self._zeros.clear()
