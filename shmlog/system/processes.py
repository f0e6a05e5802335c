"""Processes: what the system tells of another process, for messages to people.

Best effort, and never evidence: who is alive is told by locks alone.

This module knows pids and /proc.  It may not know what a process does with a log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def describe(pid: int) -> str:
    """`pid 17 (python3)`, and `, stopped` if it is; `pid 17` where no more can be told."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{pid}/stat", "rb") as file:
            name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
        stopped = ", stopped" if rest.split()[0] in (b"T", b"t") else ""
        return f"pid {pid} ({ascii(name.decode(errors='replace'))[1:-1]}){stopped}"
    return f"pid {pid}"


def lock_holders(path: str, byte: int) -> list[int]:
    """The processes that have a lock on a byte of a file, as far as this user may see them.

    From the lock lines of /proc/PID/fdinfo/FD, see proc(5); a forked child that kept the
    descriptor is named too."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        return sorted(
            {pid for pid, words in _lock_lines() if words[4] == device and _covers(words[5:], byte)}
        )
    return []


def locked_ranges(path: str) -> list[tuple[int, int]]:
    """(first, last) byte of each lock on a file that this user need not be able to open, from
    /proc/locks, see proc(5)."""
    found = os.stat(path)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    ranges = []
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if len(words) == 8 and words[5] == device:
                ranges.append((int(words[6]), 1 << 63 if words[7] == "EOF" else int(words[7])))
    return ranges


def _covers(span: list[str], byte: int) -> bool:
    return int(span[0]) <= byte and (span[1] == "EOF" or byte <= int(span[1]))


def _lock_lines() -> Iterator[tuple[int, list[str]]]:
    """(pid, the words after `lock: 1:`) of every lock that is seen."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fdinfo"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                    for line in file:
                        words = line.split()
                        if words[:1] == ["lock:"] and len(words) == 9:
                            yield int(pid), words[2:]
