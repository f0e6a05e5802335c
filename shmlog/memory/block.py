"""Block: the shared memory of one log, by its name; made, joined, looked at and removed.

    /dev/shm/shmlog-0123456789abcdef      the block
    /dev/shm/sem.shmlog-...-c, -s         its doorbells (bells)

The standard library's SharedMemory has a resource tracker unlink the block when an attacher
exits, checks nothing of what it attaches to, and takes megabytes of modules: it is not used.

Invariants
  M1  The block has real memory behind every page before anyone stores to it: a full
      /dev/shm is an OSError at open, never a SIGBUS later.
  M2  Nobody trusts a block that another user made, or may write to.  Who only looks trusts
      the log's owner.
  M3  A block that has lost its name when it has been opened counts as none: whoever took
      the name knew that nobody used it (tools/leftovers).

This module knows names, sizes and owners.  It may not know the words inside.
"""

from __future__ import annotations

import _posixshmem
import contextlib
import errno
import mmap
import os
import stat

from shmlog import _native
from shmlog.errors import AttachError
from shmlog.system.bells import unlink


class StaleBlockError(AttachError):
    """The block is of another boot, build or geometry; it may go if nobody lives."""


class Block:
    """The block, mapped: its buffer is there for as long as anybody has a view of it."""

    def __init__(self, name: str, create: bool, size: int) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        self._fd = _posixshmem.shm_open("/" + name, flags, mode=0o600)
        try:
            if create:
                os.ftruncate(self._fd, size)
            self.buf = memoryview(mmap.mmap(self._fd, os.fstat(self._fd).st_size))
        except BaseException:
            self.close_descriptor()
            raise

    def close_descriptor(self) -> None:
        """The mapping needs none."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def block_name(log_id: bytes) -> str:
    """Short enough for every system (macOS allows 31 characters)."""
    return f"shmlog-{log_id.hex()[:16]}"


def bell_name(log_id: bytes, which: str) -> str:
    return f"/{block_name(log_id)}-{which}"


def exists(log_id: bytes) -> bool:
    try:
        fd = _posixshmem.shm_open("/" + block_name(log_id), os.O_RDONLY, mode=0o600)
    except FileNotFoundError:
        return False
    os.close(fd)
    return True


def unlink_all(log_id: bytes) -> None:
    """Remove the block's and the semaphores' names.  The block last: it being gone means
    that nothing is left, and who joins one that was left makes the semaphores anew."""
    try:
        for which in ("c", "s"):
            unlink(bell_name(log_id, which))
    finally:  # if one is another user's: the block would be of no use
        with contextlib.suppress(FileNotFoundError):
            _posixshmem.shm_unlink("/" + block_name(log_id))


def missing(path: str, log_id: bytes) -> str:
    """What to say of a log that is used while its block is not here."""
    return (
        f"{path} is in use, but its control block /dev/shm/{block_name(log_id)} is not here:"
        " it was removed, or its users are in another container"
    )


def create(log_id: bytes, size: int, mode: int) -> Block:
    """Make the log's block, all zeros (M1); FileExistsError if there is one."""
    block = Block(block_name(log_id), True, size)
    try:
        os.fchmod(block._fd, mode)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(block._fd, 0, size)
    except BaseException:
        unlink_all(log_id)
        raise
    finally:
        block.close_descriptor()
    return block


def attach(log_id: bytes, size: int, mode: int) -> Block:
    """Map the log's block.  FileNotFoundError: there is none.  StaleBlockError: it has
    another size.  AttachError: it is not ours to touch (M2)."""
    name = block_name(log_id)
    try:
        block = Block(name, False, 0)
    except ValueError:  # it cannot be mapped: whoever made it died before it had a size, or it was cut
        raise StaleBlockError(f"/dev/shm/{name} is empty") from None
    try:
        found = os.fstat(block._fd)
    finally:
        block.close_descriptor()
    if not found.st_nlink:  # removed while it was being opened, by somebody who saw that nobody used it
        raise FileNotFoundError(errno.ENOENT, "the control block has been removed", f"/dev/shm/{name}")
    _check_owner(name, found, mode)
    if found.st_size != size:
        raise StaleBlockError(f"/dev/shm/{name} has {found.st_size} bytes, not {size}")
    return block


def map_readonly(log_id: bytes, size: int, owner: int | None = None) -> _native.Mapping | None:
    """The log's block mapped for looking at, or None if there is none of this size.
    AttachError if it is not ours, or that user's (M2)."""
    name = block_name(log_id)
    try:
        fd = _posixshmem.shm_open("/" + name, os.O_RDONLY, mode=0o600)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise AttachError(
            f"/dev/shm/{name} may not be read by user {os.geteuid()}: it is not of a group of theirs"
        ) from None
    try:
        found = os.fstat(fd)
        _check_owner(name, found, 0o775, owner)
        return _native.Mapping(fd, size, False) if found.st_size == size else None
    finally:
        os.close(fd)


def _check_owner(name: str, found: os.stat_result, mode: int, owner: int | None = None) -> None:
    """AttachError if somebody else may have written what the block says."""
    owner = os.geteuid() if owner is None else owner
    if found.st_uid != owner:
        raise AttachError(f"/dev/shm/{name} belongs to user {found.st_uid}, not to {owner}")
    if stat.S_IMODE(found.st_mode) & ~mode & 0o077:
        raise AttachError(f"/dev/shm/{name} has mode {stat.S_IMODE(found.st_mode):o}, wider than {mode:o}")
