"""The torture runs that are tests: every test that is marked `crash`, each once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from crash.kit import Budget, Goal, Recipe, Tally

TESTS = Path(__file__).resolve().parents[2]


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
            elif case.find("failure") is not None or case.find("error") is not None:
                tally.violate(name)
            else:
                tally.survive()
            tally.figures["marked"] = int(tally.figures["marked"]) + 1
        tally.figures["run"] = tally.tried
    return tally


RECIPE = Recipe("tortures", "every test marked crash", _run, (Goal("run", "marked"),), 600.0, ends=True)
