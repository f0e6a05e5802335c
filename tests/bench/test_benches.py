"""Every benchmark still runs, still reads back what it wrote, and appends are not slow.

At toy size and beside nothing but its floor.  The one ratio that is checked has a
margin of three: it is there to catch a lost fast path, not a slow afternoon.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORKLOADS = (
    "append",
    "durable",
    "tail",
    "read",
    "recovery",
    "roll",
    "first",
    "idle",
    "growth",
    "sync_bytes",
    "tasks",
    "ship",
)


def run(workload: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """One workload's result at toy size."""
    path = tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        f"bench.{workload}",
        "--toy",
        "--dir",
        str(tmp_path),
        "--json",
        str(path),
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = json.loads(path.read_text())
    result: dict[str, Any] = loaded[0] if isinstance(loaded, list) else loaded
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
