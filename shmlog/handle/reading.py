"""Reading: what a handle offers for reading, whatever bounds it has.

This module puts a reader between the bounds of a handle.  It may not know where the
bounds come from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from shmlog.errors import TrimmedError
from shmlog.format.geometry import LSN_MAX
from shmlog.format.layout import GRANULE_BYTES
from shmlog.records.batch import Record, RecordBatch
from shmlog.records.reader import BATCH_RECORDS, Reader


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
            if batch.lsn[0] < end:
                yield batch.before(end)
            return

    def seek_time(self, time_ns: int) -> int:
        """The LSN of the first committed record whose time_ns is at least this, or
        committed_lsn if there is none.

        Times are the wall clocks of the appending processes: nearly, not strictly, in
        LSN order. Segments are searched by halves, so it is exact only as far as the
        clock did not jump back.
        """
        return self._reader.seek_time(*self._bounds(), time_ns)
