"""Flushers: start one when none runs.

    python -P -m shmlog flush DIR --detach     nobody's child, in a session of its own

Of many who find at once that none runs, one starts it: whoever moves starting_ns by
compare-and-swap, and counts it in starts.  A flusher clears both words when it serves.
One that took no lease for a while after its start is taken for dead, and a longer while
each time: where none can live, starting them must not be all that the machine does.

This module knows the lease and a process to be made.  It may not know what the process
does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

from shmlog import _native
from shmlog.disk.directory import Directory
from shmlog.errors import FormatError
from shmlog.format.layout import CB
from shmlog.memory.control import ControlBlock
from shmlog.session.attachment import Attachment
from shmlog.system import files

START_AGAIN_S = 0.5, 8.0
"""A flusher that took no lease for so long after its start is taken for dead: the first, and at
most; twice as long after each that did not come to serve."""
LAST_WORDS_BYTES = 4096


def start(where: Directory, mode: int, sync_interval: float, session: int | None = None) -> None:
    """Start a flusher process for the log and return at once.  If one runs already,
    the new one finds the lease taken and ends.  It is no child of this process.
    session: the CREATED_NS of the only control block that it is to serve; it may come so late
    that there is another, whose users want none.  OSError if no process can be made."""
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
    arguments += [] if session is None else ["--session", str(session)]
    _native.spawn_detached(
        tuple(os.fsencode(argument) for argument in arguments),
        tuple(key + b"=" + value for key, value in environment.items()),
    )


def ensure(joined: Attachment, mode: int, sync_interval: float) -> None:
    """Start a flusher unless one runs, or is being started by anybody."""
    if joined.flusher_runs():
        return
    native, now = joined.control.native, time.monotonic_ns()
    before, starts = native.load(CB.STARTING_NS), native.load(CB.STARTS)
    if before and 0 <= now - before < _pause_s(starts) * 1e9:
        return
    if not native.compare_exchange(CB.STARTING_NS, before, now):
        return
    native.add(CB.STARTS, 1)
    try:
        start(joined.directory, mode, sync_interval, native.load(CB.CREATED_NS))
    except BaseException:
        native.compare_exchange(CB.STARTING_NS, now, 0)
        raise


def _pause_s(starts: int) -> float:
    first, most = START_AGAIN_S
    return min(most, first * 2.0 ** min(16, max(0, starts - 1)))


def trouble(where: Directory, control: ControlBlock) -> str:
    """What to add to the error of somebody who waited in vain, if flushers were started and none
    came to serve: how many, and what the last of them said.  Otherwise nothing."""
    starts = control.load(CB.STARTS)
    if starts < 2:
        return ""
    text = f"; {starts} flushers were started and none came to serve"
    with contextlib.suppress(OSError, FormatError):
        with files.descriptor(files.open_file(where.flusher_log_path, writable=False)) as fd:
            size = os.fstat(fd).st_size
            lines = os.pread(fd, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES)).splitlines()
        if lines:
            text += f"; {where.flusher_log_path} ends with {lines[-1].decode(errors='replace')!r}"
    return text
