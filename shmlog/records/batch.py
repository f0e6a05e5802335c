"""Batch: many records as columns, which are views of a mapped segment.

    mapped segment   | header | payload | header | payload | header | payload |
    batch.array(t)             ^^^^^^^^^          ^^^^^^^^^          ^^^^^^^^^
                               one strided view, itemsize apart by one frame

Records that were taken by their LSNs have their payloads gathered in memory of their own;
where each begins in its memory is what a batch knows of either.

Invariants
  V3  A view keeps its mapping: it outlives the batch, the handle and the file's
      name.

This module knows columns over a map.  It may not know how they were found.
"""

from __future__ import annotations

import errno
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, overload

import numpy as np

from shmlog import _native
from shmlog._native import Record as Record
from shmlog.format.geometry import frame_bytes
from shmlog.format.layout import FRAME_HEADER_BYTES, GRANULE_BYTES, SEGMENT_HEADER_BYTES
from shmlog.records.arrow import RECORD_NODES

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow


COLUMNS = ("lsn", "time_ns", "tag", "writer", "nbytes")
COLUMN_KINDS = (np.uint64, np.int64, np.uint32, np.uint16, np.uint32)


class RecordBatch:
    """Records as columns: those that follow each other in a segment, or that were taken.

    lsn (uint64), time_ns (int64), tag (uint32), writer (uint16) and nbytes (uint32, the
    payload sizes) are arrays of shape (len,); next_lsn is where reading goes on after them.
    batch[5] is a Record; batch[10:20], batch[mask] and batch[indexes] are batches over the
    same memory. Also an Arrow record batch for whoever takes one (__arrow_c_array__).
    """

    __slots__ = ("_ascending", "_framed", "_mapping", "_memory", "_places", "next_lsn", *COLUMNS)

    def __init__(
        self,
        mapping: _native.Mapping,
        places: npt.NDArray[np.int64] | int,
        next_lsn: int,
        columns: tuple[npt.NDArray[Any], ...],
        ascending: bool = True,
        framed: bool = False,
    ) -> None:
        """places: where each payload begins in the mapping, or how much less than its LSN that is.
        ascending: whether each begins after the one before it. framed: whether its header is before
        each, as it is where all are as far from their LSNs."""
        self._mapping = mapping
        self._memory = memoryview(mapping).toreadonly()
        self._places = places
        self._framed = framed or isinstance(places, int)
        self._ascending = ascending
        self.next_lsn = next_lsn
        self.lsn: npt.NDArray[np.uint64]
        self.time_ns: npt.NDArray[np.int64]
        self.tag: npt.NDArray[np.uint32]
        self.writer: npt.NDArray[np.uint16]
        self.nbytes: npt.NDArray[np.uint32]
        self.lsn, self.time_ns, self.tag, self.writer, self.nbytes = columns

    @classmethod
    def of_segment(
        cls, mapping: _native.Mapping, first_lsn: int, next_lsn: int, columns: tuple[npt.NDArray[Any], ...]
    ) -> RecordBatch:
        """Records of a mapped segment that begins at first_lsn."""
        return cls(mapping, first_lsn - SEGMENT_HEADER_BYTES - FRAME_HEADER_BYTES, next_lsn, columns)

    def _begin(self, number: int) -> int:
        """Where one payload begins in the memory."""
        if isinstance(self._places, int):
            return int(self.lsn[number]) - self._places
        return int(self._places[number])

    def _begins(self) -> npt.NDArray[np.int64]:
        """Where each of them does."""
        if isinstance(self._places, int):
            return self.lsn.astype(np.int64) - self._places
        return self._places

    def __len__(self) -> int:
        return len(self.lsn)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Record: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, index: slice | list[int] | list[bool] | npt.NDArray[Any]) -> RecordBatch: ...
    def __getitem__(
        self, index: SupportsIndex | slice | list[int] | list[bool] | npt.NDArray[Any]
    ) -> Record | RecordBatch:
        if isinstance(index, (slice, list)) or (isinstance(index, np.ndarray) and index.ndim):
            return self._part(index)
        number = operator.index(index)
        at = self._begin(number)
        return Record(
            int(self.lsn[number]),
            int(self.time_ns[number]),
            int(self.tag[number]),
            int(self.writer[number]),
            self._memory[at : at + int(self.nbytes[number])],
        )

    def _part(self, index: slice | list[int] | list[bool] | npt.NDArray[Any]) -> RecordBatch:
        """next_lsn: after the last of them, or as far as the whole batch's if that is among them."""
        if isinstance(index, list):
            index = np.asarray(index, None if index else np.intp)  # of nothing it would be floats
        if isinstance(index, np.ndarray) and (index.ndim != 1 or index.dtype.kind not in "biu"):
            raise TypeError(f"a mask or indexes of one dimension, not {index.dtype} of shape {index.shape}")
        columns = tuple(np.ascontiguousarray(getattr(self, name)[index]) for name in COLUMNS)
        places = self._places if isinstance(self._places, int) else self._places[index]
        lsns = columns[0]
        if not len(lsns):
            first = index.indices(len(self))[0] if isinstance(index, slice) else 0
            next_lsn = int(self.lsn[first]) if 0 <= first < len(self) else self.next_lsn
        else:
            last = int(lsns.argmax())
            next_lsn = int(lsns[last]) + frame_bytes(int(columns[4][last]))
            if int(lsns[last]) == int(self.lsn.max()):
                next_lsn = self.next_lsn
        ascending = index.step is None or index.step > 0 if isinstance(index, slice) else index.dtype == bool
        ascending = self._ascending and ascending
        return RecordBatch(self._mapping, places, next_lsn, columns, ascending, self._framed)

    def __iter__(self) -> Iterator[Record]:
        memory, begins = self._memory, self._begins()
        columns = (self.lsn, self.time_ns, self.tag, self.writer, self.nbytes, begins)
        for lsn, time_ns, tag, writer, nbytes, at in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            yield Record(lsn, time_ns, tag, writer, memory[at : at + nbytes])

    def __copy__(self) -> RecordBatch:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RecordBatch cannot be pickled, for its payloads are views of the log's files: send"
            " batch.array(dtype), a scan() of its range, or batch.lsn for take()"
        )

    def __repr__(self) -> str:
        if not len(self):
            return "<RecordBatch of 0 records>"
        return f"<RecordBatch of {len(self)} records, LSN {self.lsn[0]} to {self.next_lsn}>"

    def array(self, dtype: npt.DTypeLike, copy: bool | None = None) -> npt.NDArray[Any]:
        """The payloads as one read-only array of shape (len, *dtype.shape).

        Every payload must have the dtype's itemsize (ValueError otherwise); plain,
        structured and sub-array dtypes work, object dtypes do not. No copy is made
        when the records lie one after the other, which equal-sized records of one batch do
        unless tags= or an index left some out between them; otherwise they are gathered into a
        copy, or, with copy=False, refused (ValueError). copy=True always copies. O(1)
        without a copy but for one pass over the nbytes column.
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
        at, step = self._begin(0), frame_bytes(size)
        if not self._framed:
            step -= FRAME_HEADER_BYTES
        if self._ascending and self._begin(-1) - at == step * (count - 1):
            inner = np.empty(kind.shape, kind.base).strides
            view: npt.NDArray[Any] = np.ndarray(
                (count, *kind.shape), kind.base, self._memory, at, (step, *inner)
            )
            return view.copy() if copy else view
        if copy is False:
            raise ValueError(
                "the records are not one after the other, so they cannot be viewed without a copy"
            )
        # every granule as the payload that would begin in it; then pick those that do
        cells = np.ndarray(
            ((len(self._memory) - size) // GRANULE_BYTES + 1,),
            np.dtype((np.void, size)),
            self._memory,
            0,
            (GRANULE_BYTES,),
        )
        return np.ndarray((count, *kind.shape), kind.base, cells[self._begins() // GRANULE_BYTES])

    def payloads(self) -> list[bytes]:
        """Each payload as bytes of its own: for what keeps them, or takes nothing but bytes."""
        begins = self._begins()
        ends = begins + self.nbytes
        low, high = (int(begins.min()), int(ends.max())) if len(self) else (0, 0)
        if high - low > 2 * int(self.nbytes.sum()) + len(self) * 2 * FRAME_HEADER_BYTES:
            return [bytes(record.data) for record in self]
        whole = bytes(self._memory[low:high])  # of which a slice costs a third of a view and its bytes
        places = zip((begins - low).tolist(), (ends - low).tolist(), strict=True)
        return [whole[begin:end] for begin, end in places]

    def frames(self) -> memoryview:
        """The records' frames as the log has them, one after the other: header, payload, padding.

        A view where they follow each other in the log, otherwise a copy. ValueError for records of
        take(), which have no headers, and for such that are not in the order of the log.
        """
        if not len(self):
            return self._memory[:0]
        if not self._framed or not self._ascending:
            raise ValueError("records that were taken, or put into another order, have no frames in a row")
        begin = self._begin(0) - FRAME_HEADER_BYTES
        sizes = (self.nbytes.astype(np.int64) + (FRAME_HEADER_BYTES + GRANULE_BYTES - 1)) // GRANULE_BYTES
        total = int(sizes.sum())
        if self._begin(-1) - FRAME_HEADER_BYTES + int(sizes[-1]) * GRANULE_BYTES == (
            begin + total * GRANULE_BYTES
        ):
            return self._memory[begin : begin + total * GRANULE_BYTES]
        firsts = (self._begins() - FRAME_HEADER_BYTES) // GRANULE_BYTES
        granules = np.arange(total) + np.repeat(firsts - (sizes.cumsum() - sizes), sizes)
        cells = np.frombuffer(self._memory, np.dtype((np.void, GRANULE_BYTES)))
        return memoryview(cells[granules].tobytes())

    def check_memory(self) -> None:
        """OSError if a file of the log was cut or lost under the views: what they show is not it."""
        if self._mapping.faulted:
            raise OSError(errno.EIO, "a file of the log was changed or lost under its reader")

    def to_arrow(self) -> pyarrow.RecordBatch:
        """The batch as a pyarrow.RecordBatch (lsn, time_ns, tag, writer, data); needs
        pyarrow. Payloads are not copied: data is a binary_view of the segment."""
        import pyarrow

        return pyarrow.record_batch(self)

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        """Capsules of an ArrowSchema and an ArrowArray: lsn, time_ns, tag, writer, and data as
        binary_view over the memory, which the array keeps. A requested schema is not followed,
        and a ValueError if it has not five columns."""
        columns = tuple(getattr(self, name) for name in COLUMNS)
        return _native.arrow_array(RECORD_NODES, self._mapping, columns, self._begins(), requested_schema)
