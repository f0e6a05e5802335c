"""Participants: who has claims, and who of them is alive.

A slot of the table belongs to whoever holds the lock on its byte of LOCK.  The
kernel drops the lock when the holder dies, in any pid namespace; a suspended
process keeps it.  Pids are stored for people only.

Invariants
  T1  A slot is taken only when it is FREE, under its lock.
  T2  A dead owner's slot stays USED, claims and all, until the flusher has seen
      committed_lsn pass what it claimed (retire).  Otherwise the evidence of what
      it left behind would be gone.
  T3  Whether an owner lives is asked before its claims are read: a dead owner's
      claims are final.  The other order can read a claim that its owner has since
      made held, published half of, and died on.
  T4  A slot tells its owners apart by PT.STARTED_NS, stored under the lock and
      before the slot is USED: used and unlocked between two equal values is dead.

This module knows the table and the locks.  It may not know the bitmap.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from shmlog import _native
from shmlog.errors import AttachError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import (
    CB,
    CL,
    CLAIM_COUNT,
    CLAIM_HELD,
    NO_LSN,
    PARTICIPANT_NAME_BYTES,
    PT,
    ROLE_HANDLE,
    SLOT_FREE,
    SLOT_USED,
)
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE, LockFile

FLUSHER_SLOTS = 8
"""Several, for a flusher that died while it filled a hole keeps its slot until that is done."""


class TableFullError(AttachError):
    """Every slot is used, perhaps by dead owners: a flusher frees theirs."""


@dataclass(frozen=True, slots=True)
class Claim:
    """[begin, end) that a participant is reserving (tentative) or owns (held)."""

    begin: int
    end: int
    held: bool


@dataclass(frozen=True, slots=True)
class Participant:
    """One used slot, for people."""

    number: int
    pid: int
    role: int
    name: str
    started_ns: int
    alive: bool
    records: int
    payload_bytes: int
    waits: int


def slot_offset(number: int, word: int = 0) -> int:
    return CB.HEADER_BYTES + number * PT.BYTES + word


def _claim_offset(number: int, claim: int, word: int) -> int:
    return slot_offset(number, PT.CLAIMS + claim * CL.BYTES + word)


class Table:
    """The table of one control block, looked at: load(word), and locked(byte) of its LOCK file."""

    def __init__(self, load: Callable[[int], int], locked: Callable[[int], bool]) -> None:
        self._load = load
        self._locked = locked

    @property
    def high(self) -> int:
        """One more than the highest slot ever used."""
        return min(self._load(CB.PARTICIPANT_HIGH), PARTICIPANT_COUNT)

    def used(self, number: int) -> bool:
        return self._load(slot_offset(number, PT.STATE)) == SLOT_USED

    def alive(self, number: int) -> bool:
        return self._locked(FIRST_PARTICIPANT_BYTE + number)

    def claims(self, number: int) -> list[Claim]:
        """The claims in use.  Ask `alive` first (T3)."""
        claims = []
        for claim in range(CLAIM_COUNT):
            begin = self._load(_claim_offset(number, claim, CL.BEGIN))
            if begin != NO_LSN:
                end = self._load(_claim_offset(number, claim, CL.END))
                claims.append(Claim(begin & ~CLAIM_HELD, end, bool(begin & CLAIM_HELD)))
        return claims

    def describe(self, number: int) -> Participant:
        raw = b"".join(
            self._load(slot_offset(number, PT.NAME + at)).to_bytes(8, "little")
            for at in range(0, PARTICIPANT_NAME_BYTES, 8)
        )
        records, payload_bytes, waits = self.counters(number)
        return Participant(
            number=number,
            pid=self._load(slot_offset(number, PT.PID)),
            role=self._load(slot_offset(number, PT.ROLE)),
            name=ascii(raw.rstrip(b"\0").decode("utf-8", "replace"))[1:-1],
            started_ns=self._load(slot_offset(number, PT.STARTED_NS)),
            alive=self.alive(number),
            records=records,
            payload_bytes=payload_bytes,
            waits=waits,
        )

    def counters(self, number: int) -> tuple[int, int, int]:
        """(records, payload bytes, waits) of a slot's present owner."""
        records = sum(self._load(_claim_offset(number, claim, CL.RECORDS)) for claim in range(CLAIM_COUNT))
        payload = sum(self._load(_claim_offset(number, claim, CL.PAYLOAD)) for claim in range(CLAIM_COUNT))
        return records, payload, self._load(slot_offset(number, PT.WAITS))

    def totals(self) -> tuple[int, int, int]:
        """(records, payload bytes, waits) of all participants, those that have gone included."""
        total = [self._load(CB.RETIRED_RECORDS), self._load(CB.RETIRED_BYTES), self._load(CB.RETIRED_WAITS)]
        for number in range(self.high):
            if self.used(number):
                total = [a + b for a, b in zip(total, self.counters(number), strict=True)]
        return total[0], total[1], total[2]


class Participants(Table):
    """The table of one control block, seen through one LOCK file."""

    def __init__(self, control: _native.Control, lock: LockFile) -> None:
        super().__init__(control.load, lock.locked)
        self._control = control
        self._lock = lock
        self._own: set[int] = set()

    def take(self, role: int) -> int:
        """Take a free slot; AttachError when all are used.  The last few are the flushers':
        nothing is repaired, and no slot of the dead is freed, without one."""
        control = self._control
        count = PARTICIPANT_COUNT - (FLUSHER_SLOTS if role == ROLE_HANDLE else 0)
        for number in range(count):
            state = slot_offset(number, PT.STATE)
            if number in self._own or control.load(state) != SLOT_FREE:
                continue
            if not self._lock.try_lock(FIRST_PARTICIPANT_BYTE + number):
                continue
            if control.load(state) != SLOT_FREE:  # T1: it was taken, and its owner died, in between
                self._lock.unlock(FIRST_PARTICIPANT_BYTE + number)
                continue
            self._reset(number)
            control.store(slot_offset(number, PT.PID), os.getpid())
            control.store(slot_offset(number, PT.ROLE), role)
            control.store(slot_offset(number, PT.STARTED_NS), time.time_ns())
            program = os.path.basename(sys.argv[0] if sys.argv else "")
            name = ("flusher" if role != ROLE_HANDLE else program)[:PARTICIPANT_NAME_BYTES].encode(
                "utf-8", "replace"
            )
            for at in range(0, PARTICIPANT_NAME_BYTES, 8):
                control.store(
                    slot_offset(number, PT.NAME + at),
                    int.from_bytes(name[at : at + 8].ljust(8, b"\0"), "little"),
                )
            control.raise_to(CB.PARTICIPANT_HIGH, number + 1)
            control.store(state, SLOT_USED)
            self._own.add(number)
            return number
        raise TableFullError(f"all {count} participant slots are in use")

    def say_maker(self, number: int) -> None:
        """Note that this slot's owner has made the block and prepared its first piece."""
        self._control.store(CB.CREATED_NS, self._control.load(slot_offset(number, PT.STARTED_NS)))

    def maker_lives(self) -> bool:
        """Whether who prepared the first piece has been alive ever since.  Who is just taking the
        slot that it gave back is no user of it yet."""
        load, made = self._control.load, self._control.load(CB.CREATED_NS)
        return any(
            self.alive(number) and self.used(number) and load(slot_offset(number, PT.STARTED_NS)) == made
            for number in range(self.high)
        )

    def release(self, number: int) -> None:
        """Give back a slot of this process's; its claims must be idle."""
        self._count_out(number)
        self._reset(number)
        self._control.store(slot_offset(number, PT.STATE), SLOT_FREE)
        self._own.discard(number)
        self._lock.unlock(FIRST_PARTICIPANT_BYTE + number)

    def alive(self, number: int) -> bool:
        return number in self._own or self._lock.locked(FIRST_PARTICIPANT_BYTE + number)

    def anybody(self) -> bool:
        """Whether any other participant lives (not counting this LOCK file's own)."""
        return self._lock.locked(FIRST_PARTICIPANT_BYTE, PARTICIPANT_COUNT)

    def any_as(self, role: int) -> bool:
        """Whether any other participant of this role lives.  Who is just taking a slot does not
        count: its role is not there yet."""

        def has(number: int) -> bool:
            return self.used(number) and self._control.load(slot_offset(number, PT.ROLE)) == role

        # looked at again after the lock: that may be another's, who has taken a dead one's slot
        return any(
            has(number) and self._lock.locked(FIRST_PARTICIPANT_BYTE + number) and has(number)
            for number in range(self.high)
        )

    def hold(self, number: int, begin: int, end: int) -> None:
        """Claim [begin, end) at once as held: the flusher, before it fills a hole."""
        self._control.store(_claim_offset(number, 0, CL.END), end)
        self._control.store(_claim_offset(number, 0, CL.BEGIN), begin | CLAIM_HELD)

    def unhold(self, number: int) -> None:
        self._control.store(_claim_offset(number, 0, CL.BEGIN), NO_LSN)

    def dead(self, number: int) -> bool:
        """Whether the slot's owner died without giving it back; then only the flusher
        changes the slot (T2).

        Used and unlocked is not enough (T4): between the two looks its owner may have
        given it back, and another have taken it."""
        started = slot_offset(number, PT.STARTED_NS)
        before = self._control.load(started)
        unlocked = self.used(number) and not self.alive(number)
        return unlocked and self.used(number) and self._control.load(started) == before

    def retire_dead(self) -> None:
        """Free the slots of the dead whose claims are done with; the flusher alone, or who
        holds its lease and is about to be it."""
        for number in range(self.high):
            if self.dead(number):
                committed = self._control.load(CB.COMMITTED_LSN)
                self.retire(number, committed, self._control.load(CB.RESERVED_LSN))

    def retire(self, number: int, committed: int, reserved: int) -> bool:
        """Free a dead participant's slot if nothing it claimed is still open (T2); whether
        it was freed.  The flusher alone calls this, with values loaded *after* it found
        the owner dead."""
        for claim in self.claims(number):
            if claim.held and committed < claim.end:
                return False
            if not claim.held and claim.begin < reserved and committed <= claim.begin:
                return False  # its CAS may have worked: the hole, if any, is still ahead
        self._count_out(number)
        self._reset(number)
        self._control.store(slot_offset(number, PT.STATE), SLOT_FREE)
        return True

    def _count_out(self, number: int) -> None:
        words = (CB.RETIRED_RECORDS, CB.RETIRED_BYTES, CB.RETIRED_WAITS)
        for word, value in zip(words, self.counters(number), strict=True):
            self._control.add(word, value)

    def _reset(self, number: int) -> None:
        self._control.store(slot_offset(number, PT.WAITS), 0)
        for claim in range(CLAIM_COUNT):
            self._control.store(_claim_offset(number, claim, CL.BEGIN), NO_LSN)
            for word in (CL.END, CL.RECORDS, CL.PAYLOAD):
                self._control.store(_claim_offset(number, claim, word), 0)
