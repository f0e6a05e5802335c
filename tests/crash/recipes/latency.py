"""How long a death holds the others up.

    a writer dies with a range reserved    until committed_lsn has passed its hole
    the flusher dies                       until an append that waits is durable again

The writer has had its reservation open for a while, so that the flusher looks at it as seldom
as it ever does; somebody waits for a record behind it, or nobody does.  The goals are for a
quiet machine; beyond ten times the goal it is a violation even on a loaded one.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting
from support.processes import Child, Wire, flusher_of, flusher_pid, payload
from support.steps import Mutation

import shmlog
from shmlog.format.layout import CB

WRITER_GOAL_MS = 50.0
FLUSHER_GOAL_MS = 500.0
LIMIT = 10
"""So many times its goal is too long, whatever else the machine does."""
WRITERS, FLUSHERS = 200, 100
"""Deaths of each kind, if there is time."""
HELD_S = 0.1
"""At most; evenly spread, so that it is no multiple of the flusher's pauses."""
WRITER, PEER = 1, 2
WAITED, ALONE = "a writer dies and somebody waits", "a writer dies and nobody waits"
FLUSHER = "the flusher dies"


def _hold(wire: Wire, path: Path) -> None:
    with shmlog.open(path, flusher="external") as log, log.reserve(100, WRITER) as reservation:
        wire.say(reservation.lsn)
        wire.hear()


def _writer_dies_ms(log: shmlog.Log, waits: bool, held_s: float) -> float:
    """Milliseconds from a writer's death to committed_lsn passing what it held so long."""
    with Child(_hold, Path(log.path)) as child:
        begin = child.hear()
        last = log.append(payload(PEER, begin, 100), PEER)
        if log.committed_lsn != begin:
            raise AssertionError(f"committed_lsn is {log.committed_lsn}, and a live writer holds {begin}")
        passed: list[float] = []

        def wait() -> None:
            log.wait_committed(last)
            passed.append(time.perf_counter())

        waiter = threading.Thread(target=wait)
        if waits:
            waiter.start()
            while log._control.load(CB.WANTED_COMMITTED) <= last:
                time.sleep(0)
        time.sleep(held_s)
        killed = time.perf_counter()
        os.kill(child.pid, signal.SIGKILL)
        if waits:
            waiter.join()
        else:
            while log.committed_lsn <= last:
                time.sleep(0.0002)
            passed.append(time.perf_counter())
    records = [record.lsn for record in log.read(start=begin) if record.tag == PEER]
    if records != [last]:
        raise AssertionError(f"records of others from {begin} on: {records}, not {[last]}")
    return (passed[0] - killed) * 1000


def _flusher_dies_ms(log: shmlog.Log) -> float:
    """Milliseconds from the flusher's death to a record that is appended then being durable."""
    pid = flusher_pid(log)
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    lsn = log.append(payload(PEER, 0, 100), PEER, durable=True)
    found = (time.perf_counter() - killed) * 1000
    if log.durable_lsn <= lsn:
        raise AssertionError(f"append() of LSN {lsn} says durable, and durable_lsn is {log.durable_lsn}")
    return found


def _report(what: str, found: list[float], tally: Tally) -> None:
    if not found:
        return
    centiles = statistics.quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
    tally.figures[f"{what}, times"] = len(found)
    for name, value in (("p50", centiles[49]), ("p99", centiles[98]), ("most", max(found))):
        tally.figures[f"{what}, {name} ms"] = round(value, 1)


def _deaths(
    what: str, count: int, goal_ms: float, budget: Budget, tally: Tally, one: Callable[[], float]
) -> None:
    found: list[float] = []
    while len(found) < count and budget:
        try:
            found.append(one())
        except Exception as error:
            tally.violate(f"{what}: {type(error).__name__}: {error}")
            break
        if found[-1] > LIMIT * goal_ms:
            tally.violate(f"{what}: {found[-1]:.0f} ms, and the goal is {goal_ms:g} ms")
        else:
            tally.survive()
    _report(what, found, tally)


def torture(budget: Budget, tally: Tally) -> None:
    dice = budget.random(0)
    with tempfile.TemporaryDirectory(prefix="shmlog-latency-") as scratch:
        path = Path(scratch, "log")
        shmlog.open(path, create=True, segment_bytes=1 << 20, window_bytes=1 << 20).close()
        with flusher_of(path), shmlog.open(path, flusher="external") as log:
            for waits, what, share in ((True, WAITED, 0.3), (False, ALONE, 0.4)):

                def writer_dies(waits: bool = waits) -> float:
                    return _writer_dies_ms(log, waits, HELD_S * dice.random())

                part = Budget(budget.left_s() * share, budget.seed)
                _deaths(what, WRITERS, WRITER_GOAL_MS, part, tally, writer_dies)
        with shmlog.open(path) as log:
            _deaths(FLUSHER, FLUSHERS, FLUSHER_GOAL_MS, budget, tally, lambda: _flusher_dies_ms(log))


BUGS = {
    "a stuck range is looked at every two seconds": (
        Mutation("flusher/committing.py", "STUCK_S = 0.02\n", "STUCK_S = 2.0\n"),
        Mutation("flusher/committing.py", "STUCK_WAITED_S = 0.005\n", "STUCK_WAITED_S = 2.0\n"),
        Mutation("flusher/committing.py", "stuck_s = min(stuck_s * 1.5, ", "stuck_s = min(2.0, "),
    )
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("latency", torture, BUGS, budget)


GOALS = (
    (WAITED, WRITERS, WRITER_GOAL_MS),
    (ALONE, WRITERS, WRITER_GOAL_MS),
    (FLUSHER, FLUSHERS, FLUSHER_GOAL_MS),
)
RECIPE = Recipe(
    "latency",
    "how long a death holds the others up",
    _run,
    (
        *(Goal(f"{what}, times", least=count) for what, count, _ in GOALS),
        *(Goal(f"{what}, p99 ms", most=goal_ms) for what, _, goal_ms in GOALS),
        Goal("planted bugs seen", "planted bugs"),
    ),
    120.0,
    ends=True,
    alone=True,
)
