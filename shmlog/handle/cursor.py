"""Cursor: a durable, named place in a log, for reading at least once.

After a crash reading goes on at the place that was committed last: records come again,
none is left out.

This module reads through a log's public names.  It may not know how a place is kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shmlog import _native
from shmlog.disk.cursors import CursorFile
from shmlog.disk.directory import Directory
from shmlog.errors import ClosedError, FormatError, TrimmedError
from shmlog.format.layout import GRANULE_BYTES

if TYPE_CHECKING:
    from shmlog.records.batch import RecordBatch
    from shmlog.records.reader import Tags


class Lag(NamedTuple):
    """How far a reader is behind committed_lsn."""

    bytes: int
    """of the log, frames and all"""
    records: int
    seconds: float
    """since the oldest of them was appended; 0.0 if there is none"""


class CursorInfo(NamedTuple):
    """A cursor, looked at from outside."""

    name: str
    lsn: int
    """its durable place"""
    lag: Lag
    pid: int | None
    """of the process that has it open, as far as that can be seen"""


class _Source(Protocol):
    """What a cursor reads from."""

    @property
    def trimmed_lsn(self) -> int: ...
    @property
    def committed_lsn(self) -> int: ...
    def wait_durable(self, lsn: int | None = None, timeout: float | None = None) -> None: ...
    def read_batches(
        self, start: int | None = None, stop: int | None = None, tag: Tags = None
    ) -> Iterator[RecordBatch]: ...
    def tail_batches(
        self,
        start: int | None = None,
        *,
        tags: Tags = None,
        timeout: float | None = None,
        max_delay: float = 0.0,
    ) -> Iterator[RecordBatch]: ...
    def seek_time(self, time_ns: int) -> int: ...
    def scan(self, start: int | None = None) -> object: ...
    def _lag(self, lsn: int) -> Lag: ...
    def _oldest(self) -> int: ...


class Cursor:
    """A named place in the log.  Made by Log.cursor(); a context manager.

    lsn is the committed place: where reading begins after a restart.
    """

    def __init__(self, directory: Directory, name: str, mode: int, source: _Source) -> None:
        self.name = name
        self._source = source
        self._closed = False
        self._generation = _native.fork_generation()
        self._file = CursorFile(directory, name, mode, source._oldest)
        self.lsn = self._next = self._file.lsn
        if self.lsn > source.committed_lsn:
            self._file.close()
            raise FormatError(
                f"{self._file.path} is at LSN {self.lsn}, but the log ends at {source.committed_lsn}:"
                " has it been replaced by a copy? Remove the cursor to begin anew"
            )

    def batches(self, tag: Tags = None) -> Iterator[RecordBatch]:
        """Yield what has been committed since the cursor's place, as read_batches() does.

        Each batch moves the place in memory; commit() makes it durable. After a crash
        reading begins again at the last commit(): at least once. Raises TrimmedError if
        the place has been trimmed.
        """
        self._check()
        return self._moving(self._source.read_batches(self._next, None, tag))

    def follow(
        self, timeout: float | None = None, *, tags: Tags = None, max_delay: float = 0.0
    ) -> Iterator[RecordBatch]:
        """As batches(), and go on with what is committed then, as tail_batches() does.

        timeout: seconds without any record after which TimeoutError is raised; None waits for
        ever. max_delay: as there.
        """
        self._check()
        source = self._source
        return self._moving(source.tail_batches(self._next, tags=tags, timeout=timeout, max_delay=max_delay))

    def _moving(self, batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
        for batch in batches:
            self._check()
            self._next = batch.next_lsn
            yield batch

    def seek(self, lsn: int | None = None, *, time_ns: int | None = None) -> int:
        """Move the place in memory: to a record's LSN, or to the first record of that time or
        later, as seek_time() finds it; the LSN.  commit() makes it durable.

        ValueError for an LSN that is not committed or no record's, TrimmedError for one that
        was given up.
        """
        self._check()
        if (lsn is None) == (time_ns is None):
            raise TypeError("seek() takes an LSN or time_ns, and not both")
        place = self._source.seek_time(time_ns) if lsn is None else self._place(lsn)  # type: ignore[arg-type]
        if place < self._source.trimmed_lsn:
            raise TrimmedError(place, self._source.trimmed_lsn)
        self._next = place
        return place

    @property
    def lag(self) -> Lag:
        """How far the place in memory is behind committed_lsn.  Reads the headers between."""
        self._check()
        return self._source._lag(self._next)

    def commit(self, lsn: int | None = None) -> int:
        """Make the place durable; the LSN.

        lsn: a record's beginning or a batch's next_lsn; None: after the last batch that
        batches() yielded. Blocks until the records before it are durable (a place that
        outlived its records would skip those that come after), and for one small
        fdatasync. Errors of that wait as wait_durable() raises them. OSError if the
        fdatasync fails: the place on disk is then the old one or the new one.
        """
        self._check()
        place = self._next if lsn is None else self._place(lsn)
        if place:
            self._source.wait_durable(place - 1)
        self._file.write(place)
        self.lsn = self._next = place
        return place

    def _place(self, lsn: int) -> int:
        place = operator.index(lsn)
        if not 0 <= place <= self._source.committed_lsn:
            raise ValueError(f"LSN {place} is not committed: the log ends at {self._source.committed_lsn}")
        if place >= self._source.trimmed_lsn:
            self._source.scan(place)
        elif place % GRANULE_BYTES:
            raise ValueError(f"no record begins at LSN {place}, which is no multiple of {GRANULE_BYTES}")
        return place

    def close(self) -> None:
        """Let another process use the cursor.  What was not committed comes again."""
        self._closed = True
        self._file.close()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"the cursor {self.name!r} has been closed")
        if self._generation != _native.fork_generation():
            raise ClosedError(f"the cursor {self.name!r} belongs to the parent process")

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<shmlog.Cursor {self.name!r} at LSN {self.lsn}>"
