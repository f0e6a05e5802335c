"""Control: the words of a log's control block, and who may store each.

It holds nothing that the files cannot rebuild.  native/core/layout.h declares it;
native/core/atomics.h says which access pairs with which.

    reserved_lsn        writers, by compare-and-swap
    limit, committed,   the holder of the flusher lease: its commit step (committing)
    cleared
    prepared            the holder of the lease: its preparing loop; the first value of it and of
                        limit is the maker's (session/beginning)
    durable, intent     the holder of the lease: its sync loop
    state, failed_*     whoever finds the failure; once
    wanted_*            whoever waits (maxima)

Invariants
  C1  It is created and removed under the set-up byte of LOCK, and only while no
      participant and no flusher holds its byte.  So there is never a second one.
  C2  Geometry is known from the log's directory; what the block says of it is
      checked at attach and never read again.
  C3  trimmed <= durable <= committed <= reserved <= committed + window, and none is above
      LSN_MAX.  Whoever would follow a watermark into the files looks at this first:
      where it does not hold somebody has overwritten the block.

This module knows the words.  It may not know what is in the files.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from shmlog import _native
from shmlog.errors import AttachError, LogFailedError
from shmlog.format.geometry import LSN_MAX, PARTICIPANT_COUNT
from shmlog.format.identity import Identity
from shmlog.format.layout import CB, CONTROL_MAGIC, NO_LSN, SIGNATURE, STATE_FAILED, STATE_RUNNING
from shmlog.memory import block
from shmlog.memory.block import StaleBlockError
from shmlog.memory.participants import Participants
from shmlog.system.bells import Bell
from shmlog.system.locks import LockFile

BLOCK_LOST = "the control block was cut or overwritten"


class ControlBlock:
    """One attached control block."""

    def __init__(self, memory: block.Block, identity: Identity) -> None:
        self.identity = identity
        self._memory = memory
        buffer = memory.buf
        assert buffer is not None
        self.buffer = buffer
        # reentrant: a signal handler may fail the log where fail() or step() holds it
        self._step_lock = threading.RLock()
        self.native = _native.Control(buffer, identity.geometry.window_bytes, PARTICIPANT_COUNT)
        self.commit_bell = Bell(block.bell_name(identity.log_id, "c"))
        self.sync_bell = Bell(block.bell_name(identity.log_id, "s"))

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
        prepared_lsn: int | None = None,
    ) -> ControlBlock:
        """Make the block of a log whose files end at end_lsn (C1) and are prepared up to prepared_lsn."""
        memory = block.create(identity.log_id, identity.geometry.control_bytes, mode)
        try:
            self = cls(memory, identity)
            words = {
                **_own_words(identity, boot_id, place),
                CB.EPOCH: epoch,
                CB.CREATED_NS: time.time_ns(),
                CB.INTENT_LSN: NO_LSN,
                CB.BLOCKED_LSN: NO_LSN,
                CB.TRIMMED_LSN: trimmed_lsn,
                CB.REMOVED_LSN: trimmed_lsn,
                CB.STATE: STATE_RUNNING,
            }
            ends = CB.RESERVED_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN, CB.DURABLE_LSN
            words |= dict.fromkeys(ends, end_lsn)
            prepared = end_lsn if prepared_lsn is None else prepared_lsn
            words[CB.PREPARED_LSN] = prepared
            words[CB.LIMIT_LSN] = min(prepared, end_lsn + identity.geometry.window_bytes)
            for word, value in words.items():
                self.native.store(word, value)
            self.native.store(CB.MAGIC, CONTROL_MAGIC)  # last: the block is whole
        except BaseException:
            block.unlink_all(identity.log_id)
            raise
        return self

    @classmethod
    def attach(cls, identity: Identity, boot_id: bytes, mode: int, place: tuple[int, int]) -> ControlBlock:
        """Join the log's block.  FileNotFoundError: there is none.  StaleBlockError: there is
        one that this build, boot or log cannot use.  AttachError: there is one that is
        not ours to touch.  The messages say why."""
        self = cls(block.attach(identity.log_id, identity.geometry.control_bytes, mode), identity)
        load, name = self.native.load, f"/dev/shm/{block.block_name(identity.log_id)}"
        if load(CB.MAGIC) == CONTROL_MAGIC and (load(CB.PLACE_DEVICE), load(CB.PLACE_INODE)) != place:
            raise AttachError(
                f"{name} belongs to the same log in another place: this directory is a copy,"
                " or was restored from one; close the other, or remove the block if nobody uses it"
            )
        expected = {CB.MAGIC: CONTROL_MAGIC, **_own_words(identity, boot_id, place)}
        for word, value in expected.items():
            if load(word) != value:
                raise StaleBlockError(f"{name}: its {_name(word)} is {load(word):#x}, not {value:#x}")
        return self

    def participants(self, lock: LockFile) -> Participants:
        return Participants(self.native, lock)

    def unlink(self) -> None:
        block.unlink_all(self.identity.log_id)

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

    def bounds(self) -> tuple[int, int]:
        """(trimmed_lsn, committed_lsn); LogFailedError if the watermarks are out of order (C3)."""
        return _ordered(self.native.load, self.identity.geometry.window_bytes)

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
            return LogFailedError(0, 0, BLOCK_LOST)
        return latched(self.native.load)


def latched(load: Callable[[int], int]) -> LogFailedError:
    """The failure that the words of a failed log name."""
    number, lsn = load(CB.FAILED_ERRNO), load(CB.FAILED_LSN)
    if number == errno.EFAULT:  # of no sync
        return LogFailedError(number, lsn, "a file of it was changed or lost under it, or its memory")
    return LogFailedError(number, lsn)


def _ordered(load: Callable[[int], int], window_bytes: int) -> tuple[int, int]:
    """(trimmed_lsn, committed_lsn), or LogFailedError (C3).  All of them only rise, so each is
    read before what bounds it."""
    trimmed, durable, committed = load(CB.TRIMMED_LSN), load(CB.DURABLE_LSN), load(CB.COMMITTED_LSN)
    reserved = load(CB.RESERVED_LSN)
    end = load(CB.COMMITTED_LSN) + window_bytes
    if not trimmed <= durable <= committed <= reserved <= min(end, LSN_MAX):
        raise LogFailedError(
            0,
            min(durable, committed, reserved),
            f"the control block is damaged: trimmed {trimmed}, durable {durable},"
            f" committed {committed}, reserved {reserved}",
        )
    return trimmed, committed


def _own_words(identity: Identity, boot_id: bytes, place: tuple[int, int]) -> dict[int, int]:
    """The words that say whose block it is, but for the magic."""
    geometry, words = identity.geometry, {}
    for word, data in ((CB.LOG_ID, identity.log_id), (CB.BOOT_ID, boot_id)):
        for at in range(0, 16, 8):
            words[word + at] = int.from_bytes(data[at : at + 8], "little")
    return words | {
        CB.SIGNATURE: SIGNATURE,
        CB.SEGMENT_BYTES: geometry.segment_bytes,
        CB.WINDOW_BYTES: geometry.window_bytes,
        CB.PARTICIPANT_COUNT: PARTICIPANT_COUNT,
        CB.CONTROL_BYTES: geometry.control_bytes,
        CB.PLACE_DEVICE: place[0],
        CB.PLACE_INODE: place[1],
    }


def _name(word: int) -> str:
    """What the word is called; of a field of two words, either."""
    return max((at, name) for name, at in vars(CB).items() if at <= word)[1].lower().replace("_", " ")


class ControlView:
    """A control block mapped read-only: to look at its words, no more."""

    def __init__(self, mapping: _native.Mapping, window_bytes: int) -> None:
        self.mapping = mapping
        self._window_bytes = window_bytes

    def load(self, word: int) -> int:
        """The word (acquire, so that what is below a watermark is there)."""
        return self.mapping.load(word)

    def bounds(self) -> tuple[int, int]:
        """(trimmed_lsn, committed_lsn); LogFailedError if the watermarks are out of order (C3)."""
        return _ordered(self.load, self._window_bytes)


def look(
    identity: Identity, boot_id: bytes, place: tuple[int, int] | None, owner: int | None = None
) -> ControlView | None:
    """The log's control block for looking at, or None if there is none of this boot, build
    and place (device and inode of LOCK; None: any).  AttachError if it is not ours, or that
    user's."""
    mapping = block.map_readonly(identity.log_id, identity.geometry.control_bytes, owner)
    if mapping is None:
        return None
    view = ControlView(mapping, identity.geometry.window_bytes)
    return None if _strange_words(view, identity, boot_id, place) else view


def why_not(
    identity: Identity, boot_id: bytes, place: tuple[int, int] | None, owner: int | None = None
) -> str:
    """Why look() finds no block although one has the log's name; nothing if none has."""
    if not block.exists(identity.log_id):
        return ""
    mapping = block.map_readonly(identity.log_id, identity.geometry.control_bytes, owner)
    if mapping is None:
        return f"it has not the {identity.geometry.control_bytes} bytes of this build and log"
    strange = _strange_words(ControlView(mapping, identity.geometry.window_bytes), identity, boot_id, place)
    if not strange.isdisjoint((CB.PLACE_DEVICE, CB.PLACE_INODE)):
        return "it is of the same log in another place: one of them is a copy, or was restored from one"
    return f"its {', '.join(sorted(map(_name, strange)))} is another" if strange else ""


def _strange_words(
    view: ControlView, identity: Identity, boot_id: bytes, place: tuple[int, int] | None
) -> set[int]:
    """The words by which a block is not this log's, of this boot, build and place."""
    expected = {CB.MAGIC: CONTROL_MAGIC, **_own_words(identity, boot_id, place or (0, 0))}
    if place is None:
        del expected[CB.PLACE_DEVICE], expected[CB.PLACE_INODE]
    return {word for word, value in expected.items() if view.load(word) != value}
