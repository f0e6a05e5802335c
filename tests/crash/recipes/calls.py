"""The n-th call of each name fails, or kills whoever makes it, for every n that is reached.

The names are those of libc that a flusher, a user or a maker of a log calls, and the
allocations of the native core; what is checked is in crash.stores.calling, which runs with the
shim preloaded, so without strace and as any user.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from crash.stores import planting
from crash.stores.nth import shim
from support.steps import Mutation

TESTS = Path(__file__).resolve().parents[2]


def torture(budget: Budget, tally: Tally, most: int | None = None) -> None:
    """Every fault there is time for; with most, so many of them."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "crash.stores.calling",
        str(budget.left_s()),
        str(budget.seed),
    ]
    if type(tally) is not Tally:
        command.append("--first")
    if budget.goals:
        command.append("--enough")
    if most is not None:
        command += ["--most", str(most)]
    paths = filter(None, (os.environ.get("PYTHONPATH"), str(TESTS)))
    environment = os.environ | {
        "LD_PRELOAD": str(shim()),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    result = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    if result.returncode != 0:
        tally.violate(f"{' '.join(command)} ended with {result.returncode}: {result.stderr[-2000:]}")
        return
    found = json.loads(result.stdout)
    tally.survive(found["survived"])
    tally.figures |= found["figures"]
    for violation in found["violations"]:
        tally.violate(violation)


BUGS = {
    "a failed sync is taken for a good one": (
        Mutation("core/sync.h", "    return result == 0 ? 0 : errno;\n", "    return 0;\n"),
    ),
    "an allocation is not looked at": (
        Mutation("python/writer.c", "    if (!segments || !mappings) {\n", "    if (0) {\n"),
    ),
}


def _run(budget: Budget) -> Tally:
    return planting.torture_and_plant("calls", torture, BUGS, budget)


RECIPE = Recipe(
    "calls",
    "the n-th call fails or kills its caller",
    _run,
    (Goal("KILL and EIO", "KILL and EIO, planned"), Goal("planted bugs seen", "planted bugs")),
    300.0,
    ends=True,
    alone=True,
)
