"""Kill at every line of Python that a process runs in the package.

A point is a line event in a module of shmlog, in order; of a loop only the first two rounds
count.  Of those who are killed at point n, n = 1, 2, ... until one completes:

    user      opens, appends and rolls, reserves, waits, reads, commits a cursor, trims, closes
    flusher   serves that user: commits, syncs, prepares, repairs, trims, finishes
    forker    appends in a forked child, which joins anew
    maker     makes a log and opens it
    opener    recovers a log that has lost its control block, with a hole in it

What must be so afterwards is in crash.stores.scenarios.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting
from crash.stores.scenarios import a_run
from crash.stores.users import Harm, import_all
from crash.stores.working import NOT_REACHED, share_out
from support.steps import Mutation

import shmlog

PACKAGE = str(Path(shmlog.__file__).parent) + os.sep
ROUNDS = 2
SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Memory: no power is lost here, and a disk would only take time."""
WHO = ("user", "flusher", "forker", "maker", "opener")


class Points:
    """A count of points in memory that a child shares, so that a kill cannot take it back."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)
        self.words = memoryview(self._memory).cast("Q")

    @property
    def passed(self) -> int:
        return self.words[0]

    @property
    def struck(self) -> bool:
        return bool(self.words[1])

    def clear(self) -> None:
        self.words[0] = self.words[1] = 0

    def kill_at(self, n: int, who: int) -> None:
        """From now on, in processes other than `who`: die at point n; 0: only count."""
        rounds: dict[tuple[CodeType, int], int] = {}

        def line(frame: FrameType, event: str, argument: object) -> Any:
            if event == "line" and os.getpid() != who:
                at = (frame.f_code, frame.f_lineno)
                rounds[at] = rounds.get(at, 0) + 1
                if rounds[at] <= ROUNDS:
                    self.words[0] += 1
                    if self.words[0] == n:
                        self.words[1] = 1
                        os.kill(os.getpid(), signal.SIGKILL)
            return line

        def call(frame: FrameType, event: str, argument: object) -> Any:
            return line if frame.f_code.co_filename.startswith(PACKAGE) else None

        threading.settrace(call)
        sys.settrace(call)


@dataclass(frozen=True)
class Kill:
    """Who is killed at which point; 0: nobody, points are counted."""

    who: str
    n: int = 0

    def __str__(self) -> str:
        return f"{self.who}, killed at point {self.n}"

    def harm(self, points: Points) -> Harm:
        @contextlib.contextmanager
        def under() -> Iterator[None]:
            points.kill_at(self.n, os.getpid() if self.who == "forker" else 0)
            try:
                yield
            finally:
                sys.settrace(None)
                threading.settrace(None)  # type: ignore[arg-type]

        return Harm(under, kills=self.n > 0)


def try_kill(kill: Kill, points: Points) -> list[str]:
    """One run with a kill; the problems."""
    points.clear()
    with tempfile.TemporaryDirectory(prefix="torture-", dir=SCRATCH) as scratch, a_run(Path(scratch)) as run:
        harm, errors = kill.harm(points), []
        if kill.who == "user":
            errors = run.user(user=harm)
        elif kill.who == "flusher":
            errors = run.user(flusher=harm)
        elif kill.who == "forker":
            errors = run.forker(harm)
        elif kill.who == "maker":
            run.maker(harm)
        else:
            run.opener(harm)
        if errors:
            run.problems.append(f"errors: {errors}")
        if kill.n and not points.struck:
            run.problems.append(NOT_REACHED)
        if run.path.exists():
            run.look(lose=kill.n % 2 == 1)
    return run.problems


def plan(points: Points, whom: Sequence[str]) -> list[Kill]:
    """Every point of each."""
    found = []
    for who in whom:
        if problems := try_kill(Kill(who), points):
            raise AssertionError(f"{who} unharmed: {problems}")
        found += [Kill(who, n) for n in range(1, points.passed + 1)]
    return found


def _trier() -> Callable[[Kill], list[str]]:
    points = Points()
    return lambda kill: try_kill(kill, points)


def torture(budget: Budget, tally: Tally) -> None:
    import_all()
    gc.freeze()
    first_only = type(tally) is not Tally
    logging.disable()
    try:
        kills = plan(Points(), BITTEN if first_only else WHO)
    finally:
        logging.disable(logging.NOTSET)
    for who in WHO:
        tally.figures[f"points of the {who}"] = sum(kill.who == who for kill in kills)
    budget.random(0).shuffle(kills)
    share_out(kills, _trier, budget, tally, first_only)


BITTEN = ("maker",)
"""Who runs what the planted bug is in."""
BUGS = {
    "the log's identity is written in place": (
        Mutation(
            "system/files.py",
            """    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    fd = create_file(temporary, mode)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
        os.rename(temporary, path)
""",
            """    temporary = path
    fd = create_file(temporary, mode)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
""",
        ),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("points", torture, BUGS, budget)


RECIPE = Recipe(
    "points",
    "a process killed at every line of Python",
    _run,
    (Goal("done", "done, planned"), Goal("planted bugs seen", "planted bugs")),
    480.0,
    ends=True,
    alone=True,
)
