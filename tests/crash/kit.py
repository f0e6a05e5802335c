"""What every torture recipe shares: how long it may run, and what it counted.

A recipe is a module of `recipes` with one name, RECIPE.  It does the same thing again and
again until its budget is spent, each time from a seed of its own, and counts

    tried       faults that were delivered, as the recipe itself has made sure
    survived    nothing that was promised was lost, and the log went on
    refused     a clear error where the promise is an error
    violations  anything else, each with what is needed to see it again

A fault that could not be delivered is a violation: a harness that hides faults passes
everything.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Budget:
    """Seconds that may be spent, and the seeds to spend them on."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds = seconds
        self.seed = seed
        self._began = time.monotonic()

    def spent_s(self) -> float:
        return time.monotonic() - self._began

    def left_s(self) -> float:
        return self.seconds - self.spent_s()

    def __bool__(self) -> bool:
        return self.left_s() > 0

    def random(self, turn: int) -> random.Random:
        """The dice of one turn, the same whenever seed and turn are the same."""
        return random.Random(f"{self.seed}:{turn}")


@dataclass
class Tally:
    """What a recipe counted."""

    tried: int = 0
    survived: int = 0
    refused: int = 0
    violations: list[str] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)
    """Anything more that is worth a column: latencies, states, kills of one kind."""

    def survive(self, count: int = 1) -> None:
        self.tried += count
        self.survived += count

    def refuse(self, count: int = 1) -> None:
        self.tried += count
        self.refused += count

    def violate(self, what: str) -> None:
        self.tried += 1
        self.violations.append(what)

    def line(self, title: str) -> str:
        figures = "".join(f" · {name} {value}" for name, value in self.figures.items())
        return (
            f"{title}: {self.tried:,} tried / {self.survived:,} survived / {self.refused:,} refused"
            f" / {len(self.violations)} violations{figures}"
        )


@dataclass(frozen=True)
class Recipe:
    """One way to torture a log."""

    name: str
    title: str
    """A fault and its subject: "a writer killed at every store"."""
    run: Callable[[Budget], Tally]
    weight: float = 1.0
    """Its share of the whole time beside the other recipes' weights."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run on this machine, or None."""
    replay: Callable[[str], Tally] | None = None
    """See one violation again, by the name that it was reported with."""


def without_root() -> str | None:
    """Why a recipe that mounts cannot run here, or None."""
    return None if os.geteuid() == 0 else "needs root, to mount a disk of its own"
