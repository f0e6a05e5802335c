"""Shippers and a Kafka broker, killed, stopped and overtaken while a log grows.

    writer       appends rows as fast as they become durable
    shippers     one or two `shmlog ship`, as chunks or as records, killed, stopped for longer than their
                 transactions and started again at random moments
    broker       killed now and then, and started again

Then everybody is left in peace, one shipper ships the rest, and what a consumer of committed messages
sees is compared with the log: every record once, in order, byte for byte.

With little time a run ends when it is over. With much there are at least twelve runs, each of 300,000 rows,
every second one with two shippers, and half of them as records:

    make crash TIME=1200 ARGS='--only ship_kafka'
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting
from support import kafka as brokers
from support.processes import Child, Wire
from support.steps import Mutation

import shmlog

RECORDS = 300_000
ROWS = 100
ROW_BYTES = 100
ONCE_S = 180.0
RUNS, RUNS_S = 12, 600.0
"""So many whole runs, if there is as much time as that."""
STRIKES = 15
"""At least, also after the writer's end: shippers take a while to begin, and must meet."""


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


class _Torment:
    """One turn's processes, and what is done to them."""

    def __init__(self, path: Path, broker: brokers.Broker, topic: str, kind: str, tally: Tally) -> None:
        self._path, self._broker, self._topic, self._kind, self._tally = path, broker, topic, kind, tally
        self._config = path.with_suffix(".toml")
        self._config.write_text("[kafka]\ntransaction.timeout.ms = 1000\n")
        self._shippers: dict[str, subprocess.Popen[bytes]] = {}
        self._down = False

    def ship(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        url = f"kafka://{self._broker.address}/{self._topic}?replicas=1"
        command = [sys.executable, "-m", "shmlog", "ship", str(self._path), url, "--name", name, self._kind]
        command += ["--chunk-bytes", "32K", "--config", str(self._config), *more]
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
            if process.returncode == 3:
                self._count("fenced")
            elif process.returncode != -signal.SIGKILL:
                self._tally.violate(f"a shipper ended with {process.returncode}: {err.decode()[-300:]}")
            self.ship(name)
        elif what < 0.4:
            process.kill()
            self._count("shippers killed")
        elif what < 0.6:
            process.send_signal(signal.SIGSTOP)
            time.sleep(3 * dice.random())  # a transaction may take one second
            process.send_signal(signal.SIGCONT)
            self._count("shippers stopped")
        elif what < 0.75:
            self._strike_broker()

    def _strike_broker(self) -> None:
        if self._down:
            self._broker.start()
        else:
            self._broker.kill()
            self._count("brokers killed")
        self._down = not self._down

    def _count(self, what: str) -> None:
        self._tally.figures[what] = int(self._tally.figures.get(what, 0)) + 1

    def end(self) -> None:
        for process in self._shippers.values():
            process.kill()
            process.communicate()
        if self._down:
            self._broker.start()


def _sum_batches(batches: Iterable[shmlog.RecordBatch]) -> tuple[int, str]:
    """How many records, and a digest of their frames, which hold their LSNs and checksums."""
    count, digest = 0, hashlib.blake2b()
    for batch in batches:
        count += len(batch)
        digest.update(batch.frames())
    return count, digest.hexdigest()


def _sum_records(records: Iterable[shmlog.Record]) -> tuple[int, str]:
    count, digest = 0, hashlib.blake2b()
    for record in records:
        count += 1
        digest.update(b"%d %d %d %d " % (record.lsn, record.time_ns, record.tag, record.writer))
        digest.update(record.data)
    return count, digest.hexdigest()


def _turn(
    path: Path,
    broker: brokers.Broker,
    names: list[str],
    kind: str,
    dice: random.Random,
    budget: Budget,
    tally: Tally,
) -> None:
    from shmlog.integrations.kafka import KafkaReader

    shmlog.open(path, create=True, segment_bytes=1 << 20, window_bytes=1 << 20).close()
    torment = _Torment(path, broker, path.name, kind, tally)
    seconds = RUNS_S if budget.seconds >= RUNS_S else min(60.0, max(8.0, budget.left_s() * 0.5))
    with Child(_write, path, RECORDS, seconds) as writer:
        writer.hear()
        try:
            for name in names:
                torment.ship(name)
            strikes = 0
            while not writer._wire.poll(0.0) or strikes < STRIKES:
                time.sleep(0.2 + 1.5 * dice.random())
                torment.strike(dice)
                strikes += 1
        finally:
            torment.end()
        whole = writer.result() >= RECORDS
    last = torment.ship("a", "--once")
    try:
        _, err = last.communicate(timeout=ONCE_S)
    finally:
        last.kill()
        last.wait()
    if last.returncode:
        tally.violate(f"ship --once ended with {last.returncode}: {err.decode()[-300:]}")
        return
    what = f"{len(names)} shippers, {kind}"
    with (
        shmlog.open_readonly(path) as log,
        KafkaReader([broker.address], path.name, log.log_id) as reader,
    ):
        try:
            if kind == "--records":
                expected, found = _sum_records(log.read()), _sum_records(reader.records())
            else:
                expected, found = _sum_batches(log.read_batches()), _sum_batches(reader.batches())
        except shmlog.CorruptionError as error:
            tally.violate(f"{what}: {error}")
            return
    tally.figures["records"] = int(tally.figures.get("records", 0)) + expected[0]
    if found == expected:
        tally.survive()
        name = f"with {len(names)} shipper{'s' * (len(names) - 1)}"
        tally.figures[name] = int(tally.figures.get(name, 0)) + 1
        tally.figures["whole runs"] = int(tally.figures.get("whole runs", 0)) + whole
    else:
        tally.violate(f"{what}: {found[0]} records arrived of {expected[0]}, or others")


def torture(budget: Budget, tally: Tally) -> None:
    turn = 0
    with (
        tempfile.TemporaryDirectory(prefix="shmlog-ship-") as scratch,
        brokers.broker(Path(scratch, "kafka")) as broker,
    ):
        least = RUNS if budget.seconds >= RUNS_S else 0
        while (budget.goes_on(tally) or turn < least) and not tally.violations:
            names = ["a"] if turn % 2 else ["a", "b"]
            kind = "--records" if turn % 4 in (2, 3) else "--chunks"
            path = Path(scratch, f"log{turn}")
            _turn(path, broker, names, kind, budget.random(turn), budget, tally)
            shutil.rmtree(path)
            turn += 1


BUGS = {
    "a transactional id for each shipper": (
        Mutation(
            "integrations/kafka.py", '{"transactional.id": self.name,', '{"transactional.id": self._owner,'
        ),
    ),
    "goes on from the cursor, whatever the broker holds": (
        Mutation(
            "integrations/ship.py",
            "            position = tail.end_lsn\n",
            "            position = self._cursor.lsn\n",
        ),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("ship_kafka", torture, BUGS, budget)


RECIPE = Recipe(
    "ship_kafka",
    "shippers and a Kafka broker killed while a log grows",
    _run,
    (Goal("tried", 4), Goal("planted bugs seen", "planted bugs")),
    200.0,
    missing=brokers.missing,
)
