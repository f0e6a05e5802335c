"""Shipping under torment: what the recipes of the engines have in common.

    writer       appends rows as fast as they become durable
    shippers     one or two `shmlog ship`, killed, stopped and started again at random moments
    servers      killed now and then, as the engine says, and started again

Then everybody is left in peace, one shipper ships the rest, and what the engine holds is compared with
the log: every record once, in order, byte for byte.

This module knows shippers and a log.  It may not know an engine.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from crash.kit import Budget, Tally
from support.processes import Child, Wire

import shmlog

RECORDS = 300_000
ROWS = 100
ROW_BYTES = 100
ONCE_S = 180.0
WHOLE_S = 600.0
"""A recipe with as much time as that makes whole runs, of RECORDS rows."""
STRIKES = 15
"""At least, also after the writer's end: shippers take a while to begin, and must meet."""
FENCED = 3

Sum = tuple[int, str]
"""How many records, and a digest of them."""


class Engine(ABC):
    """What one log is shipped to in one turn."""

    victims: str
    """what its servers are called"""
    form = ""
    """how records are shipped, if that is the same for all of a turn's shippers"""
    stopped_s = 1.0
    """the longest that a shipper is stopped for"""
    server_share: float
    """of what is not done to a shipper, up to which dice it is done to a server"""
    pause_s: tuple[float, float]
    """between strikes: at least, and how much more at most"""
    write_share: float
    """of the time that is left, how much a short run writes for"""

    @abstractmethod
    def arguments(self, name: str) -> list[str]:
        """Of `shmlog ship`, behind the log's path: the URL, and the options of the shipper of that name."""

    @abstractmethod
    def strike(self, dice: random.Random) -> bool:
        """Kill a server, or start the one that was killed; whether one was killed."""

    @abstractmethod
    def mend(self) -> None:
        """Start what was killed."""

    @abstractmethod
    def expected(self, log: shmlog.ReadonlyLog) -> Sum: ...

    @abstractmethod
    def found(self, log: shmlog.ReadonlyLog) -> Sum:
        """What it holds of the log; CorruptionError if that is not in order."""


def sum_of_batches(batches: Iterable[shmlog.RecordBatch]) -> Sum:
    """The frames hold LSNs and checksums."""
    count, digest = 0, hashlib.blake2b()
    for batch in batches:
        count += len(batch)
        digest.update(batch.frames())
    return count, digest.hexdigest()


def sum_of_records(records: Iterable[shmlog.Record]) -> Sum:
    count, digest = 0, hashlib.blake2b()
    for record in records:
        count += 1
        digest.update(b"%d %d %d %d " % (record.lsn, record.time_ns, record.tag, record.writer))
        digest.update(record.data)
    return count, digest.hexdigest()


def torment(
    scratch: Path, make: Callable[[Path, int], Engine], least: int, budget: Budget, tally: Tally
) -> None:
    """Turn after turn, every second one with two shippers.  make: the engine of a log and a turn.
    least: so many turns, if there is time for whole runs."""
    turn = 0
    while (budget.goes_on(tally) or (turn < least and budget.seconds >= WHOLE_S)) and not tally.violations:
        path = Path(scratch, f"log{turn}")
        _turn(path, make(path, turn), ["a"] if turn % 2 else ["a", "b"], budget.random(turn), budget, tally)
        shutil.rmtree(path)
        turn += 1


# -------------------------------------------------------------------- one turn


def _write(wire: Wire, path: Path, count: int, seconds: float) -> int:
    rows = np.zeros((ROWS, ROW_BYTES), np.uint8)
    numbers = rows.view(np.uint32)
    done, deadline = 0, time.monotonic() + seconds
    with shmlog.open(path) as log:
        wire.say("begun")
        while done < count and time.monotonic() < deadline:
            numbers[:, 0] = np.arange(done, done + ROWS)
            log.append_array(rows, durable=True)
            done += ROWS
            if done % (80 * ROWS) == 0:
                log.append_many([b"x" * 5000] * 5, atomic=True)
    return done


def _count(tally: Tally, what: str, number: int = 1) -> None:
    tally.figures[what] = int(tally.figures.get(what, 0)) + number


class _Torment:
    """One turn's shippers, and what is done to them and to the servers."""

    def __init__(self, path: Path, engine: Engine, tally: Tally) -> None:
        self._path, self._engine, self._tally = path, engine, tally
        self._shippers: dict[str, subprocess.Popen[bytes]] = {}

    def ship(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "shmlog", "ship", str(self._path), *self._engine.arguments(name)]
        command += ["--name", name, "--chunk-bytes", "32K", *more]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE)
        self._shippers[name] = process
        return process

    def strike(self, dice: random.Random) -> None:
        name = dice.choice(sorted(self._shippers))
        process = self._shippers[name]
        what = dice.random()
        if process.poll() is not None:
            _, err = process.communicate()
            if process.returncode == FENCED:
                _count(self._tally, "fenced")
            elif process.returncode != -signal.SIGKILL:
                self._tally.violate(f"a shipper ended with {process.returncode}: {err.decode()[-300:]}")
            self.ship(name)
        elif what < 0.4:
            process.kill()
            _count(self._tally, "shippers killed")
        elif what < 0.6:
            process.send_signal(signal.SIGSTOP)
            time.sleep(self._engine.stopped_s * dice.random())
            process.send_signal(signal.SIGCONT)
            _count(self._tally, "shippers stopped")
        elif what < self._engine.server_share and self._engine.strike(dice):
            _count(self._tally, f"{self._engine.victims} killed")

    def end(self) -> None:
        for process in self._shippers.values():
            process.kill()
            process.communicate()
        self._engine.mend()


def _turn(
    path: Path, engine: Engine, names: Sequence[str], dice: random.Random, budget: Budget, tally: Tally
) -> None:
    shmlog.open(path, create=True, segment_bytes=1 << 20, window_bytes=1 << 20).close()
    short_s = min(60.0, max(8.0, budget.left_s() * engine.write_share))
    seconds = WHOLE_S if budget.seconds >= WHOLE_S else short_s
    tormented = _Torment(path, engine, tally)
    with Child(_write, path, RECORDS, seconds) as writer:
        writer.hear()
        try:
            for name in names:
                tormented.ship(name)
            strikes = 0
            while not writer._wire.poll(0.0) or strikes < STRIKES:
                time.sleep(engine.pause_s[0] + engine.pause_s[1] * dice.random())
                tormented.strike(dice)
                strikes += 1
        finally:
            tormented.end()
        whole = writer.result() >= RECORDS
    last = tormented.ship("a", "--once")
    try:
        _, err = last.communicate(timeout=ONCE_S)
    finally:
        last.kill()
        last.wait()
    if last.returncode:
        tally.violate(f"ship --once ended with {last.returncode}: {err.decode()[-300:]}")
        return
    what = ", ".join(filter(None, (f"{len(names)} shippers", engine.form)))
    with shmlog.open_readonly(path) as log:
        expected = engine.expected(log)
        try:
            found = engine.found(log)
        except shmlog.CorruptionError as error:
            tally.violate(f"{what}: {error}")
            return
    _count(tally, "records", expected[0])
    if found != expected:
        tally.violate(f"{what}: {found[0]} records arrived of {expected[0]}, or others")
        return
    tally.survive()
    _count(tally, f"with {len(names)} shipper{'s' * (len(names) - 1)}")
    _count(tally, "whole runs", int(whole))
