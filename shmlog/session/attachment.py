"""Attachment: one joining of this process to a log.

Under the set-up byte, an opener either joins the surviving control block or, when
there is none and nobody lives, recovers the files and makes one; then it takes a
participant slot.

    block        anybody alive    what happens
    -----        -------------    ------------
    there, ours  somebody         join it: their maps hold what it speaks of
    there, ours  nobody           look whether the files have what it speaks of.  They do:
                                  join it, records of dead processes are in it.  They do
                                  not: CorruptionError if it is below durable_lsn, else
                                  recover from the files and replace it
    there, of    nobody           remove it, recover from the files
    another boot
    or build     somebody         AttachError
    not there    nobody           recover from the files, make it
    not there    somebody, for    AttachError: a second block beside a live one would
                 some time        write one log twice

Invariants
  E1  A control block that nobody has guarded is evidence, not truth: the disk may have
      been restored, swapped or mounted anew since.  Its frames are checked, from the
      beginning of the segment that holds the last durable one up to committed_lsn, before
      anything of it is made durable; a reserved range that is not committed is not looked
      at.  What is damaged below durable_lsn is not repaired on a guess.
  E2  A log that has failed is joined while somebody uses it, and never once nobody does: whoever
      opens it then gets what the files hold.  Why it had failed is noted before the block goes.

This module knows how to join.  It may not know what is done then.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from shmlog import _native
from shmlog.disk import failure, segment
from shmlog.disk.cases import Case
from shmlog.disk.directory import Directory
from shmlog.disk.failure import Failure
from shmlog.disk.recovery import Recovery, recover
from shmlog.disk.segments import segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import AttachError, CorruptionError, FormatError, LogFailedError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, ROLE_HANDLE
from shmlog.memory import block
from shmlog.memory.block import StaleBlockError
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import Participants, TableFullError
from shmlog.session.beginning import first_piece
from shmlog.system import files
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE, LEASE_BYTE, SETUP_BYTE, LockFile, take_setup

PATIENCE_S = 2.0
"""How long a missing block beside a held lock is taken for a process that is just
ending: its locks go when its last thread has gone."""

log = logging.getLogger("shmlog")


class BlockMissingError(AttachError):
    """Somebody holds a lock of the log, but there is no control block."""


@dataclass(slots=True)
class Attachment:
    """What a participant holds."""

    directory: Directory
    lock: LockFile
    control: ControlBlock
    participants: Participants
    number: int
    boot_id: bytes
    recovery: Recovery | None
    """what was found, if this process had to recover the log"""
    first: _native.Mapping | None = None
    """of the segment at the end, if this process prepared it (session/beginning)"""

    def flusher_runs(self) -> bool:
        return self.lock.locked(LEASE_BYTE)

    def detach(self) -> None:
        """Give the slot back; its claims must be idle."""
        self.participants.release(self.number)
        self.control.commit_bell.ring()  # the flusher may want to leave too


def somebody_lives(lock: LockFile) -> bool:
    """A participant or a flusher, other than through this LOCK file."""
    return lock.locked(LEASE_BYTE) or lock.locked(FIRST_PARTICIPANT_BYTE, PARTICIPANT_COUNT)


def attach(
    directory: Directory,
    mode: int,
    role: int,
    deadline: float,
    lock: LockFile | None = None,
    make: bool = True,
    when_full: Callable[[], None] | None = None,
    prepare: bool = False,
) -> Attachment:
    """Join the log, as the table above.  A lock given stays the caller's on an error.

    make=False: FileNotFoundError instead of a new block when there is none and nobody
    lives.  prepare: who makes the block makes the first piece, too.  when_full: called now and
    then while every slot is used; it should see to a flusher, which frees those of the dead."""
    boot = files.boot_id()
    own = lock is None
    lock = lock or LockFile(directory.lock_path)
    try:
        patience, ask_at = min(deadline, time.monotonic() + PATIENCE_S), 0.0
        while True:
            take_setup(lock, deadline)
            try:
                control, recovery, first = _join_or_make(directory, lock, boot, mode, make, prepare)
                participants = control.participants(lock)
                if role != ROLE_HANDLE:  # flushers that failed have left their slots
                    participants.retire_dead()
                number = participants.take(role)
                if first is not None:
                    participants.say_maker(number)
                break
            except BlockMissingError:
                if time.monotonic() >= patience:
                    raise
            except TableFullError as error:
                ask_at = ask_at or time.monotonic()
                if when_full is None or time.monotonic() >= deadline:
                    raise AttachError(f"{directory.path}: {error}") from None
            finally:
                lock.unlock(SETUP_BYTE)
            if when_full and ask_at and time.monotonic() >= ask_at:
                when_full()
                ask_at = time.monotonic() + 1.0
            time.sleep(0.005)
    except BaseException:
        if own:
            lock.close()
        raise
    return Attachment(directory, lock, control, participants, number, boot, recovery, first)


def _join_or_make(
    directory: Directory, lock: LockFile, boot: bytes, mode: int, make: bool, prepare: bool
) -> tuple[ControlBlock, Recovery | None, _native.Mapping | None]:
    identity = directory.identity
    found: Recovery | None = None
    try:
        control = ControlBlock.attach(identity, boot, mode, lock.place())
    except FileNotFoundError:
        if somebody_lives(lock):
            raise BlockMissingError(block.missing(directory.path, identity.log_id)) from None
        if not make:
            raise
    except StaleBlockError as error:
        if somebody_lives(lock):
            raise
        log.warning("replacing a control block that nobody uses: %s", error)
        block.unlink_all(identity.log_id)
    else:
        doubt = None if somebody_lives(lock) else _doubt(directory, control, mode, make)
        if doubt is None:
            return control, None, None
        log.warning(
            "%s: its control block is not believed, for nobody used it: %s; the files are recovered",
            directory.path,
            doubt,
        )
        found = recover(directory, boot)
        block.unlink_all(identity.log_id)  # not before: if that is an error nothing has changed
    found = found or recover(directory, boot)
    _report(directory, found)
    end, trimmed = found.end_lsn, found.trimmed_lsn
    prepared, first = first_piece(directory, found, boot, mode) if prepare else (end, None)
    control = ControlBlock.create(identity, boot, end, trimmed, found.epoch, mode, lock.place(), prepared)
    return control, found, first


def _doubt(directory: Directory, control: ControlBlock, mode: int, make: bool) -> str | None:
    """Why a block that nobody has guarded is not believed, if so (E1).  CorruptionError: what
    it calls durable is not in the files."""
    why = None
    if control.failed and make:  # E2
        number, lsn = control.load(CB.FAILED_ERRNO), control.load(CB.FAILED_LSN)
        known = not control.lost and number in errno.errorcode
        failure.note(directory, Failure(number if known else 0, lsn if known else 0), mode)
        why = control.failure().what
        if control.lost:
            return why
    try:
        trimmed, committed = control.bounds()
    except LogFailedError as damage:
        return damage.what  # no flusher can serve it, so none would take it away
    if control.failed and not make:
        return None  # a flusher that came too late takes it away, and makes no other
    geometry, durable = directory.identity.geometry, control.durable_lsn
    begin = max(trimmed, geometry.segment_begin(max(0, durable - 1)))
    problem, bad = _missing(directory, begin, max(committed, control.load(CB.PREPARED_LSN)))
    if problem is None or bad > begin:
        stop = min(committed, bad)
        with Walker(directory) as walker:
            walk = walker.walk(begin, stop)
        if walk.end_lsn < stop:
            problem, bad = walk.problem.text, walk.bad_lsn
    if problem is None:
        return why
    if bad < durable:
        name = f"/dev/shm/{block.block_name(directory.identity.log_id)}"
        raise CorruptionError(
            segment_path(directory, bad),
            bad,
            f"{problem}, but its control block says that everything below LSN {durable} is durable; if the"
            f" files were restored from a backup, remove {name} to go on from what they hold",
        )
    return f"LSN {bad}: {problem}"


def _missing(directory: Directory, begin: int, end: int) -> tuple[str | None, int]:
    """What is wrong with the first segment file of [begin, end) that cannot be used, and its
    first LSN; or None, and end."""
    identity = directory.identity
    size = identity.geometry.segment_bytes
    for first in range(identity.geometry.segment_begin(begin), end, size):
        path = segment_path(directory, first)
        try:
            with files.descriptor(files.open_file(path, writable=False)) as fd:
                segment.check(fd, path, identity.log_id, first, identity.geometry)
        except FileNotFoundError:
            return "the segment is missing", first
        except FormatError as error:
            return str(error), first
    return None, end


def _report(directory: Directory, found: Recovery) -> None:
    """Say what recovery found, unless it is nothing new."""
    if found.case in (Case.EMPTY, Case.CLEAN) and found.failure is None:
        return
    why = f" ({found.reason})" if found.reason else ""
    if found.failure is not None:
        why += f"; it had failed: {found.failure}"
    log.warning(
        "%s recovered (%s): goes on at LSN %d, %d holes filled, %d bytes dropped%s",
        directory.path,
        found.case.value,
        found.end_lsn,
        len(found.holes),
        found.dropped_bytes,
        why,
    )
