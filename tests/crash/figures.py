"""The figures of a run as a table, so that nobody types them.

    python -m crash.figures run.json                          print it
    python -m crash.figures run.json docs/explanation/durability.md
                                                              put it between its markers there
    python -m crash.figures run.json again.json page.md       of a recipe that was run again, the last

This module knows what a run has counted.  It may not know how.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crash.kit import Recipe, Tally

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- figures of make crash: begin -->", "<!-- figures of make crash: end -->"
Done = Mapping[str, tuple[Tally, float]]


def report(
    known: Mapping[str, Recipe], done: Done, skipped: Mapping[str, str], seed: int, began: float
) -> dict[str, Any]:
    """Everything of a run, for JSON."""
    found = {}
    for name, (tally, took) in done.items():
        goals = [{"text": goal.amount(tally), "reached": goal.reached(tally)} for goal in known[name].goals]
        found[name] = {"title": known[name].title, "seconds": round(took, 1), "goals": goals}
        found[name]["tally"] = asdict(tally)
    return {
        "seed": seed,
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "machine": machine(),
        "skipped": dict(skipped),
        "recipes": found,
    }


def machine() -> dict[str, str]:
    """What the figures hold for."""
    return {
        "commit": _commit(),
        "Python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "processors": f"{os.cpu_count()} x {_processor()}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def markdown(*runs: Mapping[str, Any]) -> str:
    """The table, below a line for each run that says when and where.  Of a recipe that was run
    again only the last run counts; its number says which that is."""
    last = {name: number for number, run in enumerate(runs) for name in run["recipes"]}
    lines = []
    for number, run in enumerate(runs):
        counted = [one for name, one in run["recipes"].items() if last[name] == number]
        short = sum(not goal["reached"] for one in counted for goal in one["goals"])
        violations = sum(len(one["tally"]["violations"]) for one in counted)
        of = run["machine"]
        lines.append(
            f"{f'{number + 1}. ' if len(runs) > 1 else ''}{run['began']}, commit {of['commit']},"
            f" Python {of['Python']}, {of['kernel']}, {of['processors']};"
            f" seed {run['seed']}, {run['seconds'] // 60} minutes: {violations} violations,"
            f" {short or 'no'} goal{'' if short == 1 else 's'} missed."
        )
    numbered = len(runs) > 1
    lines += [
        "",
        f"| recipe | {'run | ' if numbered else ''}tried | survived | refused | violations | goals |",
        f"|---|{'---:|' if numbered else ''}---:|---:|---:|---:|---|",
    ]
    for name, number in last.items():
        one = runs[number]["recipes"][name]
        tally = one["tally"]
        goals = "; ".join(goal["text"] + ("" if goal["reached"] else " (**short**)") for goal in one["goals"])
        counts = (
            f"{tally['tried']:,} | {tally['survived']:,} | {tally['refused']:,} | {len(tally['violations'])}"
        )
        run_number = f"{number + 1} | " if numbered else ""
        lines.append(f"| `{name}`: {one['title']} | {run_number}{counts} | {goals} |")
    skipped = {name: why for run in runs for name, why in run["skipped"].items() if name not in last}
    columns = " |" * (5 + numbered)
    lines += [f"| `{name}` | not run: {why}{columns}" for name, why in skipped.items()]
    return "\n".join(lines) + "\n"


def put(page: Path, table: str) -> None:
    """Replace what stands between the markers."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the figures: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


def main() -> int:
    pages = [Path(name) for name in sys.argv[1:] if name.endswith(".md")]
    table = markdown(*(json.loads(Path(name).read_text()) for name in sys.argv[1:] if name.endswith(".json")))
    for page in pages:
        put(page, table)
    if not pages:
        print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
