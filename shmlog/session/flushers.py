"""Flushers: start one when none runs.

    python -P -m shmlog flush DIR --detach     nobody's child, in a session of its own

Of many who find at once that none runs, one starts it: whoever moves starting_ns by
compare-and-swap.  A flusher clears the word when it serves; one that took no lease for
a while after its start is taken for dead.

This module knows the lease and a process to be made.  It may not know what the process
does.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.format.layout import CB
from shmlog.session.attachment import Attachment

START_AGAIN_NS = 500_000_000
"""A flusher that took no lease for so long after its start is taken for dead."""


def start(where: Directory, mode: int, sync_interval: float) -> None:
    """Start a flusher process for the log and return at once.  If one runs already,
    the new one finds the lease taken and ends.  It is no child of this process.
    OSError if no process can be made."""
    python = os.environ.get("SHMLOG_PYTHON") or sys.executable
    if not python:
        raise OSError(errno.ENOENT, "no Python interpreter to run the flusher with; set SHMLOG_PYTHON")
    package_parent = str(Path(__file__).absolute().parents[2])
    environment = dict(os.environb)
    paths = filter(None, (os.fsencode(package_parent), environment.get(b"PYTHONPATH")))
    environment[b"PYTHONPATH"] = os.fsencode(os.pathsep).join(paths)
    # -P: the current directory may hold modules of the same names as ours and Python's
    arguments = [python, "-P", "-m", "shmlog", "flush", where.path, "--detach"]
    arguments += ["--sync-interval", repr(sync_interval), "--mode", f"{mode:o}"]
    _native.spawn_detached(
        tuple(os.fsencode(argument) for argument in arguments),
        tuple(key + b"=" + value for key, value in environment.items()),
    )


def ensure(joined: Attachment, mode: int, sync_interval: float) -> None:
    """Start a flusher unless one runs, or is being started by anybody."""
    if joined.flusher_runs():
        return
    native, now = joined.control.native, time.monotonic_ns()
    before = native.load(CB.STARTING_NS)
    if before and 0 <= now - before < START_AGAIN_NS:
        return
    if not native.compare_exchange(CB.STARTING_NS, before, now):
        return
    try:
        start(joined.directory, mode, sync_interval)
    except BaseException:
        native.compare_exchange(CB.STARTING_NS, now, 0)
        raise
