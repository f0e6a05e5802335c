"""The torture runs that are tests: every test that is marked `crash`, each once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from crash.kit import Budget, Goal, Recipe, Tally

SAID = 2000
"""So much of what pytest says of a failure is shown."""
TESTS = Path(__file__).resolve().parents[2]


def _wrong(case: ElementTree.Element) -> str | None:
    """What pytest said of a test that did not pass."""
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return f"{found.get('message')}\n{(found.text or '')[-SAID:]}"
    return None


def _run(budget: Budget) -> Tally:
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "crash", f"--junitxml={report}", str(TESTS)]
        try:
            subprocess.run(
                command,
                cwd=TESTS.parent,
                stdout=subprocess.DEVNULL,
                timeout=max(1800.0, 3 * budget.seconds),
            )
        except subprocess.TimeoutExpired:
            tally.violate(f"the tests did not end: {' '.join(command)}")
            return tally
        tally.figures |= {"run": 0, "marked": 0, "skipped": 0}
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}.{case.get('name')}"
            if case.find("skipped") is not None:
                tally.figures["skipped"] = int(tally.figures["skipped"]) + 1
            elif (wrong := _wrong(case)) is not None:
                tally.violate(f"{name}: {wrong}")
            else:
                tally.survive()
            tally.figures["marked"] = int(tally.figures["marked"]) + 1
        tally.figures["run"] = tally.tried
    return tally


RECIPE = Recipe("tortures", "every test marked crash", _run, (Goal("run", "marked"),), 600.0, ends=True)
