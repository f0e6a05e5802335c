"""What the package's own classes are given by the exploration of interleavings in the place of
a control block, a LOCK file and a lock: the same, with the scheduler asked before each access
that others can see, or that sees what others do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmlog.format.layout import CB, CL, PT
from shmlog.memory.participants import slot_offset
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE

if TYPE_CHECKING:
    from support.interleaving import World


def claim_word(participant: int, word: int, claim: int = 0) -> int:
    return slot_offset(participant, PT.CLAIMS + claim * CL.BYTES + word)


class SteppedControl:
    """A control block whose every access that others can see, or see of others, is a step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._native = world.control
        shape = world.shape
        seats = range(world.first_seat, world.slots)
        claims = range(world.claims)
        begins = {(claim_word(n, CL.BEGIN, claim), n) for n in range(world.slots) for claim in claims}
        self._begins = {word: n for word, n in begins if n in seats}
        self._slots: dict[int, int] = {}
        self._moving = {CB.COMMITTED_LSN: "load committed"} if shape.two_commit else {}
        self._seen_by_others = {word: "store a claim" for word, _ in begins}
        if shape.seats:
            self._slots = {slot_offset(n, word): n for n in seats for word in (PT.STATE, PT.STARTED_NS)}
            self._moving |= {CB.PARTICIPANT_HIGH: "load the height"} | dict.fromkeys(
                self._slots, "look at a slot"
            )
            self._seen_by_others |= {CB.PARTICIPANT_HIGH: "raise the height"}
            self._seen_by_others |= {slot_offset(n, PT.STATE): "store a slot's state" for n in seats}
            self._seen_by_others |= {slot_offset(n, PT.STARTED_NS): "store a slot's owner" for n in seats}
        if shape.piece:
            self._seen_by_others[CB.PREPARED_LSN] = "store prepared"
        self._noted = {*self._begins, *self._moving, CB.RESERVED_LSN, CB.COMMITTED_LSN}
        # an end: only a dead owner's is used

    def load(self, word: int) -> int:
        if word in self._begins and not self._world.retiring:
            self._world.current.asked = self._begins[word]
            self._world.pause("load a claim")
        elif word in self._moving:
            self._world.current.asked = self._slots.get(word, -1)
            self._world.pause(self._moving[word])
        value = self._native.load(word)
        return self._world.saw(value) if word in self._noted else value

    def store(self, word: int, value: int) -> None:
        if word in self._seen_by_others and not self._world.retiring:
            if self._native.load(word) == value:
                return  # nothing that another could see
            self._world.saw(word)
            self._world.pause(self._seen_by_others[word])
        self._native.store(word, value)

    def raise_to(self, word: int, value: int) -> None:
        if self._native.load(word) < value:
            self._world.pause(self._seen_by_others[word])
            self._native.raise_to(word, value)

    def scan(self, begin: int, end: int, set: bool) -> int:
        if not set:
            return self._native.scan(begin, end, set)
        self._world.pause("scan")
        return self._world.saw(self._native.scan(begin, end, set))

    def publish(self, begin: int, end: int) -> None:
        self._native.publish(begin, end)

    def commit_step(self) -> tuple[int, int, int, int]:
        actor = self._world.current
        actor.seen = [self._native.load(CB.RESERVED_LSN)]
        found: tuple[int, int, int, int] = self._native.commit_step()
        actor.seen, actor.previous = [], found[0] if actor.body == self._world._flush else -1
        return found

    def add(self, word: int, n: int) -> int:
        return self._native.add(word, n)

    def watch(self, lsn: int, ns: int) -> bool:
        return False

    def wake(self, word: int) -> None:
        pass


class SteppedLock:
    """One process's LOCK file: the bytes that the kernel drops when it dies."""

    def __init__(self, world: World, process: int) -> None:
        self._world = world
        self._process = process

    def try_lock(self, byte: int) -> bool:
        self._world.pause("lock a slot")
        owners, slot = self._world.owners, byte - FIRST_PARTICIPANT_BYTE
        if owners[slot] in (None, self._process):
            owners[slot] = self._process
        return bool(self._world.saw(owners[slot] == self._process))

    def unlock(self, byte: int) -> None:
        self._world.pause("unlock a slot")
        self._world.owners[byte - FIRST_PARTICIPANT_BYTE] = None

    def locked(self, byte: int, count: int = 1) -> bool:
        assert count == 1
        world, slot = self._world, byte - FIRST_PARTICIPANT_BYTE
        if slot >= world.first_seat and not world.retiring:
            world.current.asked = slot
            world.pause("alive")
            world.saw(world.owners[slot] is not None)
        return world.owners[slot] not in (None, self._process)


class SteppedMutex:
    """The lock around a flusher's commit step."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> None:
        self._world.current.seen = []
        while self._world.committing:
            self._world.pause("lock")
        self._world.committing = True

    def __exit__(self, *_: object) -> None:
        self._world.committing = False
