"""Kill, pass or resume a process at every store that others can see.

A child appends, fills or commits on a real log; the tracer lists the instructions of it that
change the control block or a segment, and then brings new children to each of them:

    kill        the child dies there; the flusher repairs
    pass        others append, flush and read while it stands there; then it dies
    resume      the same, but then it goes on and must find its place untouched

    changes   claim.end  claim.begin  reserved  held | frame ... | bits, downward | counters  claim
              '------- nothing reserved ------' '--- a hole if it dies ---' '--- a record ----'
                                       ^ reserved                  ^ published

Between `reserved` and `published` nobody may pass the child while it lives, and there is no
record of it if it dies; from `published` on there is one.  Everybody else's records are
there, once and whole, always.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import mmap
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from crash.kit import Budget, Recipe, Tally
from crash.stores import planting, tracer
from crash.stores.serving import forked_flusher, served
from crash.stores.tracer import Change, UndeliveredError
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    block_path,
    flusher_of,
    payload,
    stopped,
    until,
    whose,
)
from support.pyreader import PyLog
from support.steps import Mutation

import shmlog
from shmlog.disk import directory
from shmlog.flusher.flusher import Flusher
from shmlog.flusher.holes import Hole, fill_hole, find_hole
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import (
    CB,
    FRAME_HEADER_BYTES,
    GRANULE_BYTES,
    PT,
    ROLE_FLUSHER,
    SEGMENT_HEADER_BYTES,
)
from shmlog.memory.participants import slot_offset
from shmlog.session.attachment import attach
from shmlog.system.deadlines import deadline_after
from shmlog.system.locks import LEASE_BYTE, LockFile
from shmlog.tools.create import create

CHILD, PEER, FILLER = 1, 2, 3
MODES = ("kill", "pass", "resume")
BORDER = SEGMENT_BYTES // GRANULE_BYTES
"""Granules of a segment, and of the window: the bits wrap where a segment ends."""
TRIES = 6
STANDS_S = 0.04
"""How long a live child is watched for somebody to pass it: twice the longest pause between
two looks of the flusher."""


@dataclass(frozen=True)
class Shape:
    """What is done from the first mark to the second, with the tail at a granule of a segment."""

    name: str
    granule: int
    sizes: tuple[int, ...]
    act: Callable[[shmlog.Log, list[bytes]], object]
    given_up: bool = False


def _append(log: shmlog.Log, payloads: list[bytes]) -> None:
    log.append(payloads[0], CHILD)


def _append_many(log: shmlog.Log, payloads: list[bytes]) -> None:
    log.append_many(payloads, CHILD, atomic=True)


def _append_array(log: shmlog.Log, payloads: list[bytes]) -> None:
    log.append_array(np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), -1), CHILD)


def _reserve(log: shmlog.Log, payloads: list[bytes]) -> None:
    with log.reserve(len(payloads[0]), CHILD) as reservation:
        reservation.buffer[:] = payloads[0]


def _give_up(log: shmlog.Log, payloads: list[bytes]) -> None:
    with contextlib.suppress(KeyError), log.reserve(len(payloads[0]), CHILD) as reservation:
        reservation.buffer[:] = payloads[0]
        raise KeyError


SHAPES = (
    Shape("append", 8, (200,), _append),
    Shape("append over two words of bits", 60, (250,), _append),
    Shape("append over a border", BORDER - 3, (200,), _append),
    Shape("atomic batch over two words", 60, (40, 100, 16), _append_many),
    Shape("atomic batch over a border", BORDER - 6, (40, 100, 120), _append_many),
    Shape("rows", 62, (64, 64, 64), _append_array),
    Shape("reserve over a border", BORDER - 2, (150,), _reserve),
    Shape("reserve given up", 60, (150,), _give_up, given_up=True),
)


# ------------------------------------------------------------------------- the children


def _place(log: shmlog.Log, granule: int) -> None:
    """Bring the tail to that granule of the next segment, with records that nobody asks for."""
    tail = log.reserved_lsn
    target = tail - tail % SEGMENT_BYTES + granule * GRANULE_BYTES
    target += SEGMENT_BYTES if target < tail else 0
    while (tail := log.reserved_lsn) < target:
        room = min(target, tail - tail % SEGMENT_BYTES + SEGMENT_BYTES) - tail
        room = min(room, SEGMENT_BYTES // 2)
        log.append_many([bytes(room - FRAME_HEADER_BYTES)], FILLER)
    log.wait_committed()


def _payloads(shape: Shape, turn: int) -> list[bytes]:
    return [payload(CHILD, turn * 16 + n, size) for n, size in enumerate(shape.sizes)]


def _write(wire: Wire, path: Path, shape: Shape, turn: int) -> None:
    """A writer that does what the shape says, between two marks."""
    gc.disable()
    with shmlog.open(path, flusher="external") as log:
        payloads = _payloads(shape, turn)
        _place(log, shape.granule)
        tail = log.reserved_lsn
        for lsn in (tail, tail - tail % SEGMENT_BYTES + SEGMENT_BYTES):
            until(_segment_path(path, lsn).exists, "the segment is prepared")
            log._map_segment(lsn)
        until(lambda: log._control.limit_lsn >= tail + 4096, "there is room")
        wire.say((log.writer_number, tail))
        tracer.ask()
        tracer.mark()
        shape.act(log, payloads)
        tracer.mark()
        wire.say("done")


def _hold(wire: Wire, path: Path) -> None:
    """A writer that will be killed with a reservation open."""
    with shmlog.open(path, flusher="external") as log, log.reserve(100, CHILD):
        wire.say("held")
        wire.hear()


def _flush(wire: Wire, path: Path, fill: bool) -> None:
    """A flusher that fills the hole at committed_lsn, or commits and syncs, between two marks."""
    gc.disable()
    logging.disable()
    where = directory.load(str(path))
    lock = LockFile(where.lock_path)
    until(lambda: lock.try_lock(LEASE_BYTE), "the lease is free")
    joined = attach(where, 0o600, ROLE_FLUSHER, deadline_after(30), lock)
    flusher = Flusher(
        where, joined.control, joined.participants, joined.number, joined.boot_id, 0o600, 0.01, True
    )
    flusher._take_over()
    begin = joined.control.committed_lsn
    native, table, geometry = joined.control.native, joined.participants, where.identity.geometry
    memory = flusher._segments.memory
    for lsn in (begin, begin + SEGMENT_BYTES):
        memory(lsn)
    hole = find_hole(native, table, begin)
    wire.say((joined.number, begin))
    tracer.ask()
    tracer.mark()
    if fill:
        assert isinstance(hole, Hole)
        fill_hole(native, table, joined.number, hole, geometry, where.identity.seed, memory)
    else:
        flusher.settle()
    tracer.mark()
    flusher.settle()
    joined.detach()
    flusher.close()
    wire.say("done")


# ---------------------------------------------------------------------------- one log


@dataclass
class Stage:
    """One log, the handle of those who go on, and what must be in it."""

    path: Path
    log: shmlog.Log
    block: mmap.mmap
    expected: dict[int, bytes] = field(default_factory=dict)
    """Records of peers by LSN: each that append() returned"""
    marks: tuple[int, int] = (0, 0)
    count: int = 0

    def append(self) -> int:
        data = payload(PEER, self.count, 100)
        lsn = self.log.append(data, PEER)
        self.count += 1
        self.expected[lsn] = data
        return lsn

    def regions(self, tail: int, number: int, flushes: bool) -> list[memoryview]:
        """What the child alone changes: its slot, the tail, bits, the frames around the tail; the
        whole header and the marks too if it flushes and nobody else runs."""
        block = memoryview(self.block)
        slot, bits = slot_offset(number), CB.HEADER_BYTES + PARTICIPANT_COUNT * PT.BYTES
        tail_word = block[CB.RESERVED_LSN : CB.RESERVED_LSN + 8]
        views = [tail_word, block[bits:], block[slot : slot + PT.BYTES]]
        if flushes:
            views.append(block[: CB.HEADER_BYTES])
        first = tail - tail % SEGMENT_BYTES
        for lsn in (first, first + SEGMENT_BYTES):
            begin = max(0, tail - lsn)
            view = memoryview(_map(_segment_path(self.path, lsn)))
            begin += SEGMENT_HEADER_BYTES
            views.append(view[begin : begin + 4096])
            if flushes:
                views.append(view[:SEGMENT_HEADER_BYTES])
        return views

    def check(self, begin: int, child: list[bytes] | None) -> str | None:
        """What is wrong with what was committed from `begin` on; child: the child's payloads if they
        must be there, [] if they must not, None if either will do."""
        now = (self.log.durable_lsn, self.log.committed_lsn)
        if now[0] < self.marks[0] or now[1] < self.marks[1]:
            return f"marks went back from {self.marks} to {now}"
        self.marks = now
        found, theirs = {}, []
        for record in self.log.read(start=begin, stop=now[1]):
            if record.tag == PEER:
                found[record.lsn] = bytes(record.data)
            elif record.tag == CHILD:
                whose(record.data)
                theirs.append(bytes(record.data))
        wanted = {lsn: data for lsn, data in self.expected.items() if begin <= lsn < now[1]}
        if found != wanted:
            return f"records of others: {sorted(found)} where {sorted(wanted)} should be"
        if child is not None and theirs != child:
            return f"{len(theirs)} records of the child where {len(child)} should be"
        return None

    def check_all(self) -> str | None:
        """The whole log, by the package and by code that shares nothing with it."""
        with contextlib.nullcontext() if served(self.path) else forked_flusher(self.path):
            self.log.wait_durable()
            until(lambda: len(self.log.statistics().participants) <= 2, "the slots of the dead are free")
        report = shmlog.verify(self.path)
        if not report.ok:
            return f"verify: {report}"
        found = {
            f.lsn: f.payload for f in PyLog(self.path).records(0, self.log.committed_lsn) if f.tag == PEER
        }
        return None if found == self.expected else "another reader finds other records"


def _segment_path(path: Path, lsn: int) -> Path:
    return path / "segments" / f"{lsn - lsn % SEGMENT_BYTES:020d}.seg"


def _map(path: Path) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


@contextlib.contextmanager
def _stage() -> Iterator[Stage]:
    """An empty log that somebody has to serve, and a handle of it."""
    with tempfile.TemporaryDirectory(prefix="shmlog-stores-") as scratch:
        path = Path(scratch, "log")
        create(path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        log = shmlog.open(path, flusher="external")
        try:
            yield Stage(path, log, _map(block_path(path)))
        finally:
            with forked_flusher(path, on_demand=True) as last:  # what is in /dev/shm goes with it
                log.close()
                last.wait()


# ----------------------------------------------------------------------------- one turn


@dataclass(frozen=True)
class Stores:
    """What a shape changes, in order, as the scan has seen it."""

    changes: list[Change]
    reserved: int
    """so many changes, and the range is reserved"""
    published: int
    """so many, and it is published"""
    instructions: int


def _scan(child: Child, views: list[memoryview]) -> Stores:
    changes, instructions = tracer.scan(child, views)
    tails = [n for n, change in enumerate(changes, 1) if change.region == 0]
    bits = [n for n, change in enumerate(changes, 1) if change.region == 1]
    return Stores(changes, tails[-1] if tails else 0, bits[-1] if bits else 0, instructions)


def _writer_turn(shape: Shape, stage: Stage, turn: int, stores: Stores | None, n: int, mode: str) -> Any:
    """One child, brought to its n-th change: what went wrong, or None.  Without stores: find them."""
    log = stage.log
    with Child(_write, stage.path, shape, turn) as child:
        number, begin = child.hear()
        tracer.await_mark(child)
        views = stage.regions(begin, number, False)
        if stores is None:
            with stopped(log.statistics().flusher_pid):
                stores = _scan(child, views)
            tracer.leave(child)
            child.result()
            return stores
        tracer.run_to(child, views, stores.changes, n)
        if mode != "kill":
            owned = stores.reserved <= n < stores.published
            if problem := _pass(stage, begin, owned):
                return problem
        if mode == "resume":
            tracer.leave(child)
            child.result()
    stage.append()
    log.wait_committed()
    log.wait_durable()
    there = not shape.given_up and (mode == "resume" or n >= stores.published)
    return stage.check(begin, _payloads(shape, turn) if there else [])


def _pass(stage: Stage, begin: int, owned: bool) -> str | None:
    """Append, flush and read beside a child that stands still."""
    log = stage.log
    stage.append()
    last = stage.append()
    try:
        log.wait_committed(last, timeout=STANDS_S if owned else None)
        if owned:
            return f"a live writer's range at {begin} was passed: committed is {log.committed_lsn}"
        log.wait_durable(last)
    except TimeoutError:
        if not owned:
            return f"nothing is reserved and unpublished at {begin}, and committed stays {log.committed_lsn}"
        if log.committed_lsn != begin:
            return f"committed is {log.committed_lsn}, and the live writer stands at {begin}"
    return stage.check(begin, None)


def _flusher_turn(fill: bool, stage: Stage, turn: int, stores: Stores | None, n: int, mode: str) -> Any:
    """As _writer_turn, for a flusher: it repairs the hole of a dead writer, or commits and syncs."""
    log = stage.log
    with forked_flusher(stage.path):
        _place(log, BORDER - 2 if fill else 62)
        log.wait_durable()
    begin = log.reserved_lsn
    if fill:
        with Child(_hold, stage.path) as holder:
            holder.hear()
    stage.append()
    stage.append()
    with Child(_flush, stage.path, fill) as child:
        number, _ = child.hear()
        tracer.await_mark(child)
        views = stage.regions(begin, number, True)
        if stores is None:
            stores = _scan(child, views)
            tracer.leave(child)
            child.result()
            return stores
        tracer.run_to(child, views, stores.changes, n)
        if mode != "kill":
            stage.append()
            if problem := stage.check(begin, []):
                return problem
        if mode == "resume":
            tracer.leave(child)
            child.result()
            log.wait_durable()
            return stage.check(begin, [])
    stage.append()
    with forked_flusher(stage.path):
        log.wait_committed()
        log.wait_durable()
    return stage.check(begin, [])


def _delivered(turn: Callable[[], str | None]) -> str | None:
    """The turn, again if the child did not come to its place: the flusher may undo a change, of
    a bit that it clears, before the tracer has seen it."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(UndeliveredError):
            return turn()
    return turn()


def _one_shape(name: str, turn_of: Turn, stage: Stage, budget: Budget, tally: Tally) -> None:
    numbers = itertools.count(1)
    stores: Stores = turn_of(stage, next(numbers), None, 0, "resume")
    for what in ("stores", "instructions stepped"):
        count = len(stores.changes) if what == "stores" else stores.instructions
        tally.figures[what] = int(tally.figures.get(what, 0)) + count
    for n in range(len(stores.changes) + 1):
        for mode in MODES:
            if not budget:
                tally.figures["not reached"] = int(tally.figures.get("not reached", 0)) + 1
                continue
            if problem := _delivered(lambda: turn_of(stage, next(numbers), stores, n, mode)):  # noqa: B023
                tally.violate(f"{name}, {mode} at store {n} of {len(stores.changes)}: {problem}")
                return
            tally.survive()


Turn = Callable[[Stage, int, Stores | None, int, str], Any]


def _varied(shape: Shape, dice: random.Random) -> Shape:
    """The same deed at another place, with other sizes."""
    sizes = [dice.randrange(16, 251) for _ in shape.sizes]
    if shape.name == "rows":
        sizes = sizes[:1] * len(sizes)
    return replace(
        shape, granule=dice.choice((dice.randrange(64), BORDER - 1 - dice.randrange(16))), sizes=tuple(sizes)
    )


def torture(budget: Budget, tally: Tally) -> None:
    """Every store of every shape, in every mode; then, while there is time, of shapes like them."""
    for turn in itertools.count():
        dice = budget.random(turn)
        for shape in SHAPES:
            shape = _varied(shape, dice) if turn else shape
            with _stage() as stage, flusher_of(stage.path):
                title = f"{shape.name} (granule {shape.granule}, sizes {shape.sizes})"
                _guarded(title, functools.partial(_writer_turn, shape), stage, budget, tally)
            if turn and not budget:
                return
        for fill in (True, False):
            with _stage() as stage:
                title = "fill over a border" if fill else "commit and sync"
                _guarded(title, functools.partial(_flusher_turn, fill), stage, budget, tally)
        if not budget:
            return


def _guarded(name: str, turn_of: Turn, stage: Stage, budget: Budget, tally: Tally) -> None:
    try:
        _one_shape(name, turn_of, stage, budget, tally)
        if problem := stage.check_all():
            tally.violate(f"{name}, at the end: {problem}")
    except Exception as error:
        tally.violate(f"{name}: {type(error).__name__}: {error}")


BUGS = {
    "bits before copy": (
        Mutation(
            "core/append.h",
            """        outcome = fill(w, plan, t, lsns);
    if (outcome""",
            """        outcome = bitmap_publish(&w->bitmap, t->begin / GRANULE_BYTES, t->end / GRANULE_BYTES);
    if (outcome == OUTCOME_DONE)
        outcome = fill(w, plan, t, lsns);
    if (outcome""",
        ),
    ),
    "claim cleared before the bits": (
        Mutation(
            "core/append.h",
            """    int outcome = bitmap_publish(&w->bitmap, t->begin >>""",
            """    atomic_store(word_at(t->claim, CL_BEGIN), NO_LSN);
    int outcome = bitmap_publish(&w->bitmap, t->begin >>""",
        ),
    ),
    "a live writer's range is repaired": (
        Mutation("flusher/holes.py", "        if claim.begin == g and alive:\n", "        if False:\n"),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("stores", torture, BUGS, budget)


RECIPE = Recipe("stores", "a process killed, passed or resumed at every store", _run, missing=tracer.missing)
