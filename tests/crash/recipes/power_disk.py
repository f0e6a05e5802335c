"""Power cuts under ext4 and XFS, at any block that they have written to a disk of our own."""

from __future__ import annotations

import os

from crash.kit import Budget, Recipe, Tally
from crash.power import mounts, workers


def commands() -> list[list[str]]:
    """Mounting is mostly waiting, so there are more workers than cores."""
    return [
        mounts.in_namespace("crash.power.blocks", "--kind", kind)
        for _ in range(os.cpu_count() or 1)
        for kind in mounts.FILE_SYSTEMS
    ]


def _run(budget: Budget) -> Tally:
    cuts = workers.run(commands(), budget.seed, budget.seconds)
    return cuts.tally(("images",), ("ext4", "xfs", "as torn", "not mountable", "lives", "canary"))


def _missing() -> str | None:
    why = mounts.missing()
    return why if why or os.path.exists("/dev/fuse") else "needs /dev/fuse"


RECIPE = Recipe(
    "power_disk", "power cut between blocks of ext4 and XFS", _run, 1.0, _missing, workers.replay_image
)
