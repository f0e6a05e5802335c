"""Reader: records, batches and arrays, straight from the mapped segments.

    mapped segment   | header | payload | header | payload | header | payload |
    batch.array(t)             ^^^^^^^^^          ^^^^^^^^^          ^^^^^^^^^
                               one strided view, itemsize apart by one frame

Invariants
  V1  Nothing at or above committed_lsn is looked at.
  V2  Maps are read-only; a header is copied once, checked, and only the copy used.
  V3  A view keeps its mapping: it outlives the batch, the handle and the file's
      name.

This module knows frames in maps.  It may not know the control block: the bounds
are given to it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.disk.segments import MappingCache, list_segments, segment_path
from shmlog.errors import CorruptionError, TrimmedError
from shmlog.format.geometry import LSN_MAX
from shmlog.format.layout import FRAME_HEADER_BYTES, GRANULE_BYTES, PROBLEMS, SEGMENT_HEADER_BYTES

if TYPE_CHECKING:
    import pyarrow

BATCH_RECORDS = 1 << 16
RECORDS_AT_ONCE = 64
"""Made in one go by read(): few, so that a slow consumer holds few views."""


class Record(NamedTuple):
    """One record.  data is a read-only memoryview of the mapped segment."""

    lsn: int
    time_ns: int
    tag: int
    writer: int
    data: memoryview


class RecordBatch:
    """Consecutive records of one segment, as columns.

    lsn (uint64), time_ns (int64), tag (uint32), writer (uint16) and nbytes (uint32, the
    payload sizes) are arrays of shape (len,); next_lsn is where the next batch begins.
    """

    __slots__ = ("_base_lsn", "_mapping", "_memory", "lsn", "nbytes", "next_lsn", "tag", "time_ns", "writer")

    def __init__(
        self, mapping: _native.Mapping, base_lsn: int, next_lsn: int, columns: tuple[Any, ...]
    ) -> None:
        self._mapping = mapping
        self._memory = memoryview(mapping)
        self._base_lsn = base_lsn - SEGMENT_HEADER_BYTES - FRAME_HEADER_BYTES
        self.next_lsn = next_lsn
        self.lsn: npt.NDArray[np.uint64]
        self.time_ns: npt.NDArray[np.int64]
        self.tag: npt.NDArray[np.uint32]
        self.writer: npt.NDArray[np.uint16]
        self.nbytes: npt.NDArray[np.uint32]
        self.lsn, self.time_ns, self.tag, self.writer, self.nbytes = columns

    def __len__(self) -> int:
        return len(self.lsn)

    def __getitem__(self, index: int) -> Record:
        index = operator.index(index)
        lsn = int(self.lsn[index])
        at = lsn - self._base_lsn
        data = self._memory[at : at + int(self.nbytes[index])]
        return Record(lsn, int(self.time_ns[index]), int(self.tag[index]), int(self.writer[index]), data)

    def __iter__(self) -> Iterator[Record]:
        memory, base = self._memory, self._base_lsn
        columns = (self.lsn, self.time_ns, self.tag, self.writer, self.nbytes)
        for lsn, time_ns, tag, writer, nbytes in zip(*(column.tolist() for column in columns), strict=True):
            at = lsn - base
            yield Record(lsn, time_ns, tag, writer, memory[at : at + nbytes])

    def __repr__(self) -> str:
        if not len(self):
            return "<RecordBatch of 0 records>"
        return f"<RecordBatch of {len(self)} records, LSN {self.lsn[0]} to {self.next_lsn}>"

    def array(self, dtype: npt.DTypeLike, copy: bool | None = None) -> npt.NDArray[Any]:
        """The payloads as one read-only array of shape (len, *dtype.shape).

        Every payload must have the dtype's itemsize (ValueError otherwise); plain,
        structured and sub-array dtypes work, object dtypes do not. No copy is made
        when the records lie evenly spaced, which equal-sized records of one batch do
        unless tag= left some out between them; then they are gathered into a copy, or,
        with copy=False, refused (ValueError). copy=True always copies. O(1) without
        a copy but for one pass over the nbytes column.
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"a dtype with Python objects cannot be viewed: {kind}")
        count = len(self)
        if not count:
            return np.empty((0, *kind.shape), kind.base)
        size = kind.itemsize
        low, high = int(self.nbytes.min()), int(self.nbytes.max())
        if low != size or high != size:
            raise ValueError(f"payloads of {low} to {high} bytes are not all of {kind}'s {size} bytes")
        first, last = int(self.lsn[0]), int(self.lsn[-1])
        step = -(-(FRAME_HEADER_BYTES + size) // GRANULE_BYTES) * GRANULE_BYTES
        at = first - self._base_lsn
        if last - first == step * (count - 1):
            inner = np.empty(kind.shape, kind.base).strides
            view: npt.NDArray[Any] = np.ndarray(
                (count, *kind.shape), kind.base, self._memory, at, (step, *inner)
            )
            return view.copy() if copy else view
        if copy is False:
            raise ValueError("the records are not evenly spaced, so they cannot be viewed without a copy")
        # every granule as the payload that would begin in it; then pick those that do
        at = SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES
        cells = np.ndarray(
            ((len(self._memory) - at - size) // GRANULE_BYTES + 1,),
            np.dtype((np.void, size)),
            self._memory,
            at,
            (GRANULE_BYTES,),
        )
        index = (self.lsn.astype(np.int64) - self._base_lsn - at) // GRANULE_BYTES
        return np.ndarray((count, *kind.shape), kind.base, cells[index])

    def to_arrow(self) -> pyarrow.RecordBatch:
        """The batch as a pyarrow.RecordBatch (lsn, time_ns, tag, writer, data); needs
        pyarrow. Payloads are copied once, into Arrow's layout."""
        import pyarrow

        offsets = np.zeros(len(self) + 1, np.int32)  # enough: no segment is larger
        np.cumsum(self.nbytes, out=offsets[1:])
        starts = self.lsn.astype(np.int64) - self._base_lsn
        pairs = zip(starts.tolist(), (starts + self.nbytes).tolist(), strict=True)
        data = b"".join([self._memory[begin:end] for begin, end in pairs])
        buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)]
        columns = [self.lsn, self.time_ns, self.tag, self.writer]
        arrays = [pyarrow.array(column) for column in columns]
        arrays.append(pyarrow.Array.from_buffers(pyarrow.binary(), len(self), buffers))
        return pyarrow.RecordBatch.from_arrays(arrays, ["lsn", "time_ns", "tag", "writer", "data"])


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
        if named and problem != PROBLEMS.index("the checksum does not match"):
            raise ValueError(f"no record begins at LSN {lsn} ({PROBLEMS[problem]})")
        raise CorruptionError(path, lsn, PROBLEMS[problem])

    def close(self) -> None:
        self._cache.clear()


class Reading:
    """The reading methods of a handle: bounds by _bounds(), frames by self._reader."""

    _reader: Reader

    def _bounds(self) -> tuple[int, int]:
        """(trimmed_lsn, committed_lsn) now."""
        raise NotImplementedError

    def _range(self, start: int | None, stop: int | None) -> tuple[int, int]:
        trimmed, committed = self._bounds()
        for name, lsn in (("start", start), ("stop", stop)):
            if lsn is None:
                continue
            try:
                number = operator.index(lsn)
            except TypeError:
                raise TypeError(f"{name} must be an LSN, not {type(lsn).__name__}") from None
            if number < 0:
                raise ValueError(f"{name} must not be negative: {number}")
        if start is not None and start > LSN_MAX:
            raise ValueError(f"start={start} is above every LSN")
        begin = trimmed if start is None else int(start)
        end = committed if stop is None else min(int(stop), committed)
        if begin < trimmed:
            raise TrimmedError(begin, trimmed)
        if begin % GRANULE_BYTES and begin < end:
            raise ValueError(f"no record begins at LSN {begin}: it is not a multiple of {GRANULE_BYTES}")
        return begin, -(-end // GRANULE_BYTES) * GRANULE_BYTES

    def read(
        self, start: int | None = None, stop: int | None = None, *, verify: bool = True
    ) -> Iterator[Record]:
        """Yield the committed records that begin in [start, stop), oldest first.

        start: the LSN of a record (default: the oldest there is); stop: any LSN (default:
        what is committed now). Does not block. Raises TrimmedError, ValueError when no
        record begins at start, CorruptionError; verify=False skips the checksums.
        """
        begin, end = self._range(start, stop)
        return self._reader.records(begin, end, self._bounds()[1], verify, start is not None)

    def read_batches(
        self,
        start: int | None = None,
        stop: int | None = None,
        tag: int | None = None,
        *,
        verify: bool = True,
        records: int = BATCH_RECORDS,
    ) -> Iterator[RecordBatch]:
        """Yield what read() would, as RecordBatch columns; tag keeps that tag only.

        A batch holds at most `records` records and never crosses a segment. Bounds,
        blocking and errors as read().
        """
        if tag is not None and not 0 <= tag < 2**32:
            raise ValueError(f"tag must be in [0, 2**32), not {tag}")
        if records < 1:
            raise ValueError(f"records must be positive: {records}")
        begin, end = self._range(start, stop)
        return self._batches(begin, end, tag, verify, records, start is not None)

    def _batches(
        self, begin: int, end: int, tag: int | None, verify: bool, records: int, named: bool
    ) -> Iterator[RecordBatch]:
        """A stop inside a record: the record begins before it, so it is included."""
        _, committed = self._bounds()
        for batch in self._reader.batches(begin, committed, tag, verify, records, named):
            if batch.next_lsn <= end:
                yield batch
                if batch.next_lsn == end:
                    return
                continue
            keep = int(np.searchsorted(batch.lsn, end))
            if keep:
                columns = tuple(
                    getattr(batch, name)[:keep] for name in ("lsn", "time_ns", "tag", "writer", "nbytes")
                )
                base = self._reader._geometry.segment_begin(int(batch.lsn[0]))
                last = int(columns[0][-1]) + -(-(FRAME_HEADER_BYTES + int(columns[4][-1])) // 32) * 32
                yield RecordBatch(batch._mapping, base, last, columns)
            return

    def seek_time(self, time_ns: int) -> int:
        """The LSN of the first committed record whose time_ns is at least this, or
        committed_lsn if there is none.

        Times are the wall clocks of the appending processes: nearly, not strictly, in
        LSN order. Segments are searched by halves, so it is exact only as far as the
        clock did not jump back.
        """
        trimmed, committed = self._bounds()
        geometry = self._reader._geometry
        ranges = geometry.segment_ranges(trimmed, committed)
        low, high = 0, len(ranges)
        while low < high:  # the last segment whose first record is older
            middle = (low + high) // 2
            first = self._first_time(*ranges[middle])
            if first is not None and first < time_ns:
                low = middle + 1
            else:
                high = middle
        for begin, end in ranges[max(0, low - 1) :]:
            for batch in self._reader.batches(begin, end, None, False):
                found = np.flatnonzero(batch.time_ns >= time_ns)
                if len(found):
                    return int(batch.lsn[found[0]])
        return committed

    def _first_time(self, begin: int, end: int) -> int | None:
        for batch in self._reader.batches(begin, end, None, False, 1):
            return int(batch.time_ns[0])
        return None
