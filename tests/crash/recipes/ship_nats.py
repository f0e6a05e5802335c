"""Shippers and the leader of a stream on three servers, killed, stopped and overtaken while a log grows.

    writer       appends rows as fast as they become durable
    shippers     one or two `shmlog ship`, killed, stopped and started again at random moments; the second
                 ships a message a record, the first chunks
    servers      three, one of which, mostly the stream's leader, is killed now and then

Then everybody is left in peace, one shipper ships the rest, and what the stream holds is compared with
the log: every record once, in order, byte for byte.

With little time a run ends when it is over. With much there are at least ten runs, each of 300,000 rows,
every second one with two shippers:

    make crash TIME=900 ARGS='--only ship_nats'
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
from support import nats as servers
from support.processes import Child, Wire, until
from support.steps import Mutation

import shmlog

RECORDS = 300_000
ROWS = 100
ROW_BYTES = 100
STREAM = "TORTURE"
ONCE_S = 180.0
RUNS, RUNS_S = 10, 600.0
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


def _ship(path: Path, cluster: list[servers.Server], name: str, *more: str) -> subprocess.Popen[bytes]:
    url = f"nats://{','.join(server.address for server in cluster)}/{STREAM}"
    form = "--records" if name == "b" else "--chunks"
    command = [sys.executable, "-m", "shmlog", "ship", str(path), url, "--name", name, form]
    command += ["--chunk-bytes", "32K"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*command, *more], stdin=quiet, stdout=quiet, stderr=subprocess.PIPE)


def _leader(cluster: list[servers.Server]) -> servers.Server | None:
    """The stream's, as one of those that live says."""
    for server in cluster:
        try:
            about = servers.request(server, f"$JS.API.STREAM.INFO.{STREAM}")
        except OSError:
            continue
        found = about.get("cluster")
        if isinstance(found, dict):
            return next((one for one in cluster if one.name == found.get("leader")), None)
    return None


class _Torment:
    """One turn's processes, and what is done to them."""

    def __init__(self, path: Path, cluster: list[servers.Server], names: list[str], tally: Tally) -> None:
        self._path, self._cluster, self._tally = path, cluster, tally
        self._shippers = {name: _ship(path, cluster, name) for name in names}
        self._down: servers.Server | None = None

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
            self._shippers[name] = _ship(self._path, self._cluster, name)
        elif what < 0.4:
            process.kill()
            self._count("shippers killed")
        elif what < 0.6:
            process.send_signal(signal.SIGSTOP)
            time.sleep(dice.random())
            process.send_signal(signal.SIGCONT)
            self._count("shippers stopped")
        elif what < 0.8:
            self._strike_server(dice)

    def _strike_server(self, dice: random.Random) -> None:
        if self._down is not None:  # one at a time: two of three decide
            self._down.start()
            self._down = None
        else:
            self._down = _leader(self._cluster) or dice.choice(self._cluster)
            self._down.kill()
            self._count("servers killed")

    def _count(self, what: str) -> None:
        self._tally.figures[what] = int(self._tally.figures.get(what, 0)) + 1

    def end(self) -> None:
        for process in self._shippers.values():
            process.kill()
            process.communicate()
        if self._down is not None:
            self._down.start()


def _sum(batches: Iterable[shmlog.RecordBatch]) -> tuple[int, str]:
    """How many records, and a digest of their frames, which hold their LSNs."""
    count, digest = 0, hashlib.blake2b()
    for batch in batches:
        count += len(batch)
        digest.update(batch.frames())
    return count, digest.hexdigest()


def _turn(
    path: Path,
    cluster: list[servers.Server],
    names: list[str],
    dice: random.Random,
    budget: Budget,
    tally: Tally,
) -> None:
    from shmlog.integrations.nats import NatsReader

    shmlog.open(path, create=True, segment_bytes=1 << 20, window_bytes=1 << 20).close()
    seconds = RUNS_S if budget.seconds >= RUNS_S else min(60.0, max(8.0, budget.left_s() * 0.7))
    with Child(_write, path, RECORDS, seconds) as writer:
        writer.hear()
        torment = _Torment(path, cluster, names, tally)
        try:
            strikes = 0
            while not writer._wire.poll(0.0) or strikes < STRIKES:
                time.sleep(0.05 + 0.6 * dice.random())
                torment.strike(dice)
                strikes += 1
        finally:
            torment.end()
        whole = writer.result() >= RECORDS
    last = _ship(path, cluster, "a", "--once")
    _, err = last.communicate(timeout=ONCE_S)
    if last.returncode:
        tally.violate(f"ship --once ended with {last.returncode}: {err.decode()[-300:]}")
        return
    with (
        shmlog.open_readonly(path) as log,
        NatsReader([server.address for server in cluster], STREAM, log.log_id) as reader,
    ):
        expected = _sum(log.read_batches())
        until(lambda: _leader(cluster), "the stream has a leader")
        try:
            found = _sum(reader.batches())
        except shmlog.CorruptionError as error:
            tally.violate(f"{len(names)} shippers: {error}")
            return
    tally.figures["records"] = int(tally.figures.get("records", 0)) + expected[0]
    if found == expected:
        tally.survive()
        kind = f"with {len(names)} shipper{'s' * (len(names) - 1)}"
        tally.figures[kind] = int(tally.figures.get(kind, 0)) + 1
        tally.figures["whole runs"] = int(tally.figures.get("whole runs", 0)) + whole
    else:
        tally.violate(f"{len(names)} shippers: {found[0]} records arrived of {expected[0]}, or others")


def torture(budget: Budget, tally: Tally) -> None:
    turn = 0
    with (
        tempfile.TemporaryDirectory(prefix="shmlog-ship-") as scratch,
        servers.cluster(Path(scratch, "nats")) as cluster,
    ):
        least = RUNS if budget.seconds >= RUNS_S else 0
        while (budget.goes_on(tally) or turn < least) and not tally.violations:
            names = ["a"] if turn % 2 else ["a", "b"]
            path = Path(scratch, f"log{turn}")
            _turn(path, cluster, names, budget.random(turn), budget, tally)
            shutil.rmtree(path)
            turn += 1


BUGS = {
    "publishes without a condition": (
        Mutation(
            "integrations/nats.py",
            '            "Nats-Expected-Last-Subject-Sequence": str(self._sequence),\n',
            "",
        ),
    ),
    "goes on from the cursor, whatever the stream holds": (
        Mutation(
            "integrations/ship.py",
            "            position = tail.end_lsn\n",
            "            position = self._cursor.lsn\n",
        ),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("ship_nats", torture, BUGS, budget)


RECIPE = Recipe(
    "ship_nats",
    "shippers and a stream's leader killed while a log grows",
    _run,
    (Goal("tried", 6), Goal("planted bugs seen", "planted bugs")),
    200.0,
    missing=servers.missing,
)
