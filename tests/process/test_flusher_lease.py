"""The lease is kept for as long as any thread of its holder may still store."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.processes import Child, Wire, assert_healthy, flusher_of, until
from support.stuck import flush_until_stuck

import shmlog
from shmlog.flusher import flusher as flusher_module
from shmlog.flusher.open_segments import OpenSegments
from shmlog.session import sidecar

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _flush_until_stuck(wire: Wire, path: Path) -> int:
    flusher_module.LOOPS_END_S = 0.1
    return flush_until_stuck(wire, path, 1000.0)


@pytest.mark.holds("F5")
def test_a_flusher_whose_sync_is_stuck_keeps_its_lease_until_the_sync_ends(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, flusher="external", timeout=10) as log:
        with Child(_flush_until_stuck, log_path) as first:
            log.append(b"durable", durable=True)
            first.say("stick")
            assert first.hear() == "will be stuck"
            lsn = log.append(b"in a sync that takes long")
            with pytest.raises(TimeoutError):
                log.wait_durable(lsn, 0.05)
            assert first.hear() == "stuck"
            before = log.durable_lsn
            first.signal(signal.SIGTERM)
            told = log_path / "flusher.log"
            until(lambda: "a loop has not ended" in told.read_text(), "it has noticed")

            command = [sys.executable, "-m", "shmlog", "flush", str(log_path)]
            second = subprocess.Popen(command, stderr=subprocess.PIPE)
            try:
                _, text = second.communicate(timeout=10)
            finally:
                second.kill()
                second.wait()
            assert second.returncode == 1 and b"has a flusher already" in text
            assert log.statistics().flushers == 1 and log.durable_lsn == before

            first.say("go on")
            assert first.result() == 0
        assert log.durable_lsn > lsn, "the first one has settled"
        with flusher_of(log_path) as third:
            assert_healthy(log)
            log.close()
            third.send_signal(signal.SIGTERM)
            assert third.wait(30) == 0


def _flush_with_a_thread_that_never_starts(wire: Wire, path: Path) -> int:
    """As a thread does that gets no memory before it has said that it runs."""
    flusher_module.STARTING_S = 0.2
    threading.Thread._bootstrap = lambda self: None  # type: ignore[attr-defined]
    return sidecar.run(str(path), 0.01, 0o600, True)


@pytest.mark.holds("F6")
def test_a_flusher_whose_thread_never_starts_ends_and_frees_its_lease(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, timeout=20, flusher="external") as log:
        with Child(_flush_with_a_thread_that_never_starts, log_path) as first:
            with pytest.raises(EOFError):  # it does not end by an exception
                first.hear()
            assert first.wait() == 1
        with flusher_of(log_path) as second:
            assert_healthy(log)
            log.close()
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 0


def test_a_sync_that_does_not_return_delays_no_append_until_the_window_is_full(log_path: Path) -> None:
    """Committing and preparing go on beside it; only what is to be durable waits."""
    sizes = {"window_bytes": 1 << 20, "timeout": 10}
    with (
        shmlog.open(log_path, create=True, flusher="external", **sizes) as log,
        Child(_flush_until_stuck, log_path) as flusher,
    ):
        log.append(b"durable", durable=True)
        flusher.say("stick")
        assert flusher.hear() == "will be stuck"
        with pytest.raises(TimeoutError):
            log.append(b"in a sync that does not return", durable=True, timeout=0.05)
        assert flusher.hear() == "stuck"
        before = log.durable_lsn
        for n in range(8000):  # eight windows
            log.append(b"%1000d" % n, timeout=10)
        log.wait_committed(timeout=10)
        assert sum(1 for _ in log.read()) == 8002 and log.durable_lsn == before
        with pytest.raises(TimeoutError):
            log.wait_durable(timeout=0.05)
        flusher.say("go on")
        log.wait_durable(timeout=20)
        log.close()
        flusher.signal(signal.SIGTERM)
        assert flusher.result() == 0


def _flush_stuck_in_the_take_over(wire: Wire, path: Path) -> int:
    """A flusher that waits for the disk before it can call anything durable."""
    real = OpenSegments.sync_names

    def sync_names(self: OpenSegments) -> None:
        wire.say("stuck")
        wire.hear()
        real(self)

    OpenSegments.sync_names = sync_names  # type: ignore[method-assign]
    return sidecar.run(str(path), 1000.0, 0o600, False)


def test_a_flusher_that_waits_for_the_disk_as_it_begins_delays_no_append_or_reader(
    log_path: Path,
) -> None:
    """A loaded disk takes tens of seconds to make a directory's names durable."""
    with (
        shmlog.open(log_path, create=True, flusher="external", window_bytes=1 << 20, timeout=40) as log,
        Child(_flush_stuck_in_the_take_over, log_path) as flusher,
    ):
        assert flusher.hear() == "stuck"
        for n in range(3000):  # three windows
            log.append(b"%1000d" % n, timeout=20)
        log.wait_committed(timeout=20)
        with pytest.raises(TimeoutError):
            log.wait_durable(timeout=0.05)
        assert sum(1 for _ in log.read()) == 3000 and log.durable_lsn == 0
        flusher.say("go on")
        log.wait_durable()
        log.close()
        flusher.signal(signal.SIGTERM)
        assert flusher.result() == 0
