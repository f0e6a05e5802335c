"""File systems that shut down under live writers: ext4 and XFS with several mount options."""

from __future__ import annotations

import os

from crash.kit import NO_END, Budget, Goal, Recipe, Tally
from crash.power import mounts, workers
from crash.power.cutoff import SET_UPS, set_up_name


def commands(cuts: int = NO_END) -> list[list[str]]:
    """So many cuts, at least."""
    count = os.cpu_count() or 1
    return [mounts.in_namespace("crash.power.cutoff", "--cuts", str(-(-cuts // count)))] * count


def _run(budget: Budget) -> Tally:
    cuts = workers.run(commands(budget.least("tried")), budget.seed, budget.seconds)
    names = [set_up_name(*set_up) for set_up in SET_UPS]
    cuts.counts["set-ups"] = sum(cuts.counts[name] > 0 for name in names)
    return cuts.tally(("cuts",), ("set-ups", "ext4", "xfs", "as torn", "told of an error", "canary"))


RECIPE = Recipe(
    "power_live",
    "power cut under live writers on ext4 and XFS",
    _run,
    (Goal("tried", 200), Goal("set-ups", 4)),
    60.0,
    alone=True,
    missing=mounts.missing,
    replay=workers.replay_image,
)
