"""Look: what bounds a log's records, live or dead, without joining it.

Nothing is written, no participant slot is taken, nobody can be delayed.  What bounds
the records changes as the log's users come and go:

    control block   locks of LOCK   bounds
    -------------   -------------   ------------------------------------------------
    there           any             the block's watermarks, also once it was replaced
    not there       held            those of the last look: a session begins or ends;
                                    at the first look AttachError if none appears
    not there       free            what recovery would keep, found anew after a session

Invariants
  N1  The files are not judged while they are written: a record that is being copied
      would look like a hole.
  N2  The bounds never go back.

This module knows a session's block, its locks and what recovery would find.  It may
not know how records are read.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from shmlog.disk import directory
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import Recovery, inspect
from shmlog.disk.segments import list_segments, segment_path
from shmlog.errors import AttachError, CorruptionError, FormatError, ShmlogError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, SEGMENT_HEADER_BYTES
from shmlog.memory import block, control
from shmlog.memory.control import ControlView
from shmlog.system import files
from shmlog.system.deadlines import deadline_after, poll
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE, LEASE_BYTE, LockView

PATIENCE_S = 2.0


class Live(NamedTuple):
    """Bounded by the watermarks of a control block."""

    block: ControlView
    created_ns: int

    def bounds(self) -> tuple[int, int]:
        return self.block.bounds()


class Dead(NamedTuple):
    """Bounded by what recovery would keep of files that had this stamp."""

    recovery: Recovery
    stamp: tuple[list[int], bytes]

    def bounds(self) -> tuple[int, int]:
        return self.recovery.trimmed_lsn, self.recovery.end_lsn


def view_of(where: Directory, boot_id: bytes) -> ControlView | None:
    """The log's control block, if it has one of this boot, build and place."""
    return control.look(where.identity, boot_id, where.place(), where.owner)


class Look:
    """One looker at one log; again() looks once more."""

    def __init__(self, where: Directory) -> None:
        self._directory = where
        self._boot_id = files.boot_id()
        self.seen: Live | Dead | None = None

    def again(self) -> Live | Dead:
        """What bounds the log now, by the table above."""
        seen = self.seen
        view = self._view()
        if view is None:
            if seen is not None:
                self._check_place()
                if self.in_use():
                    return seen
            else:
                view = self._wait_for_block()
        if view is None:
            stamp = self._stamp()
            if isinstance(seen, Dead) and seen.stamp == stamp:
                return seen
            try:
                found = inspect(self._directory, self._boot_id)
            except (ShmlogError, FileNotFoundError):
                if seen is None or (self._view() is None and self._stamp() == stamp):
                    raise
                return seen
            view = self._view()
            if view is None:  # N1: nobody came meanwhile
                if seen is None or self._stamp() == stamp:
                    return self._turn_to(Dead(found, stamp))
                return seen
        created_ns = view.load(CB.CREATED_NS)
        if isinstance(seen, Live) and seen.created_ns == created_ns:
            return seen
        return self._turn_to(Live(view, created_ns))

    def _wait_for_block(self) -> ControlView | None:
        """At the first look: None if nobody uses the log; else its block, which may be about
        to be made (N1)."""
        view: ControlView | None = None

        def settled() -> bool:
            nonlocal view
            if not self.in_use():
                view = self._view()
                return True
            view = self._view()
            return view is not None

        if not poll(settled, deadline_after(PATIENCE_S)):
            raise AttachError(block.missing(self._directory.path, self._directory.identity.log_id))
        return view

    def _turn_to(self, now: Live | Dead) -> Live | Dead:
        committed = now.bounds()[1]
        if self.seen is not None and committed < self.seen.bounds()[1]:  # N2
            path = segment_path(self._directory, committed)
            raise CorruptionError(path, committed, "records that could be read have been lost")
        self.seen = now
        return now

    def _view(self) -> ControlView | None:
        return view_of(self._directory, self._boot_id)

    def _check_place(self) -> None:
        try:
            found = directory.load(self._directory.path, to_look=True)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "the log has been removed", self._directory.path) from None
        if found.identity != self._directory.identity:
            raise FormatError(f"{self._directory.path} has been replaced by another log")

    def in_use(self) -> bool:
        """Whether a lock of LOCK is held."""
        try:
            with LockView(self._directory.lock_path, self._directory.owner) as lock:
                return lock.locked(LEASE_BYTE, FIRST_PARTICIPANT_BYTE + PARTICIPANT_COUNT)
        except FileNotFoundError:
            return False

    def _stamp(self) -> tuple[list[int], bytes]:
        """Differs after every session that ended in order: its last mark is in the last segment."""
        segments = list_segments(self._directory)
        if not segments:
            return segments, b""
        try:
            path = segment_path(self._directory, segments[-1])
            fd = files.open_file(path, writable=False, owner=self._directory.owner)
        except FileNotFoundError:  # a session has begun and removed it
            return segments, b""
        with files.descriptor(fd):
            return segments, os.pread(fd, SEGMENT_HEADER_BYTES, 0)
