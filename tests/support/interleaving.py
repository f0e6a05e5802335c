"""Every interleaving of writers and a flusher, with the real code.

Writers are `append` of the stepping core, the flusher is `commit_step`, `find_hole`
and `fill_hole`; each runs in a greenlet that gives control back before every store
to shared memory and, where it looks at what others write, before every load.  A
scheduler then chooses who goes on, or who dies there.  A dead flusher is replaced at
once, by one with a slot of its own.  A flusher may have a second thread that commits
too, as its sync loop does; the two share a lock around `commit_step`, and their death.

    schedule   0 0 1 2 0 ...     one choice at a time: actor n goes on, or dies
    state      the watermarks, claims and bits, the frames, and where each actor
               stands with what it has seen; equal states are explored once

A greenlet cannot be copied, so a state is reached by running its schedule from the
beginning.  Interleavings are sequentially consistent: the pairs of release and
acquire are not put to the test here.

Checked in every state
    E1  everything below committed_lsn is a sequence of whole, valid frames;
    E2  a record whose publication completed is where it was;
    E3  from every state some continuation without further deaths ends well: every
        live writer done, everything reserved committed.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from crc32c import crc32c
from greenlet import getcurrent, greenlet

from shmlog.format.geometry import Geometry
from shmlog.format.layout import CB, CL, CLAIM_COUNT, GRANULE_BYTES, NO_LSN, PT, SLOT_USED, STATE_RUNNING
from shmlog.memory.participants import slot_offset
from support.steps import Mutation, load, load_python

ONE_CLAIM = Mutation(
    "participants.py",
    "for claim in range(CLAIM_COUNT):\n            begin =",
    "for claim in range(1):\n            begin =",
)
"""The writers here have one thread each: their other claims are never used."""

GEOMETRY = Geometry(64 << 10, 64 << 10)
SEED = 0x5EED
HEADER = struct.Struct("<IIQqIHBB")
DATA, PAD, FILL = 1, 2, 3

QUIET = frozenset({"copy", "pad", "header", "claim end"})
"""Stores that nobody looks at before a later one: the frame before its bits, the end of
a claim before it is held.  There is no choice in front of them."""


class Violation(AssertionError):
    """A state that must not be, and the schedule that leads to it."""


@dataclass(frozen=True)
class Shape:
    """What is explored: sizes in granules, one list of records for each writer."""

    sizes: tuple[tuple[int, ...], ...]
    window: int
    deaths: int
    begin: int = 0
    """where the log begins, in granules"""
    two_commit: bool = False
    """whether each flusher has a second thread that commits"""


def claim_word(participant: int, word: int) -> int:
    return slot_offset(participant, PT.CLAIMS + word)


@dataclass(eq=False)
class Actor:
    """One writer, or thread of a flusher: where it stands and what it has seen."""

    number: int
    body: Callable[[Actor], None]
    label: str = "begin"
    seen: list[Any] = field(default_factory=list)
    wants: int = 0
    """blocked until limit_lsn is at least this"""
    alive: bool = True
    finished: bool = False
    record: int = 0
    context: greenlet | None = None

    def stands(self) -> tuple[Any, ...]:
        if not self.alive or self.finished:
            return (self.alive,)
        return (self.record, self.label, *self.seen)


class SteppedControl:
    """A control block whose every access that others can see, or see of others, is a step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._native = world.control
        writers = range(len(world.shape.sizes))
        self._begins = {claim_word(n, CL.BEGIN) for n in writers}
        self._noted = self._begins | {
            CB.RESERVED_LSN,
            CB.COMMITTED_LSN,
        }  # an end: only a dead owner's is used
        self._moving = {CB.COMMITTED_LSN} if world.shape.two_commit else set()
        self._seen_by_others = {claim_word(n, CL.BEGIN) for n in range(world.slots)}

    def load(self, word: int) -> int:
        if word in self._begins and not self._world.retiring:
            self._world.pause("load a claim")
        elif word in self._moving:
            self._world.pause("load committed")
        value = self._native.load(word)
        return self._world.saw(value) if word in self._noted else value

    def store(self, word: int, value: int) -> None:
        if word in self._seen_by_others:
            self._world.pause("store a claim")
        self._native.store(word, value)

    def scan(self, begin: int, end: int, set: bool) -> int:
        if not set:
            return self._native.scan(begin, end, set)
        self._world.pause("scan")
        return self._world.saw(self._native.scan(begin, end, set))

    def publish(self, begin: int, end: int) -> None:
        self._native.publish(begin, end)

    def add(self, word: int, n: int) -> int:
        return self._native.add(word, n)


class World:
    """One control block, its segments, its actors; reset for each run."""

    def __init__(self, shape: Shape, mutations: tuple[Mutation, ...] = ()) -> None:
        def of(*files: str) -> tuple[Mutation, ...]:
            return tuple(mutation for mutation in mutations if mutation.file in files)

        core = tuple(mutation.file for mutation in mutations if mutation.file.endswith((".h", ".c")))
        assert len(of(*core, "holes.py", "participants.py")) == len(mutations)
        self.shape = shape
        self.native = native = load(of(*core))
        self.holes = load_python("flusher.holes", of("holes.py"))
        self.participants = load_python("memory.participants", (ONE_CLAIM, *of("participants.py")))
        self.writers = len(shape.sizes)
        self.slots = self.writers + 1 + shape.deaths
        self.begin = shape.begin * GRANULE_BYTES
        self.window_bytes = shape.window * GRANULE_BYTES
        bitmap_at = CB.HEADER_BYTES + self.slots * PT.BYTES
        self._block = mmap.mmap(-1, bitmap_at + max(64, shape.window // 8))
        self.words = memoryview(self._block).cast("Q")
        self._clean = self._clean_block()
        self.control = native.Control(self._block, self.window_bytes, self.slots)
        watched = [CB.RESERVED_LSN, CB.LIMIT_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN]
        watched += [claim_word(n, word) for n in range(self.slots) for word in (CL.BEGIN, CL.END)]
        watched += [slot_offset(n, PT.STATE) for n in range(self.writers)]
        watched += range(bitmap_at, bitmap_at + shape.window // 8, 8)
        self._watched = [word // 8 for word in watched]
        self._map()
        self._writer, self._table = self._writer_class(), self._table_class()
        self.stepped = SteppedControl(self)
        self._checked: set[Any] = set()
        self.actors: list[Actor] = []
        native.set_step_hook(self._hook)

    def _map(self) -> None:
        most = sum(map(sum, self.shape.sizes)) + max(map(max, self.shape.sizes)) + 1
        end = self.begin + most * GRANULE_BYTES
        self.mappings, self.memory, self._frames = {}, {}, []
        for low, high in GEOMETRY.segment_ranges(self.begin, end):
            number = GEOMETRY.segment_no(low)
            fd = os.memfd_create("segment")
            os.ftruncate(fd, GEOMETRY.file_bytes)
            self.mappings[number] = self.native.Mapping(fd, GEOMETRY.file_bytes, True)
            os.close(fd)
            self.memory[number] = memoryview(self.mappings[number])
            at = GEOMETRY.file_offset(low)
            view = np.frombuffer(self.mappings[number], np.uint8)[at : at + high - low]
            self._frames.append(view.reshape(-1, GRANULE_BYTES))
        self._memory_state: int | None = None

    def _writer_class(self) -> type:
        world = self

        class Writer(self.native.Writer):  # type: ignore[misc, name-defined]
            def _slow(self, reason: int, lsn: int, timeout: Any, deadline: Any) -> None:
                assert reason == world.native.SLOW_ROOM, f"an append took the slow path for {reason}"
                world.wait_for_room(lsn)

        return Writer

    def _table_class(self) -> type:
        world = self

        class Table(self.participants.Participants):  # type: ignore[misc, name-defined]
            """The real table, with the scheduler's word for who lives."""

            def alive(self, number: int) -> bool:
                return world.alive(number)

        return Table

    # ------------------------------------------------------------------ a run

    def reset(self) -> None:
        """Back to the beginning: an empty log and actors that have not begun."""
        self.end_run()
        self._block[:] = self._clean
        for view in self._frames:
            view[:] = 0
        self._memory_state = None
        self.deaths = 0
        self.retiring = False
        self.published: frozenset[tuple[int, int, int]] = frozenset()
        self.actors = [Actor(n, self._write) for n in range(self.writers)]
        self._add_flusher()
        self.current = self.actors[0]

    def _add_flusher(self) -> None:
        """The next flusher, with the next number."""
        number = self.writers + sum(actor.body == self._flush for actor in self.actors)
        self.flusher = [Actor(number, self._flush, "look")]
        if self.shape.two_commit:
            self.flusher.append(Actor(number, self._commit, "look"))
        self.actors += self.flusher
        self.committing = False
        self.words[CB.PARTICIPANT_HIGH // 8] = number + 1

    def _clean_block(self) -> bytes:
        words = self.words
        for word in (CB.RESERVED_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN):
            words[word // 8] = self.begin
        words[CB.LIMIT_LSN // 8] = self.begin + self.window_bytes
        words[CB.PREPARED_LSN // 8] = self.begin + (1 << 30)
        words[CB.STATE // 8] = STATE_RUNNING
        words[CB.PARTICIPANT_HIGH // 8] = self.writers + 1
        for participant in range(self.slots):
            for claim in range(CLAIM_COUNT):
                words[claim_word(participant, claim * CL.BYTES + CL.BEGIN) // 8] = NO_LSN
            words[slot_offset(participant, PT.STATE) // 8] = SLOT_USED
        return bytes(self._block)

    def end_run(self) -> None:
        """Let every greenlet that has begun unwind, storing nothing."""
        for actor in self.actors:
            if actor.context and not actor.context.dead:
                self.current = actor
                actor.context.switch(True)

    def choices(self) -> list[int]:
        """What may happen next: 2 n, actor n goes on; 2 n + 1, it dies."""
        found = []
        limit = self.words[CB.LIMIT_LSN // 8]
        for n, actor in enumerate(self.actors):
            if actor.alive and not actor.finished:
                if actor.wants <= limit and not (self.committing and actor.label == "lock"):
                    found.append(2 * n)
                dies = self.flusher if actor.body == self._flush else [actor]
                if actor.body == self._commit or all(thread.label == "look" for thread in dies):
                    continue
                if self.deaths < self.shape.deaths:
                    found.append(2 * n + 1)
        return found

    def apply(self, choice: int) -> None:
        actor = self.actors[choice // 2]
        self.current = actor
        if choice % 2:
            self.deaths += 1
            self.retiring = False
            for thread in self.flusher if actor.body == self._flush else [actor]:
                self.current = thread
                thread.alive = False
                if thread.context:
                    thread.context.switch(True)
            if actor.body == self._flush:
                self._add_flusher()
            return
        if actor.context is None:
            actor.context = greenlet(self._live)
            actor.context.switch(actor)
        else:
            actor.context.switch(False)

    def _live(self, actor: Actor) -> None:
        try:
            actor.body(actor)
        except SystemExit:
            return
        actor.finished, actor.seen, actor.label = True, [], "end"

    def _step(self) -> bool:
        """Give control back; whether to die here."""
        context = getcurrent()
        assert context.parent is not None
        return bool(context.parent.switch())

    def pause(self, label: str) -> None:
        """A step of Python code."""
        self.current.label = label
        if self._step():
            raise SystemExit("died")

    def saw(self, value: int) -> int:
        self.current.seen.append(value)
        return value

    def alive(self, number: int) -> bool:
        if number >= self.writers:
            return number == self.flusher[0].number
        self.pause("alive")
        self.current.seen.append(self.actors[number].alive)
        return self.actors[number].alive

    # ------------------------------------------------------------- the actors

    def _hook(self, label: str) -> bool:
        """A step of the core."""
        actor = self.current
        if label in QUIET:
            self._memory_state = None
            return False
        if actor in self.flusher:
            if label == "commit":  # what the scan has just found is in a register
                committed, reserved = self.words[CB.COMMITTED_LSN // 8], actor.seen[0]
                actor.seen.append(self.control.scan(committed, reserved, False))
            else:
                actor.seen.append(label)
        elif label in ("claim begin", "refused"):  # reserved_lsn has just been loaded
            actor.seen = [self.words[CB.RESERVED_LSN // 8]]
        else:
            actor.seen.append(label)
        if label == "unclaim":
            self._note_published(actor)
        actor.label = label
        return self._step()

    def _note_published(self, actor: Actor) -> None:
        if actor.body == self._write:
            size = self.shape.sizes[actor.number][actor.record] * GRANULE_BYTES
            lsn = self.words[claim_word(actor.number, CL.END) // 8] - size
            self.published |= {(actor.number, actor.record, lsn)}

    def wait_for_room(self, lsn: int) -> None:
        actor = self.current
        actor.wants, actor.seen = lsn, [lsn]
        self.pause("room")
        actor.wants = 0

    def _payload(self, number: int, record: int) -> bytes:
        size = self.shape.sizes[number][record] * GRANULE_BYTES - HEADER.size
        return bytes([0x41 + 16 * number + record]) * size

    def _write(self, actor: Actor) -> None:
        writer = self._writer(SEED, GEOMETRY.segment_bytes, self.window_bytes)
        writer._attach(self.control, actor.number)
        for number, mapping in self.mappings.items():
            writer._map(number, mapping)
        for record in range(len(self.shape.sizes[actor.number])):
            actor.record, actor.seen = record, []
            if record:
                self.pause("begin")
            writer.append(self._payload(actor.number, record), 16 * actor.number + record)

    def _flush(self, actor: Actor) -> None:
        table = self._table(self.stepped, None)
        words = self.words
        while True:
            self._retire(table)
            before = words[CB.COMMITTED_LSN // 8], words[CB.LIMIT_LSN // 8]
            committed, reserved, _, limit = self._commit_step(actor)
            if committed < reserved and before == (committed, limit):
                actor.seen = []
                found = self.holes.find_hole(self.stepped, table, committed)
                if isinstance(found, self.holes.Hole):
                    actor.seen = [found.begin, found.end]
                    self.holes.fill_hole(
                        self.stepped, table, actor.number, found, GEOMETRY, SEED, self._fill_memory
                    )
            actor.seen = []
            self.pause("look")

    def _commit(self, actor: Actor) -> None:
        """The flusher's other thread."""
        while True:
            self._commit_step(actor)
            actor.seen = []
            self.pause("look")

    def _commit_step(self, actor: Actor) -> tuple[int, int, int, int]:
        actor.seen = []
        while self.committing:
            self.pause("lock")
        self.committing = True
        actor.seen = [self.words[CB.RESERVED_LSN // 8]]
        found: tuple[int, int, int, int] = self.control.commit_step()
        self.committing = False
        return found

    def _retire(self, table: Any) -> None:
        """As the flusher does now and then: free the slots of the dead whose claims are done with."""
        self.retiring = True  # dead owners' claims are final: no choice in front of looking at them
        for number in range(self.writers):
            if not self.actors[number].alive and table.used(number):
                self.current.seen = ["retire", number]
                table.retire(number, self.words[CB.COMMITTED_LSN // 8], self.words[CB.RESERVED_LSN // 8])
        self.retiring = False

    def _fill_memory(self, lsn: int) -> memoryview:
        self._memory_state = None
        return self.memory[GEOMETRY.segment_no(lsn)]

    # -------------------------------------------------------------- the states

    def state(self) -> Any:
        words = self.words
        if self._memory_state is None:
            frames = [view.copy() for view in self._frames]
            for view in frames:
                view[:, 4:8] = 0  # checksums and times: they differ from run to run
                view[:, 16:24] = 0
            self._memory_state = hash(tuple(view.tobytes() for view in frames))
        return (
            self._memory_state,
            tuple([words[word] for word in self._watched]),
            tuple([actor.stands() for actor in self.actors]),
        )

    def ended_well(self) -> bool:
        words = self.words
        return (
            words[CB.COMMITTED_LSN // 8] == words[CB.RESERVED_LSN // 8]
            and all(thread.label == "look" for thread in self.flusher)
            and all(not actor.alive or actor.finished for actor in self.actors[: self.writers])
        )

    def wrong(self) -> str | None:
        """E1 and E2 in the present state."""
        committed = self.words[CB.COMMITTED_LSN // 8]
        what = (self._memory_state, committed, self.published)
        if what in self._checked:
            return None
        found = set()
        lsn = self.begin
        while lsn < committed:
            problem, end, tag = self._frame(lsn)
            if problem:
                return f"{problem} at {lsn}, below committed_lsn {committed}"
            if end > committed:
                return f"committed_lsn {committed} splits the frame of [{lsn}, {end})"
            if tag is not None and tag in found:
                return f"record {tag:#x} is there twice"
            found.add(tag)
            lsn = end
        for number, record, lsn in self.published:
            problem, _, tag = self._frame(lsn)
            if problem or tag != 16 * number + record:
                return f"published record {number}.{record} at {lsn} is gone: {problem or tag}"
        self._checked.add(what)
        return None

    def _frame(self, lsn: int) -> tuple[str, int, int | None]:
        memory, at = self.memory[GEOMETRY.segment_no(lsn)], GEOMETRY.file_offset(lsn)
        header = bytes(memory[at : at + HEADER.size])
        payload_bytes, checksum, own, _, tag, _, kind, _ = HEADER.unpack(header)
        if kind not in (DATA, PAD, FILL):
            return f"kind {kind}", 0, None
        if own != lsn:
            return f"a frame of {own}", 0, None
        payload = bytes(memory[at + HEADER.size : at + HEADER.size + payload_bytes]) if kind == DATA else b""
        if crc32c(header[8:], crc32c(header[:4], crc32c(payload, SEED))) != checksum:
            return "a bad checksum", 0, None
        if kind == DATA and payload != self._payload(tag // 16, tag % 16):
            return f"another payload than record {tag:#x}'s", 0, None
        end = lsn + -(-(HEADER.size + payload_bytes) // GRANULE_BYTES) * GRANULE_BYTES
        return "", end, tag if kind == DATA else None

    def explain(self, schedule: bytes) -> str:
        """A schedule as text, one line a step."""
        lines = []
        self.reset()
        for choice in schedule:
            actor = self.actors[choice // 2]
            name = f"writer {actor.number}" if actor.body == self._write else f"flusher {actor.number}"
            name += ", second thread," if actor.body == self._commit else ""
            lines.append(f"  {name} {'dies at' if choice % 2 else 'does'} {actor.label!r}")
            self.apply(choice)
        return "\n".join(lines)


@dataclass(frozen=True)
class Explored:
    """How much there was."""

    states: int
    runs: int
    steps: int


def explore(world: World, states_max: int = 1_000_000) -> Explored:
    """Visit every state; Violation if one is wrong or has no way out."""
    numbers: dict[Any, int] = {}
    before: list[list[int]] = []
    example: list[bytes] = []
    good: list[int] = []
    work: deque[tuple[int, bytes]] = deque([(-1, b"")])
    runs = steps = 0
    while work:
        previous, schedule = work.pop()
        world.reset()
        runs += 1
        steps += len(schedule)
        for choice in schedule:
            world.apply(choice)
        while True:
            state = world.state()
            number = numbers.get(state)
            known = number is not None
            if number is None:
                number = numbers[state] = len(numbers)
                before.append([])
                example.append(schedule)
                if len(numbers) > states_max:
                    raise RuntimeError(f"more than {states_max} states")
                if problem := world.wrong():
                    raise Violation(f"{problem}, after {len(numbers)} states:\n{world.explain(schedule)}")
                if world.ended_well():
                    good.append(number)
            if previous >= 0 and not schedule[-1] % 2:  # a death is nobody's way out
                before[number].append(previous)
            if known:
                break
            choices = world.choices()
            if not choices:
                break
            for choice in choices[1:]:
                work.append((number, schedule + bytes([choice])))
            previous, schedule = number, schedule + bytes(choices[:1])
            steps += 1
            world.apply(choices[0])
    _every_state_ends_well(world, before, good, example)
    world.reset()
    return Explored(len(numbers), runs, steps)


def _every_state_ends_well(
    world: World, before: list[list[int]], good: list[int], example: list[bytes]
) -> None:
    reached = bytearray(len(before))
    for number in good:
        reached[number] = 1
    while good:
        for number in before[good.pop()]:
            if not reached[number]:
                reached[number] = 1
                good.append(number)
    if not all(reached):
        stuck = min((schedule for number, schedule in enumerate(example) if not reached[number]), key=len)
        raise Violation(
            f"{reached.count(0)} of {len(reached)} states can never end well, e.g.\n{world.explain(stuck)}"
        )
