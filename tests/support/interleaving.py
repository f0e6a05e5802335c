"""Every interleaving of writers and a flusher, with the real code.

Each actor runs in a greenlet that gives control back before every store to shared
memory and, where it looks at what others write, before every load.  A scheduler then
chooses who goes on, or who dies there.

    actor                        is the code
    -----                        -----------
    writer                       append of the stepping core; Participants.take before and
                                 release after, where the shape has slots taken and given back
    two writers of one handle    the same, one Writer and slot: threads that die together
    flusher, first thread        Committer.loop: commit_step, retire_dead, find_hole, fill_hole
    flusher, syncing             what Syncer.loop does to these words: the commit step
    flusher, preparing           Preparer.loop, but for the allocation itself

The threads of a flusher share a lock around `commit_step` (ControlBlock.step) and their
death; a dead flusher is replaced at once, by one with a slot of its own.  Bells and sleeps
are left out, so a thread that would sleep may look again at any time.  Slots are taken
without the set-up byte, under which an attach takes them: more interleavings, not fewer.

    schedule   0 0 1 2 0 ...     one choice at a time: actor n goes on, or dies
    state      the watermarks, claims and bits, the frames, and where each actor
               stands with what it has seen; equal states are explored once

A greenlet cannot be copied, so a state is reached by running its schedule from the
beginning.  Interleavings are sequentially consistent: the pairs of release and
acquire are not put to the test here (tests/native does that).

A step that neither sees nor is seen by anything another may do before it has no choice
in front of it (World._alone), nor has a flusher's death before which it stored nothing.

Checked in every state
    E1  everything below committed_lsn is a sequence of whole, valid frames;
    E2  a record whose publication completed is where it was;
    E3  from every state some continuation without further deaths ends well: every
        live writer done, everything reserved committed;
    E4  nothing is reserved above what is prepared.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from crc32c import crc32c
from greenlet import getcurrent, greenlet

from shmlog.format.geometry import Geometry
from shmlog.format.layout import (
    CB,
    CL,
    CLAIM_COUNT,
    GRANULE_BYTES,
    NO_LSN,
    PT,
    ROLE_HANDLE,
    SLOT_FREE,
    SLOT_USED,
    STATE_RUNNING,
)
from shmlog.memory.participants import FLUSHER_SLOTS, slot_offset
from support.stepped import SteppedControl, SteppedLock, SteppedMutex, claim_word
from support.steps import Mutation, load, load_python

CLAIMS = "for claim in range(CLAIM_COUNT):\n            begin ="
"""Where a participant's claims are read: those that no thread of a shape uses are left out."""

BEGUN = Mutation("committing.py", "previous = -1\n", "previous = self._control.committed_lsn\n")
"""A flusher's first look differs from the later ones only in that it never repairs."""

GEOMETRY = Geometry(64 << 10, 64 << 10)
SEED = 0x5EED
HEADER = struct.Struct("<IIQqIHBB")
DATA, PAD, FILL = 1, 2, 3

QUIET = frozenset({"copy", "pad", "header", "claim end"})
"""Stores that nobody looks at before a later one: the frame before its bits, the end of
a claim before it is held.  There is no choice in front of them."""

LOADS = frozenset(
    {
        "alive",
        "load a claim",
        "load committed",
        "scan",
        "lock",
        "allocate",
        "look at a slot",
        "load the height",
    }
)
"""Steps of a flusher before which it need not die: it has stored nothing since the last
point at which it may, or had begun to look; its successor looks anew."""


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
    seats: int = 0
    """so many slots, which the writers take; 0: each writer has had one from the beginning"""
    leave: bool = False
    """whether a writer that has written all gives its slot back"""
    one_handle: bool = False
    """whether the writers are threads that share a handle"""
    piece: int = 0
    """so much is prepared, then prepared at a time, in granules; 0: all is prepared"""


@dataclass(eq=False)
class Actor:
    """One writer, or thread of a flusher: where it stands and what it has seen."""

    number: int
    body: Callable[[Actor], None]
    slot: int = -1
    claim: int | None = None
    """which of its handle's claims a writer has taken"""
    asked: int = -1
    """the slot that it is about to look at"""
    previous: int = -1
    """where a flusher's loop saw committed_lsn at its last step"""
    label: str = "begin"
    seen: list[Any] = field(default_factory=list)
    wants: int = 0
    """blocked until limit_lsn is at least this"""
    alive: bool = True
    finished: bool = False
    record: int = 0
    context: greenlet | None = None

    def stands(self, committed: int) -> tuple[Any, ...]:
        if not self.alive or self.finished:
            return (self.alive,)
        previous = -1 if self.previous == committed else self.previous
        return (self.record, self.label, self.slot, self.claim, previous, *self.seen)


class World:
    """One control block, its segments, its actors; reset for each run."""

    def __init__(self, shape: Shape, mutations: tuple[Mutation, ...] = ()) -> None:
        def of(*files: str) -> tuple[Mutation, ...]:
            return tuple(mutation for mutation in mutations if mutation.file in files)

        core = tuple(mutation.file for mutation in mutations if mutation.file.endswith((".h", ".c")))
        assert len(of(*core, *PYTHON)) == len(mutations)
        self.shape = shape
        self.writers = len(shape.sizes)
        self.claims = self.writers if shape.one_handle else 1
        self.native = native = load(of(*core))
        rest = Mutation("participants.py", CLAIMS, CLAIMS.replace("CLAIM_COUNT", str(self.claims)))
        of_participants = of("participants.py")
        if not any(CLAIMS in mutation.old for mutation in of_participants):
            of_participants = (rest, *of_participants)
        self.holes = load_python("flusher.holes", of("holes.py"))
        self.committing_py = load_python("flusher.committing", (BEGUN, *of("committing.py")))
        self.control_py = load_python("memory.control", of("control.py"))
        self.preparing = load_python("flusher.preparing", of("preparing.py"))
        self.participants = load_python("memory.participants", of_participants)
        self.first_seat = 1 + shape.deaths  # below are the flushers'
        self.slots = self.first_seat + (shape.seats or (1 if shape.one_handle else self.writers))
        self.begin = shape.begin * GRANULE_BYTES
        self.window_bytes = shape.window * GRANULE_BYTES
        bitmap_at = CB.HEADER_BYTES + self.slots * PT.BYTES
        self._block = mmap.mmap(-1, bitmap_at + max(64, shape.window // 8))
        self.words = memoryview(self._block).cast("Q")
        self._clean = self._clean_block()
        self.control = native.Control(self._block, self.window_bytes, self.slots)
        watched = [CB.RESERVED_LSN, CB.LIMIT_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN, CB.PREPARED_LSN]
        watched += [CB.WANTED_LIMIT, CB.PARTICIPANT_HIGH]
        watched += [
            claim_word(n, word, claim)
            for n in range(self.slots)
            for claim in range(self.claims)
            for word in (CL.BEGIN, CL.END)
        ]
        watched += [slot_offset(n, word) for n in range(self.slots) for word in (PT.STATE, PT.STARTED_NS)]
        watched += range(bitmap_at, bitmap_at + shape.window // 8, 8)
        self._watched = [word // 8 for word in watched]
        self._map()
        self._writer, self._table = self._writer_class(), self._table_class()
        self._flushed_block = self._block_class()
        self._committer, self._preparer = self._committer_class(), self._preparer_class()
        self.stepped = SteppedControl(self)
        self._checked: set[Any] = set()
        self._scheduler = getcurrent()
        self.actors: list[Actor] = []
        native.set_step_hook(self._hook)

    def _map(self) -> None:
        most = sum(map(sum, self.shape.sizes)) + max(map(max, self.shape.sizes)) + 1
        end = self.begin + most * GRANULE_BYTES
        self.mappings: dict[int, Any] = {}
        self.memory: dict[int, memoryview] = {}
        self._frames: list[Any] = []
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
        module: Any = self.participants
        module.PARTICIPANT_COUNT = self.slots + FLUSHER_SLOTS
        module.time = types.SimpleNamespace(time_ns=lambda: world.current.number + 1)

        class Table(module.Participants):  # type: ignore[misc, name-defined]
            def retire_dead(self) -> None:
                world.retiring = not world.shape.seats
                # nobody but the flusher stores what is looked at: no choice in front of it
                super().retire_dead()
                world.retiring = False

        return Table

    def _block_class(self) -> type:
        """What a flusher's loops see of the control block."""
        world = self

        class Block(self.control_py.ControlBlock):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                self.native, self._step_lock = world.stepped, SteppedMutex(world)
                self.identity = types.SimpleNamespace(seed=SEED)

            @property
            def committed_lsn(self) -> int:
                """Asked for when a loop begins."""
                world.current.previous = world.words[CB.COMMITTED_LSN // 8]
                return world.current.previous

        return Block

    def _committer_class(self) -> type:
        """The flusher's loop, with no bells and with clocks by which all is always due."""
        world, clock = self, itertools.count()
        module: Any = self.committing_py
        module.time = types.SimpleNamespace(monotonic=lambda: float(next(clock)), time_ns=lambda: 1)
        module.Busy, module.Hole, module.find_hole = self.holes.Busy, self.holes.Hole, self.holes.find_hole

        def fill_hole(control: Any, participants: Any, number: int, hole: Any, *rest: Any) -> None:
            world.current.seen = [hole.begin, hole.end]
            world.holes.fill_hole(control, participants, number, hole, *rest)

        module.fill_hole = fill_hole
        module.log = types.SimpleNamespace(warning=lambda *_: None)

        class Committer(module.Committer):  # type: ignore[misc, name-defined]
            def repair(self, g: int) -> bool:
                world.current.seen = []
                return bool(super().repair(g))

            def _sleep(self, *_: Any) -> bool:
                world.current.seen = []
                world.pause("look")
                return False

        return Committer

    def _preparer_class(self) -> type:
        world = self
        module: Any = self.preparing
        module.time = types.SimpleNamespace(monotonic=lambda: 0.0)

        class Wanted:
            """As if it had been set by now."""

            def wait(self, _: float) -> bool:
                world.current.seen = []
                world.pause("look")
                return True

            def clear(self) -> None:
                pass

        class Preparer(module.Preparer):  # type: ignore[misc, name-defined]
            def __init__(self, block: Any) -> None:
                piece = world.shape.piece * GRANULE_BYTES
                geometry = types.SimpleNamespace(
                    piece_bytes=piece,
                    window_bytes=world.window_bytes,
                    piece_end=lambda lsn: lsn - lsn % piece + piece,
                )
                super().__init__(block, None, geometry, None, None, None)
                self._ahead_pieces = 0
                self._wanted = Wanted()

            def _prepare(self, begin: int, end: int) -> None:
                world.pause("allocate")
                world.prepared = max(world.prepared, end)

        return Preparer

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
        self.prepared = self.words[CB.PREPARED_LSN // 8]
        self.published: frozenset[tuple[int, int, int]] = frozenset()
        self.owners: list[int | None] = [None] * self.slots
        self.actors = [Actor(n, self._write) for n in range(self.writers)]
        for actor in self.actors:
            if not self.shape.seats:
                actor.slot = self.first_seat + (0 if self.shape.one_handle else actor.number)
                self.owners[actor.slot] = self._process(actor)
        self._shared_writer: Any = None
        self._add_flusher()
        self.current = self.actors[0]

    def _process(self, actor: Actor) -> int:
        """Who dies together has the same number; flushers' are negative."""
        if actor.body == self._write:
            return 0 if self.shape.one_handle else actor.number
        return -1 - actor.slot

    def _add_flusher(self) -> None:
        """The next flusher, with the next slot."""
        slot = sum(actor.body == self._flush for actor in self.actors)
        self.flusher = [Actor(slot, self._flush, slot, label="look")]
        if self.shape.two_commit:
            self.flusher.append(Actor(slot, self._commit, slot, label="look"))
        if self.shape.piece:
            self.flusher.append(Actor(slot, self._prepare, slot, label="look"))
        self.actors += self.flusher
        self.committing = False
        self.owners[slot] = self._process(self.flusher[0])
        words, high = self.words, CB.PARTICIPANT_HIGH // 8
        words[high] = max(words[high], slot + 1)
        words[slot_offset(slot, PT.STATE) // 8] = SLOT_USED

    def _clean_block(self) -> bytes:
        words = self.words
        for word in (CB.RESERVED_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN):
            words[word // 8] = self.begin
        words[CB.LIMIT_LSN // 8] = self.begin + (self.shape.piece * GRANULE_BYTES or self.window_bytes)
        words[CB.PREPARED_LSN // 8] = self.begin + (self.shape.piece * GRANULE_BYTES or 1 << 30)
        words[CB.STATE // 8] = STATE_RUNNING
        words[CB.PARTICIPANT_HIGH // 8] = 1 if self.shape.seats else self.slots
        for participant in range(self.slots):
            for claim in range(CLAIM_COUNT):
                words[claim_word(participant, claim * CL.BYTES + CL.BEGIN) // 8] = NO_LSN
            taken = not self.shape.seats and participant >= self.first_seat
            words[slot_offset(participant, PT.STATE) // 8] = SLOT_USED if taken else SLOT_FREE
        return bytes(self._block)

    def end_run(self) -> None:
        """Let every greenlet that has begun unwind, storing nothing."""
        for actor in self.actors:
            if actor.context and not actor.context.dead:
                self.current = actor
                actor.context.switch(True)

    def choices(self) -> list[int]:
        """What may happen next: 2 n, actor n goes on; 2 n + 1, it dies."""
        found: list[int] = []
        for n, actor in enumerate(self.actors):
            if not actor.alive or actor.finished:
                continue
            own = [2 * n] if self._may_go_on(actor) else []
            if self.deaths < self.shape.deaths and self._may_die(actor):
                own.append(2 * n + 1)
            if self._alone(actor):
                return own
            found += own
        return found

    def _may_go_on(self, actor: Actor) -> bool:
        words = self.words
        if actor.label == "lock":
            return not self.committing
        if actor.label == "every slot is used":
            seats = range(self.first_seat, self.slots)
            return any(words[slot_offset(n, PT.STATE) // 8] == SLOT_FREE for n in seats)
        return actor.wants <= words[CB.LIMIT_LSN // 8]

    def _may_die(self, actor: Actor) -> bool:
        if actor.body == self._flush:
            return not all(thread.label == "look" or thread.label in LOADS for thread in self.flusher)
        if actor.body != self._write:
            return False  # with the first thread
        threads = self.actors[: self.writers] if self.shape.one_handle else [actor]
        return actor is next(thread for thread in threads if not thread.finished)

    def _alone(self, actor: Actor) -> bool:
        """Whether the next step sees nothing that another may change before it, and stores
        nothing that another looks at."""
        if actor.label in {"commit", "cleared"}:
            return len(self.flusher) == 1  # writers load neither word
        if self.shape.seats:
            # a slot that is used stays as it is until its owner gives it back or the flusher frees it
            used = self.words[slot_offset(actor.asked, PT.STATE) // 8] == SLOT_USED
            return actor in self.flusher and actor.label == "look at a slot" and used and not self.shape.leave
        if actor.label in ("alive", "load a claim"):
            owners = [other for other in self.actors[: self.writers] if other.slot == actor.asked]
            gone = not owners[0].alive
            if actor.label == "alive":
                return gone or self.deaths == self.shape.deaths
            return gone or all(owner.finished for owner in owners)
        return False

    def apply(self, choice: int) -> None:
        actor = self.actors[choice // 2]
        self.current = actor
        if choice % 2:
            self.deaths += 1
            self.retiring = False
            process = self._process(actor)
            self.owners = [None if owner == process else owner for owner in self.owners]
            for thread in [other for other in self.actors if self._process(other) == process]:
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
        return bool(self._scheduler.switch())

    def pause(self, label: str) -> None:
        """A step of Python code."""
        self.current.label = label
        if self._step():
            raise SystemExit("died")

    def saw(self, value: int) -> int:
        self.current.seen.append(value)
        return value

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
            elif label == "limit":
                actor.seen += [label, self.words[CB.PREPARED_LSN // 8]]
            else:
                actor.seen.append(label)
        elif label in ("claim begin", "refused"):  # reserved_lsn has just been loaded
            actor.seen = [self.words[CB.RESERVED_LSN // 8]]
            if actor.claim is None:
                taken = {other.claim for other in self.actors[: self.writers]} if self.claims > 1 else {}
                actor.claim = next(claim for claim in range(CLAIM_COUNT) if claim not in taken)
            idle = self.words[claim_word(actor.slot, CL.BEGIN, actor.claim) // 8] == NO_LSN
            if label == "refused" and idle:
                return False  # nothing that another could see
        else:
            actor.seen.append(label)
        if label == "unclaim":
            self._note_published(actor)
        actor.label = label
        died = self._step()
        if label == "unclaim":
            actor.claim = None
        return died

    def _note_published(self, actor: Actor) -> None:
        """Where the writer put its record: where the tail was, or behind a PAD."""
        size = self.shape.sizes[actor.number][actor.record] * GRANULE_BYTES
        lsn, segment_end = actor.seen[0], GEOMETRY.segment_end(actor.seen[0])
        lsn = segment_end if lsn + size > segment_end else lsn
        self.published |= {(actor.number, actor.record, lsn)}

    def wait_for_room(self, lsn: int) -> None:
        actor = self.current
        actor.wants, actor.seen, actor.claim = lsn, [lsn], None
        if self.shape.piece:
            self.control.raise_to(CB.WANTED_LIMIT, lsn)
        self.pause("room")
        actor.wants = 0

    def _payload(self, number: int, record: int) -> bytes:
        size = self.shape.sizes[number][record] * GRANULE_BYTES - HEADER.size
        return bytes([0x41 + 16 * number + record]) * size

    def _write(self, actor: Actor) -> None:
        table = self._table(self.stepped, SteppedLock(self, self._process(actor)))
        if self.shape.seats:
            table._own.update(range(self.first_seat))  # the flushers'
            actor.slot = self._take(table, actor)
        writer = self._open(actor)
        for record in range(len(self.shape.sizes[actor.number])):
            actor.record, actor.seen = record, []
            if record:
                self.pause("begin")
            writer.append(self._payload(actor.number, record), 16 * actor.number + record)
        if self.shape.leave:
            actor.seen = []
            assert writer._seal() == 0
            table.release(actor.slot)
            actor.slot = -1

    def _take(self, table: Any, actor: Actor) -> int:
        while True:
            actor.seen = []
            try:
                return int(table.take(ROLE_HANDLE))
            except self.participants.TableFullError:
                actor.seen = []
                self.pause("every slot is used")

    def _open(self, actor: Actor) -> Any:
        if self.shape.one_handle and self._shared_writer is not None:
            return self._shared_writer
        self._shared_writer = writer = self._writer(SEED, GEOMETRY.segment_bytes, self.window_bytes)
        writer._attach(self.control, actor.slot)
        for number, mapping in self.mappings.items():
            writer._map(number, mapping)
        return writer

    def _flush(self, actor: Actor) -> None:
        table = self._table(self.stepped, SteppedLock(self, self._process(actor)))
        table._own.add(actor.slot)
        nothing = lambda *_: None  # noqa: E731
        self._committer(
            self._flushed_block(), table, actor.slot, GEOMETRY, self._fill_memory, nothing, nothing, nothing
        ).loop(True)

    def _commit(self, actor: Actor) -> None:
        """The flusher's syncing thread."""
        block = self._flushed_block()
        while True:
            block.step()
            actor.seen = []
            self.pause("look")

    def _prepare(self, actor: Actor) -> None:
        """The flusher's preparing thread."""
        never = types.SimpleNamespace(is_set=lambda: False)
        self._preparer(self._flushed_block()).loop(never)

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
            tuple(self.owners),
            self.prepared,
            tuple([actor.stands(words[CB.COMMITTED_LSN // 8]) for actor in self.actors]),
        )

    def ended_well(self) -> bool:
        words = self.words
        return (
            words[CB.COMMITTED_LSN // 8] == words[CB.RESERVED_LSN // 8]
            and all(thread.label == "look" for thread in self.flusher)
            and all(
                not actor.alive
                or actor.finished
                or (actor.label == "every slot is used" and not self._free())
                for actor in self.actors[: self.writers]
            )
        )

    def _free(self) -> bool:
        """Whether a slot is free, or will be: nobody who lives has it."""
        return any(
            self.owners[n] is None or self.words[slot_offset(n, PT.STATE) // 8] == SLOT_FREE
            for n in range(self.first_seat, self.slots)
        )

    def wrong(self) -> str | None:
        """E1 and E2 in the present state."""
        committed, reserved = self.words[CB.COMMITTED_LSN // 8], self.words[CB.RESERVED_LSN // 8]
        if reserved > self.prepared:
            return f"reserved up to {reserved}, prepared up to {self.prepared}"
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
        memory, at = self.memory.get(GEOMETRY.segment_no(lsn)), GEOMETRY.file_offset(lsn)
        if memory is None:
            return "no segment", 0, None
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
            name += {self._commit: ", syncing,", self._prepare: ", preparing,"}.get(actor.body, "")
            lines.append(f"  {name} {'dies at' if choice % 2 else 'does'} {actor.label!r}")
            self.apply(choice)
        return "\n".join(lines)


PYTHON = ("holes.py", "participants.py", "committing.py", "preparing.py", "control.py")
"""The modules of the package that mutations may change."""


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
