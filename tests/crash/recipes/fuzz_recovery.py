"""Recovery, verify, info, read-only and full opening over hostile directories.

A violation is told by seed and turn, which make the same directory again; it is also kept in
build/fuzz/.  It can be put into
tests/fuzz/corpus/directories, which `make test` judges.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from crash.kit import Budget, Goal, Recipe, Tally
from fuzz import recovering
from fuzz.recovering import Progress

KEPT = Path(__file__).resolve().parents[3] / "build" / "fuzz"
AT_ONCE = 200
"""Directories for each child: what it leaks or breaks does not reach the next."""
MEMORY = Path("/dev/shm")
VIOLATIONS_MAX = 20


def _run(budget: Budget) -> Tally:
    tally, turn, progress = Tally(), 0, Progress()
    known = recovering.renamed(recovering.models(), budget.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        while budget.goes_on(tally) and len(tally.violations) < VIOLATIONS_MAX:
            end = turn + AT_ONCE
            while turn < end and len(tally.violations) < VIOLATIONS_MAX:
                status = recovering.child(known, budget.seed, range(turn, end), Path(scratch), progress)
                if not status:
                    break
                turn = progress["at"]
                kept = KEPT / f"directory-{budget.seed}-{turn}.tar.xz"
                shutil.rmtree(Path(scratch, str(turn)), ignore_errors=True)
                what = progress.text() if status == 9 else f"the process ended with {status}"
                change, _, _ = recovering.case_of(known, budget.seed, turn)
                with contextlib.suppress(OSError):  # made anew: recovery may have changed it
                    change.tree.write(Path(scratch, str(turn)))
                    recovering.keep(Path(scratch, str(turn)), kept)
                shutil.rmtree(Path(scratch, str(turn)), ignore_errors=True)
                tally.violate(f"seed {budget.seed}, turn {turn}, {', '.join(change.done)}: {what}")
                turn += 1
            turn = end
            tally.survived, tally.refused = progress["accepted"], progress["refused"]
            tally.tried = tally.survived + tally.refused + len(tally.violations)
    tally.figures = {"opened": progress["opened"], "slowest ms": progress["slowest_us"] // 1000}
    return tally


RECIPE = Recipe("fuzz_recovery", "recovery over hostile directories", _run, (Goal("tried", 100_000),), 300.0)
