"""Cursor: a durable, named place in a log, for reading at least once.

After a crash reading goes on at the place that was committed last: records come again,
none is left out.

This module reads through a log's public names.  It may not know how a place is kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from shmlog import _native
from shmlog.disk.cursors import CursorFile
from shmlog.disk.directory import Directory
from shmlog.errors import ClosedError, FormatError
from shmlog.format.layout import GRANULE_BYTES

if TYPE_CHECKING:
    from shmlog.records.batch import RecordBatch


class _Source(Protocol):
    """What a cursor reads from."""

    @property
    def trimmed_lsn(self) -> int: ...
    @property
    def committed_lsn(self) -> int: ...
    def wait_durable(self, lsn: int | None = None, timeout: float | None = None) -> None: ...
    def read_batches(
        self, start: int | None = None, stop: int | None = None, tag: int | None = None
    ) -> Iterator[RecordBatch]: ...


class Cursor:
    """A named place in the log.  Made by Log.cursor(); a context manager.

    lsn is the committed place: where reading begins after a restart.
    """

    def __init__(self, directory: Directory, name: str, mode: int, source: _Source) -> None:
        self.name = name
        self._source = source
        self._closed = False
        self._generation = _native.fork_generation()
        self._file = CursorFile(directory, name, mode, lambda: source.trimmed_lsn)
        self.lsn = self._next = self._file.lsn
        if self.lsn > source.committed_lsn:
            self._file.close()
            raise FormatError(
                f"{self._file.path} is at LSN {self.lsn}, but the log ends at {source.committed_lsn}:"
                " has it been replaced by a copy? Remove the cursor to begin anew"
            )

    def batches(self, tag: int | None = None) -> Iterator[RecordBatch]:
        """Yield what has been committed since the cursor's place, as read_batches() does.

        Each batch moves the place in memory; commit() makes it durable. After a crash
        reading begins again at the last commit(): at least once. Raises TrimmedError if
        the place has been trimmed.
        """
        self._check()
        return self._batches(tag)

    def _batches(self, tag: int | None) -> Iterator[RecordBatch]:
        for batch in self._source.read_batches(self._next, None, tag):
            self._check()
            self._next = batch.next_lsn
            yield batch

    def commit(self, lsn: int | None = None) -> int:
        """Make the place durable; the LSN.

        lsn: a record's beginning or a batch's next_lsn; None: after the last batch that
        batches() yielded. Blocks until the records before it are durable (a place that
        outlived its records would skip those that come after), and for one small
        fdatasync. Errors of that wait as wait_durable() raises them. OSError if the
        fdatasync fails: the place on disk is then the old one or the new one.
        """
        self._check()
        place = self._next if lsn is None else operator.index(lsn)
        if not 0 <= place <= self._source.committed_lsn:
            raise ValueError(f"LSN {place} is not committed: the log ends at {self._source.committed_lsn}")
        if place % GRANULE_BYTES:
            raise ValueError(f"no record begins at LSN {place}, which is no multiple of {GRANULE_BYTES}")
        if place:
            self._source.wait_durable(place - 1)
        self._file.write(place)
        self.lsn = self._next = place
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
