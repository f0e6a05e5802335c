"""Every benchmark still runs, still reads back what it wrote, and appends are not slow.

At toy size and beside nothing but its floor.  The one ratio that is checked has a
margin of three: it is there to catch a lost fast path, not a slow afternoon.
"""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import WORKLOADS, heats_of, parse
from bench.figures import BESIDE, FIGURES
from bench.kit.judging import Bound, Figure, judged

ROOT = Path(__file__).parents[2]


def run(workload: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """One workload's result at toy size."""
    path = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench", workload, "--toy", "--dir", str(tmp_path), "--json", str(path)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(path.read_text())
    return result


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_workload_runs_and_reads_back_what_it_wrote(workload: str, tmp_path: Path) -> None:
    result = run(workload, tmp_path, "--only", "shmlog*")
    assert result["heats"]
    for heat in result["heats"]:
        rows = {row["name"]: row for row in heat["rows"]}
        ours = [row for name, row in rows.items() if name.startswith("shmlog") and not row["skipped"]]
        assert not any(row["wrong"] for row in rows.values()), heat["title"]
        assert all(row["repetitions"] for row in ours), heat["title"]


def test_an_append_costs_less_than_a_write_to_a_file(tmp_path: Path) -> None:
    ratio = 0.0
    for _ in range(4):  # what else the machine does may slow either of them
        result = run(
            "append", tmp_path, "--only", "shmlog", "--sizes", "128", "--processes", "1", "--repeat", "5"
        )
        heat = next(heat for heat in result["heats"] if heat["baseline"] == "os.write")
        ratio = next(row["ratio"]["median"] for row in heat["rows"] if row["name"] == "shmlog")
        if ratio > 1.3:
            return
    raise AssertionError(f"append() runs at {ratio:.2f} times the rate of os.write()")


def test_every_figure_to_hold_names_a_heat_and_contenders_that_there_are() -> None:
    workloads, _path, options = parse(["--budget", "1s"])
    names = {
        running.heat.title: {each.name for each in running.heat.contenders}
        for running in heats_of(workloads, options)
    }
    for figure in FIGURES:
        fitting = [names[title] for title in names if fnmatchcase(title, figure.heat)]
        assert fitting and figure.names <= fitting[-1], figure.what
    assert all(any(fnmatchcase(title, pattern) for title in names) for pattern in BESIDE)


@pytest.mark.parametrize(
    ("floor", "ours", "verdict"),
    [
        ([10.0, 10.0, 10.0], [20.0, 21.0, 9.0], "held"),
        ([10.0, 10.0, 10.0], [11.0, 21.0, 9.0], "MISSED"),
        ([10.0, 16.0, 10.0], [30.0, 40.0, 30.0], "no verdict: the floor varied by 1.6x"),
        ([], [30.0], "not measured"),
    ],
)
def test_a_figure_has_no_verdict_when_its_floor_varied(
    floor: list[float], ours: list[float], verdict: str
) -> None:
    figure = Figure("f", "heat *", "shmlog", "rate", (Bound(at_least=2, against=("peer",)),), "")
    rows = [
        {"name": name, "repetitions": [{"rate": rate} for rate in rates]}
        for name, rates in (("peer", floor), ("shmlog", ours))
    ]
    heat = {"title": "heat 1", "compare": "rate", "baseline": "peer", "rows": rows}
    assert [each["verdict"] for each in judged([figure], [heat], toy=False)] == [verdict]
