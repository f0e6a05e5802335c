"""The first append of a session: it waits for no flusher, and what it stored outlives everybody."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Child, Wire, assert_healthy, lose_shared_memory

import shmlog
from shmlog.disk import directory
from shmlog.flusher.open_segments import OpenSegments
from shmlog.flusher.syncing import Syncer
from shmlog.format.layout import CB, ROLE_FLUSHER
from shmlog.session.attachment import attach
from shmlog.session.beginning import FIRST_BYTES
from shmlog.system import files

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SEGMENT = 4 << 20


@pytest.fixture
def no_flusher(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """None that is started comes to serve."""
    monkeypatch.setenv("SHMLOG_PYTHON", "/bin/false")
    yield monkeypatch


def _append(wire: Wire, path: Path, payload: bytes) -> None:
    log = shmlog.open(path, create=True, segment_bytes=SEGMENT)
    wire.say(log.append(payload, timeout=0))
    wire.hear()
    log.close()


@pytest.mark.holds("I8")
def test_what_was_appended_before_any_flusher_came_outlives_a_kill(
    log_path: Path, no_flusher: pytest.MonkeyPatch
) -> None:
    lsns = []
    for payload in (b"first", b"second" * 10_000):  # the second one joins the block of the dead
        with Child(_append, log_path, payload) as child:
            lsns.append(child.hear())
            child.kill()
    no_flusher.delenv("SHMLOG_PYTHON")
    with shmlog.open(log_path) as log:
        log.wait_committed()
        assert [record.lsn for record in log.read()] == lsns
        assert [bytes(record.data)[:6] for record in log.read()] == [b"first", b"second"]
        assert_healthy(log)
    with Child(_append, log_path, b"third") as child:  # a clean log, in the middle of a segment
        child.hear()
        child.say("end")


@pytest.mark.holds("I8")
def test_no_more_than_the_first_piece_is_appended_before_a_flusher_comes(
    log_path: Path, no_flusher: pytest.MonkeyPatch
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT, timeout=20) as log:
        rows = FIRST_BYTES // 1024 - 1
        for _ in range(rows):
            log.append(bytes(1024 - 32), timeout=0)
        log.append(bytes(1024 - 32), timeout=0)
        with pytest.raises(shmlog.LogFullError):
            log.append(b"", timeout=0)
        no_flusher.delenv("SHMLOG_PYTHON")
        log.append(b"", timeout=20)
        log.wait_committed()
        assert sum(1 for _ in log.read()) == rows + 2


def test_an_opener_that_starts_no_flusher_prepares_nothing(log_path: Path) -> None:
    log = shmlog.open(log_path, create=True, flusher="external")
    with log, pytest.raises(shmlog.LogFullError):
        log.append(b"", timeout=0)
    assert not list((log_path / "segments").iterdir())
    lose_shared_memory(log_path)


@pytest.mark.holds("I9")
@pytest.mark.parametrize("fate", ["lives", "died", "closed"])
def test_the_first_flusher_trusts_the_first_piece_only_if_its_maker_has_lived_on(
    log_path: Path, no_flusher: pytest.MonkeyPatch, fate: str
) -> None:
    with Child(_append, log_path, b"made") as maker:
        maker.hear()
        with Child(_append, log_path, b"joined") as other:  # keeps the block
            other.hear()
            if fate == "died":
                maker.kill()
            elif fate == "closed":
                maker.say("end")
                maker.wait()
            where = directory.load(str(log_path))
            joined = attach(where, 0o600, ROLE_FLUSHER, time.monotonic() + 10)
            joined.control.native.store(CB.GENERATION, 1)
            segments = OpenSegments(where, 0o600)
            try:
                syncer = Syncer(joined.control, segments, where.identity.geometry, files.boot_id(), 1.0)
                syncer.take_over(joined.participants.maker_lives())
                assert syncer._suspect_lsn == (0 if fate == "lives" else FIRST_BYTES)
            finally:
                segments.close()
                joined.detach()
                joined.lock.close()
            other.kill()
        maker.kill()
    no_flusher.delenv("SHMLOG_PYTHON")
    with shmlog.open(log_path) as log:
        log.wait_durable()
        assert [bytes(record.data) for record in log.read()] == [b"made", b"joined"]


def test_a_disk_too_full_for_the_first_piece_does_not_stop_the_open(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with shmlog.open(log_path, create=True) as log:
        log.append(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(files, "allocate", full)
        with shmlog.open(log_path) as log:
            log.append(b"after", timeout=20)  # the flusher, another process, has room
            log.wait_committed()
            assert [bytes(record.data) for record in log.read()] == [b"before", b"after"]
