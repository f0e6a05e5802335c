"""Stuck: a flusher whose sync does not return, as that of a disk that hangs."""

from __future__ import annotations

import threading
from pathlib import Path

from shmlog.flusher.syncing import Syncer
from shmlog.session import sidecar
from support.processes import Wire


def flush_until_stuck(wire: Wire, path: Path | str, sync_interval: float) -> int:
    """A flusher whose next sync is stuck once the parent has said so, until it says so again; it
    says "will be stuck" when it has heard, and "stuck" when it is."""
    real, stick = Syncer.sync, threading.Event()

    def sync(self: Syncer, target: int) -> None:
        if stick.is_set():
            stick.clear()
            wire.say("stuck")
            wire.hear()
        real(self, target)

    def listen() -> None:
        wire.hear()
        stick.set()
        wire.say("will be stuck")

    Syncer.sync = sync  # type: ignore[method-assign]
    threading.Thread(target=listen).start()
    return sidecar.run(str(path), sync_interval, 0o600, False)
