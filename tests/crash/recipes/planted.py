"""Every planted bug of tests/planted, caught or not by the test that has to see it.

The list is finite: the budget only says when to begin no more.  A test that fails without
any bug would catch nothing, so each of the tests has to pass first.
"""

from __future__ import annotations

import os
import queue
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally, without_root
from planted.bugs import BUGS, Bug
from planted.planting import Bed


def _plant(bed: Bed, bug: Bug) -> str | None:
    """What is wrong with the test that has to see the bug, or None."""
    failing = bed.passes([bug.caught_by])
    if failing:
        return f"{bug.caught_by} fails without a bug:\n{failing}"
    found = bed.catch(bug)
    return None if found.caught else f"{bug.name} is not seen by {bug.caught_by}: {found.said}"


def _run(budget: Budget) -> Tally:
    tally, order = Tally(), list(BUGS)
    budget.random(0).shuffle(order)
    left: queue.SimpleQueue[Bug] = queue.SimpleQueue()
    for bug in order:
        left.put(bug)

    def work(scratch: str) -> list[str | None]:
        """A copy of the project of one's own, and bugs for as long as there are some."""
        bed, said = Bed(Path(scratch)), []
        while budget:
            try:
                bug = left.get_nowait()
            except queue.Empty:
                break
            said.append(_plant(bed, bug))
        return said

    count = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(count) as pool:
        scratch = [os.path.join(root, str(n)) for n in range(count)]
        for path in scratch:
            os.mkdir(path)
        for said in pool.map(work, scratch):
            for problem in said:
                if problem is None:
                    tally.refuse()
                else:
                    tally.violate(problem)
    tally.figures = {"planted": tally.tried, "known": len(BUGS)}
    return tally


RECIPE = Recipe(
    "planted",
    "a rule left out, and the test that must see it",
    _run,
    (Goal("planted", "known"),),
    500.0,
    ends=True,
    alone=True,
    missing=without_root,
)
