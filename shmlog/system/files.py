"""Files: the only door to the operating system's files and identities.

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
import stat
import struct
import sys
import uuid
from collections.abc import Iterator

from shmlog import _native
from shmlog.errors import FormatError

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_EXTENTS = 64
_EXTENT_UNWRITTEN = 0x800

OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0)
"""Of every file: no link is followed, and what is no file does not block."""


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


def check_mode(mode: object) -> int:
    """The files' mode that a caller asked for; ValueError unless the owner may read and write
    and the others have no more than a group that may write."""
    if isinstance(mode, bool) or not isinstance(mode, int) or mode & ~0o664 or mode & 0o600 != 0o600:
        shown = f"{mode:#o}" if isinstance(mode, int) else repr(mode)
        raise ValueError(f"mode must be 0o600, or up to 0o664, not {shown}")
    return mode


def directory_mode(mode: int) -> int:
    """The mode of a directory whose files have `mode`: who may read them may enter it."""
    return mode | (mode & 0o444) >> 2


def make_directory(path: str, mode: int) -> None:
    """Create one directory, whatever the umask, and make its name durable."""
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        parent = os.path.dirname(path) or "."
        raise FileNotFoundError(errno.ENOENT, "there is no such directory to make it in", parent) from None
    os.chmod(path, mode)
    sync_directory(os.path.dirname(path) or ".")


def check_directory(path: str, owner: int | None = None) -> None:
    """A directory of ours, or of that user, that nobody else may write to; otherwise FormatError
    or OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    _check_owner(path, found, owner)
    if found.st_mode & stat.S_IWOTH:
        raise PermissionError(f"{path} may be written by anybody (mode {stat.S_IMODE(found.st_mode):o})")


def owner_to_read(path: str) -> int:
    """The user whose directory we may look into: ourselves, whoever it is if we are root, or who
    has let a group of ours look.  PermissionError if we are none of these."""
    found, own = os.stat(path), os.geteuid()
    if own in (found.st_uid, 0):
        return found.st_uid
    if found.st_gid not in {os.getegid(), *os.getgroups()}:
        raise PermissionError(f"{path} belongs to user {found.st_uid}, not to {own} or a group of theirs")
    if found.st_mode & 0o050 != 0o050:
        raise PermissionError(
            f"{path} belongs to user {found.st_uid}, and its group may not look into it"
            f" (mode {stat.S_IMODE(found.st_mode):o})"
        )
    return found.st_uid


def _check_owner(path: str, found: os.stat_result, owner: int | None) -> None:
    owner = os.geteuid() if owner is None else owner
    if found.st_uid != owner:
        raise PermissionError(f"{path} belongs to user {found.st_uid}, not to {owner}")


def check_part(path: str, owner: int | None = None) -> None:
    """As check_directory, of a directory within a log's: it may be missing, and no link leads to it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        what = "is a symbolic link" if stat.S_ISLNK(found.st_mode) else "is not a directory"
        raise FormatError(f"{path} {what}")
    check_directory(path, owner)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(path: str, writable: bool, owner: int | None = None) -> int:
    """Open an existing regular file, of ours or of that user; the caller owns the descriptor."""
    return _open_checked(path, os.O_RDWR if writable else os.O_RDONLY, owner)


def open_to_append(path: str, mode: int) -> int:
    """Open a regular file to append to, made if it is missing; the caller owns the descriptor."""
    with contextlib.suppress(FileExistsError):
        os.close(create_file(path, mode))
    return _open_checked(path, os.O_WRONLY | os.O_APPEND)


def _open_checked(path: str, flags: int, owner: int | None = None) -> int:
    try:
        fd = os.open(path, flags | OPEN_FLAGS)
    except OSError as error:
        refuse_link(path, error)
        raise
    try:
        check_regular(fd, path, owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_link(path: str, error: OSError) -> None:
    """FormatError if what could not be opened is a symbolic link."""
    if os.path.islink(path):
        raise FormatError(f"{path} is a symbolic link") from error


def check_regular(fd: int, path: str, owner: int | None = None) -> None:
    """FormatError unless an open file is a regular one, with one name; PermissionError unless
    it is ours, or that user's."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        what = "has other names" if stat.S_ISREG(found.st_mode) else "is not a regular file"
        raise FormatError(f"{path} {what}")
    _check_owner(path, found, owner)


def create_file(path: str, mode: int) -> int:
    """Create a file that must not exist; the caller owns the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600)
    os.fchmod(fd, mode)
    return fd


def read_small(path: str, limit: int = 1 << 16, owner: int | None = None) -> bytes:
    fd = open_file(path, writable=False, owner=owner)
    try:
        data = os.pread(fd, limit + 1, 0)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise FormatError(f"{path} is longer than {limit} bytes")
    return data


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_atomically(path: str, data: bytes, mode: int) -> None:
    """Make `path` hold `data` durably, at once or not at all."""
    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
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


@contextlib.contextmanager
def descriptor(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
