"""Rewriting: bytes put on the disk once more, whatever the kernel believes of them.

After a write that failed the kernel takes its pages for clean.  So a sync says nothing
of them; they may be dropped from memory, and what is read then is what the disk held
before, zeros perhaps; and of an extent that was preallocated ext4 thinks that it was
converted, though it was not, and reads it as zeros after a restart.  Therefore

    read          from memory or else from the disk, whichever is left
    write, sync
    ask           the file system whether all of it was ever written (FIEMAP)
    read back     past the page cache, and compare

Invariants
  Z1  What is vouched for is checked after it was rewritten, not before: between a check
      and the read a clean page may have been dropped.
  Z2  An extent that is still not converted is converted by a write past the page cache:
      a chunk in one system call, so there is no moment at which a kill leaves the bytes
      nowhere; and only of what the disk has just taken, for one that fails leaves them
      nowhere too.  While others store to the pages there is no such way.
  Z3  A chunk ends at a multiple of its size in the file, so that no folio of the page
      cache is in two of them: a write past the cache drops whole folios.

This module knows bytes of an open file.  It may not know what they say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

from shmlog.format.geometry import PAGE_BYTES
from shmlog.system import files

CHUNK_BYTES = 8 << 20
"""The largest folio of ext4 and XFS has 2 MiB."""
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_NOT_SUPPORTED = errno.EINVAL, errno.EOPNOTSUPP


def write_anew(fd: int, begin: int, end: int, *, alone: bool) -> None:
    """Put [begin, end) of an open file on its disk; OSError if it is not there then.  With
    the bytes below begin that share its page.

    alone: nobody else stores to the file (Z2), whose size is whole pages.  Otherwise not a
    byte at or above end is written.  The caller has fd to itself meanwhile."""
    begin = begin // PAGE_BYTES * PAGE_BYTES
    while begin < end:
        stop = min(end, (begin // CHUNK_BYTES + 1) * CHUNK_BYTES)
        _write_chunk(fd, begin, stop, alone)
        begin = stop


def _write_chunk(fd: int, begin: int, end: int, alone: bool) -> None:
    with _pages(end - begin) as data, _pages(end - begin) as found:
        whole = len(data) if alone else end - begin
        _read(fd, data[:whole], begin)
        files.write_all(fd, data[:whole], begin)
        os.fsync(fd)
        if alone and files.never_written(fd, begin, end) and _write_past_the_cache(fd, data, begin):
            os.fsync(fd)
        if files.never_written(fd, begin, end):
            raise OSError(errno.EIO, f"bytes {begin} to {end} of a segment cannot be written")
        _read_back(fd, found, begin)
        if found[: end - begin] != data[: end - begin]:
            raise OSError(errno.EIO, f"bytes {begin} to {end} of a segment are not on the disk as written")


@contextlib.contextmanager
def _pages(count: int) -> Iterator[memoryview]:
    """Memory as transfers past the page cache need it: whole pages."""
    with mmap.mmap(-1, -(-count // PAGE_BYTES) * PAGE_BYTES) as memory, memoryview(memory) as view:
        yield view


@contextlib.contextmanager
def _past_the_cache(fd: int) -> Iterator[None]:
    """OSError of _NOT_SUPPORTED where the file system has no such way."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not _O_DIRECT:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _write_past_the_cache(fd: int, data: memoryview, begin: int) -> bool:
    try:
        with _past_the_cache(fd):
            files.write_all(fd, data, begin)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        return False
    return True


def _read_back(fd: int, into: memoryview, begin: int) -> None:
    """Read what the disk has; where the cache cannot be passed, what is left of it is dropped
    first, as far as nobody has it mapped."""
    try:
        with _past_the_cache(fd):
            _read(fd, into, begin)
            return
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, begin, len(into), os.POSIX_FADV_DONTNEED)
    _read(fd, into, begin)


def _read(fd: int, into: memoryview, begin: int) -> None:
    done = 0
    while done < len(into):
        got = os.preadv(fd, [into[done:]], begin + done)
        if not got:
            raise OSError(errno.EIO, f"a segment file ends at byte {begin + done}")
        done += got
