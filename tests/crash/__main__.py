"""Run the torture recipes, one after the other, and print what they counted.

    make crash                      everything, about ten minutes
    make crash TIME=3600            as long as that, shared out by the recipes' weights
    make crash ARGS='--only stores power'
    make crash ARGS='--only power_model --replay 7:123'
    make crash ARGS='--list'

The exit status is 1 if a recipe saw a violation, and with --strict also if one could not
run here.  Ctrl-C prints what was counted until then.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import secrets
import sys
from dataclasses import asdict

from crash import recipes
from crash.kit import Budget, Recipe, Tally


def _recipes() -> list[Recipe]:
    names = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
    return [importlib.import_module(f"crash.recipes.{name}").RECIPE for name in names]


def main() -> int:
    known = {recipe.name: recipe for recipe in _recipes()}
    parser = argparse.ArgumentParser(prog="make crash", description="Torture runs.")
    parser.add_argument("--time", type=float, default=600, metavar="SECONDS", help="for all of it (600)")
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME", help="these recipes")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="to see a run again")
    parser.add_argument("--strict", action="store_true", help="a recipe that cannot run here is a failure")
    parser.add_argument("--json", action="store_true", help="one object, for scripts")
    parser.add_argument("--replay", metavar="NAME", help="of one recipe: see a violation again")
    parser.add_argument("--list", action="store_true", help="name the recipes and why one cannot run here")
    options = parser.parse_args()
    chosen = [known[name] for name in options.only or known]
    if options.list:
        for recipe in chosen:
            why = recipe.missing()
            print(f"{recipe.name:<14} {recipe.title}" + (f"  (not here: {why})" if why else ""))
        return 0

    say = sys.stderr if options.json else sys.stdout
    print(f"seed {options.seed}", file=say, flush=True)
    reasons = {recipe.name: recipe.missing() for recipe in chosen}
    able = [recipe for recipe in chosen if reasons[recipe.name] is None]
    if options.replay:
        able = [recipe for recipe in able if recipe.replay is not None]
        if len(able) != 1:
            parser.error("--replay needs --only, with a recipe that can")
    whole = sum(recipe.weight for recipe in able)
    done: dict[str, Tally] = {}
    interrupted = False
    try:
        for recipe in able:
            if options.replay and recipe.replay is not None:
                tally = recipe.replay(options.replay)
            else:
                tally = recipe.run(Budget(options.time * recipe.weight / whole, options.seed))
            done[recipe.name] = tally
            print(tally.line(recipe.title), file=say, flush=True)
            for violation in tally.violations:
                print(f"    VIOLATION {violation}", file=say, flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=say)
    skipped = {name: why for name, why in reasons.items() if why is not None}
    for name, why in skipped.items():
        print(f"{known[name].title}: not run, {why}", file=say)
    if options.json:
        report = {
            "seed": options.seed,
            "skipped": skipped,
            "recipes": {n: asdict(t) for n, t in done.items()},
        }
        print(json.dumps(report, indent=2))
    violated = any(tally.violations or not tally.tried for tally in done.values())
    if interrupted:
        return 130
    return int(violated or bool(options.strict and skipped))


if __name__ == "__main__":
    sys.exit(main())
