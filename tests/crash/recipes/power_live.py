"""File systems that shut down under live writers: ext4 and XFS with several mount options."""

from __future__ import annotations

import os

from crash.kit import Budget, Recipe, Tally
from crash.power import mounts, workers


def commands() -> list[list[str]]:
    return [mounts.in_namespace("crash.power.cutoff")] * (os.cpu_count() or 1)


def _run(budget: Budget) -> Tally:
    cuts = workers.run(commands(), budget.seed, budget.seconds)
    return cuts.tally(("cuts",), ("ext4", "xfs", "as torn", "told of an error", "canary"))


RECIPE = Recipe(
    "power_live",
    "power cut under live writers on ext4 and XFS",
    _run,
    1.0,
    mounts.missing,
    workers.replay_image,
)
