"""Whether a recipe bites: run it on the package with a bug planted, and see it cry.

    caught(recipe, bug, seconds, seed)   what the recipe said of it, or None

The bug is in a copy of the package that a new interpreter finds first; the flushers that are
started there find it too.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from crash.kit import Budget, Tally
from crash.stores.building import planted
from support.steps import Mutation

Torture = Callable[[Budget, Tally], None]
Bugs = Mapping[str, tuple[Mutation, ...]]
BITES = 9
BUG_S = 120.0
"""The most that one planted bug is looked for."""


class _CaughtError(BaseException):
    """Passes by what turns a recipe's own errors into violations."""


class _FirstViolation(Tally):
    def violate(self, what: str) -> None:
        raise _CaughtError(what)


def caught(recipe: str, bug: tuple[Mutation, ...], seconds: float, seed: int) -> str | None:
    """The first violation that the recipe sees within so many seconds with the bug planted."""
    tests = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(planted(bug)), tests))}
    environment.pop("LD_PRELOAD", None)
    command = [sys.executable, "-m", "crash.stores.planting", recipe, str(seconds), str(seed)]
    result = subprocess.run(
        command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode in (0, BITES), f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout.strip() if result.returncode == BITES else None


def torture_and_plant(recipe: str, torture: Torture, bugs: Bugs, budget: Budget) -> Tally:
    """The recipe's run: three quarters of the time as things are, the rest for each bug."""
    tally = Tally()
    torture(Budget(budget.seconds * 0.75, budget.seed, budget.goals), tally)
    seconds = min(BUG_S, max(30.0, budget.left_s() / len(bugs)))
    seen = 0
    for name, bug in bugs.items():
        if caught(recipe, bug, seconds, budget.seed) is None:
            tally.violate(f"the planted bug was not seen: {name}")
        else:
            seen += 1
    tally.figures |= {"planted bugs": len(bugs), "planted bugs seen": seen}
    return tally


def main() -> int:
    recipe, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    torture: Torture = importlib.import_module(f"crash.recipes.{recipe}").torture
    try:
        torture(Budget(seconds, seed), _FirstViolation())
    except _CaughtError as error:
        print(error)
        return BITES
    return 0


if __name__ == "__main__":
    sys.exit(main())
