"""Batch: one record, and many as columns, which are views of a mapped segment.

    mapped segment   | header | payload | header | payload | header | payload |
    batch.array(t)             ^^^^^^^^^          ^^^^^^^^^          ^^^^^^^^^
                               one strided view, itemsize apart by one frame

Invariants
  V3  A view keeps its mapping: it outlives the batch, the handle and the file's
      name.

This module knows columns over a map.  It may not know how they were found.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shmlog import _native
from shmlog.format.geometry import frame_bytes
from shmlog.format.layout import FRAME_HEADER_BYTES, GRANULE_BYTES, SEGMENT_HEADER_BYTES

if TYPE_CHECKING:
    import pyarrow


class Record(NamedTuple):
    """One record.  data is a read-only memoryview of the mapped segment."""

    lsn: int
    time_ns: int
    tag: int
    writer: int
    data: memoryview


COLUMNS = ("lsn", "time_ns", "tag", "writer", "nbytes")


class RecordBatch:
    """Consecutive records of one segment, as columns.

    lsn (uint64), time_ns (int64), tag (uint32), writer (uint16) and nbytes (uint32, the
    payload sizes) are arrays of shape (len,); next_lsn is where the next batch begins.
    """

    __slots__ = ("_base_lsn", "_first_lsn", "_mapping", "_memory", "next_lsn", *COLUMNS)

    def __init__(
        self, mapping: _native.Mapping, first_lsn: int, next_lsn: int, columns: tuple[Any, ...]
    ) -> None:
        self._mapping = mapping
        self._memory = memoryview(mapping)
        self._first_lsn = first_lsn  # of the segment
        self._base_lsn = first_lsn - SEGMENT_HEADER_BYTES - FRAME_HEADER_BYTES
        self.next_lsn = next_lsn
        self.lsn: npt.NDArray[np.uint64]
        self.time_ns: npt.NDArray[np.int64]
        self.tag: npt.NDArray[np.uint32]
        self.writer: npt.NDArray[np.uint16]
        self.nbytes: npt.NDArray[np.uint32]
        self.lsn, self.time_ns, self.tag, self.writer, self.nbytes = columns

    def before(self, lsn: int) -> RecordBatch:
        """The records that begin below lsn; there must be one."""
        keep = int(np.searchsorted(self.lsn, lsn))
        columns = tuple(getattr(self, name)[:keep] for name in COLUMNS)
        end = int(self.lsn[keep - 1]) + frame_bytes(int(self.nbytes[keep - 1]))
        return RecordBatch(self._mapping, self._first_lsn, end, columns)

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
        step = frame_bytes(size)
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
