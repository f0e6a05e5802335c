"""Locks: which bytes of LOCK mean what, and who holds them, told by the kernel.

    byte 0        the flusher's lease
    byte 1        set-up and tear-down, held for moments
    byte 2 + i    participant i, as long as it lives

Open-file-description locks (fcntl(2), F_OFD_SETLK): the kernel drops them when the
holder dies, in any pid namespace; a suspended process keeps them.

This module knows bytes of a file and deadlines.  It may not know what a participant
or a flusher does.
"""

from __future__ import annotations

import contextlib
import os

from shmlog import _native
from shmlog.system import files, processes
from shmlog.system.deadlines import poll

LEASE_BYTE = 0
SETUP_BYTE = 1
FIRST_PARTICIPANT_BYTE = 2


class LockFile:
    """The log's LOCK file: who lives, told by the kernel.

    The locks are bound to this open file: they go when the process ends, however
    it ends, and forked children close it at birth.  `locked` sees the locks of
    every other open file, in this process too, but not this one's own.
    """

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.path = path
        try:
            self._fd = _native.Fd(path, os.O_RDWR | files.OPEN_FLAGS)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.close(files.create_file(path, mode))
            self._fd = _native.Fd(path, os.O_RDWR | files.OPEN_FLAGS)
        except OSError as error:
            files.refuse_link(path, error)
            raise
        try:
            files.check_regular(self._fd.fileno(), path)
        except BaseException:
            self._fd.close()
            raise

    def try_lock(self, byte: int) -> bool:
        """Does not block.  True also when this file holds it already."""
        return _native.lock_byte(self._fd.fileno(), byte)

    def unlock(self, byte: int) -> None:
        _native.unlock_byte(self._fd.fileno(), byte)

    def locked(self, byte: int, count: int = 1) -> bool:
        """Whether any of the bytes is locked by another open file."""
        return _native.byte_locked(self._fd.fileno(), byte, count)

    def place(self) -> tuple[int, int]:
        """(device, inode): what tells this file from a copy of it."""
        found = os.fstat(self._fd.fileno())
        return found.st_dev, found.st_ino

    def is_at(self, path: str) -> bool:
        """Whether this file is what has the name now."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self.place()

    def close(self) -> None:
        self._fd.close()


class LockView:
    """Looks at the locks of a LOCK file that it may not be allowed to write, or even to read; a
    context manager."""

    def __init__(self, path: str, owner: int | None = None) -> None:
        self._path = path
        try:
            self._fd = files.open_file(path, writable=False, owner=owner)
        except PermissionError:
            self._fd = -1  # a group that may look: who can read LOCK could lock it

    def locked(self, byte: int, count: int = 1) -> bool:
        """Whether any of the bytes is locked by anybody."""
        if self._fd >= 0:
            return _native.byte_locked(self._fd, byte, count)
        return any(low < byte + count and byte <= high for low, high in processes.locked_ranges(self._path))

    def __enter__(self) -> LockView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def take_setup(lock: LockFile, deadline: float) -> None:
    """Take the set-up byte, which others hold for moments only; TimeoutError at the deadline."""
    if not poll(lambda: lock.try_lock(SETUP_BYTE), deadline):
        holders = ", ".join(map(processes.describe, processes.lock_holders(lock.path, SETUP_BYTE)))
        who = f"another process ({holders})" if holders else "another process"
        raise TimeoutError(f"{lock.path}: {who} has been setting the log up for too long")
