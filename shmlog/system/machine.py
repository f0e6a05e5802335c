"""Machine: what tells one run of it from another, and one file from a copy of it.

This module knows procfs, clocks and inodes.  It may not know what is told by them.
"""

from __future__ import annotations

import os
import time

from shmlog import _native

TRIES = 5
NEAR_NS = 100_000
SET_NS = 10**18
"""2001: a wall clock that says less was never set."""


def has_kernels_boot_id() -> bool:
    """Whether the boot id that a process reads here is the kernel's own.  systemd-nspawn and
    LXC mount a file with another over it."""
    try:
        return os.stat("/proc/sys/kernel/random/boot_id").st_dev == os.stat("/proc/self").st_dev
    except FileNotFoundError:  # macOS: it comes from the kernel
        return not os.path.lexists("/proc/self")


def clocks() -> tuple[int, int]:
    """When the machine started, ns since 1970, 0 if the wall clock was never set; and how long
    ago that is, ns, 0 where no clock tells."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0, 0
    best: tuple[int, int, int] | None = None
    for _ in range(TRIES):  # whoever is interrupted between two readings tries again
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        now = time.time_ns()
        up = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if best is None or up - before < best[0]:
            best = up - before, now - up, up
        if best[0] <= NEAR_NS:
            break
    assert best is not None
    _, started, up = best
    return (started if started > SET_NS else 0), up


def clocks_are_shifted() -> bool:
    """Whether a time namespace shifts the clock since the start for this process."""
    try:
        with open("/proc/self/timens_offsets", encoding="ascii") as file:
            return any(int(word) for line in file for word in line.split()[1:])
    except FileNotFoundError:  # no time namespaces
        return False


def place(path: str) -> tuple[int, int, int]:
    """(file system, inode, when that was born, ns since 1970) of a file; 0 for what the file
    system does not tell, and for a file that is not there."""
    try:
        fd = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0, 0
    try:
        found = os.fstat(fd)
        return os.fstatvfs(fd).f_fsid & 2**64 - 1, found.st_ino, _native.born_ns(fd)
    finally:
        os.close(fd)
