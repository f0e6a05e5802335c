"""Reading: what a handle offers for reading, whatever bounds it has.

This module puts a reader between the bounds of a handle.  It may not know where the
bounds come from.
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

from shmlog.disk import cursors, reports, settings
from shmlog.disk.directory import Directory
from shmlog.errors import CorruptionError, FormatError, TrimmedError
from shmlog.format.geometry import LSN_MAX
from shmlog.format.layout import GRANULE_BYTES
from shmlog.format.retention import Retention
from shmlog.handle.cursor import CursorInfo, Lag
from shmlog.memory.statistics import CursorPlace
from shmlog.records.batch import Record, RecordBatch
from shmlog.records.reader import BATCH_RECORDS, Reader, Tags, core_tags
from shmlog.records.scan import Scan
from shmlog.records.sealed import SealedSegment, seal
from shmlog.records.take import Taker
from shmlog.system.deadlines import check_timeout, deadline_after, poll

if TYPE_CHECKING:
    import numpy.typing as npt

BATCH_BYTES = 4 << 20
"""tail_batches(max_delay=) waits for no more than this."""


class Reading:
    """The reading methods of a handle: bounds by _bounds(), frames by self._reader."""

    _directory: Directory
    _reader: Reader
    _taker: Taker | None = None

    @property
    def log_id(self) -> str:
        """Who the log is, wherever it lies: 32 hexadecimal digits, fixed when it was made."""
        return self._directory.identity.log_id.hex()

    @property
    def durable_lsn(self) -> int:
        """Every record below it survives power loss."""
        raise NotImplementedError

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
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        tags: Tags = None,
        verify: bool = True,
    ) -> Iterator[Record]:
        """Yield the committed records that begin in [start, stop), oldest first.

        start: the LSN of a record (default: the oldest there is); stop: any LSN (default:
        what is committed now). tags: an int, a range or a set of those wanted. Does not block.
        Raises TrimmedError, ValueError when no record begins at start, CorruptionError;
        verify=False skips the checksums.
        """
        wanted = core_tags(tags)
        begin, end = self._range(start, stop)
        return self._reader.records(begin, end, self._bounds()[1], verify, start is not None, wanted)

    def read_batches(
        self,
        start: int | None = None,
        stop: int | None = None,
        tag: Tags = None,
        *,
        verify: bool = True,
        records: int = BATCH_RECORDS,
    ) -> Iterator[RecordBatch]:
        """Yield what read() would, as RecordBatch columns; tag keeps that tag, or those, only.

        A batch holds at most `records` records and never crosses a segment. Bounds,
        blocking and errors as read().
        """
        wanted = core_tags(tag)
        if records < 1:
            raise ValueError(f"records must be positive: {records}")
        begin, end = self._range(start, stop)
        committed = self._bounds()[1]
        return self._reader.batches(begin, end, committed, wanted, verify, records, start is not None)

    def scan(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        tags: Tags = None,
        verify: bool = True,
    ) -> Scan:
        """What read() would read now, as an object: to iterate over again and again in batches,
        to pickle, to split, and to hand to pyarrow, polars, duckdb or pandas.

        Arguments as read(), the bounds fixed by this call. Raises TrimmedError, and ValueError
        at once when no record begins at start.
        """
        begin, end = self._range(start, stop)
        committed = self._bounds()[1]
        if start is not None and begin < end:
            self._reader.check(begin, committed)
        bounds = (begin, max(begin, end), max(begin, committed))
        return Scan(self._directory, bounds, tags, verify, self._reader.holes)

    @overload
    def take(self, lsns: npt.ArrayLike, dtype: None = None, out: None = None) -> RecordBatch: ...
    @overload
    def take(self, lsns: npt.ArrayLike, dtype: npt.DTypeLike, out: None = None) -> npt.NDArray[Any]: ...
    @overload
    def take(self, lsns: npt.ArrayLike, dtype: npt.DTypeLike | None = None, *, out: Any) -> Any: ...
    def take(self, lsns: npt.ArrayLike, dtype: npt.DTypeLike | None = None, out: Any = None) -> Any:
        """The records at these LSNs, in this order, checksums checked; one call for all of them.

        lsns: integers of one dimension, as append_array() returned them, in any order and more
        than once. Without dtype and out: a RecordBatch whose payloads are copies. With a dtype:
        a new array of shape (len(lsns), *dtype.shape). out: where to put the rows, and returned:
        a writable C-contiguous array of as many rows, a torch tensor in main memory (tensor.numpy()
        is written to), or a buffer; its own dtype counts unless one is given. After an error what
        is in out is undefined.

        Does not block. Raises TrimmedError, CorruptionError, ValueError for an LSN where no
        committed record begins, or a record that has not the dtype's size. The handle keeps the
        segments mapped that it took from; those that were trimmed until the next take() or
        close().
        """
        trimmed, committed = self._bounds()
        if self._taker is None:
            self._taker = Taker(self._directory)
        if dtype is None and out is None:
            return self._taker.batch(lsns, trimmed, committed)
        return self._taker.rows(lsns, dtype, out, trimmed, committed)

    def sealed_segments(self, start: int | None = None) -> Iterator[SealedSegment]:
        """Yield the segments of which every byte is durable, from the one that holds `start` on (default:
        the oldest), in a form that is the same from every copy of the log; each frame checked.

        Does not block. A segment takes segment_bytes of memory. TrimmedError, CorruptionError.
        """
        geometry = self._directory.identity.geometry
        begin = geometry.segment_begin(self._bounds()[0] if start is None else self._range(start, start)[0])
        while begin + geometry.segment_bytes <= self.durable_lsn:
            mapping, path = self._reader.segment(begin)
            found = seal(memoryview(mapping), path)
            if mapping.faulted:
                raise CorruptionError(path, begin, "the file was changed or lost under the reader")
            yield found
            begin = found.end_lsn

    def _held_back(self) -> str:
        """What to add to the error of a wait that ran out: who holds the watermarks back."""
        raise NotImplementedError

    def _close_reading(self) -> None:
        self._taker = None
        self._reader.close()

    def _wait_beyond(self, begin: int, seconds: float | None) -> int:
        """Block until more than begin is committed; committed_lsn.  TimeoutError after seconds."""
        raise NotImplementedError

    def tail(
        self, start: int | None = None, timeout: float | None = None, *, tags: Tags = None
    ) -> Iterator[Record]:
        """Yield records as they are committed, waiting for more at the end.

        start, tags: as read(), default from now on. timeout: seconds without any record after
        which TimeoutError is raised; None waits for ever, noticing a closed handle
        (ClosedError), a failed log (LogFailedError) and a dead flusher (a new one is
        started). A ReadonlyLog looks every few milliseconds, for it cannot be woken; it waits
        on a dead log too, and goes on with the records of every later session.
        """
        seconds, wanted = None if timeout is None else check_timeout(timeout), core_tags(tags)
        begin, _ = self._range(self._bounds()[1] if start is None else start, None)

        def follow(begin: int, named: bool) -> Iterator[Record]:
            while True:
                committed = self._wait_beyond(begin, seconds)
                yield from self._reader.records(begin, committed, committed, True, named, wanted)
                begin, named = committed, False

        return follow(begin, start is not None)

    def tail_batches(
        self,
        start: int | None = None,
        *,
        tags: Tags = None,
        timeout: float | None = None,
        max_delay: float = 0.0,
    ) -> Iterator[RecordBatch]:
        """Yield what tail() would, as RecordBatches of what was committed meanwhile.

        Arguments, blocking and errors as tail(). max_delay: seconds to let more records come
        after the first, for fewer and larger batches; a record is yielded at most that much
        later.
        """
        seconds, wanted = None if timeout is None else check_timeout(timeout), core_tags(tags)
        delay_s = check_timeout(max_delay, "max_delay")
        begin, _ = self._range(self._bounds()[1] if start is None else start, None)

        def follow(begin: int, named: bool) -> Iterator[RecordBatch]:
            while True:
                committed = self._wait_beyond(begin, seconds)
                if delay_s:
                    committed = self._gather(begin, delay_s)
                yield from self._reader.batches(
                    begin, committed, committed, wanted, True, BATCH_RECORDS, named
                )
                begin, named = committed, False

        return follow(begin, start is not None)

    def _gather(self, begin: int, delay_s: float) -> int:
        """Let more come, for so long or until it is enough; committed_lsn."""
        poll(lambda: self._bounds()[1] >= begin + BATCH_BYTES, deadline_after(delay_s))
        return self._bounds()[1]

    def cursors(self) -> list[CursorInfo]:
        """Every named cursor of the log, by name: its durable place, its lag, and who has it open.

        Also while it is open. Reads the headers of what each has not read yet. FormatError if
        a cursor's file is damaged.
        """
        found = []
        for name, path in cursors.paths(self._directory):
            place = cursors.look(path, self._directory.identity.seed, self._directory.owner)
            if place is not None:
                holder = min(cursors.holders(path), default=None)
                found.append(CursorInfo(name, place.lsn, self._lag(place.lsn), holder))
        return found

    def _places(self, committed: int) -> tuple[CursorPlace, ...]:
        """The cursors' places, for statistics: no header is read.  One whose file is damaged, or
        is just removed, is left out."""
        found = []
        for name, path in cursors.paths(self._directory):
            with contextlib.suppress(FormatError, FileNotFoundError):
                place = cursors.look(path, self._directory.identity.seed, self._directory.owner)
                if place is not None:
                    holder = min(cursors.holders(path), default=None)
                    report = reports.look(self._directory, name)
                    lag_bytes = max(0, committed - place.lsn)
                    found.append(CursorPlace(name, place.lsn, lag_bytes, holder, report))
        return tuple(found)

    def _retention(self) -> Retention | None:
        with contextlib.suppress(FormatError):
            return settings.load_retention(self._directory)
        return None

    def _lag(self, lsn: int) -> Lag:
        trimmed, committed = self._bounds()
        begin = max(lsn, trimmed)
        if begin >= committed:
            return Lag(0, 0, 0.0)
        records, oldest_ns = 0, 0
        for batch in self._reader.batches(begin, committed, committed, core_tags(None), False):
            oldest_ns = oldest_ns or int(batch.time_ns[0])
            records += len(batch)
        seconds = max(0.0, (time.time_ns() - oldest_ns) / 1e9) if records else 0.0
        return Lag(committed - lsn, records, seconds)

    def seek_time(self, time_ns: int) -> int:
        """The LSN of the first committed record whose time_ns is at least this, or
        committed_lsn if there is none.

        Times are the wall clocks of the appending processes: nearly, not strictly, in
        LSN order. Segments are searched by halves, so it is exact only as far as the
        clock did not jump back.
        """
        return self._reader.seek_time(*self._bounds(), time_ns)
