"""Beginning: what the maker of a control block prepares itself, so that it can append at once.

    attach, under the set-up byte     recover  ->  first piece  ->  the block, limit behind the piece
    later                             the flusher comes, and prepares what follows

A flusher needs a fifth of a second to start, and until it had made the first piece every
append would wait for it.

Invariants
  I8  prepared_lsn and limit_lsn are the lease holder's (control) but for this: before the block
      is announced nobody else can see them, and nobody who could store them lives.
  I9  The maker holds the segment open until it appends through it, and its map from then on.
      So an error of the kernel's write-back, which nobody has been told yet, waits for the
      first flusher, and that one need not distrust the piece (flusher/syncing, S3) if the
      maker has lived on meanwhile.

This module knows one piece.  It may not know how a log is joined or served.
"""

from __future__ import annotations

import time

from shmlog import _native
from shmlog.disk import segment
from shmlog.disk.cases import Case
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import Recovery
from shmlog.disk.segments import segment_path
from shmlog.format.geometry import PAGE_BYTES
from shmlog.format.marks import Header, Mark
from shmlog.system import files

FIRST_BYTES = 1 << 20
"""Enough for what is appended before a flusher has started; allocating it takes no time."""


def first_piece(
    directory: Directory, found: Recovery, boot_id: bytes, mode: int
) -> tuple[int, _native.Mapping | None]:
    """Prepare the piece at the end of a recovered log that nobody else uses: (prepared_lsn, a map
    of the segment to append through).  Nothing if it cannot be had: a flusher meets the same
    error, and says so to whoever waits."""
    end, geometry = found.end_lsn, directory.identity.geometry
    if found.case is not Case.EMPTY and end == geometry.segment_begin(end):
        return end, None  # the next segment is the flusher's to make
    stop = min(end - end % FIRST_BYTES + FIRST_BYTES, geometry.piece_end(end))
    low = geometry.file_offset(end) // PAGE_BYTES * PAGE_BYTES
    high = geometry.file_offset(end) + stop - end
    try:
        with files.descriptor(_open(directory, found, boot_id, mode)) as fd:
            files.allocate(fd, low, high)
            mapping = _native.Mapping(fd, geometry.file_bytes, True, True)
            mapping.populate(low, high - low)
    except (OSError, MemoryError):
        return end, None
    return stop, mapping


def _open(directory: Directory, found: Recovery, boot_id: bytes, mode: int) -> int:
    """The segment that holds the end; made, durably, if the log is empty."""
    end, identity = found.end_lsn, directory.identity
    path = segment_path(directory, end)
    if found.case is not Case.EMPTY:
        return files.open_file(path, writable=True)
    header = Header(identity.log_id, end, identity.geometry.segment_bytes, found.epoch, time.time_ns())
    mark = Mark(found.epoch, end, 1, found.trimmed_lsn, False, directory.origin(boot_id))
    return segment.create(path, header, mark, identity.geometry, mode)
