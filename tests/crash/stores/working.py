"""Many runs, some at a time: each waits for the most part, for flushers to leave.

This module knows processes and a tally.  It may not know what is run.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Callable, Sequence
from typing import TypeVar

from crash.kit import Budget, Tally
from support.processes import Child, Wire

F = TypeVar("F")

WORKERS = 8
LATE_S = 120.0
NOT_REACHED = "not reached"
"""The problem of a run whose fault was not delivered: the path varied."""
TRIES = 3
"""Before a fault counts as one that is not reached."""


def _work(
    wire: Wire,
    faults: Sequence[F],
    trier: Callable[[], Callable[[F], list[str]]],
    budget: Budget,
    stop: mmap.mmap | None,
) -> tuple[Tally, int]:
    logging.disable()  # what is recovered again and again is no news
    tally, missed, attempt = Tally(), 0, trier()
    for fault in faults:
        if not budget or (stop and stop[0]):
            break
        for _ in range(TRIES):
            problems = attempt(fault)
            if problems != [NOT_REACHED]:
                break
        if problems == [NOT_REACHED]:
            missed += 1
        elif problems:
            tally.violate(f"{fault}: {'; '.join(problems)}")
            if stop:
                stop[0] = 1
        else:
            tally.survive()
    return tally, missed


def share_out(
    faults: Sequence[F],
    trier: Callable[[], Callable[[F], list[str]]],
    budget: Budget,
    tally: Tally,
    first_only: bool = False,
    what: str = "done",
) -> None:
    """Try each fault, as far as the budget goes, or up to the first violation; trier() makes, in a
    worker, what tries one.  what: the figure that says how many were tried, those that could not be
    reached too; f"{what}, planned" is how many there are."""
    missed, stop = 0, mmap.mmap(-1, mmap.PAGESIZE) if first_only else None
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Child(_work, faults[n::WORKERS], trier, budget, stop)) for n in range(WORKERS)
        ]
        found = [worker.result(max(0.0, budget.left_s()) + LATE_S) for worker in workers]
    for theirs, not_reached in found:
        tally.survive(theirs.survived)
        missed += not_reached
    violations = [violation for theirs, _ in found for violation in theirs.violations]
    tally.figures[what] = sum(theirs.survived for theirs, _ in found) + missed + len(violations)
    tally.figures[f"{what}, planned"] = len(faults)
    tally.figures["not reached"] = int(tally.figures.get("not reached", 0)) + missed
    for violation in violations:
        tally.violate(violation)
