"""Reader: batches and records out of the mapped segments, between two bounds.

Invariants
  V1  Nothing at or above the bound, which is committed_lsn, is looked at.
  V2  Maps are read-only; a header is copied once, checked, and only the copy used.

This module knows frames in maps.  It may not know the control block: the bounds
are given to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.disk.segments import MappingCache, list_segments, segment_path
from shmlog.errors import CorruptionError, TrimmedError
from shmlog.format.layout import GRANULE_BYTES, SEGMENT_HEADER_BYTES, Problem
from shmlog.records.batch import Record, RecordBatch

BATCH_RECORDS = 1 << 16
RECORDS_AT_ONCE = 64
"""Made in one go by read(): few, so that a slow consumer holds few views."""


class Reader:
    """Reads what lies between two bounds; knows nothing of how they move.

    holes: ranges of a dead log that recovery would fill; they hold no record."""

    def __init__(self, directory: Directory, holes: tuple[tuple[int, int], ...] = ()) -> None:
        self._directory = directory
        self._holes = holes
        self._geometry = directory.identity.geometry
        self._seed = directory.identity.seed
        self._cache = MappingCache(directory)

    def batches(
        self,
        start: int,
        stop: int,
        tag: int | None = None,
        verify: bool = True,
        records: int = BATCH_RECORDS,
        named: bool = False,
    ) -> Iterator[RecordBatch]:
        """Yield the batches of [start, stop).  Both bounds are frame boundaries below
        committed_lsn, or start is what a user named: ValueError if no record begins there."""
        for first, begin, bound in self._pieces(start, stop):
            mapping, at = self._map(begin), begin
            while at < bound:
                batch, at, problem = self._batch(mapping, first, at, bound, tag, verify, records)
                if len(batch):
                    yield batch
                if problem:
                    self._refuse(mapping, at, named and at == start, problem)

    def records(
        self, start: int, stop: int, end: int, verify: bool = True, named: bool = False
    ) -> Iterator[Record]:
        """Yield the records that begin in [start, stop); as batches() of [start, end), of
        which every frame ends by end."""
        for first, begin, bound in self._pieces(start, end):
            mapping, at = self._map(begin), begin
            while at < bound and at < stop:
                found, at, problem = _native.records(
                    mapping, first, at, stop, bound, self._seed, verify, RECORDS_AT_ONCE, Record
                )
                yield from found
                if problem:
                    self._refuse(mapping, at, named and at == start, problem)

    def seek_time(self, begin: int, end: int, time_ns: int) -> int:
        """The LSN of the first record of [begin, end) whose time_ns is at least this, or end.
        Segments are searched by halves, for the times of their first records are nearly in order."""
        ranges = self._geometry.segment_ranges(begin, end)
        low, high = 0, len(ranges)
        while low < high:  # the last segment whose first record is older
            middle = (low + high) // 2
            first = self._first_time(*ranges[middle])
            if first is not None and first < time_ns:
                low = middle + 1
            else:
                high = middle
        for start, stop in ranges[max(0, low - 1) :]:
            for batch in self.batches(start, stop, None, False):
                found = np.flatnonzero(batch.time_ns >= time_ns)
                if len(found):
                    return int(batch.lsn[found[0]])
        return end

    def _first_time(self, begin: int, end: int) -> int | None:
        for batch in self.batches(begin, end, None, False, 1):
            return int(batch.time_ns[0])
        return None

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """[start, stop) without the holes, cut at the segments: (the segment's first LSN,
        begin, end)."""
        begin = start
        for low, high in (*self._holes, (stop, stop)):
            while begin < min(low, stop):
                first = self._geometry.segment_begin(begin)
                end = min(low, stop, first + self._geometry.segment_bytes)
                yield first, begin, end
                begin = end
            begin = max(begin, high)

    def _batch(
        self,
        mapping: _native.Mapping,
        first: int,
        begin: int,
        bound: int,
        tag: int | None,
        verify: bool,
        records: int,
    ) -> tuple[RecordBatch, int, int]:
        most = min(records, (bound - begin) // GRANULE_BYTES)
        kinds = (np.uint64, np.int64, np.uint32, np.uint16, np.uint32)
        columns = tuple(np.empty(most, kind) for kind in kinds)
        count, at, _, problem = _native.walk(
            memoryview(mapping)[SEGMENT_HEADER_BYTES:],
            first,
            begin,
            bound,
            self._seed,
            verify,
            -1 if tag is None else tag,
            True,
            columns,
        )
        return RecordBatch(mapping, first, at, tuple(column[:count] for column in columns)), at, problem

    def _map(self, lsn: int) -> _native.Mapping:
        try:
            return self._cache.get(lsn)
        except FileNotFoundError:
            oldest = min(list_segments(self._directory), default=lsn)
            if oldest > lsn:
                raise TrimmedError(lsn, oldest) from None
            raise

    def _refuse(self, mapping: _native.Mapping, lsn: int, named: bool, problem: int) -> None:
        path = segment_path(self._directory, lsn)
        if mapping.faulted:
            raise CorruptionError(path, lsn, "the file was changed or lost under the reader")
        what = Problem(problem)
        if named and what is not Problem.BAD_CHECKSUM:
            raise ValueError(f"no record begins at LSN {lsn} ({what.text})")
        raise CorruptionError(path, lsn, what.text)

    def close(self) -> None:
        self._cache.clear()
