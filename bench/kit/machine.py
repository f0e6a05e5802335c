"""The machine: what the figures were taken on, and what else it did meanwhile.

    busy time of all cores (/proc/stat)  =  ours and our children's  +  others'

A flusher is nobody's child, so this process takes in orphans: what they used counts as ours once
they have ended. Kernel threads that write our pages out, and time stolen by a hypervisor, count
as others'.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
LOAD_BEFORE, OTHERS_PERCENT = "load_before", "others_percent"
_PR_SET_CHILD_SUBREAPER = 36
_IDLE_FIELDS = (3, 4)  # idle, iowait
_GUEST_FIELD = 8  # from here on counted twice


def describe_machine(directory: Path) -> dict[str, Any]:
    """What the figures were taken on; without it they mean nothing."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "commit": _output_of("git", "-C", str(REPOSITORY), "rev-parse", "HEAD"),
        "cpu": cpu.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "filesystem": _output_of("df", "--output=fstype", str(directory)).rpartition("\n")[2],
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Say the load average before, and the share of the machine that others took during the block."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    load = {LOAD_BEFORE: os.getloadavg()[0]}
    begin_s, busy_s, ours_s = time.monotonic(), _busy_s(), _ours_s()
    yield load
    _reap_orphans()
    whole_s = (time.monotonic() - begin_s) * (os.cpu_count() or 1)
    others_s = (_busy_s() - busy_s) - (_ours_s() - ours_s)
    load[OTHERS_PERCENT] = min(100.0, max(0.0, 100 * others_s / whole_s))


def _busy_s() -> float:
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    busy = sum(ticks for number, ticks in enumerate(fields[:_GUEST_FIELD]) if number not in _IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK")


def _ours_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _reap_orphans() -> None:
    """No child of our own is left by now."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
