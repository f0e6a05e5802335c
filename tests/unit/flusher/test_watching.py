"""What the syncing loop looks at while it waits for callers, and what it must not look at."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

import pytest
from support.processes import lose_shared_memory

import shmlog
from shmlog import _native
from shmlog.disk import directory
from shmlog.flusher.open_segments import OpenSegments
from shmlog.flusher.syncing import Syncer
from shmlog.format.layout import CB, PT, ROLE_SIDECAR, SLEEP_AWAKE, STATE_RUNNING
from shmlog.session.attachment import attach
from shmlog.system import files

LONG_NS = 60_000_000_000


@pytest.fixture
def control() -> _native.Control:
    control = _native.Control(mmap.mmap(-1, CB.HEADER_BYTES + PT.BYTES + 64), 2048, 1)
    control.store(CB.STATE, STATE_RUNNING)
    return control


def test_a_file_has_a_name_until_the_last_one_is_removed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.touch()
    os.link(first, second)
    with first.open("rb") as file:
        first.unlink()
        assert _native.has_name(file.fileno())
        second.unlink()
        assert not _native.has_name(file.fileno())
    with pytest.raises(OSError):
        _native.has_name(-1)


def test_a_word_that_settles_is_told_from_one_that_did_not_change(control: _native.Control) -> None:
    assert not control.settle(CB.WANTED_DURABLE, 1000, LONG_NS)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            control.add(CB.WANTED_DURABLE, 32)

    changes = threading.Thread(target=change)
    changes.start()
    try:
        while not control.settle(CB.WANTED_DURABLE, LONG_NS, 1_000_000):  # ends though it never is quiet
            pass
    finally:
        ended.set()
        changes.join()


def test_a_waiter_that_rang_does_not_take_itself_for_company(control: _native.Control) -> None:
    """Alone, it sleeps at once; else it would watch for a minute, with a core to itself."""
    control.store(CB.SYNC_SLEEP, SLEEP_AWAKE + 1)
    words = CB.DURABLE_LSN, CB.WANTED_DURABLE, CB.SYNC_SLEEP, 32
    assert control.wait(*words, True, LONG_NS, 0) == _native.WAIT_RING
    waits = threading.Thread(target=control.wait, args=(*words, False, LONG_NS, 0), daemon=True)
    waits.start()
    waits.join(LONG_NS / 2e9)
    assert not waits.is_alive()


def test_a_sync_does_not_look_at_the_times_of_the_file_it_syncs(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel with fine-grained times would give the next store a time of its own, and each sync
    an inode to write."""
    with shmlog.open(log_path, create=True, segment_bytes=64 << 10) as log:
        log.append(b"durable", durable=True)
    where, boot = directory.load(str(log_path)), files.boot_id()
    joined = attach(where, 0o600, ROLE_SIDECAR, time.monotonic() + 10)
    segments = OpenSegments(where, 0o600)
    try:
        syncer = Syncer(joined.control, segments, where.identity.geometry, boot, 1.0)
        durable = joined.control.durable_lsn
        segments.get(durable)
        for word in (CB.RESERVED_LSN, CB.COMMITTED_LSN):
            joined.control.native.store(word, durable + 32)

        def refuse(*_: object, **__: object) -> os.stat_result:
            raise AssertionError("it was looked at")

        with monkeypatch.context() as patch:
            for name in ("stat", "lstat", "fstat"):
                patch.setattr(os, name, refuse)
            syncer.sync(durable + 32)
        assert joined.control.durable_lsn == durable + 32
    finally:
        segments.close()
        joined.lock.close()
        lose_shared_memory(log_path)
