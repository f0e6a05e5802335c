"""The figures of a run as a table, so that nobody types them.

    python -m crash.figures run.json                          print it
    python -m crash.figures run.json docs/explanation/durability.md
                                                              put it between its markers there

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


def markdown(run: Mapping[str, Any]) -> str:
    """The table, below a line that says when and where."""
    of = run["machine"]
    short = sum(not goal["reached"] for one in run["recipes"].values() for goal in one["goals"])
    violations = sum(len(one["tally"]["violations"]) for one in run["recipes"].values())
    lines = [
        f"{run['began']}, commit {of['commit']}, Python {of['Python']}, {of['kernel']}, {of['processors']};"
        f" seed {run['seed']}, {run['seconds'] // 60} minutes: {violations} violations,"
        f" {short or 'no'} goal{'' if short == 1 else 's'} missed.",
        "",
        "| recipe | tried | survived | refused | violations | goals |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, one in run["recipes"].items():
        tally = one["tally"]
        goals = "; ".join(goal["text"] + ("" if goal["reached"] else " (**short**)") for goal in one["goals"])
        counts = (
            f"{tally['tried']:,} | {tally['survived']:,} | {tally['refused']:,} | {len(tally['violations'])}"
        )
        lines.append(f"| `{name}`: {one['title']} | {counts} | {goals} |")
    lines += [f"| `{name}` | not run: {why} | | | | |" for name, why in run["skipped"].items()]
    return "\n".join(lines) + "\n"


def put(page: Path, table: str) -> None:
    """Replace what stands between the markers."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the figures: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


def main() -> int:
    table = markdown(json.loads(Path(sys.argv[1]).read_text()))
    if len(sys.argv) > 2:
        put(Path(sys.argv[2]), table)
    else:
        print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
