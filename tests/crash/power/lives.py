"""Lives: what real processes do to a log while a recorder looks on.

A first life makes a log, appends from several writers, rolls, trims, commits a cursor, is
killed or not, goes on and closes.  A later life finds what a cut has left: it only recovers,
or it goes on with less than was there before.  Every promise is noted when its call has
returned; what is about to be asked for, before.

This module knows how a log is used.  It may not know what is recorded of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from crash.power.promises import CURSOR, SEGMENT_BYTES
from crash.power.recorder import note
from support.processes import HEAD_BYTES, Child, Wire, lose_shared_memory, payload, until

import shmlog
from shmlog.disk import directory, recovery
from shmlog.disk.cursors import CursorFile
from shmlog.format.geometry import Geometry
from shmlog.session import sidecar
from shmlog.system import files, machine

MOST_BYTES = 2000


def _size(rng: random.Random) -> int:
    return HEAD_BYTES + int(rng.random() ** 3 * (MOST_BYTES - HEAD_BYTES))


def append(log: shmlog.Log, writer: int, sequence: int, rng: random.Random, count: int) -> int:
    """Append `count` records, some of them durable, in every way there is; the next sequence."""
    note(kind="writer", writer=writer)
    last = sequence + count
    while sequence < last:
        kind = rng.random()
        some = min(last - sequence, rng.randrange(2, 9)) if kind < 0.2 else 1
        batch = [payload(writer, sequence + n, _size(rng)) for n in range(some)]
        if some > 1:
            lsns = log.append_many(batch, writer, atomic=kind < 0.1).tolist()
        elif kind < 0.3:
            with log.reserve(len(batch[0]), writer) as reservation:
                reservation.buffer[:] = batch[0]
            lsns = [reservation.lsn]
        else:
            lsns = [log.append(batch[0], writer)]
        sequence += some
        if rng.random() < 0.15 or sequence == last:
            log.wait_durable(lsns[-1])
            note(kind="durable", lsn=lsns[-1], writer=writer, sequence=sequence - 1)
    return sequence


def _write(wire: Wire, path: Path, writer: int, seed: float, count: int) -> None:
    with shmlog.open(path, flusher="external", timeout=60) as log:
        append(log, writer, 0, random.Random(seed), count)


def _write_and_tidy(wire: Wire, path: Path, writer: int, seed: float, count: int) -> None:
    """As _write(), and now and then commit a cursor and trim."""
    rng, sequence = random.Random(seed), 0
    with shmlog.open(path, flusher="external", timeout=60) as log, log.cursor(CURSOR) as cursor:
        while sequence < count:
            sequence = append(log, writer, sequence, rng, min(10, count - sequence))
            place = log.durable_lsn
            note(kind="place", lsn=place, begun=True)
            cursor.commit(place)
            note(kind="place", lsn=place, begun=False)
            if rng.random() < 0.4:
                note(kind="trim", lsn=max(0, place - SEGMENT_BYTES // 2))
                log.trim(max(0, place - SEGMENT_BYTES // 2))


def _writers(path: Path, rng: random.Random, writers: tuple[int, ...], count: int) -> list[Child]:
    return [
        Child(_write if n else _write_and_tidy, path, writer, rng.random(), count)
        for n, writer in enumerate(writers)
    ]


@contextlib.contextmanager
def served(path: Path, sync_interval: float) -> Iterator[Child]:
    """A flusher process of the log; it ends in order when the block is left, and the log is
    marked clean if nobody else has it open."""
    with Child(lambda wire: sidecar.run(str(path), sync_interval, 0o600, False)) as flusher:
        yield flusher
        flusher.signal(signal.SIGTERM)
        assert flusher.result() == 0


def first_life(path: Path, seed: str, segments: int = 4) -> None:
    """Make a log and fill about as many segments, in one session or in two: the first one
    ends in order, or by a kill of everybody, with or without the control block (as when a container
    starts again), or only its flusher is killed."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        with Child(_make_and_die, path, rng.choice((1, 1, 2, 3, 4, 5))) as maker:
            maker.wait()
    shmlog.open(path, create=True, flusher="external", segment_bytes=SEGMENT_BYTES).close()
    note(kind="made")
    end = rng.choice(["in order", "flusher killed", "all killed", "all killed", "block lost", "block lost"])
    try:
        _session(path, rng, (1, 2, 3), segments / 2, end)
        if end == "block lost":
            lose_shared_memory(path)
        _session(path, rng, (4, 5), segments / 2, "in order")
    finally:
        lose_shared_memory(path)  # should a flusher not have left in order


def _make_and_die(wire: Wire, path: Path, last: int) -> None:
    """Make a log and a cursor, and be killed before the last of so many names is made durable."""
    synced, sync_directory = 0, files.sync_directory

    def sync_or_die(where: str) -> None:
        nonlocal synced
        synced += 1
        if synced == last:
            os.kill(os.getpid(), signal.SIGKILL)
        sync_directory(where)

    files.sync_directory = sync_or_die
    made = directory.create(str(path), Geometry(SEGMENT_BYTES, SEGMENT_BYTES), 0o600)
    CursorFile(made, CURSOR, 0o600, lambda: 0).close()


def _session(path: Path, rng: random.Random, writers: tuple[int, ...], segments: float, end: str) -> None:
    sync_interval = rng.choice([0.001, 0.01, 0.1])
    count = int(segments * SEGMENT_BYTES / len(writers) / 600)  # bytes that a record has, about

    def serve(wire: Wire) -> None:
        sidecar.run(str(path), sync_interval, 0o600, False)

    with contextlib.ExitStack() as stack:
        flusher = stack.enter_context(Child(serve))
        children = [stack.enter_context(child) for child in _writers(path, rng, writers, count)]
        if end == "in order":
            pass
        elif end == "flusher killed":
            _kill_after_some_records(path, rng, [flusher])
            flusher = stack.enter_context(Child(serve))
        else:
            _kill_after_some_records(path, rng, [*children, flusher])
            return
        for child in children:
            child.result()
        flusher.signal(signal.SIGTERM)
        assert flusher.result() is None


def _kill_after_some_records(path: Path, rng: random.Random, victims: list[Child]) -> None:
    """In a log's first session."""
    with shmlog.open_readonly(path) as log:
        goal = rng.randrange(SEGMENT_BYTES)
        until(lambda: log.committed_lsn >= goal, "records are committed")
        for child in victims:  # at once, for each that is not yet done
            child.signal(signal.SIGSTOP)
        for child in victims:
            child.kill()


def endless_life(path: Path, seed: float) -> None:
    """Make a log and use it until killed."""
    rng = random.Random(seed)
    shmlog.open(path, create=True, flusher="external", segment_bytes=SEGMENT_BYTES).close()
    note(kind="made")
    with served(path, rng.choice([0.001, 0.01, 0.1])), contextlib.ExitStack() as stack:
        for child in _writers(path, rng, (1, 2, 3), 1 << 60):
            stack.enter_context(child)
        while True:
            signal.pause()  # and see none of them off: whoever kills this wants to know how they died


def on_machine(boot_id: bytes) -> None:
    """This process, and its children, are on a machine with another boot id."""
    files.boot_id = lambda: boot_id


@contextlib.contextmanager
def in_one_place() -> Iterator[None]:
    """For this process, and its children: a log that is written to another directory, as it was
    left, is where it was."""
    real = machine.place
    machine.place = lambda _: (1, 1, 1)
    try:
        yield
    finally:
        machine.place = real


def recovering_life(path: Path, boot_id: bytes) -> None:
    """Recover the log and do no more."""
    recovery.recover(directory.load(str(path)), boot_id)


def going_on_life(path: Path, boot_id: bytes, writer: int, seed: str, count: int) -> None:
    """Recover the log and append `count` records to it."""
    on_machine(boot_id)
    rng = random.Random(seed)
    try:
        with served(path, 0.01), shmlog.open(path, flusher="external", timeout=60) as log:
            append(log, writer, 0, rng, count)
        report = shmlog.verify(path)
        assert report.ok, report
    finally:
        lose_shared_memory(path)  # should the flusher not have left in order
