"""Departure: in which order a flusher, and the last of a log's users, leave.

    the last handle                      the flusher, under the set-up byte
    ---------------                      ----------------------------------
    gives its slot back, rings
                                         nobody lives?
                                         finish: fill, sync, mark clean, give back
                                         1  the lease
    waits until the block is gone:       2  its slot
    free lease and set-up byte, block    3  the block's name, the bells' before it
    still there: it died, start another  4  the set-up byte

A flusher that stays, or that somebody else is to start, is not waited for: only until
durable_lsn has reached what was reserved.

Why the lease first: who joins next must not believe in a flusher that is leaving.  Why the
block before the set-up byte: who joins next would find one that nobody serves.  Why
the lease before the block: close() returns once the block is gone, and another
flusher may be started at that moment.

This module knows the order.  It may not know what finishing a log is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmlog.errors import LogFailedError
from shmlog.format.layout import CB, ROLE_HANDLE, ROLE_SIDECAR
from shmlog.memory import block
from shmlog.memory.control import ControlBlock
from shmlog.session.attachment import Attachment, somebody_lives
from shmlog.system.deadlines import deadline_after, poll
from shmlog.system.locks import LEASE_BYTE, SETUP_BYTE, LockFile, take_setup

if TYPE_CHECKING:
    from shmlog.flusher.flusher import Flusher

SETUP_S = 30.0

log = logging.getLogger("shmlog.flusher")
handles_log = logging.getLogger("shmlog")


def leave(flusher: Flusher, joined: Attachment, lock: LockFile) -> bool:
    """The flusher's part, if still nobody lives; whether it left."""
    take_setup(lock, deadline_after(SETUP_S))
    try:
        if joined.participants.anybody():
            return False
        flusher.finish()
        durable = joined.control.durable_lsn
        if joined.control.failed:
            log.error("the last participant has gone; only what is below LSN %d is durable", durable)
        else:
            log.info("the last participant has gone; all is durable up to LSN %d", durable)
        lock.unlock(LEASE_BYTE)
        take_down(joined)
        return True
    finally:
        lock.unlock(SETUP_BYTE)


def take_down(joined: Attachment) -> None:
    """Remove the control block; the caller holds the set-up byte and is the last."""
    joined.participants.release(joined.number)
    joined.control.unlink()


def leave_unserved(joined: Attachment) -> None:
    """A handle's part where no flusher could be started: detach, and take the block down if
    it is of no use."""
    control, lock = joined.control, joined.lock
    take_setup(lock, deadline_after(SETUP_S))
    try:
        if somebody_lives(lock) or control.durable_lsn < control.reserved_lsn:
            joined.detach()
        else:
            take_down(joined)
    finally:
        lock.unlock(SETUP_BYTE)


def _is_damaged(control: ControlBlock) -> bool:
    """Whether no flusher would serve the block, nor take it away: whoever comes next replaces it."""
    try:
        control.bounds()
    except LogFailedError:
        return True
    return False


def see_off(joined: Attachment, deadline: float, start_flusher: Callable[[], None] | None) -> None:
    """The last handle's part, after it has detached: wait until all that was reserved is durable
    and, unless the flusher is one that stays, the block is gone.

    start_flusher: None if that is left to others; then the block may outlast the handle, and
    without a flusher nothing is waited for.  Another handle that lives ends the wait: it will
    be the last.  Nothing is raised of a failed log: who appended has been told, or asks next
    time.  TimeoutError if the deadline comes while something is not known to be durable."""
    log_id, lock, control = joined.directory.identity.log_id, joined.lock, joined.control
    reserved, another_is_last = control.reserved_lsn, False

    def served() -> bool:  # a flusher runs, or is coming or going
        return lock.locked(LEASE_BYTE) or lock.locked(SETUP_BYTE)

    def over() -> bool:
        nonlocal another_is_last
        another_is_last = joined.participants.any_as(ROLE_HANDLE)
        if another_is_last or not block.exists(log_id):
            return True
        stays = start_flusher is None or joined.participants.any_as(ROLE_SIDECAR)
        if stays and (control.failed or control.durable_lsn >= reserved):
            return True
        # seen in this order, only a dead flusher leaves a block behind
        if not served() and block.exists(log_id):
            if start_flusher is None or (control.failed and _is_damaged(control)):
                return True
            start_flusher()
        control.commit_bell.ring()
        control.native.raise_to(CB.WANTED_DURABLE, reserved)
        control.sync_bell.ring()
        return False

    in_time = poll(over, deadline, pause_max_s=0.01)
    durable = control.durable_lsn
    if durable >= reserved or control.failed or another_is_last:
        return
    remains = f"{joined.directory.path}: what was appended from LSN {durable} on is not known to be durable"
    if not in_time:
        raise TimeoutError(f"{remains}; the handle is closed all the same")
    handles_log.warning("%s: the last handle is closed and no flusher runs; the next one sees to it", remains)
