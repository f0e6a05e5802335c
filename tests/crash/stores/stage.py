"""What the recipe stores plays on: the shapes of what a child does between two marks, the children,
and one log with all that must be in it.

This module knows writers, flushers and records.  It may not know where a child is stopped.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from crash.stores import tracer
from crash.stores.serving import forked_flusher, served
from support.processes import (
    SEGMENT_BYTES,
    Wire,
    block_path,
    payload,
    until,
    whose,
)
from support.pyreader import PyLog

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
BORDER = SEGMENT_BYTES // GRANULE_BYTES
"""Granules of a segment, and of the window: the bits wrap where a segment ends."""


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


def place(log: shmlog.Log, granule: int) -> None:
    """Bring the tail to that granule of the next segment, with records that nobody asks for."""
    tail = log.reserved_lsn
    target = tail - tail % SEGMENT_BYTES + granule * GRANULE_BYTES
    target += SEGMENT_BYTES if target < tail else 0
    while (tail := log.reserved_lsn) < target:
        room = min(target, tail - tail % SEGMENT_BYTES + SEGMENT_BYTES) - tail
        room = min(room, SEGMENT_BYTES // 2)
        log.append_many([bytes(room - FRAME_HEADER_BYTES)], FILLER)
    log.wait_committed()


def payloads_of(shape: Shape, turn: int) -> list[bytes]:
    return [payload(CHILD, turn * 16 + n, size) for n, size in enumerate(shape.sizes)]


def write(wire: Wire, path: Path, shape: Shape, turn: int) -> None:
    """A writer that does what the shape says, between two marks."""
    gc.disable()
    with shmlog.open(path, flusher="external") as log:
        payloads = payloads_of(shape, turn)
        place(log, shape.granule)
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


def hold(wire: Wire, path: Path) -> None:
    """A writer that will be killed with a reservation open."""
    with shmlog.open(path, flusher="external") as log, log.reserve(100, CHILD):
        wire.say("held")
        wire.hear()


def flush(wire: Wire, path: Path, fill: bool) -> None:
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
def staged() -> Iterator[Stage]:
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
