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

from shmlog.memory import block
from shmlog.session.attachment import Attachment, somebody_lives
from shmlog.system.deadlines import deadline_after, poll
from shmlog.system.locks import LEASE_BYTE, SETUP_BYTE, LockFile, take_setup

if TYPE_CHECKING:
    from shmlog.flusher.flusher import Flusher

SETUP_S = 30.0

log = logging.getLogger("shmlog.flusher")


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


def see_off(joined: Attachment, deadline: float, start_flusher: Callable[[], None]) -> None:
    """The last handle's part, after it has detached: wait until the block is gone."""
    log_id, lock = joined.directory.identity.log_id, joined.lock

    def gone() -> bool:
        if not block.exists(log_id) or joined.participants.any_handle():
            return True
        # seen in this order, only a dead flusher leaves a block behind
        if not lock.locked(LEASE_BYTE) and not lock.locked(SETUP_BYTE) and block.exists(log_id):
            start_flusher()
        joined.control.commit_bell.ring()
        return False

    poll(gone, deadline, pause_max_s=0.01)
