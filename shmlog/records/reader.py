"""Reader: batches and records out of the mapped segments, between two bounds.

Invariants
  V1  Nothing at or above the bound, which is committed_lsn, is looked at.
  V2  Maps are read-only; a header is copied once, checked, and only the copy used.

This module knows frames in maps.  It may not know the control block: the bounds
are given to it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

import numpy as np

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.disk.segments import MappingCache, list_segments, segment_path
from shmlog.errors import CorruptionError, TrimmedError
from shmlog.format.layout import GRANULE_BYTES, SEGMENT_HEADER_BYTES, Problem
from shmlog.records.batch import COLUMN_KINDS, Record, RecordBatch

BATCH_RECORDS = 1 << 16
RECORDS_AT_ONCE = 64
"""Made in one go by read(): few, so that a slow consumer holds few views."""

Tags = int | Iterable[int] | None
"""Which tags: all, one, a range or a set."""
CoreTags = tuple[int, int, int] | bytes | None
"""The same as the core has it: all, (low, high, step) or ascending uint32 numbers."""


def core_tags(tags: Tags) -> CoreTags:
    """ValueError for what is no tag, TypeError for what is no number."""
    if tags is None:
        return None
    try:
        numbers = _tag_numbers(tags)
    except TypeError:
        raise TypeError(f"tags must be an int, or a range, set or list of ints, not {tags!r}") from None
    for tag in (*numbers[:1], *numbers[-1:]):
        if not 0 <= tag < 2**32:
            raise ValueError(f"tag must be in [0, 2**32), not {tag}")
    if numbers and (isinstance(tags, range) or len(numbers) == 1):
        return numbers[0], numbers[-1], abs(tags.step) if isinstance(tags, range) and len(tags) > 1 else 1
    return np.unique(np.array(numbers, np.uint32)).tobytes()


def _tag_numbers(tags: int | Iterable[int]) -> list[int]:
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        return [operator.index(tags)]  # type: ignore[arg-type]
    if isinstance(tags, range):
        return sorted({tags[0], tags[-1]}) if tags else []
    return sorted(map(operator.index, tags))


def missing(directory: Directory, lsn: int, error: FileNotFoundError) -> Exception:
    """What it means that the segment of a committed LSN is not there."""
    oldest = min(list_segments(directory), default=lsn)
    return TrimmedError(lsn, oldest) if oldest > lsn else error


def unreadable(
    directory: Directory, mapping: _native.Mapping, lsn: int, named: bool, problem: int
) -> Exception:
    """What it means that the frame at lsn is not valid.  named: a user said that there is one."""
    path = segment_path(directory, lsn)
    if mapping.faulted:
        return CorruptionError(path, lsn, "the file was changed or lost under the reader")
    what = Problem(problem)
    if named and what is not Problem.BAD_CHECKSUM:
        return ValueError(f"no record begins at LSN {lsn} ({what.text})")
    return CorruptionError(path, lsn, what.text)


class Reader:
    """Reads what lies between two bounds; knows nothing of how they move.

    holes: ranges of a dead log that recovery would fill; they hold no record."""

    def __init__(self, directory: Directory, holes: tuple[tuple[int, int], ...] = ()) -> None:
        self._directory = directory
        self.holes = holes
        self._geometry = directory.identity.geometry
        self._seed = directory.identity.seed
        self._cache = MappingCache(directory)

    def batches(
        self,
        start: int,
        stop: int,
        end: int,
        tags: CoreTags = None,
        verify: bool = True,
        records: int = BATCH_RECORDS,
        named: bool = False,
    ) -> Iterator[RecordBatch]:
        """Yield batches of the records that begin in [start, stop), of which every frame ends by
        end.  start and end are frame boundaries up to committed_lsn, or start is what a user
        named: ValueError if no record begins there."""
        for first, begin, bound in self._pieces(start, stop, end):
            mapping, at = self._map(begin), begin
            while at < bound and at < stop:
                batch, at, problem = self._batch(mapping, first, at, stop, bound, tags, verify, records)
                if len(batch):
                    yield batch
                if problem:
                    raise unreadable(self._directory, mapping, at, named and at == start, problem)

    def records(
        self,
        start: int,
        stop: int,
        end: int,
        verify: bool = True,
        named: bool = False,
        tags: CoreTags = None,
    ) -> Iterator[Record]:
        """Yield the records themselves; otherwise as batches()."""
        for first, begin, bound in self._pieces(start, stop, end):
            mapping, at = self._map(begin), begin
            while at < bound and at < stop:
                found, at, problem = _native.records(
                    mapping, first, at, stop, bound, self._seed, verify, RECORDS_AT_ONCE, tags
                )
                yield from found
                if problem:
                    raise unreadable(self._directory, mapping, at, named and at == start, problem)

    def boundary(self, start: int, wanted: int, end: int) -> int:
        """The first frame boundary at or above `wanted`, or below it the beginning of a damaged
        frame, beyond which none is known.  start and end as in batches()."""
        for first, begin, bound in self._pieces(self._geometry.segment_begin(wanted), wanted, end):
            begin = max(begin, start)
            if wanted < bound:
                return self._walk(begin, first, wanted, bound)[0]
        return wanted

    def check(self, start: int, end: int) -> None:
        """ValueError unless a frame begins at start, which is below end and in no hole."""
        for first, begin, bound in self._pieces(start, start + 1, end):
            if begin == start:
                _, problem = self._walk(start, first, start + 1, bound)
                if problem:
                    raise unreadable(self._directory, self._map(start), start, True, problem)

    def _walk(self, begin: int, first: int, stop: int, bound: int) -> tuple[int, int]:
        """(where the frames that begin below stop end, or one that is damaged begins; the problem)."""
        frames = memoryview(self._map(begin))[SEGMENT_HEADER_BYTES:]
        _, at, _, problem = _native.walk(
            frames, first, begin, bound, self._seed, False, None, False, None, stop
        )
        return at, problem

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
            for batch in self.batches(start, stop, stop, verify=False):
                found = np.flatnonzero(batch.time_ns >= time_ns)
                if len(found):
                    return int(batch.lsn[found[0]])
        return end

    def _first_time(self, begin: int, end: int) -> int | None:
        for batch in self.batches(begin, end, end, verify=False, records=1):
            return int(batch.time_ns[0])
        return None

    def _pieces(self, start: int, stop: int, end: int) -> Iterator[tuple[int, int, int]]:
        """[start, end) without the holes, cut at the segments: (the segment's first LSN,
        begin, end) of those that begin below stop."""
        begin = start
        for low, high in (*self.holes, (end, end)):
            while begin < min(low, end) and begin < stop:
                first = self._geometry.segment_begin(begin)
                bound = min(low, end, first + self._geometry.segment_bytes)
                yield first, begin, bound
                begin = bound
            begin = max(begin, high)

    def _batch(
        self,
        mapping: _native.Mapping,
        first: int,
        begin: int,
        stop: int,
        bound: int,
        tags: CoreTags,
        verify: bool,
        records: int,
    ) -> tuple[RecordBatch, int, int]:
        most = min(records, (min(bound, stop) - begin) // GRANULE_BYTES + 1)
        columns = tuple(np.empty(most, kind) for kind in COLUMN_KINDS)
        count, at, _, problem = _native.walk(
            memoryview(mapping)[SEGMENT_HEADER_BYTES:],
            first,
            begin,
            bound,
            self._seed,
            verify,
            tags,
            True,
            columns,
            stop,
        )
        found = tuple(column[:count] for column in columns)
        return RecordBatch.of_segment(mapping, first, at, found), at, problem

    def _map(self, lsn: int) -> _native.Mapping:
        try:
            return self._cache.get(lsn)
        except FileNotFoundError as error:
            raise missing(self._directory, lsn, error) from None

    def segment(self, first: int) -> tuple[_native.Mapping, str]:
        """The file that begins at `first`, as it is, and its path."""
        return self._map(first), segment_path(self._directory, first)

    def close(self) -> None:
        self._cache.clear()
