"""A flusher that is forked, not started anew: the same code, there in milliseconds.

This module knows processes.  It may not know what is tortured.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from support.processes import Child, Wire, until

from shmlog.session import sidecar
from shmlog.system.locks import LEASE_BYTE, LockFile


def be_flusher(wire: Wire | None, path: Path, on_demand: bool = False) -> int:
    """Serve the log; on demand: until the last participant has gone, else until SIGTERM."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    return sidecar.run(str(path), 0.01, 0o600, on_demand)


@contextlib.contextmanager
def forked_flusher(path: Path, on_demand: bool = False) -> Iterator[Child]:
    """A flusher that holds the lease when this yields and has ended in order, or been killed, when
    it is left."""
    with Child(be_flusher, path, on_demand) as child:
        until(lambda: served(path), "the lease is taken")
        yield child
        if child.status is None:
            child.signal(signal.SIGTERM)
            child.wait()


def served(path: Path) -> bool:
    """Whether somebody holds the lease."""
    lock = LockFile(os.path.join(path, "LOCK"))
    try:
        return lock.locked(LEASE_BYTE)
    finally:
        lock.close()
