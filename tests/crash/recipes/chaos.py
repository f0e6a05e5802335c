"""Chaos: writers, readers, cursors and trims of one log, and everything that may happen to
their processes, drawn from one seed.

A turn is the life of one log, of a few rounds.  In a round its processes are killed, stopped and
continued in another order, killed while they stand, and replaced; so is the flusher.  A round
ends in one of four ways, and then the log is opened and compared with the model:

    calm      everybody is continued and told to end
    killed    all at once, kill -9; the control block is there
    lost      the same, and the block is gone with /dev/shm
    restart   the same, and the machine has another boot id: of what was not durable any bytes
              may be missing

What is drawn is the same whenever seed and turn are; what the processes do in between is not.
So a violation names both, and a seed that found one finds it often, not always.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from crash.world import World


def turn(
    budget: Budget,
    number: int,
    tally: Tally,
    forked: bool = False,
    keep: Path | None = None,
    rounds: int = 4,
    steps: int = 15,
) -> None:
    """The life of one log, of at most so many rounds of so many steps; a violation is counted, not
    raised, and what there is of it kept."""
    rng = budget.random(number)
    before = tally.figures.copy()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shmlog-chaos-")))
        world = World(scratch, rng, tally, forked)
        stack.callback(world.remove)
        try:
            for _ in range(rng.randint(1, rounds)):
                world.begin()
                for _ in range(rng.randint(4, steps)):
                    world.step()
                world.end()
        except Exception as error:
            kept = tempfile.mkdtemp(prefix="shmlog-chaos-violation-", dir=keep)
            world.kill_all()
            shutil.copytree(scratch, kept, dirs_exist_ok=True)
            tally.violate(f"seed {budget.seed} turn {number}, kept in {kept}: {error}")
            return
    faults = ("kills", "stops", "flushers killed", "flushers stopped", "ended lost", "ended restart")
    tally.survive(sum(int(tally.figures.get(name, 0)) - int(before.get(name, 0)) for name in faults))


def _run(budget: Budget) -> Tally:
    logging.getLogger("shmlog").setLevel(logging.CRITICAL)  # recoveries are what this is about
    tally = Tally()
    number = 0
    while budget.goes_on(tally):
        turn(budget, number, tally)
        number += 1
    tally.figures["turns"] = number
    return tally


RECIPE = Recipe(
    "chaos",
    "everything at random, to every process",
    _run,
    (Goal("tried", 2000), Goal("stops", 500), Goal("flushers killed", 100), Goal("ended restart", 10)),
    150.0,
)
