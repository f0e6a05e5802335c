"""What every test shares: a place for a log, and a check that nothing is left behind.

A test fails at its end if it leaves

    a child process        running or not waited for
    a flusher process      of a log below the test's tmp_path
    shared memory          a control block or a semaphore of such a log

What is found is also removed, so that one test cannot spoil the next.  Other logs
of the machine are none of our business: only names that come from the log ids below
tmp_path count, and with --alone (and -n 0) every new name does.

Helpers are imported from the directory beside this file: `from support import ...`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest

GRACE_S = 5.0
"""A process that was told to end may take so long; a healthy one takes milliseconds."""

SHARED_MEMORY = Path("/dev/shm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--alone",
        action="store_true",
        help="nobody else on this machine uses shmlog: count every name in /dev/shm",
    )


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """Where a test's log goes; nothing is there yet."""
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    root = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    children, names = _children(), _names()
    yield
    left = []
    for pid in _settled(lambda: _children() - children):
        left.append(f"child process {pid}: {_command(pid) or 'a zombie'}")
        _end(pid)
    if root is not None:
        for pid in _settled(lambda: _flushers(root)):
            left.append(f"flusher process {pid}: {_command(pid)}")
            _end(pid)
        own = _log_names(root)
        alone = request.config.getoption("--alone")
        for name in sorted(_names() - names):
            if alone or any(prefix in name for prefix in own):
                left.append(f"shared memory {name}")
                with contextlib.suppress(FileNotFoundError):
                    (SHARED_MEMORY / name).unlink()
    if left:
        pytest.fail("the test left behind\n  " + "\n  ".join(left), pytrace=False)


def _settled(look: Callable[[], set[int]]) -> list[int]:
    """What is still there after as much as GRACE_S."""
    deadline = time.monotonic() + GRACE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return sorted(found)


def _children() -> set[int]:
    """Children of this process, zombies included, but for multiprocessing's own helpers."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return found - {tracker, server}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _flushers(root: Path) -> set[int]:
    """Processes that run `python -m shmlog flush` on a log below root."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _command(int(entry.name)).split(" ")
            if (
                "shmlog" in words
                and "flush" in words
                and any(Path(word).is_relative_to(root) for word in words)
            ):
                found.add(int(entry.name))
    return found


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _names() -> set[str]:
    """Control blocks and semaphores of every log of this machine."""
    return {name for name in os.listdir(SHARED_MEMORY) if "shmlog-" in name}


def _log_names(root: Path) -> set[str]:
    """What the names of the logs below root contain."""
    found = set()
    for where, _, files in os.walk(root):
        if "shmlog.json" in files:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                identity = json.loads(Path(where, "shmlog.json").read_bytes())
                found.add("shmlog-" + identity["log_id"].replace("-", "")[:16])
    return found
