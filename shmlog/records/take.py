"""Take: records by their LSNs, out of as many segments as they lie in, in one call of the core.

    lsns [9632, 64, 4096]  ->  a row for each, in this order; or a batch of them

Mappings are kept from one call to the next, for mapping a segment costs more than taking
a thousand records from it.

This module knows LSNs and the segments that hold them.  It may not know the control
block: the bounds are given to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.disk.segments import map_segment
from shmlog.errors import TrimmedError
from shmlog.format.geometry import frame_bytes
from shmlog.records.batch import COLUMN_KINDS, RecordBatch
from shmlog.records.reader import missing, unreadable

if TYPE_CHECKING:
    import numpy.typing as npt

KEPT_BYTES: Final = 64 << 30
KEPT_SEGMENTS: Final = 1024
"""As many mappings are kept, of as many bytes; addresses only, the pages are the page cache's."""
NEAR: Final = 1 << 16
"""Segments so near to each other are found by counting, others by sorting."""


class Taker:
    """Takes records below a bound; keeps what it has mapped."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._segment_bytes = directory.identity.geometry.segment_bytes
        self._most = max(8, min(KEPT_SEGMENTS, KEPT_BYTES // self._segment_bytes))
        self._kept: dict[int, _native.Mapping] = {}

    def batch(self, lsns: npt.ArrayLike, trimmed: int, committed: int) -> RecordBatch:
        """The records at these LSNs, whatever their sizes, copied into memory of their own."""
        wanted = _wanted(lsns, trimmed, committed)
        columns = tuple(np.empty(len(wanted), kind) for kind in COLUMN_KINDS)
        places = np.empty(len(wanted), np.int64)
        source = self._source(wanted, trimmed, committed)
        memory, taken, problem = _native.take_records(source, wanted, columns, places)
        self._check(source, wanted, taken, problem, "")
        assert memory is not None
        last = int(columns[0].argmax()) if len(wanted) else 0
        end = int(columns[0][last]) + frame_bytes(int(columns[4][last])) if len(wanted) else trimmed
        return RecordBatch(memory, places, end, columns)

    def rows(
        self, lsns: npt.ArrayLike, dtype: npt.DTypeLike | None, out: Any, trimmed: int, committed: int
    ) -> Any:
        """The payloads at these LSNs as rows of the dtype, in `out` if that is given."""
        wanted = _wanted(lsns, trimmed, committed)
        target = None if out is None else _array(out, len(wanted))
        if dtype is not None:
            kind = np.dtype(dtype)
        else:
            assert target is not None
            kind = np.dtype((target.dtype, target.shape[1:]))
        if kind.hasobject:
            raise TypeError(f"a dtype with Python objects cannot be filled: {kind}")
        if target is None:
            out = target = np.empty((len(wanted), *kind.shape), kind.base)
        elif target.nbytes != len(wanted) * kind.itemsize:
            raise ValueError(f"out has {target.nbytes} bytes, not {len(wanted)} times {kind.itemsize}")
        if len(wanted):
            source = self._source(wanted, trimmed, committed)
            memory = target.reshape(-1).view(np.uint8) if kind.itemsize else np.empty(0, np.uint8)
            taken, problem = _native.take_rows(source, wanted, kind.itemsize, memory)
            self._check(source, wanted, taken, problem, f"{kind.itemsize} bytes")
        return out

    def _source(self, wanted: npt.NDArray[np.uint64], trimmed: int, committed: int) -> tuple[Any, ...]:
        numbers = self._numbers(wanted)
        for number in [
            number for number in self._kept.copy() if (number + 1) * self._segment_bytes <= trimmed
        ]:
            self._kept.pop(number, None)  # else the file's space stays taken
        mappings = tuple(map(self._map, numbers.tolist()))
        return numbers, mappings, self._segment_bytes, committed, self._directory.identity.seed

    def _numbers(self, wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The segments that hold them, ascending."""
        found: npt.NDArray[np.uint64] = wanted // np.uint64(self._segment_bytes)
        if not len(found):
            return found
        low = found.min()
        if found.max() - low >= NEAR:
            return np.unique(found)
        near = np.flatnonzero(np.bincount((found - low).astype(np.int64)))
        return np.asarray(near.astype(np.uint64) + low)

    def _map(self, number: int) -> _native.Mapping:
        mapping = self._kept.get(number)
        if mapping is None:
            lsn = number * self._segment_bytes
            try:
                mapping = map_segment(self._directory, lsn, writable=False)
            except FileNotFoundError as error:
                raise missing(self._directory, lsn, error) from None
            if len(self._kept) >= self._most:
                self._kept = {}
            self._kept[number] = mapping
        return mapping

    def _check(
        self, source: tuple[Any, ...], wanted: npt.NDArray[np.uint64], taken: int, problem: int, size: str
    ) -> None:
        """Raise what a take that ended with a problem, or over a lost file, means."""
        mappings = source[1]
        if not problem and not any(mapping.faulted for mapping in mappings):
            return
        lsn = int(wanted[min(taken, len(wanted) - 1)])
        if problem == _native.TAKE_OTHER_SIZE:
            raise ValueError(f"the record at LSN {lsn} is not of the dtype's {size}")
        faulted = [mapping for mapping in mappings if mapping.faulted]
        if problem in (_native.TAKE_NO_RECORD, _native.TAKE_NO_SEGMENT) and not faulted:
            raise ValueError(f"no record begins at LSN {lsn}")
        raise unreadable(self._directory, (faulted or mappings)[0], lsn, True, problem)


def _wanted(lsns: npt.ArrayLike, trimmed: int, committed: int) -> npt.NDArray[np.uint64]:
    """The LSNs as an array of their own kind, all of them between the bounds."""
    given = np.asarray(lsns)
    if given.ndim != 1:
        raise ValueError(f"lsns must be of one dimension, not of shape {given.shape}")
    if not len(given):
        return np.empty(0, np.uint64)
    if given.dtype.kind not in "iu":
        raise TypeError(f"lsns must be integers, not {given.dtype}")
    low, high = int(given.min()), int(given.max())
    if low < 0:
        raise ValueError(f"an LSN must not be negative: {low}")
    if low < trimmed:
        raise TrimmedError(low, trimmed)
    if high >= committed:
        raise ValueError(f"no record begins at LSN {high}: the log ends at {committed}")
    return np.array(given, np.uint64)  # a copy: nobody changes it under the core


def _array(out: Any, rows: int) -> npt.NDArray[Any]:
    """What is to be filled, as a view of it: an array, a tensor in this machine's memory, a buffer."""
    if not isinstance(out, np.ndarray):
        out = out.numpy() if callable(getattr(out, "numpy", None)) else np.asarray(memoryview(out))
    if not isinstance(out, np.ndarray) or out.dtype.hasobject:
        raise TypeError(f"out must be an array of plain numbers, not {type(out).__name__}")
    if not out.flags.c_contiguous or not out.flags.writeable or not out.ndim or len(out) != rows:
        raise ValueError(f"out must be writable, C-contiguous and of {rows} rows, not of shape {out.shape}")
    return out
