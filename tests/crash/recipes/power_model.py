"""Power cuts by the weakest model of a disk that is sane: every state is one that a file system may
leave, recovered by the real recovery."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from crash.power import workers
from crash.power.kept import replay

KINDS = ("cut", "nested", "resurrected")
SPARE = 1.02
"""Two workers may see the same state, as that of a log that is not there yet."""


def _run(budget: Budget) -> Tally:
    least = {goal.of: int(budget.least(goal.of) * SPARE) for goal in RECIPE.goals}
    cuts = workers.cut(budget.seed, budget.seconds, least=least, workers=os.cpu_count() or 1)
    figures = (
        "distinct",
        "nested",
        "resurrected",
        "as torn",
        "lives",
        "torn sectors",
        "torn sectors detected",
        "canary",
    )
    cuts.counts["distinct"] = len(cuts.seen)
    return cuts.tally(KINDS, figures)


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


RECIPE = Recipe(
    "power_model",
    "power cut, any sector old or new",
    _run,
    (Goal("distinct", 20_000), Goal("nested", 2000), Goal("resurrected", 2000)),
    120.0,
    alone=True,
    missing=workers.missing,
    replay=_replay,
)
