"""Segments: the set of a log's segment files, and their mappings.

This module knows which files there are and opens, maps and lists them.  It may
not know who writes or reads them.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict

from shmlog import _native
from shmlog.disk import segment
from shmlog.disk.directory import Directory
from shmlog.errors import FormatError
from shmlog.format import marks
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import Mark
from shmlog.system import files


def list_segments(directory: Directory) -> list[int]:
    """The first LSNs of the segment files there are, ascending.  A name that is not a
    segment's is ignored if temporary, and a FormatError otherwise."""
    found = []
    for name in os.listdir(directory.segments_path):
        first = segment.parse_name(name)
        if first is None:
            if name.endswith(".tmp"):
                continue
            raise FormatError(f"{directory.segments_path} holds {name!r}, which is no segment")
        if first % directory.identity.geometry.segment_bytes:
            raise FormatError(f"{name}: LSN {first} is no segment's beginning in this log")
        found.append(first)
    return sorted(found)


def segment_path(directory: Directory, lsn: int) -> str:
    first = directory.identity.geometry.segment_begin(lsn)
    return os.path.join(directory.segments_path, segment.file_name(first))


def find_marks(directory: Directory, segments: list[int], *, check: bool) -> dict[int, Mark | None]:
    """The newest mark of each of these segment files, None of one that holds none.  check:
    FormatError unless each is a whole file of this log."""
    identity, found = directory.identity, {}
    for first in segments:
        path = segment_path(directory, first)
        with files.descriptor(files.open_file(path, writable=False, owner=directory.owner)) as fd:
            if check:
                page = segment.check(fd, path, identity.log_id, first, identity.geometry)
            else:
                page = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
        found[first] = marks.newest_mark(page, identity.log_id, identity.geometry.segment_bytes)
    return found


def newest_mark(directory: Directory, segments: list[int], *, check: bool) -> Mark | None:
    """The newest of all marks of these segment files, or None if none holds one."""
    return max(filter(None, find_marks(directory, segments, check=check).values()), default=None)


def map_segment(directory: Directory, lsn: int, writable: bool) -> _native.Mapping:
    """Map the segment that holds lsn; FileNotFoundError if there is none."""
    path = segment_path(directory, lsn)
    geometry = directory.identity.geometry
    with files.descriptor(files.open_file(path, writable, directory.owner)) as fd:
        segment.check(fd, path, directory.identity.log_id, geometry.segment_begin(lsn), geometry)
        return _native.Mapping(fd, geometry.file_bytes, writable, writable)


class MappingCache:
    """Read-only mappings by segment, the latest few; views keep theirs alive longer.

    Threads, finalizers, signal handlers and forked children may come in at any point, so there
    is no lock.  Each step on the mappings runs no Python code, and is thus whole under the
    GIL; between two steps others may have been here, at worst a segment is mapped twice."""

    def __init__(self, directory: Directory, capacity: int = 8) -> None:
        self._directory = directory
        self._capacity = capacity
        self._mappings: OrderedDict[int, _native.Mapping] = OrderedDict()

    def get(self, lsn: int) -> _native.Mapping:
        number = self._directory.identity.geometry.segment_no(lsn)
        mapping = self._mappings.get(number)
        if mapping is None:
            mapping = self._mappings[number] = map_segment(self._directory, lsn, writable=False)
            while len(self._mappings) > self._capacity:
                with contextlib.suppress(KeyError):  # cleared by now
                    self._mappings.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):  # pushed out by now
                self._mappings.move_to_end(number)
        return mapping

    def clear(self) -> None:
        self._mappings.clear()
