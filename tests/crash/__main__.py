"""Run the torture recipes and print what they counted, and whether that is enough.

    make crash                      everything, about ten minutes
    make crash TIME=3600            as long as that, shared out by what each recipe's goals take
    make crash ARGS='--to-goals --json run.json'
                                    each until its goals are reached, two at a time where they can
    make crash ARGS='--only stores power_model'
    make crash ARGS='--only power_model --replay 7:123'
    make crash ARGS='--list'

The exit status is 1 if a recipe saw a violation, and with --strict also if one could not
run here or with --to-goals fell short of its goals.  Ctrl-C prints what was counted until then.
`python -m crash.figures run.json` makes a table of what --json has written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import queue
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from crash import figures, recipes
from crash.kit import Budget, Recipe, Tally

CAP = 5
"""With --to-goals a recipe may take so many times what its goals should take."""
GRACE_S = 2400.0
"""For what a recipe has begun when its time is over: the tests of `tortures` are run to their end."""

Done = Iterator[tuple[Recipe, Tally, float]]
"""A recipe, what it counted, and in how many seconds"""


def known_recipes() -> dict[str, Recipe]:
    names = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
    found = [importlib.import_module(f"crash.recipes.{name}").RECIPE for name in names]
    return {recipe.name: recipe for recipe in found}


def in_turn(able: Sequence[Recipe], seconds: float, seed: int) -> Done:
    """One after the other for so long in all.  What one does not need goes to those after it: so
    where the time is not enough for all goals, each stops at its own, and those that never end
    come first; where it is more, those come last and go on."""
    roomy = seconds >= sum(recipe.goal_s for recipe in able)
    left, waiting = seconds, sorted(able, key=lambda recipe: recipe.ends != roomy)
    while waiting:
        whole = sum(recipe.goal_s for recipe in waiting)
        recipe, began = waiting.pop(0), time.monotonic()
        share = max(0.0, left) * recipe.goal_s / whole
        tally = recipe.run(Budget(share, seed, () if roomy else recipe.goals))
        took = time.monotonic() - began
        left -= took
        yield recipe, tally, took


def to_goals(able: Sequence[Recipe], seed: int, jobs: int) -> Done:
    """Each until its goals are reached, in a process of its own: first those that are to run alone,
    then the others, so many at a time, the longest first."""
    alone = [recipe for recipe in able if recipe.alone]
    others = sorted((recipe for recipe in able if not recipe.alone), key=lambda one: -one.goal_s)
    for recipe in alone:
        yield _apart(recipe, seed)
    found: queue.SimpleQueue[tuple[Recipe, Tally, float]] = queue.SimpleQueue()
    with ThreadPoolExecutor(jobs) as pool:
        for recipe in others:
            pool.submit(lambda recipe=recipe: found.put(_apart(recipe, seed)))
        for _ in others:
            yield found.get()


def _apart(recipe: Recipe, seed: int) -> tuple[Recipe, Tally, float]:
    began, cap = time.monotonic(), CAP * recipe.goal_s
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "crash", "--one", recipe.name, "--time", str(cap)]
        command += ["--seed", str(seed), "--json", str(report)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=cap + GRACE_S)
            tally = Tally(**json.loads(report.read_text())["recipes"][recipe.name]["tally"])
        except subprocess.TimeoutExpired:
            tally.violate(f"it did not end within {cap + GRACE_S:g} s")
        except (OSError, ValueError, LookupError):
            tally.violate(f"it ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    return recipe, tally, time.monotonic() - began


def main() -> int:
    known = known_recipes()
    parser = argparse.ArgumentParser(prog="make crash", description="Torture runs.")
    parser.add_argument("--time", type=float, default=600, metavar="SECONDS", help="for all of it (600)")
    parser.add_argument(
        "--to-goals", action="store_true", help="until all goals are reached, whatever --time"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time, with --to-goals")
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME", help="these recipes")
    parser.add_argument("--one", choices=known, help=argparse.SUPPRESS)  # how --to-goals starts each
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="to see a run again")
    parser.add_argument("--strict", action="store_true", help="a recipe that cannot run here is a failure")
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="everything, for scripts")
    parser.add_argument("--replay", metavar="NAME", help="of one recipe: see a violation again")
    parser.add_argument("--list", action="store_true", help="name the recipes and why one cannot run here")
    options = parser.parse_args()
    chosen = [known[name] for name in ([options.one] if options.one else options.only or known)]
    if options.list:
        for recipe in chosen:
            why = recipe.missing()
            print(f"{recipe.name:<14} {recipe.title}" + (f"  (not here: {why})" if why else ""))
        return 0

    say = sys.stderr if options.json == "-" else sys.stdout
    print(f"seed {options.seed}", file=say, flush=True)
    reasons = {recipe.name: recipe.missing() for recipe in chosen}
    able = [recipe for recipe in chosen if reasons[recipe.name] is None]
    if options.replay:
        able = [recipe for recipe in able if recipe.replay is not None]
        if len(able) != 1:
            parser.error("--replay needs --only, with a recipe that can")
    done: dict[str, tuple[Tally, float]] = {}
    interrupted, began = False, time.time()
    try:
        for recipe, tally, took in _runs(options, able):
            done[recipe.name] = tally, took
            print(tally.line(recipe.title, recipe.goals), file=say, flush=True)
            for violation in tally.violations:
                print(f"    VIOLATION {violation}", file=say, flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=say)
    skipped = {name: why for name, why in reasons.items() if why is not None}
    for name, why in skipped.items():
        print(f"{known[name].title}: not run, {why}", file=say)
    short = [name for name, (tally, _) in done.items() if known[name].short(tally)]
    if not options.replay:
        print(f"{len(done) - len(short)} of {len(done)} recipes reached their goals", file=say, flush=True)
    if options.json:
        report = json.dumps(figures.report(known, done, skipped, options.seed, began), indent=2)
        if options.json == "-":
            print(report)
        else:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
            Path(options.json).write_text(report + "\n")
    violated = any(tally.violations or not tally.tried for tally, _ in done.values())
    if interrupted:
        return 130
    return int(violated or bool(options.strict and (skipped or (options.to_goals and short))))


def _runs(options: Any, able: Sequence[Recipe]) -> Done:
    if options.replay:
        (recipe,) = able
        assert recipe.replay is not None
        return iter([(recipe, recipe.replay(options.replay), 0.0)])
    if options.one:
        (recipe,) = able
        began = time.monotonic()
        tally = recipe.run(Budget(options.time, options.seed, recipe.goals))
        return iter([(recipe, tally, time.monotonic() - began)])
    if options.to_goals:
        return to_goals(able, options.seed, options.jobs)
    return in_turn(able, options.time, options.seed)


if __name__ == "__main__":
    sys.exit(main())
