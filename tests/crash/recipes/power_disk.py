"""Power cuts under ext4 and XFS, at any block that they have written to a disk of our own."""

from __future__ import annotations

import os

from crash.kit import NO_END, Budget, Goal, Recipe, Tally
from crash.power import mounts, workers


def commands(images: int = NO_END) -> list[list[str]]:
    """So many images, at least.  Mounting is mostly waiting, so there are more workers than cores."""
    each = -(-images // len(mounts.FILE_SYSTEMS) // (os.cpu_count() or 1))
    return [
        mounts.in_namespace("crash.power.blocks", "--kind", kind, "--images", str(each))
        for _ in range(os.cpu_count() or 1)
        for kind in mounts.FILE_SYSTEMS
    ]


def _run(budget: Budget) -> Tally:
    cuts = workers.run(commands(budget.least("tried")), budget.seed, budget.seconds)
    return cuts.tally(("images",), ("ext4", "xfs", "as torn", "not mountable", "lives", "canary"))


def _missing() -> str | None:
    why = mounts.missing()
    return why if why or os.path.exists("/dev/fuse") else "needs /dev/fuse"


RECIPE = Recipe(
    "power_disk",
    "power cut between blocks of ext4 and XFS",
    _run,
    (Goal("tried", 2000), Goal("ext4", 500), Goal("xfs", 500)),
    60.0,
    alone=True,
    missing=_missing,
    replay=workers.replay_image,
)
