"""Salvage: what of a damaged log can be kept, and what must be changed for it.

Believes nothing but checksums.  What was vouched for is told by the newest mark that is
whole.  Below that, every frame that is valid at its own LSN is kept,
also behind a destroyed length, and what lies between two of them is lost: it becomes FILL,
which readers pass over.  Above it nothing was promised, and the ordinary recovery decides.

    as it is     frame | frame | ?????????????? | frame | ...        vouched
    as it will be frame | frame | FILL           | frame | ...

Only looks: the changes are values, in the order in which they must be made.

  Y1  A change overwrites or moves only what the plan names.
  Y2  What is left of an atomic batch that lost a frame is lost with it, but where the
      damage begins before the batch does: then nothing tells that there was one.

This module knows files and frames.  It may not know who changes them, or when.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shmlog import _native
from shmlog.disk import cursors, ownership, segment
from shmlog.disk.directory import Directory
from shmlog.disk.ownership import Change, File
from shmlog.disk.segments import segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import FormatError, RestartUnclearError
from shmlog.format.layout import GRANULE_BYTES, KIND_FILL, SEGMENT_HEADER_BYTES
from shmlog.format.marks import MARK_SLOTS, Header, Mark
from shmlog.format.origin import Origin, Since, since
from shmlog.system import files

MISSING_SEGMENTS_MAX = 1024
"""More than these are not made anew: then the wrong directory is more likely."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A range whose records are gone."""

    begin_lsn: int
    end_lsn: int
    reason: str


@dataclass(frozen=True, slots=True)
class Salvage:
    """What a repair would do; no changes: the log is not damaged."""

    directory: Directory
    trimmed_lsn: int
    vouched_lsn: int
    changes: tuple[Change, ...]
    lost: tuple[Loss, ...]
    mark: Mark | None
    """for the segments that are made"""


def find(
    path: str,
    boot_id: bytes,
    restarted: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Salvage:
    """Look at every file of the log in the directory, of which nobody is a user.  FormatError:
    nothing tells whose files they are.  RestartUnclearError: nothing tells whether the machine
    restarted, and `restarted` does not either."""
    path = os.path.abspath(path)
    files.check_directory(path)
    changes: list[Change] = []
    directory = Directory(path, ownership.identity(path, changes))
    if not os.path.isdir(directory.segments_path):
        raise FormatError(f"{path} has no segments: there is nothing to repair")
    placed = ownership.place(directory, ownership.candidates(directory, changes), changes)
    return _Plan(directory, placed, changes, progress).made(directory.origin(boot_id), restarted)


class _Files(Walker):
    """Walks files that need not be whole, or at their places."""

    def __init__(self, directory: Directory, placed: dict[int, File]) -> None:
        super().__init__(directory)
        self._placed = placed

    def _open_segment(self, first: int) -> int:
        return files.open_file(self._placed[first].path, writable=False)


class _Plan:
    """The changes, from the files at their places on."""

    def __init__(
        self,
        directory: Directory,
        placed: dict[int, File],
        changes: list[Change],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._directory = directory
        self._geometry = directory.identity.geometry
        self._placed = placed
        self._changes = changes
        self._progress = progress
        self._lost: list[Loss] = []
        self._walker = _Files(directory, placed)
        self._now = time.time_ns()
        self._mark = max((file.mark for file in placed.values() if file.mark), default=None)

    def made(self, here: Origin, restarted: bool | None) -> Salvage:
        with self._walker:
            mark, moved = self._vouched(here, restarted)
            if mark is not None:
                self._frames(mark)
                self._write_mark(mark, moved)
                self._cursors(mark.durable_lsn)
        trimmed, vouched = (mark.trimmed_lsn, mark.durable_lsn) if mark else (0, 0)
        changes, lost = tuple(self._changes), tuple(self._lost)
        return Salvage(self._directory, trimmed, vouched, changes, lost, mark)

    def _vouched(self, here: Origin, restarted: bool | None) -> tuple[Mark | None, str]:
        """The mark that the log will have, and why it is not the one there is."""
        size, mark, why = self._geometry.segment_bytes, self._mark, ""
        if mark is None:
            end = max(self._ends(0), default=min(self._placed, default=0))
            reached = _furthest_cursor(self._directory)
            if not self._placed and not reached:
                return None, ""
            epoch = max((file.header.epoch for file in self._placed.values() if file.header), default=0) + 1
            end = end if self._placed else -(-reached // size) * size
            mark = Mark(epoch, end, 0, min(self._placed, default=max(0, end - size)))
            why = "no mark is whole; it vouches for every frame that is valid"
        elif since(mark.origin, here, restarted) in (Since.COPIED, Since.UNCLEAR):
            good, end = self._reach(mark.durable_lsn), max(self._ends(mark.durable_lsn), default=0)
            if end > good and since(mark.origin, here, restarted) is Since.UNCLEAR:
                raise RestartUnclearError(segment_path(self._directory, good), good)
            if end > good:
                mark = mark.next(durable_lsn=end, origin=here, clean=False)
                why = "of a copy that was made while the log was written every frame that is valid is kept"
        begin = self._geometry.segment_begin(mark.trimmed_lsn)
        last = self._geometry.segment_begin(max(0, mark.durable_lsn - 1))
        there = [first for first in self._placed if begin <= first <= last]
        missing = range(begin, last + size, size)
        if len(missing) - len(there) > MISSING_SEGMENTS_MAX:
            raise FormatError(
                f"{self._directory.segments_path}: {len(missing) - len(there)} segments of [{begin},"
                f" {mark.durable_lsn}) are missing, too many to be damage"
            )
        first = min(there, default=last)
        if first > begin:
            self._lost.append(Loss(begin, first, "the segments are missing"))
            mark, why = mark.next(trimmed_lsn=first), why or "the log begins with what is there"
        if last not in self._placed:  # it will be made, and hold the mark
            why = why or "the segment that held it is missing"
        return mark, why

    def _ends(self, vouched: int) -> list[int]:
        """Where the last valid frames end of the files from that of `vouched` on that hold any."""
        last = self._geometry.segment_begin(max(0, vouched - 1))
        found = [(first, self._valid_end(first)) for first in self._placed if first >= last]
        return [end for first, end in found if end > first]

    def _reach(self, vouched: int) -> int:
        """How far valid frames reach from the segment that holds the end of what was vouched for."""
        at = self._geometry.segment_begin(max(0, vouched - 1))
        while (first := self._geometry.segment_begin(at)) == at and first in self._placed:
            walk = self._walker.walk(at, self._stop(first))
            if walk.end_lsn == at:
                break
            at = walk.end_lsn
        return at

    def _valid_end(self, first: int) -> int:
        """Where the last valid frame of one file ends, or its first LSN."""
        end, stop = first, self._stop(first)
        at: int | None = first
        while at is not None:
            walk = self._walker.walk(at, stop)
            end = walk.end_lsn if walk.end_lsn > at else end
            at = self._walker.find(walk.bad_lsn + GRANULE_BYTES, stop)
        return end

    def _stop(self, first: int) -> int:
        """Where the bytes of one file end, as an LSN."""
        there = max(0, self._placed[first].size - SEGMENT_HEADER_BYTES)
        return first + min(self._geometry.segment_bytes, there - there % GRANULE_BYTES)

    def _frames(self, mark: Mark) -> None:
        begin, vouched = mark.trimmed_lsn, mark.durable_lsn
        last = self._geometry.segment_begin(max(0, vouched - 1))
        for first in range(begin, max(begin, last) + 1, self._geometry.segment_bytes):
            high = min(vouched, first + self._geometry.segment_bytes)
            if first in self._placed:
                self._file(first)
                for low, end, reason in self._gaps(first, high):
                    self._fill(low, end, reason)
            else:
                path = os.path.join(self._directory.segments_path, segment.file_name(first))
                self._changes.append(Change("make", path, "the segment is missing", offset=first))
                if high > first:
                    self._fill(first, high, "the segment is missing")
            if self._progress is not None:
                self._progress(high - begin, vouched - begin)
        for first in sorted(first for first in self._placed if first > last):
            self._file(first)  # recovery wants whole files, also of what it will remove

    def _file(self, first: int) -> None:
        """Length and header of one file."""
        file, identity = self._placed[first], self._directory.identity
        path = os.path.join(self._directory.segments_path, segment.file_name(first))
        if file.size != self._geometry.file_bytes:
            why = f"it has {file.size} bytes, not {self._geometry.file_bytes}"
            self._changes.append(Change("resize", path, why, size=self._geometry.file_bytes))
        if file.header is None:
            epoch = self._mark.epoch if self._mark else 1
            header = Header(identity.log_id, first, self._geometry.segment_bytes, epoch, self._now)
            self._changes.append(Change("patch", path, "its header is damaged", data=header.encode()))

    def _gaps(self, first: int, high: int) -> Iterator[tuple[int, int, str]]:
        """The ranges of one file below `high` that hold no valid frame, or those of an atomic
        batch that is not whole (Y2).  The last may go on above `high`, to a valid frame."""
        stop, low, reason = self._stop(first), -1, ""
        at: int | None = first
        while at is not None:
            walk = self._walker.walk(at, stop)
            if walk.end_lsn > at and low >= 0:
                yield low, at, reason
                low = -1
            if walk.end_lsn >= high:
                return
            if low < 0:
                low, reason = walk.end_lsn, walk.problem.text
                reason = reason or ("the file has been cut" if low == stop else "a batch is not whole")
            at = self._walker.find(walk.bad_lsn + GRANULE_BYTES, stop)
            if at is not None and walk.end_lsn < walk.bad_lsn:
                at = self._after_batch(walk.end_lsn, at, stop)
        yield low, high, reason

    def _after_batch(self, batch: int, at: int, stop: int) -> int | None:
        """The first valid frame from `at` on that is none of the batch's that begins at `batch`."""
        group = self._walker.header(batch).group
        while True:
            frame = self._walker.header(at)
            if frame.group != group:
                return at
            if frame.end_lsn >= stop:
                return None
            following = self._walker.find(frame.end_lsn, stop)
            if following is None or not frame.batch_goes_on:
                return following
            at = following

    def _fill(self, low: int, high: int, reason: str) -> None:
        path = os.path.join(
            self._directory.segments_path, segment.file_name(self._geometry.segment_begin(low))
        )
        seed = self._directory.identity.seed
        header = _native.filler(KIND_FILL, low, high - low, self._now, 0, seed)
        self._lost.append(Loss(low, high, reason))
        why = f"[{low}, {high}) becomes FILL: {reason}"
        self._changes.append(Change("patch", path, why, offset=self._geometry.file_offset(low), data=header))

    def _write_mark(self, mark: Mark, why: str) -> None:
        """Into the segment that it is about, if it is new; and into those that may have held a
        newer one and hold none, which recovery refuses.  A file that is made has it already."""
        last = self._geometry.segment_begin(max(0, mark.durable_lsn - 1))
        data, offset = mark.encode(self._directory.identity.log_id), MARK_SLOTS.offset(mark.sequence)
        for first in sorted(first for first in self._placed if first >= last):
            reason = f"a new mark: {why}" if why and first == last else "both copies of its mark are damaged"
            if self._placed[first].mark is None or (why and first == last):
                path = os.path.join(self._directory.segments_path, segment.file_name(first))
                self._changes.append(Change("patch", path, reason, offset=offset, data=data))

    def _cursors(self, vouched: int) -> None:
        """A cursor that cannot be read is forgotten; none points above the end."""
        seed, end = self._directory.identity.seed, max([vouched, *self._ends(vouched)])
        for name, path in cursors.paths(self._directory):
            try:
                place = cursors.look(path, seed)
            except (FormatError, OSError) as error:
                self._changes.append(Change("aside", path, f"the cursor {name!r} is lost: {error}"))
                continue
            if place is not None and place.lsn > end:
                why = f"the cursor {name!r} was at {place.lsn}, and the log ends at {end}"
                offset, data = cursors.encode(seed, place.sequence + 1, end)
                self._changes.append(Change("patch", path, why, offset=offset, data=data))


def _furthest_cursor(directory: Directory) -> int:
    """0 also where a cursor's file is damaged."""
    found = [0]
    for _, path in cursors.paths(directory):
        with contextlib.suppress(FormatError, OSError):
            place = cursors.look(path, directory.identity.seed)
            found += [place.lsn] if place else []
    return max(found)
