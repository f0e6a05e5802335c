"""A small log below its mark, spoiled in every small way: nothing is accepted silently.

In memory all of them: 131,072 bits, 16,384 cuts, some 400,000 granules zeroed, swapped, or
laid over others.  In files as many as there is time for, some through every kind of opening.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from fuzz import flipping
from fuzz.flipping import LOG_BYTES, Reference
from support.pyreader import HEADER_AREA

FULL = 50
"""One bit of so many is shown to verify and to every kind of opening as well."""


def _run(budget: Budget) -> Tally:
    tally, in_file, opened = Tally(), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "log")
        flipping.make(path, budget.seed)
        reference = Reference.of(path)
        if not reference.silent(reference.image):
            tally.violate("the log is not whole before it is spoiled")
        for bad in itertools.chain(reference.flips(), reference.cuts(), reference.granules()):
            if bad:
                tally.violate(bad)
            else:
                tally.refuse()
        in_memory = tally.tried
        dice = budget.random(0)
        places = [(at, bit) for at in range(LOG_BYTES) for bit in range(8)]
        dice.shuffle(places)
        while budget and in_file < len(places):  # all of them are its goal
            at, bit = places[in_file]
            full = in_file % FULL == 0
            bad = reference.flip_in_file(at, bit, full)
            if bad is None and in_file % 10 == 0:
                bad = reference.cut_file(dice.randrange(HEADER_AREA + LOG_BYTES))
            in_file += 1
            opened += full
            if bad:
                tally.violate(bad)
            else:
                tally.refuse()
    tally.figures = {"in memory": in_memory, "bits in files": in_file, "bits": len(places), "opened": opened}
    return tally


RECIPE = Recipe(
    "flips",
    "a log with one bit, cut or granule spoiled",
    _run,
    (Goal("in memory", 500_000), Goal("bits in files", "bits")),
    70.0,
    ends=True,
)
