"""Files: the only door to the operating system's files, locks and identities.

Every file is opened without following a symbolic link and is looked at after it
was opened, not before: a regular file, of ours, with one name.  Creating is
exclusive.  What must appear at once is written under a temporary name, synced,
and renamed.

This module knows paths, descriptors and bytes.  It may not know what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import struct
import sys
import uuid
from collections.abc import Iterator

from shmlog import _native
from shmlog.errors import FormatError

LEASE_BYTE = 0
SETUP_BYTE = 1
FIRST_PARTICIPANT_BYTE = 2

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_EXTENTS = 64
_EXTENT_UNWRITTEN = 0x800

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0)


def boot_id() -> bytes:
    """16 bytes that change when the machine restarts."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return uuid.UUID(file.read().strip()).bytes
    except OSError:
        if sys.platform != "darwin":
            raise
        import subprocess

        text = subprocess.run(
            ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, check=True
        ).stdout
        return uuid.UUID(text.decode().strip()).bytes


def make_directory(path: str, mode: int) -> None:
    """Create one directory, whatever the umask, and make its name durable."""
    os.mkdir(path, 0o700)
    os.chmod(path, mode)
    sync_directory(os.path.dirname(path) or ".")


def check_directory(path: str) -> None:
    """A directory of ours that nobody else may write to; otherwise FormatError or OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & stat.S_IWOTH:
        raise PermissionError(f"{path} may be written by anybody (mode {stat.S_IMODE(found.st_mode):o})")


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(path: str, writable: bool) -> int:
    """Open an existing regular file; the caller owns the descriptor."""
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | _OPEN)
    except OSError as error:
        _refuse_link(path, error)
        raise
    try:
        _check_regular(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_link(path: str, error: OSError) -> None:
    if os.path.islink(path):
        raise FormatError(f"{path} is a symbolic link") from error


def _check_regular(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        what = "has other names" if stat.S_ISREG(found.st_mode) else "is not a regular file"
        raise FormatError(f"{path} {what}")


def create_file(path: str, mode: int) -> int:
    """Create a file that must not exist; the caller owns the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    os.fchmod(fd, mode)
    return fd


def read_small(path: str, limit: int = 1 << 16) -> bytes:
    fd = open_file(path, writable=False)
    try:
        data = os.pread(fd, limit + 1, 0)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise FormatError(f"{path} is longer than {limit} bytes")
    return data


def write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_atomically(path: str, data: bytes, mode: int) -> None:
    """Make `path` hold `data` durably, at once or not at all."""
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    fd = create_file(temporary, mode)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    sync_directory(os.path.dirname(path))


def allocate(fd: int, begin: int, end: int) -> None:
    """Give [begin, end) of a file real blocks; OSError(ENOSPC) when there are none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, begin, end - begin)
    else:  # macOS: what already has blocks keeps its bytes
        for at in range(begin, end, 4096):
            write_all(fd, os.pread(fd, 1, at) or b"\0", at)


def zero(fd: int, begin: int, end: int) -> None:
    """Make [begin, end) of a file read as zeros, giving whole blocks back where possible."""
    if begin >= end:
        return
    if not _native.punch_hole(fd, begin, end - begin):
        blank = bytes(1 << 20)
        for at in range(begin, end, len(blank)):
            write_all(fd, blank[: end - at], at)


def never_written(fd: int, begin: int, end: int) -> bool:
    """Whether the file system holds part of [begin, end) to be allocated but never written:
    it reads as zeros once it has left memory.  False where that cannot be told.

    FS_IOC_FIEMAP, see Documentation/filesystems/fiemap.rst of Linux."""
    if sys.platform != "linux":
        return False
    buffer = bytearray(_FIEMAP.size + _EXTENTS * _EXTENT.size)
    while begin < end:
        _FIEMAP.pack_into(buffer, 0, begin, end - begin, 0, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                return False
            raise
        count = _FIEMAP.unpack_from(buffer)[3]
        for n in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _FIEMAP.size + n * _EXTENT.size)
            if flags & _EXTENT_UNWRITTEN:
                return True
            begin = logical + length
        if not count:
            break
    return False


class LockFile:
    """The log's LOCK file: who lives, told by the kernel.

    The locks are bound to this open file: they go when the process ends, however
    it ends, and forked children close it at birth.  `locked` sees the locks of
    every other open file, in this process too, but not this one's own.
    """

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.path = path
        try:
            self._fd = _native.Fd(path, os.O_RDWR | _OPEN)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.close(create_file(path, mode))
            self._fd = _native.Fd(path, os.O_RDWR | _OPEN)
        except OSError as error:
            _refuse_link(path, error)
            raise
        try:
            _check_regular(self._fd.fileno(), path)
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

    def close(self) -> None:
        self._fd.close()


class LockView:
    """Looks at the locks of a LOCK file that it may not be allowed to write; a context
    manager."""

    def __init__(self, path: str) -> None:
        self._fd = open_file(path, writable=False)

    def locked(self, byte: int, count: int = 1) -> bool:
        """Whether any of the bytes is locked by anybody."""
        return _native.byte_locked(self._fd, byte, count)

    def __enter__(self) -> LockView:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def descriptor(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
