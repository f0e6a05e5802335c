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
from shmlog.format.layout import CB, ROLE_HANDLE, STATE_FAILED
from shmlog.memory.control import ControlView
from shmlog.memory.participants import FLUSHER_SLOTS, Table
from shmlog.system import processes
from shmlog.system.deadlines import deadline_after, poll
from shmlog.system.locks import LEASE_BYTE, LockView

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
    role: int
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
    with LockView(where.lock_path, where.owner) as lock:
        table = Table(view.load, lock.locked)
        used = [number for number in range(table.high) if table.used(number)]
        found = [_describe(table, number, stuck_at if stuck else None) for number in used]
    return [user for user in found if user.role == ROLE_HANDLE]


def _describe(table: Table, number: int, stuck_at: int | None) -> User:
    alive = table.alive(number)  # before its claims (T3)
    claims = tuple((claim.begin, claim.end) for claim in table.claims(number))
    slot = table.describe(number)
    who = describe(slot.pid) if alive else f"pid {slot.pid} ({slot.name})"
    return User(
        pid=slot.pid,
        who=who,
        role=slot.role,
        alive=alive,
        stopped=who.endswith(", stopped"),
        blocks=any(begin == stuck_at for begin, _ in claims),
        age_s=max(0.0, (time.time_ns() - slot.started_ns) / 1e9),
        records=slot.records,
        claims=claims,
    )


def held_back_s(view: ControlView) -> float | None:
    """For how long the flusher has found committed_lsn held back where it is; None if it has not."""
    since_ns, blocked = view.load(CB.BLOCKED_NS), view.load(CB.BLOCKED_LSN)
    if not since_ns or blocked != view.load(CB.COMMITTED_LSN) or blocked == view.load(CB.RESERVED_LSN):
        return None
    return max(0.0, (time.time_ns() - since_ns) / 1e9)
