"""Users: who uses a live log, whether they run, and whom everybody waits for.

Pids and whether a process is stopped are for people: they come from /proc, and from slots
that name pids of another namespace, perhaps.  Who is alive is told by the locks.

This module knows the participant table and the locks, looked at.  It may not know what a
log holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from shmlog.disk.directory import Directory
from shmlog.disk.failure import Failure
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import (
    CB,
    CL,
    CLAIM_COUNT,
    CLAIM_HELD,
    NO_LSN,
    PT,
    ROLE_HANDLE,
    SLOT_USED,
    STATE_FAILED,
)
from shmlog.memory.control import ControlView
from shmlog.memory.participants import FLUSHER_SLOTS, slot_offset
from shmlog.system import processes
from shmlog.system.deadlines import deadline_after, poll
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE, LEASE_BYTE, LockView

ALL: Final = PARTICIPANT_COUNT - FLUSHER_SLOTS
NEARLY_ALL: Final = ALL - ALL // 16
BLOCKS_S: Final = 0.2
"""Who holds everybody back for so long is said to."""


@dataclass(frozen=True, slots=True)
class FlusherFound:
    """The flusher of a live log."""

    runs: bool
    pid: int
    who: str
    stopped: bool
    generation: int
    starts: int
    """how many were started since the last one came to serve"""


@dataclass(frozen=True, slots=True)
class User:
    """One used place of the participant table."""

    pid: int
    who: str
    alive: bool
    stopped: bool
    blocks: bool
    """the log goes on only after it"""
    age_s: float
    records: int
    claims: tuple[tuple[int, int], ...]


def describe(pid: int) -> str:
    """A process in words."""
    return processes.describe(pid)


def flusher(where: Directory, view: ControlView) -> FlusherFound:
    """Who holds the lease, as far as it can be seen."""
    with LockView(where.lock_path, where.owner) as lock:
        runs = lock.locked(LEASE_BYTE)
    seen = processes.lock_holders(where.lock_path, LEASE_BYTE) if runs else []
    pid = seen[0] if seen else view.load(CB.FLUSHER_PID)
    who = describe(pid)
    stopped = who.endswith(", stopped")
    return FlusherFound(runs, pid, who, stopped, view.load(CB.GENERATION), view.load(CB.STARTS))


def failure(view: ControlView) -> Failure | None:
    """The failure that a live log has latched."""
    if view.load(CB.STATE) != STATE_FAILED:
        return None
    return Failure(view.load(CB.FAILED_ERRNO), view.load(CB.FAILED_LSN))


def participants(where: Directory, view: ControlView) -> list[User]:
    """Who has a place, but for flushers; waits a moment where somebody holds everybody back, to see
    whether that lasts."""
    stuck_at = view.load(CB.COMMITTED_LSN)

    def goes_on() -> bool:
        return view.load(CB.COMMITTED_LSN) != stuck_at or view.load(CB.RESERVED_LSN) == stuck_at

    stuck = not poll(goes_on, deadline_after(BLOCKS_S))
    found = []
    with LockView(where.lock_path, where.owner) as lock:
        for number in range(min(view.load(CB.PARTICIPANT_HIGH), PARTICIPANT_COUNT)):

            def word(at: int, number: int = number) -> int:
                return view.load(slot_offset(number, at))

            if word(PT.STATE) != SLOT_USED or word(PT.ROLE) != ROLE_HANDLE:
                continue
            alive = lock.locked(FIRST_PARTICIPANT_BYTE + number)  # before its claims
            claims, records = [], 0
            for claim in range(CLAIM_COUNT):
                at = PT.CLAIMS + claim * CL.BYTES
                records += word(at + CL.RECORDS)
                if (begin := word(at + CL.BEGIN)) != NO_LSN:
                    claims.append((begin & ~CLAIM_HELD, word(at + CL.END)))
            who = describe(word(PT.PID))
            found.append(
                User(
                    pid=word(PT.PID),
                    who=who,
                    alive=alive,
                    stopped=who.endswith(", stopped"),
                    blocks=stuck and any(begin == stuck_at for begin, _ in claims),
                    age_s=max(0.0, (time.time_ns() - word(PT.STARTED_NS)) / 1e9),
                    records=records,
                    claims=tuple(claims),
                )
            )
    return found
