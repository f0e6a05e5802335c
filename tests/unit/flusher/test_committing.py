"""How often the commit loop looks again at what a writer has not finished."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.processes import flusher_of

import shmlog
from shmlog.disk import directory
from shmlog.flusher.flusher import Flusher
from shmlog.format.layout import CB, ROLE_SIDECAR
from shmlog.session.attachment import attach
from shmlog.system.locks import LEASE_BYTE, LockFile


@pytest.mark.parametrize(("waited_for", "pause_max_s"), [(True, 0.005), (False, 0.02)])
def test_a_range_that_may_be_a_dead_writers_is_looked_at_again_within_the_goal_of_a_repair(
    log_path: Path, monkeypatch: pytest.MonkeyPatch, waited_for: bool, pause_max_s: float
) -> None:
    log = shmlog.open(log_path, create=True, flusher="external", timeout=5)
    with flusher_of(log_path):  # it makes room
        log.append(b"x", durable=True)
    where = directory.load(str(log_path))
    lock = LockFile(where.lock_path)
    assert lock.try_lock(LEASE_BYTE)
    joined = attach(where, 0o600, ROLE_SIDECAR, time.monotonic() + 10, lock)
    flusher = Flusher(
        where, joined.control, joined.participants, joined.number, joined.boot_id, 0o600, 1000, True
    )
    pauses: list[float] = []

    def sleep(timeout_s: float, *_: object) -> bool:
        pauses.append(timeout_s)
        if len(pauses) == 100:
            flusher.stop()
        return False

    monkeypatch.setattr(flusher._committer, "_sleep", sleep)
    try:
        with log.reserve(100):
            if waited_for:
                joined.control.native.store(CB.WANTED_COMMITTED, log.reserved_lsn)
            flusher._committer.loop(True)
        flusher.settle()
        log.close()
        flusher.finish()
    finally:
        flusher.close()
        joined.control.unlink()
        joined.detach()
        lock.close()
    assert max(pauses) == pause_max_s
