"""The processes of the chaos driver: what each does until it is killed, and what it notes.

Every life has a side file of its own.  What it may rely on is noted there with os.write as
soon as it is known, so that no kill takes it back:

    BORN      pid                the first note
    APPENDED  sequence, LSN      append() has returned (UNKNOWN_LSN: it said so in an error)
    DURABLE   sequence           all records below it were called durable
    SEEN      LSN, checksum      a reader was given this record, in this order
    GAP                          ... and does not go on where it was
    PLACE     LSN                a cursor's place was committed
    ASKED     LSN                a trim is about to be asked for
    MARKS     committed, durable as they were read

A life that ends by an exception writes it to a file in `errors`, and counts as a defect:
what may happen to it (no room, no time) it handles.

This module knows the public names of the log.  It may not know what is done to its processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.processes import HEAD_BYTES, Wire, payload

import shmlog
from shmlog.session import sidecar

NOTE = struct.Struct("<QQQ")
BORN, APPENDED, DURABLE, SEEN, GAP, PLACE, ASKED, MARKS = range(1, 9)
UNKNOWN_LSN = 2**64 - 1
BATCH_MAX = 40
"""The most records of one call, and so the most that a killed life leaves without a note."""
FORKS_MAX = 15
"""A writer's forked children have the lives that follow its own."""

_told: list[int] = []


class Side:
    """What one life notes."""

    def __init__(self, sides: Path, life: int) -> None:
        self.sides, self.life = sides, life
        self._fd = os.open(sides / str(life), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.note((BORN, os.getpid(), 0))

    def note(self, *notes: tuple[int, int, int]) -> None:
        os.write(self._fd, b"".join(NOTE.pack(*note) for note in notes))


def act(role: str, path: str, sides: str, life: int, seed: str, options: dict[str, Any]) -> None:
    """Be one life; returns when it was told to end (SIGTERM)."""
    try:
        _told.clear()
        signal.signal(signal.SIGTERM, lambda number, _: _told.append(number))
        ROLES[role](path, Side(Path(sides), life), random.Random(seed), options)
    except BaseException:
        Path(sides, "errors", f"{role}-{life}").write_text(traceback.format_exc())
        raise


def _open(path: str, options: dict[str, Any]) -> shmlog.Log | None:
    """A handle, or None if told to end.  Who sits on the set-up, or leaves, may be stopped for
    a while: that ends in a refusal, and is tried again."""
    while not _told:
        try:
            return shmlog.open(path, **options)
        except TimeoutError:
            continue
        except shmlog.AttachError as error:
            _excuse(error)
    return None


def _look(path: str) -> shmlog.ReadonlyLog | None:
    while not _told:
        try:
            return shmlog.open_readonly(path)
        except shmlog.AttachError as error:
            _excuse(error)
    return None


def _excuse(error: Exception) -> None:
    """Somebody who has removed the block, and is about to let go of its locks, stands still."""
    if isinstance(error, shmlog.AttachError) and "is not here" not in str(error):
        raise error


# ------------------------------------------------------------------- writers


class _Writer:
    """One life that appends."""

    def __init__(self, log: shmlog.Log, side: Side, rng: random.Random) -> None:
        self.log, self.side, self.rng = log, side, rng
        self.sequence = self.forks = 0
        self.most = min(log.record_bytes_max - HEAD_BYTES, rng.choice([200, 2000, 2000, 20_000]))

    def data(self, ahead: int = 0, size: int | None = None) -> bytes:
        size = HEAD_BYTES + int(self.rng.random() ** 4 * self.most) if size is None else size
        return payload(self.side.life, self.sequence + ahead, size)

    def note(self, lsns: Sequence[int]) -> None:
        self.side.note(*((APPENDED, self.sequence + n, int(lsn)) for n, lsn in enumerate(lsns)))
        self.sequence += len(lsns)

    def promised(self) -> None:
        self.side.note((DURABLE, self.sequence, 0))

    def one(self) -> None:
        durable = self.rng.random() < 0.02
        self.note([self.log.append(self.data(), self.side.life, durable=durable)])
        if durable:
            self.promised()

    def many(self) -> None:
        records = [self.data(n) for n in range(self.rng.randrange(1, BATCH_MAX // 2))]
        if sum(map(len, records)) > self.log.record_bytes_max // 2:
            return
        self.note(self.log.append_many(records, self.side.life, atomic=self.rng.random() < 0.5).tolist())

    def array(self) -> None:
        count, size = self.rng.randrange(1, BATCH_MAX), HEAD_BYTES + self.rng.randrange(200)
        rows = np.frombuffer(b"".join(self.data(n, size) for n in range(count)), np.uint8)
        self.note(self.log.append_array(rows.reshape(count, size), self.side.life).tolist())

    def reserve(self) -> None:
        data = self.data()
        with self.log.reserve(len(data), self.side.life) as reservation:
            half = len(data) // 2
            reservation.buffer[:half] = data[:half]
            if self.rng.random() < 0.3:
                time.sleep(
                    self.rng.random() * 0.01
                )  # a slow writer: whoever is killed or stopped, is so here
            if self.rng.random() < 0.3:
                reservation.abort()
                return
            reservation.buffer[half:] = data[half:]
        self.note([reservation.lsn])

    def wait(self) -> None:
        self.log.wait_durable(timeout=0.5)
        self.promised()

    def fork(self) -> None:
        """A child that goes on with the same handle, under a life of its own."""
        if self.forks == FORKS_MAX or self.rng.random() > 0.05:
            return
        self.forks += 1
        if os.fork():
            return
        life = self.side.life + self.forks
        try:
            self.side = Side(self.side.sides, life)
            self.rng, self.sequence, self.forks = random.Random(life), 0, FORKS_MAX
            self.run()
            os._exit(0)
        except BaseException:
            Path(self.side.sides, "errors", f"forked-{life}").write_text(traceback.format_exc())
            os._exit(71)

    def run(self) -> None:
        calls = (self.one, self.many, self.array, self.reserve, self.wait, self.fork)
        while not _told:
            (call,) = self.rng.choices(calls, (80, 6, 5, 6, 1, 2))
            try:
                call()
            except (shmlog.LogFullError, TimeoutError, shmlog.AttachError) as error:
                _excuse(error)
                # what is in the log although the call raised; where, it could not say
                self.note([UNKNOWN_LSN] * getattr(error, "appended", 0))
        _close(self.log)


def write(path: str, side: Side, rng: random.Random, options: dict[str, Any]) -> None:
    log = _open(path, options)
    if log is not None:
        _Writer(log, side, rng).run()


# ------------------------------------------------------------------- readers


def read(path: str, side: Side, rng: random.Random, options: dict[str, Any]) -> None:
    """Follow the log, and note every record in the order it comes."""
    while not _told:
        log = _look(path) if rng.random() < 0.5 else _open(path, options)
        if log is None:
            return
        side.note((GAP, 0, 0))
        try:
            seen = []
            for record in log.tail(log.trimmed_lsn if rng.random() < 0.5 else None, 0.2):
                seen.append((SEEN, record.lsn, zlib.crc32(record.data)))
                if len(seen) >= 64 or _told:
                    durable, committed = log.durable_lsn, log.committed_lsn
                    side.note(*seen, (MARKS, committed, durable))
                    seen = []
                    if _told or rng.random() < 0.02:
                        break
        except (TimeoutError, shmlog.TrimmedError):
            pass
        finally:
            side.note(*seen)
            _close(log)


def view(path: str, side: Side, rng: random.Random, options: dict[str, Any]) -> None:
    """Hold views of batches, and look again and again whether a byte of them has changed."""
    held: list[tuple[Any, int]] = []
    while not _told:
        log = _look(path)
        if log is None:
            return
        try:
            for batch in log.read_batches(records=200):
                if rng.random() < 0.3:
                    views = [record.data for record in batch]
                    held.append((views, _sum(views)))
        except shmlog.TrimmedError:
            pass
        log.close()
        for views, expected in held:
            if _sum(views) != expected:
                raise AssertionError("the bytes of a view have changed")
        while len(held) > 50:
            del held[rng.randrange(len(held))]


def _sum(views: Sequence[memoryview]) -> int:
    found = 0
    for data in views:
        found = zlib.crc32(data, found)
    return found


def follow(path: str, side: Side, rng: random.Random, options: dict[str, Any]) -> None:
    """Go on from a cursor's place, and commit it."""
    while not _told:
        log = _open(path, options)
        if log is None:
            return
        try:
            with log.cursor("follower") as cursor:
                side.note((PLACE, cursor.lsn, 0))
                while not _told and rng.random() > 0.02:
                    try:
                        for _ in cursor.batches():
                            if rng.random() < 0.3:
                                break
                        place = cursor.commit()
                    except shmlog.TrimmedError:
                        place = cursor.commit(log.trimmed_lsn)
                    side.note((PLACE, place, 0))
        except TimeoutError:
            pass
        except shmlog.AttachError as error:
            if "is open elsewhere" not in str(error):
                _excuse(error)
        finally:
            _close(log)


def trim(path: str, side: Side, rng: random.Random, options: dict[str, Any]) -> None:
    """Give up the older part of the log, as soon as it is long."""
    log = _open(path, options)
    while log is not None and not _told:
        try:
            committed, trimmed = log.committed_lsn, log.trimmed_lsn
            if committed - trimmed > 4 * log.segment_bytes:
                wanted = trimmed + int(rng.random() * (committed - trimmed))
                side.note((ASKED, wanted, 0))
                log.trim(wanted, timeout=1)
            else:
                log.wait_committed(log.reserved_lsn, timeout=0.1)
                for _ in log.tail(timeout=0.1):
                    break
        except TimeoutError:
            pass
    if log is not None:
        _close(log)


def _close(log: shmlog.Log | shmlog.ReadonlyLog) -> None:
    with contextlib.suppress(TimeoutError):  # the flusher stands still
        log.close()


# ------------------------------------------------- how a process is made one of them


def in_group(wire: Wire, group: int, function: Callable[..., Any], *arguments: Any) -> None:
    os.setpgid(0, group)
    function(*arguments)


def flush(path: str, sync_interval: float) -> None:
    with open(f"{path}.flushers", "a") as log:
        os.dup2(log.fileno(), 2)
    sidecar.run(path, sync_interval, 0o600, False)


def stand(wire: Wire) -> None:
    os.setpgid(0, 0)
    wire.say(os.getpid())
    while True:
        signal.pause()


ROLES: dict[str, Callable[[str, Side, random.Random, dict[str, Any]], None]] = {
    "write": write,
    "read": read,
    "view": view,
    "follow": follow,
    "trim": trim,
}


def main() -> None:
    """One life in an interpreter of its own: what it is to be is a JSON argument."""
    act(*json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
