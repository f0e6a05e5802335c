"""Control block: the one shared-memory block of a log, and its words.

It is small, named from the log id, and holds nothing that the files cannot
rebuild.  native/layout.h declares it; native/atomics.h says which access pairs
with which.  Who may store each word:

    reserved_lsn        writers, by compare-and-swap
    limit, committed,   the holder of the flusher lease
    cleared, prepared,
    durable, intent
    state, failed_*     whoever finds the failure; once
    wanted_*            whoever waits (maxima)

Invariants
  C1  The block has real memory behind every page before anyone stores to it: a
      full /dev/shm is an OSError at open, never a SIGBUS later.
  C2  It is created and removed under the set-up byte of LOCK, and only while no
      participant and no flusher holds its byte.  So there is never a second one.
  C3  Geometry is known from the log's directory; what the block says of it is
      checked at attach and never read again.

This module knows the block.  It may not know what is in the files.
"""

from __future__ import annotations

import _posixshmem
import contextlib
import os
import stat
import sys
import threading
import time
import types
from multiprocessing import shared_memory

from shmlog import _native
from shmlog.disk.directory import Identity
from shmlog.errors import AttachError, LogFailedError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, CONTROL_MAGIC, NO_LSN, SIGNATURE, STATE_FAILED, STATE_RUNNING
from shmlog.memory.participants import Participants
from shmlog.system.bells import Bell, unlink
from shmlog.system.files import LockFile


def _initialize(block: shared_memory.SharedMemory, name: str, create: bool, size: int) -> None:
    """SharedMemory.__init__ without Python's resource tracker, which would remove the
    block when the first process that attached exits."""
    if sys.version_info >= (3, 13):
        shared_memory.SharedMemory.__init__(block, name, create, size, track=False)
    else:  # the same code, to which `resource_tracker` is something else: nothing global is touched
        original = shared_memory.SharedMemory.__init__
        untracked = types.SimpleNamespace(register=lambda *_: None)
        names = {**vars(shared_memory), "resource_tracker": untracked}
        types.FunctionType(original.__code__, names, argdefs=original.__defaults__)(block, name, create, size)


class _Block(shared_memory.SharedMemory):
    """Lives as long as its buffer is used: nothing is closed behind a view's back."""

    _fd: int

    def __init__(self, name: str, create: bool, size: int) -> None:
        try:
            _initialize(self, name, create, size)
        except BaseException:
            self.close_descriptor()
            raise

    def close_descriptor(self) -> None:
        """The mapping needs none."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def unlink(self) -> None:
        """Nothing: the base class calls this when it cannot map a block, others' too."""

    def __del__(self) -> None:
        pass


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
    for which in ("c", "s"):
        unlink(bell_name(log_id, which))
    with contextlib.suppress(FileNotFoundError):
        _posixshmem.shm_unlink("/" + block_name(log_id))


class StaleBlockError(AttachError):
    """The block is of another boot, build or geometry; it may go if nobody lives."""


class ControlBlock:
    """One attached control block."""

    def __init__(self, block: _Block, identity: Identity) -> None:
        self.identity = identity
        self._block = block
        buffer = block.buf
        assert buffer is not None
        self.buffer = buffer
        self._step_lock = threading.Lock()
        self.native = _native.Control(buffer, identity.geometry.window_bytes, PARTICIPANT_COUNT)
        self.commit_bell = Bell(bell_name(identity.log_id, "c"))
        self.sync_bell = Bell(bell_name(identity.log_id, "s"))

    # ------------------------------------------------------------ life cycle

    @classmethod
    def create(
        cls,
        identity: Identity,
        boot_id: bytes,
        end_lsn: int,
        trimmed_lsn: int,
        epoch: int,
        mode: int,
        place: tuple[int, int],
    ) -> ControlBlock:
        """Make the block of a log whose files end at end_lsn (C1, C2)."""
        geometry = identity.geometry
        try:
            block = _Block(block_name(identity.log_id), True, geometry.control_bytes)
            try:
                os.fchmod(block._fd, mode)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(block._fd, 0, geometry.control_bytes)
            finally:
                block.close_descriptor()
            self = cls(block, identity)
            store = self.native.store
            store(CB.SIGNATURE, SIGNATURE)
            for at in range(0, 16, 8):
                store(CB.LOG_ID + at, int.from_bytes(identity.log_id[at : at + 8], "little"))
                store(CB.BOOT_ID + at, int.from_bytes(boot_id[at : at + 8], "little"))
            store(CB.SEGMENT_BYTES, geometry.segment_bytes)
            store(CB.WINDOW_BYTES, geometry.window_bytes)
            store(CB.PARTICIPANT_COUNT, PARTICIPANT_COUNT)
            store(CB.CONTROL_BYTES, geometry.control_bytes)
            store(CB.EPOCH, epoch)
            store(CB.CREATED_NS, time.time_ns())
            store(CB.PLACE_DEVICE, place[0])
            store(CB.PLACE_INODE, place[1])
            for word in (CB.RESERVED_LSN, CB.LIMIT_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN, CB.PREPARED_LSN):
                store(word, end_lsn)
            store(CB.DURABLE_LSN, end_lsn)
            store(CB.INTENT_LSN, NO_LSN)
            store(CB.TRIMMED_LSN, trimmed_lsn)
            store(CB.REMOVED_LSN, trimmed_lsn)
            store(CB.STATE, STATE_RUNNING)
            store(CB.MAGIC, CONTROL_MAGIC)  # last: the block is whole
        except FileExistsError:
            raise  # not ours
        except BaseException:
            unlink_all(identity.log_id)
            raise
        return self

    @classmethod
    def attach(cls, identity: Identity, boot_id: bytes, mode: int, place: tuple[int, int]) -> ControlBlock:
        """Join the log's block.  FileNotFoundError: there is none.  StaleBlockError: there is
        one that this build, boot or log cannot use.  AttachError: there is one that is
        not ours to touch.  The messages say why."""
        name = block_name(identity.log_id)
        try:
            block = _Block(name, False, 0)
        except ValueError:  # it cannot be mapped: whoever made it died before it had a size, or it was cut
            raise StaleBlockError(f"/dev/shm/{name} is empty") from None
        try:
            found = os.fstat(block._fd)
        finally:
            block.close_descriptor()
        _check_owner(name, found, mode)
        if found.st_size != identity.geometry.control_bytes:
            raise StaleBlockError(
                f"/dev/shm/{name} has {found.st_size} bytes, not {identity.geometry.control_bytes}"
            )
        self = cls(block, identity)
        load = self.native.load
        if load(CB.MAGIC) == CONTROL_MAGIC and (load(CB.PLACE_DEVICE), load(CB.PLACE_INODE)) != place:
            raise AttachError(
                f"/dev/shm/{name} belongs to the same log in another place: this directory is a copy,"
                " or was restored from one; close the other, or remove the block if nobody uses it"
            )
        expected = {
            "magic": (load(CB.MAGIC), CONTROL_MAGIC),
            "layout signature": (load(CB.SIGNATURE), SIGNATURE),
            "log id": (self._bytes(CB.LOG_ID), identity.log_id),
            "boot id": (self._bytes(CB.BOOT_ID), boot_id),
            "segment_bytes": (load(CB.SEGMENT_BYTES), identity.geometry.segment_bytes),
            "window_bytes": (load(CB.WINDOW_BYTES), identity.geometry.window_bytes),
        }
        for what, (has, should) in expected.items():
            if has != should:
                raise StaleBlockError(f"/dev/shm/{name}: its {what} is {has!r}, not {should!r}")
        return self

    def participants(self, lock: LockFile) -> Participants:
        return Participants(self.native, lock)

    def unlink(self) -> None:
        unlink_all(self.identity.log_id)

    # ----------------------------------------------------------------- words

    def load(self, word: int) -> int:
        return self.native.load(word)

    @property
    def reserved_lsn(self) -> int:
        return self.native.load(CB.RESERVED_LSN)

    @property
    def committed_lsn(self) -> int:
        return self.native.load(CB.COMMITTED_LSN)

    @property
    def durable_lsn(self) -> int:
        return self.native.load(CB.DURABLE_LSN)

    @property
    def trimmed_lsn(self) -> int:
        return self.native.load(CB.TRIMMED_LSN)

    @property
    def limit_lsn(self) -> int:
        return self.native.load(CB.LIMIT_LSN)

    def _bytes(self, word: int) -> bytes:
        return b"".join(self.native.load(word + at).to_bytes(8, "little") for at in (0, 8))

    def step(self) -> tuple[int, int, int, int]:
        """The flusher's commit step: (committed, reserved, cleared, limit)."""
        with self._step_lock:
            return self.native.commit_step()

    # --------------------------------------------------------------- failure

    @property
    def failed(self) -> bool:
        return self.native.load(CB.STATE) != STATE_RUNNING

    @property
    def lost(self) -> bool:
        """Whether the block was cut or overwritten under its users: no word of it counts."""
        return self.native.faulted or self.native.load(CB.STATE) not in (STATE_RUNNING, STATE_FAILED)

    def fail(self, errno: int, lsn: int) -> None:
        """Latch a failure for every process: final.  Only the first one counts."""
        native = self.native
        if native.compare_exchange(CB.STATE, STATE_RUNNING, STATE_FAILED):
            native.store(CB.FAILED_ERRNO, errno)
            native.store(CB.FAILED_LSN, lsn)
        with self._step_lock:  # no commit step of this process raises the limit again
            native.store(CB.LIMIT_LSN, 0)  # every append takes the slow path and finds out
        for watermark in (CB.COMMITTED_LSN, CB.DURABLE_LSN, CB.LIMIT_LSN):
            native.wake(watermark)

    def failure(self) -> LogFailedError:
        """What the users of a failed log are told."""
        if self.lost:
            return LogFailedError(0, 0, "the control block was cut or overwritten")
        return LogFailedError(self.native.load(CB.FAILED_ERRNO), self.native.load(CB.FAILED_LSN))


def _check_owner(name: str, found: os.stat_result, mode: int) -> None:
    """AttachError if somebody else may have written what the block says."""
    if found.st_uid != os.geteuid():
        raise AttachError(f"/dev/shm/{name} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & ~mode & 0o077:
        raise AttachError(f"/dev/shm/{name} has mode {stat.S_IMODE(found.st_mode):o}, wider than {mode:o}")


class BlockView:
    """A control block mapped read-only: to look at its watermarks, no more."""

    def __init__(self, mapping: _native.Mapping) -> None:
        self._mapping = mapping

    def load(self, word: int) -> int:
        return self._mapping.load(word)

    def bounds(self) -> tuple[int, int]:
        """(trimmed_lsn, committed_lsn); acquire, so that what is below committed_lsn is there."""
        return self.load(CB.TRIMMED_LSN), self.load(CB.COMMITTED_LSN)


def view_block(identity: Identity, boot_id: bytes, lock_path: str) -> BlockView | None:
    """The log's control block for looking at, or None if there is none of this boot
    and place.  AttachError if it is not ours."""
    name = block_name(identity.log_id)
    try:
        fd = _posixshmem.shm_open("/" + name, os.O_RDONLY, mode=0o600)
    except FileNotFoundError:
        return None
    try:
        _check_owner(name, os.fstat(fd), 0o775)
        if os.fstat(fd).st_size != identity.geometry.control_bytes:
            return None
        view = BlockView(_native.Mapping(fd, identity.geometry.control_bytes, False))
    finally:
        os.close(fd)
    has = b"".join(view.load(CB.BOOT_ID + at).to_bytes(8, "little") for at in (0, 8))
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(lock_path)
        if (view.load(CB.PLACE_DEVICE), view.load(CB.PLACE_INODE)) != (found.st_dev, found.st_ino):
            return None
    whole = view.load(CB.MAGIC) == CONTROL_MAGIC and view.load(CB.SIGNATURE) == SIGNATURE
    return view if whole and has == boot_id else None
