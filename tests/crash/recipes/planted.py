"""Every planted bug of tests/planted, caught or not by the test that has to see it.

The list is finite: the budget only says when to begin no more.  A test that fails without
any bug would catch nothing, so each of the tests has to pass first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from crash.kit import Budget, Recipe, Tally, without_root
from planted.bugs import BUGS
from planted.planting import Bed


def _run(budget: Budget) -> Tally:
    tally = Tally()
    order = list(BUGS)
    budget.random(0).shuffle(order)
    with tempfile.TemporaryDirectory() as scratch:
        bed = Bed(Path(scratch))
        for bug in order:
            if not budget:
                break
            failing = bed.passes([bug.caught_by])
            if failing:
                tally.violate(f"{bug.caught_by} fails without a bug:\n{failing}")
                continue
            found = bed.catch(bug)
            if found.caught:
                tally.refuse()
            else:
                tally.violate(f"{bug.name} is not seen by {bug.caught_by}: {found.said}")
    tally.figures = {"planted": tally.tried, "known": len(BUGS)}
    return tally


RECIPE = Recipe("planted", "a rule left out, and the test that must see it", _run, 1.0, without_root)
