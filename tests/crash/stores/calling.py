"""Runs under the shim: of every call that a user, a flusher, a starter of one or a maker makes,
the n-th fails or kills.

    python -m crash.stores.calling SECONDS SEED [--first] [--most N]     prints a tally as JSON

This module knows calls and what they may fail with.  It may not know what must be so afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from crash.kit import Budget, Tally
from crash.stores.nth import ALLOCATIONS, KILL, Counts, native_core
from crash.stores.scenarios import Run, a_run
from crash.stores.users import Harm, import_all
from crash.stores.working import NOT_REACHED, share_out

WHO = ("flusher", "user", "starter", "maker")
BITTEN = ("flusher", "maker")
"""Who runs what the planted bugs are in, with calls that fail."""
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EMFILE, errno.EACCES)
FIRST = (KILL, errno.EIO, errno.ENOMEM)
"""Tried before the others, where there is no time for all: KILL and EIO of calls, ENOMEM of allocations."""


@dataclass(frozen=True)
class Fault:
    """Which call of whom fails how; name None: none, they are counted."""

    who: str
    name: str | None = None
    n: int = 0
    action: int = KILL

    def __str__(self) -> str:
        how = errno.errorcode[self.action] if self.action else "KILL"
        return f"{self.who}, {self.name} number {self.n} {how}"

    def harm(self, counts: Counts) -> Harm:
        @contextlib.contextmanager
        def under() -> Iterator[None]:
            watches = self.name is None or self.name in ALLOCATIONS
            counts.arm(self.name, self.n, self.action, native_core() if watches else (0, 0))
            try:
                yield
            finally:
                counts.disarm()

        kills = self.name is not None and self.action == KILL
        no_thread = (RuntimeError,) if self.name == "pthread_create" else ()
        return Harm(under, kills, no_thread)


def try_fault(fault: Fault, counts: Counts) -> list[str]:
    """One run with a fault; the problems."""
    counts.clear()
    with tempfile.TemporaryDirectory(prefix="shmlog-calls-") as scratch, a_run(Path(scratch)) as run:
        harm = fault.harm(counts)
        if fault.who == "maker":
            run.maker(harm)
        elif fault.who == "starter":
            run.starter(harm)
        elif fault.who == "user":
            run.user(user=harm)
        else:
            _judge_user(run, run.user(flusher=harm), fault)
        if fault.name is not None and not counts.delivered():
            run.problems[:] = [NOT_REACHED]
        run.look(lose=fault.n % 2 == 1)
    return run.problems


def _judge_user(run: Run, errors: list[str], fault: Fault) -> None:
    """What a user may see of a fault that met its flusher."""
    if fault.action in (KILL, errno.EINTR) and errors:
        run.problems.append(f"the user was told {errors}")
    told = Path(run.path, "FAILED").exists() or any("LogFailedError" in error for error in errors)
    if fault.name == "fdatasync" and fault.action not in (KILL, errno.EINTR) and not told:
        run.problems.append(f"a sync failed and nobody was told: {errors}")


def plan(counts: Counts, whom: Sequence[str]) -> list[Fault]:
    """Every call that each of them makes, times everything that can come of it."""
    found = []
    for who in whom:
        if problems := try_fault(Fault(who), counts):
            raise AssertionError(f"{who} without a fault: {problems}")
        for name, count in counts.made().items():
            if name in counts.names:
                actions = (errno.ENOMEM,) if name in ALLOCATIONS else (KILL, *ERRORS)
                found += [Fault(who, name, n, action) for n in range(1, count + 1) for action in actions]
    return found


def _trier() -> Callable[[Fault], list[str]]:
    counts = Counts()
    return lambda fault: try_fault(fault, counts)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    parser.add_argument("--enough", action="store_true", help="only what is tried first")
    parser.add_argument("--most", type=int, help="so many faults, however long they take")
    options = parser.parse_args()
    budget = Budget(options.seconds, options.seed)
    import_all()
    gc.freeze()
    faults = plan(Counts(), BITTEN if options.first else WHO)
    budget.random(0).shuffle(faults)
    if options.first:
        faults = sorted((fault for fault in faults if fault.action), key=lambda fault: fault.n)
    tally = Tally()
    first = [fault for fault in faults if fault.action in FIRST][: options.most]
    share_out(first, _trier, budget, tally, options.first, "KILL and EIO")
    rest = [fault for fault in faults if fault.action not in FIRST]
    if options.most is None and not options.enough and not (options.first and tally.violations):
        share_out(rest, _trier, budget, tally, options.first, "other errors")
    print(json.dumps(asdict(tally)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
