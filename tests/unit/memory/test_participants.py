"""The participant table: who may take a slot, what the dead leave, who may free it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmlog import _native
from shmlog.errors import AttachError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, CL, CLAIM_HELD, NO_LSN, PT, ROLE_FLUSHER, ROLE_HANDLE, SLOT_USED
from shmlog.memory import participants
from shmlog.memory.participants import Claim, Participants, slot_offset
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE, LockFile


class Table:
    """One control block and as many LOCK files, each like a process of its own."""

    def __init__(self, path: Path) -> None:
        block = mmap.mmap(-1, CB.HEADER_BYTES + PARTICIPANT_COUNT * PT.BYTES + 4096)
        self.control = _native.Control(block, 4096, PARTICIPANT_COUNT)
        self.path = str(path / "LOCK")
        self.locks: list[LockFile] = []

    def process(self) -> Participants:
        self.locks.append(LockFile(self.path))
        return Participants(self.control, self.locks[-1])

    def die(self, which: int) -> None:
        """As the kernel sees the end of a process: its locks are gone."""
        self.locks[which].close()

    def claim(self, number: int, begin: int, end: int, held: bool) -> None:
        at = slot_offset(number, PT.CLAIMS)
        self.control.store(at + CL.END, end)
        self.control.store(at + CL.BEGIN, begin | (CLAIM_HELD if held else 0))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    yield made
    for lock in made.locks:
        lock.close()


def test_each_process_takes_a_slot_of_its_own(table: Table) -> None:
    one, other = table.process(), table.process()
    assert [one.take(ROLE_HANDLE), other.take(ROLE_HANDLE), one.take(ROLE_HANDLE)] == [0, 1, 2]
    assert table.control.load(CB.PARTICIPANT_HIGH) == 3


def test_a_slot_given_back_is_taken_again(table: Table) -> None:
    one, other = table.process(), table.process()
    one.take(ROLE_HANDLE)
    other.take(ROLE_HANDLE)
    one.release(0)
    assert not other.alive(0)
    assert other.take(ROLE_HANDLE) == 0


@pytest.mark.holds("T4")
def test_a_slot_that_changes_hands_while_it_is_looked_at_is_not_dead(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, flusher = table.process(), table.process(), table.process()
    number = one.take(ROLE_HANDLE)
    locked = LockFile.locked

    def given_back_and_taken(lock: LockFile, *byte: int) -> bool:
        one.release(number)
        found = locked(lock, *byte)
        assert other.take(ROLE_HANDLE) == number
        return found

    with monkeypatch.context() as patch:
        patch.setattr(LockFile, "locked", given_back_and_taken)
        assert not flusher.dead(number)
    assert not flusher.dead(number)
    table.die(1)
    assert flusher.dead(number)


def test_who_is_just_taking_a_slot_is_no_handle_yet(table: Table) -> None:
    one, other, closing = table.process(), table.process(), table.process()
    number = one.take(ROLE_HANDLE)
    assert closing.any_as(ROLE_HANDLE)
    one.release(number)
    assert table.locks[1].try_lock(FIRST_PARTICIPANT_BYTE + number)  # the first step of take()
    assert not closing.any_as(ROLE_HANDLE), "a flusher that attaches was taken for a handle"
    assert other.take(ROLE_FLUSHER) == number and not closing.any_as(ROLE_HANDLE)


def test_a_dead_owners_slot_is_not_taken_before_it_is_retired(table: Table) -> None:
    one, other = table.process(), table.process()
    one.take(ROLE_HANDLE)
    table.die(0)
    assert not other.alive(0)
    assert other.used(0)
    assert other.take(ROLE_HANDLE) == 1
    assert other.retire(0, 0, 0)
    assert other.take(ROLE_HANDLE) == 0


def test_a_slot_freed_while_its_owner_still_holds_the_lock_is_passed_over(table: Table) -> None:
    one, other = table.process(), table.process()
    table.locks[0].try_lock(2)
    assert other.take(ROLE_HANDLE) == 1
    assert one.take(ROLE_HANDLE) == 0


@pytest.mark.holds("T1")
def test_a_slot_whose_owner_died_while_it_was_being_taken_is_passed_over(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = table.process()
    lock = table.locks[0].try_lock

    def somebody_was_quicker(byte: int) -> bool:
        if byte == 2:
            table.control.store(slot_offset(0, PT.STATE), SLOT_USED)
        return lock(byte)

    monkeypatch.setattr(table.locks[0], "try_lock", somebody_was_quicker)
    assert one.take(ROLE_HANDLE) == 1
    other = table.process()
    assert not other.alive(0), "the lock on the dead owner's slot was given back"


def test_a_full_table_is_a_clear_error_and_keeps_room_for_flushers(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(participants, "PARTICIPANT_COUNT", 4)
    monkeypatch.setattr(participants, "FLUSHER_SLOTS", 2)
    one = table.process()
    for number in range(2):
        assert one.take(ROLE_HANDLE) == number
    with pytest.raises(AttachError, match="all 2 participant slots are in use"):
        one.take(ROLE_HANDLE)
    for number in range(2, 4):
        assert one.take(ROLE_FLUSHER) == number
    with pytest.raises(AttachError, match="all 4 participant slots are in use"):
        one.take(ROLE_FLUSHER)


def test_a_new_owner_finds_no_claims_and_no_counters_of_the_last(table: Table) -> None:
    one, other = table.process(), table.process()
    one.take(ROLE_HANDLE)
    table.claim(0, 64, 128, held=True)
    table.control.store(slot_offset(0, PT.CLAIMS) + CL.RECORDS, 5)
    table.die(0)
    assert other.retire(0, 128, 128)
    assert other.take(ROLE_HANDLE) == 0
    assert other.claims(0) == []
    assert other.counters(0) == (0, 0, 0)


def test_counters_of_those_that_have_gone_are_not_lost(table: Table) -> None:
    one, other = table.process(), table.process()
    for process in (one, other):
        number = process.take(ROLE_HANDLE)
        table.control.store(slot_offset(number, PT.CLAIMS) + CL.RECORDS, 5)
        table.control.store(slot_offset(number, PT.CLAIMS) + CL.PAYLOAD, 500)
    one.release(0)
    assert other.totals() == (10, 1000, 0)


def test_claims_tell_tentative_from_held(table: Table) -> None:
    one = table.process()
    one.take(ROLE_HANDLE)
    assert one.claims(0) == []
    table.claim(0, 64, 128, held=False)
    assert one.claims(0) == [Claim(64, 128, False)]
    table.claim(0, 64, 128, held=True)
    assert one.claims(0) == [Claim(64, 128, True)]


def test_a_flushers_own_hold_is_a_held_claim_until_it_ends(table: Table) -> None:
    one = table.process()
    number = one.take(ROLE_FLUSHER)
    one.hold(number, 96, 160)
    assert one.claims(number) == [Claim(96, 160, True)]
    one.unhold(number)
    assert one.claims(number) == []


@pytest.mark.parametrize(
    ("held", "committed", "reserved", "freed"),
    [
        (True, 64, 128, False),  # the hole is still ahead
        (True, 96, 128, False),  # in the midst of it
        (True, 128, 128, True),
        (False, 64, 128, False),  # its compare-and-swap may have worked
        (False, 64, 64, True),  # it cannot have
        (False, 65, 128, True),  # whoever owned 64, that is behind us
    ],
)
@pytest.mark.holds("T2")
def test_a_dead_slot_is_freed_once_what_it_claimed_is_committed(
    table: Table, held: bool, committed: int, reserved: int, freed: bool
) -> None:
    one, other = table.process(), table.process()
    one.take(ROLE_HANDLE)
    table.claim(0, 64, 128, held)
    table.die(0)
    assert other.retire(0, committed, reserved) is freed
    assert other.used(0) is not freed
    assert bool(other.claims(0)) is not freed


def test_a_flusher_alone_is_no_handle(table: Table) -> None:
    flusher, other = table.process(), table.process()
    flusher.take(ROLE_FLUSHER)
    assert other.anybody()
    assert not other.any_as(ROLE_HANDLE)
    assert not flusher.anybody()
    third = table.process()
    third.take(ROLE_HANDLE)
    assert other.any_as(ROLE_HANDLE)
    assert flusher.anybody()


def test_a_flusher_that_takes_a_dead_handles_slot_while_it_is_looked_at_is_no_handle(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, flusher = table.process(), table.process(), table.process()
    number = one.take(ROLE_HANDLE)
    table.die(0)
    locked = LockFile.locked

    def retired_and_taken(lock: LockFile, *byte: int) -> bool:
        monkeypatch.undo()
        flusher.retire_dead()
        assert flusher.take(ROLE_FLUSHER) == number
        return locked(lock, *byte)

    monkeypatch.setattr(LockFile, "locked", retired_and_taken)
    assert not other.any_as(ROLE_HANDLE), "the lock is the flusher's, the role was the dead handle's"
    assert other.any_as(ROLE_FLUSHER)


def test_a_participant_is_described_for_people(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/" + "wörker\x1b[2J" + "x" * 64])
    one, other = table.process(), table.process()
    one.take(ROLE_HANDLE)
    found = other.describe(0)
    assert (found.pid, found.role, found.alive) == (os.getpid(), ROLE_HANDLE, True)
    assert found.name.startswith("w\\xf6rker\\x1b[2Jx")
    assert found.name.isascii()
    assert found.name.isprintable()


def test_a_slot_that_was_never_used_says_nobody(table: Table) -> None:
    one = table.process()
    assert one.high == 0
    assert not one.used(5)
    assert not one.alive(5)
    table.control.store(CB.PARTICIPANT_HIGH, NO_LSN)  # a damaged word
    assert one.high == PARTICIPANT_COUNT
