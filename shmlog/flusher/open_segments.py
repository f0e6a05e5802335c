"""Open segments: those that the flusher holds open.

Invariants
  L1  A segment's descriptors are open here before the first store into it can happen:
      limit_lsn reaches a piece only after it was prepared through them. An error of
      the kernel's write-back is reported to a descriptor that was open before it.
  L2  Syncing and preparing use descriptors of their own: an error is reported once to
      each, so neither can take the other's.

This module knows open segment files.  It may not know watermarks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shmlog import _native
from shmlog.disk import failure, segment
from shmlog.disk.directory import Directory
from shmlog.disk.failure import Failure
from shmlog.disk.rewriting import write_anew
from shmlog.disk.segments import list_segments, newest_mark, segment_path
from shmlog.disk.walk import Walker
from shmlog.format.geometry import PAGE_BYTES
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import Header, Mark
from shmlog.format.origin import Origin
from shmlog.system import files


@dataclass(slots=True)
class OpenSegment:
    """One open segment."""

    sync_fd: int
    prepare_fd: int
    mapping: _native.Mapping
    memory: memoryview
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _syncing_zeros: bool = False
    _closing: bool = False

    def sync_zeros(self) -> None:
        """fdatasync by the preparing side, which may go on while the syncing side closes
        the segment; OSError as that raises it."""
        with self._lock:
            if self._closing:
                return  # everything in it is durable by now
            self._syncing_zeros = True
        try:
            os.fdatasync(self.prepare_fd)
        finally:
            with self._lock:
                self._syncing_zeros = False
                if self._closing:
                    os.close(self.prepare_fd)

    def close(self) -> None:
        with self._lock:
            self._closing = True
            os.close(self.sync_fd)
            if not self._syncing_zeros:
                os.close(self.prepare_fd)


class OpenSegments:
    """The open segments of one flusher, by LSN.  Its threads share it."""

    def __init__(
        self, directory: Directory, mode: int, room: Callable[[int], None] = lambda first: None
    ) -> None:
        self._directory = directory
        self._identity = directory.identity
        self._geometry = directory.identity.geometry
        self._mode = mode
        self._room = room
        self._open: dict[int, OpenSegment] = {}
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._place = self._look()

    def get(self, lsn: int) -> OpenSegment:
        """The segment that holds lsn, opened at the first call."""
        first = self._geometry.segment_begin(lsn)
        found = self._open.get(first)
        if found is None:
            with self._lock:
                found = self._open.get(first)
                if found is None:
                    path = segment_path(self._directory, first)
                    found = self._open[first] = self._adopt(first, files.open_file(path, writable=True))
        return found

    def get_or_create(self, lsn: int, mark: Mark) -> tuple[OpenSegment, bool]:
        """As get(), making the file if there is none; and whether it was made.  The
        file and its name are durable then.  Waits until there is room for one more, which
        must not keep others from the files that are there."""
        first = self._geometry.segment_begin(lsn)
        if not self.exists(first):
            self._room(first)
        with self._making:
            if self.exists(first):
                return self.get(first), False
            if self._look() != self._place:
                raise OSError(
                    errno.ESTALE, "the log's directory was removed or replaced", self._directory.path
                )
            path, geometry = segment_path(self._directory, first), self._geometry
            header = Header(self._identity.log_id, first, geometry.segment_bytes, mark.epoch, time.time_ns())
            fd = segment.create(path, header, mark, geometry, self._mode)
            with self._lock:  # another thread may have opened what has just got its name
                made = self._open.get(first)
                if made is None:
                    made = self._open[first] = self._adopt(first, fd)
                else:
                    os.close(fd)
            return made, True

    def memory(self, lsn: int) -> memoryview:
        """The writable bytes of the segment that holds lsn, header included."""
        return self.get(lsn).memory

    def exists(self, lsn: int) -> bool:
        """Whether the segment that holds lsn has its file.  OSError if that cannot be told: taken
        for a no, it would be made anew over its records, or a trim go unmarked."""
        try:
            os.lstat(segment_path(self._directory, lsn))
        except FileNotFoundError:
            return False
        return True

    def opened(self, lsn: int) -> OpenSegment | None:
        """The segment that holds lsn if it is open."""
        return self._open.get(self._geometry.segment_begin(lsn))

    def newest_mark(self) -> Mark | None:
        """The newest mark over all segment files."""
        return newest_mark(self._directory, list_segments(self._directory), check=False)

    def origin(self, boot_id: bytes) -> Origin:
        """Where and when marks are written, from now on."""
        return self._directory.origin(boot_id)

    def rewrite(self, begin: int, end: int) -> None:
        """Put the frames of [begin, end), whole ones, on the disk whatever the kernel believes
        of them; OSError unless they are there then, and valid."""
        for low, high in self._geometry.segment_ranges(begin, end):
            fd, at = self.get(low).sync_fd, self._geometry.file_offset(low)
            write_anew(fd, 0, SEGMENT_HEADER_BYTES, alone=False)
            write_anew(fd, at, at + high - low, alone=False)
        with Walker(self._directory) as walker:
            walk = walker.walk(begin, end)
        if walk.end_lsn < end:
            raise OSError(errno.EIO, f"LSN {walk.bad_lsn} was lost from memory: {walk.problem.text}")

    def sync_names(self) -> None:
        """Make the files' names durable: a dead flusher may have given one and no more."""
        files.sync_directory(self._directory.segments_path)

    def note_failure(self, why: Failure) -> None:
        """Leave a note beside the segments that the log has failed."""
        failure.note(self._directory, why, self._mode)

    def close_below(self, lsn: int) -> None:
        """Let go of the segments that end at or below lsn."""
        # A list of a dict is made in one go; a tuple allocates within its loop, where the collector may
        # run and another thread add a segment.  The lock may be held by one that waits for the disk.
        if all(first + self._geometry.segment_bytes > lsn for first in list(self._open)):
            return
        with self._lock:
            for first in [first for first in self._open if first + self._geometry.segment_bytes <= lsn]:
                self._open.pop(first).close()

    def remove_below(self, lsn: int) -> int:
        """Unlink the segment files that end at or below lsn; how many.  Views of them live on."""
        self.close_below(lsn)
        below = [first for first in list_segments(self._directory) if first < lsn]
        for first in below:
            os.unlink(segment_path(self._directory, first))
        if below:
            files.sync_directory(self._directory.segments_path)
        return len(below)

    def give_back(self, end: int) -> None:
        """Free what was prepared at and beyond the end of a log that is being closed."""
        geometry = self._geometry
        keep = geometry.segment_begin(max(0, end - 1))
        for first in list_segments(self._directory):
            if first > keep:
                os.unlink(segment_path(self._directory, first))
                with self._lock:
                    if first in self._open:
                        self._open.pop(first).close()
        if self.exists(keep):
            page_end = -(-(SEGMENT_HEADER_BYTES + end - keep) // PAGE_BYTES) * PAGE_BYTES
            with contextlib.suppress(OSError):
                _native.punch_hole(self.get(keep).sync_fd, page_end, geometry.file_bytes - page_end)
        files.sync_directory(self._directory.segments_path)

    def close(self) -> None:
        with self._lock:
            for opened in self._open.values():
                opened.close()
            self._open.clear()

    def _look(self) -> tuple[int, int] | None:
        """What tells the directory from another one made at its path."""
        try:
            found = os.stat(self._directory.segments_path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _adopt(self, first: int, sync_fd: int) -> OpenSegment:
        path, geometry = segment_path(self._directory, first), self._geometry
        try:
            segment.check(sync_fd, path, self._identity.log_id, first, geometry)
            prepare_fd = files.open_file(path, writable=True)
            mapping = _native.Mapping(sync_fd, geometry.file_bytes, True)
        except BaseException:
            os.close(sync_fd)
            raise
        return OpenSegment(sync_fd, prepare_fd, mapping, memoryview(mapping))
