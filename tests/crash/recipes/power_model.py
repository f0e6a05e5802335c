"""Power cuts by the weakest model of a disk that is sane: every state is one that a file system may
leave, recovered by the real recovery."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from crash.kit import Budget, Recipe, Tally
from crash.power import workers
from crash.power.kept import replay


def _run(budget: Budget) -> Tally:
    cuts = workers.cut(budget.seed, budget.seconds, workers=os.cpu_count() or 1)
    figures = ("nested", "resurrected", "as torn", "lives", "torn sectors", "torn sectors detected", "canary")
    return cuts.tally(("cut", "nested", "resurrected"), figures)


def _replay(which: str) -> Tally:
    """SEED:TURN, as a violation is named."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="power-", dir=workers.MEMORY) as scratch:
        story, problem = replay(workers.KEPT, which, Path(scratch))
    if problem is None:
        tally.survive()
    else:
        tally.violate(f"{which} {story}: {problem}")
    return tally


RECIPE = Recipe("power_model", "power cut, any sector old or new", _run, 2.0, workers.missing, _replay)
