"""The C frame walker and verifier over mutated frames, under ASan and UBSan, beside an oracle.

A violation's input is kept in build/fuzz/: copied to tests/fuzz/corpus/frames, it is judged
by `make test` from then on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from fuzz import frame_fuzzer

KEPT = Path(__file__).resolve().parents[3] / "build" / "fuzz"
ROUND_S = 30.0
"""A run begins again from nothing so often: another corpus."""


def _run(budget: Budget) -> Tally:
    tally, turn, best = Tally(), 0, frame_fuzzer.Fuzzed(0, 0, 0)
    program = frame_fuzzer.build()
    with tempfile.TemporaryDirectory() as scratch:
        while budget.goes_on(tally) and len(tally.violations) < 5:
            present = Path(scratch, "input")
            seconds = max(0.5, min(ROUND_S, budget.left_s()))
            seed = budget.random(turn).getrandbits(60)
            found = frame_fuzzer.fuzz(program, present=present, seconds=seconds, seed=seed)
            if found.violation:
                KEPT.mkdir(parents=True, exist_ok=True)
                kept = KEPT / f"frames-{os.getpid()}-{turn}"
                shutil.copy(present, kept)
                tally.violate(f"seed {seed}, input {kept}: {found.violation}")
            else:
                tally.survive(found.executions)
                best = max(best, found, key=lambda one: one.edges)
            turn += 1
    tally.figures = {"edges": best.edges, "corpus": best.corpus}
    return tally


RECIPE = Recipe(
    "fuzz_frames",
    "the frame walker over mutated frames",
    _run,
    (Goal("tried", 3_000_000),),
    30.0,
    missing=frame_fuzzer.missing,
)
