"""What every torture recipe shares: how long it may run, and what it counted.

A recipe is a module of `recipes` with one name, RECIPE.  It does the same thing again and
again until its budget is spent, each time from a seed of its own, and counts

    tried       faults that were delivered, as the recipe itself has made sure
    survived    nothing that was promised was lost, and the log went on
    refused     a clear error where the promise is an error
    violations  anything else, each with what is needed to see it again

A fault that could not be delivered is a violation: a harness that hides faults passes
everything.

Each recipe knows its goals: how many of its figures are enough to say that its promise was
tried.  What falls short of them is said, and is no violation.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Budget:
    """Seconds that may be spent, and the seeds to spend them on.

    goals: what is enough, so that no more is spent when it is reached."""

    def __init__(self, seconds: float, seed: int, goals: Sequence[Goal] = ()) -> None:
        self.seconds = seconds
        self.seed = seed
        self.goals = tuple(goals)
        self._began = time.monotonic()

    def spent_s(self) -> float:
        return time.monotonic() - self._began

    def left_s(self) -> float:
        return self.seconds - self.spent_s()

    def __bool__(self) -> bool:
        return self.left_s() > 0

    def goes_on(self, tally: Tally) -> bool:
        """Whether there is time, and something left to do with it."""
        return bool(self) and not (self.goals and all(goal.reached(tally) for goal in self.goals))

    def least(self, figure: str) -> int:
        """How many of a figure are enough; without goals no number is."""
        return next((int(goal.least or 0) for goal in self.goals if goal.of == figure), NO_END)

    def random(self, turn: int) -> random.Random:
        """The dice of one turn, the same whenever seed and turn are the same."""
        return random.Random(f"{self.seed}:{turn}")


NO_END = 1 << 60


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

    def figure(self, name: str) -> float | None:
        """A figure as a number, None if there is none; `tried` is one, too."""
        found = self.tried if name == "tried" else self.figures.get(name)
        return None if isinstance(found, str) else found

    def line(self, title: str, goals: Sequence[Goal] = ()) -> str:
        figures = "".join(f" · {name} {value}" for name, value in self.figures.items())
        reached = "".join(f" · {goal.said(self)}" for goal in goals)
        return (
            f"{title}: {self.tried:,} tried / {self.survived:,} survived / {self.refused:,} refused"
            f" / {len(self.violations)} violations{figures}{reached}"
        )


@dataclass(frozen=True)
class Goal:
    """Where a figure should get to: at least so far, or as far as another figure says; or at
    most so far."""

    of: str
    least: int | str | None = None
    most: float | None = None

    def wanted(self, tally: Tally) -> float | None:
        if self.most is not None:
            return self.most
        return tally.figure(self.least) if isinstance(self.least, str) else self.least

    def reached(self, tally: Tally) -> bool:
        has, wanted = tally.figure(self.of), self.wanted(tally)
        if not has or not wanted:
            return False
        return has <= wanted if self.most is not None else has >= wanted

    def amount(self, tally: Tally) -> str:
        """As in "20,113 of 20,000 cut"."""
        has, wanted = tally.figure(self.of) or 0, self.wanted(tally)
        of = "of at most" if self.most is not None else "of"
        return f"{has:,} {of} {'all' if wanted is None else f'{wanted:,}'} {self.of}"

    def said(self, tally: Tally) -> str:
        return f"{'goal' if self.reached(tally) else 'short of its goal'}: {self.amount(tally)}"


@dataclass(frozen=True)
class Recipe:
    """One way to torture a log."""

    name: str
    title: str
    """A fault and its subject: "a writer killed at every store"."""
    run: Callable[[Budget], Tally]
    goals: tuple[Goal, ...]
    """What is enough."""
    goal_s: float
    """About how long that takes on two quiet cores; the whole time is shared out by it."""
    ends: bool = False
    """Whether there is nothing left to do once all of it was tried."""
    alone: bool = False
    """Whether it keeps every core busy, or needs quiet: nothing should run beside it."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run on this machine, or None."""
    replay: Callable[[str], Tally] | None = None
    """See one violation again, by the name that it was reported with."""

    def short(self, tally: Tally) -> list[Goal]:
        """The goals that were not reached."""
        return [goal for goal in self.goals if not goal.reached(tally)]


def without_root() -> str | None:
    """Why a recipe that mounts cannot run here, or None."""
    return None if os.geteuid() == 0 else "needs root, to mount a disk of its own"
