"""Cursor: a durable, named place in a log, for reading at least once.

    cursors/NAME   0 ........... 512 .......... 1024
                   | copy, even  | copy, odd   |

Two checksummed copies are written in turn, so a torn write spoils the newer one
only and the older place is used: records come again, none is left out.

This module knows one cursor's file.  It may not know how records are read.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from crc32c import crc32c

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.errors import AttachError, ClosedError, FormatError
from shmlog.format.layout import (
    CHECKSUM,
    CURSOR,
    CURSOR_FILE_BYTES,
    CURSOR_MAGIC,
    CURSOR_OFFSETS,
    FORMAT_VERSION,
    GRANULE_BYTES,
)
from shmlog.system import files
from shmlog.system.files import LockFile

if TYPE_CHECKING:
    from shmlog.records.reader import RecordBatch

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


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
        if not isinstance(name, str):
            raise TypeError(f"a cursor's name is a str, not {type(name).__name__}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no cursor's name: use 1 to 64 letters, digits, dots, dashes, underscores"
            )
        self.name = name
        self._path = os.path.join(directory.cursors_path, name)
        self._log_id = directory.identity.log_id
        self._source = source
        with contextlib.suppress(FileExistsError):
            files.make_directory(directory.cursors_path, mode | (mode & 0o444) >> 2 | 0o100)
        self._lock: LockFile | None = LockFile(self._path, mode)
        self._generation = _native.fork_generation()
        try:
            if not self._lock.try_lock(0):
                raise AttachError(f"the cursor {name!r} of {directory.path} is open elsewhere")
            self._sequence, self.lsn = self._load_or_begin()
            if self.lsn > source.committed_lsn:
                raise FormatError(
                    f"{self._path} is at LSN {self.lsn}, but the log ends at {source.committed_lsn}:"
                    " has it been replaced by a copy? Remove the cursor to begin anew"
                )
        except BaseException:
            self._lock.close()
            raise
        self._next = self.lsn

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
        sequence = self._sequence + 1
        with files.descriptor(files.open_file(self._path, writable=True)) as fd:
            files.write_all(fd, self._encode(sequence, place), CURSOR_OFFSETS[sequence % 2])
            os.fsync(fd)
        self._sequence, self.lsn, self._next = sequence, place, place
        return place

    def close(self) -> None:
        """Let another process use the cursor.  What was not committed comes again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check(self) -> None:
        if self._lock is None:
            raise ClosedError(f"the cursor {self.name!r} has been closed")
        if self._generation != _native.fork_generation():
            raise ClosedError(f"the cursor {self.name!r} belongs to the parent process")

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<shmlog.Cursor {self.name!r} at LSN {self.lsn}>"

    def _encode(self, sequence: int, lsn: int) -> bytes:
        body = CURSOR.pack(CURSOR_MAGIC, FORMAT_VERSION, sequence, lsn)
        return body + CHECKSUM.pack(crc32c(body, crc32c(self._log_id)))

    def _load_or_begin(self) -> tuple[int, int]:
        """(sequence, lsn); under the lock.  A file of zeros has just been made."""
        data = files.read_small(self._path)
        if not any(data):
            begin = self._source.trimmed_lsn
            with files.descriptor(files.open_file(self._path, writable=True)) as fd:
                files.write_all(fd, self._encode(0, begin).ljust(CURSOR_FILE_BYTES, b"\0"), 0)
                os.fsync(fd)
            files.sync_directory(os.path.dirname(self._path))
            return 0, begin
        found = []
        for offset in CURSOR_OFFSETS:
            body = data[offset : offset + CURSOR.size]
            check = data[offset + CURSOR.size : offset + CURSOR.size + CHECKSUM.size]
            if len(check) < CHECKSUM.size or CHECKSUM.unpack(check)[0] != crc32c(body, crc32c(self._log_id)):
                continue
            magic, version, sequence, lsn = CURSOR.unpack(body)
            if magic == CURSOR_MAGIC and version == FORMAT_VERSION:
                found.append((sequence, lsn))
        if not found:
            raise FormatError(f"{self._path} holds no valid copy of a cursor of this log")
        return max(found)
