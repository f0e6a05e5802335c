"""A flusher that cannot serve, or a log that failed: who starts them does it ever less often, and
whoever waits or looks is told why."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    append_some,
    assert_healthy,
    flusher_of,
    flusher_pid,
    flusher_pids,
    is_alive,
    until,
)

import shmlog
from shmlog.format.layout import CB, SEGMENT_HEADER_BYTES
from shmlog.memory.control import ControlBlock
from shmlog.session import flushers
from shmlog.tools import info

SAYS = "ImportError: a library that is not here"


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Flushers that end at once, with a word in their log; a line here for each."""
    starts, python = tmp_path / "starts", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $$ >> "{starts}"\necho "{SAYS}" >> "$5/flusher.log"\nexit 1\n')
    python.chmod(0o700)
    monkeypatch.setenv("SHMLOG_PYTHON", str(python))
    monkeypatch.setattr(flushers, "START_AGAIN_S", (0.1, 0.8))
    return starts


def test_flushers_that_fail_at_start_are_started_ever_less_often_and_the_waiter_is_told(
    log_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shmlog.open(log_path, create=True, flusher="external") as log:
        with flusher_of(log_path):
            log.append(b"x", durable=True)
            lsn = log.append(b"y")
        log._flusher_mode = "auto"
        with pytest.raises(TimeoutError, match=rf"flushers were started and none came to serve.*{SAYS}"):
            log.wait_durable(lsn, timeout=2.4)
        assert 3 <= len(starts.read_text().split()) <= 6, "not every 0.1 s"
        with pytest.raises(TimeoutError, match=rf"appended at LSN.*none came to serve.*{SAYS}"):
            log.append(b"z", durable=True, timeout=0.2)
        with pytest.raises(shmlog.LogFullError, match="none came to serve"):
            while True:
                log.append(bytes(1 << 20), timeout=0.1)
        monkeypatch.setenv("SHMLOG_PYTHON", sys.executable)
        log.wait_durable(timeout=30)
        assert flushers.trouble(log._directory, log._joined.control) == ""
        assert_healthy(log)


@pytest.mark.parametrize("serves", ["a missing segment", "a loop that breaks"])
def test_a_flusher_that_breaks_once_it_serves_counts_as_one_that_failed(
    log_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serves: str
) -> None:
    monkeypatch.setattr(flushers, "START_AGAIN_S", (0.2, 0.8))
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 1, 500)
        log.wait_durable()
        while pids := flusher_pids(log_path):  # one that was started twice may wait for the lease
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                until(lambda: not is_alive(pid), "it is dead")  # noqa: B023
        if serves == "a missing segment":
            missing = log_path / "segments" / f"{log.durable_lsn // SEGMENT_BYTES * SEGMENT_BYTES:020d}.seg"
            missing.rename(tmp_path / "elsewhere")
        else:
            python = tmp_path / "python"
            breaks = "import shmlog.flusher.preparing as p; p.Preparer.loop = lambda *_: 1 / 0; "
            run = "import sys; from shmlog.session import sidecar; "
            run += "sys.exit(sidecar.run(sys.argv[1], 0.01, 0o600, True))"
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{breaks}{run}" "$5"\n')
            python.chmod(0o700)
            monkeypatch.setenv("SHMLOG_PYTHON", str(python))

        def counted() -> bool:
            with contextlib.suppress(TimeoutError, shmlog.ShmlogError):
                log.append(bytes(3000), durable=True, timeout=0.3)
            return log._joined.control.load(CB.STARTS) >= 3

        until(counted, "each counts as one that did not come to serve")
        if serves == "a missing segment":
            (tmp_path / "elsewhere").rename(missing)
        monkeypatch.delenv("SHMLOG_PYTHON", raising=False)
        log.wait_durable(timeout=30)
        assert_healthy(log)


def test_a_flusher_that_was_killed_while_it_served_is_replaced_at_once(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        for _ in range(4):
            log.append(b"x", durable=True, timeout=20)
            pid = flusher_pid(log)
            os.kill(pid, signal.SIGKILL)
            until(lambda: not is_alive(pid), "it is dead")  # noqa: B023
            assert flushers.trouble(log._directory, log._joined.control) == ""
        log.append(b"x", durable=True, timeout=20)


@pytest.fixture
def failed(log_path: Path) -> Iterator[shmlog.Log]:
    """A log of which a segment was cut under its writers: a store into it fails the log."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, timeout=5) as log:
        append_some(log, 1, 20)
        log.wait_durable()
        segment = log_path / "segments" / f"{log.reserved_lsn // SEGMENT_BYTES * SEGMENT_BYTES:020d}.seg"
        os.truncate(segment, SEGMENT_HEADER_BYTES)
        with pytest.raises(shmlog.LogFailedError) as raised:
            while True:
                log.append(bytes(4096), timeout=2)
        assert raised.value.errno == errno.EFAULT
        yield log
        os.truncate(segment, SEGMENT_HEADER_BYTES + SEGMENT_BYTES)


def test_a_writer_that_finds_the_log_failed_has_a_note_left_by_the_flusher(
    log_path: Path, failed: shmlog.Log
) -> None:
    until(lambda: (log_path / "FAILED").exists(), "the note is there")
    facts = info.describe(str(log_path))
    assert facts["state"] == "failed" and facts["failure"].startswith(os.strerror(errno.EFAULT))


def test_info_and_the_next_opener_say_that_a_log_had_failed(
    log_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        assert info.describe(str(log_path))["failure"] is None
        log._joined.control.fail(errno.EIO, log.durable_lsn)
    until(lambda: info.describe(str(log_path))["state"] not in ("live", "failed"), "the block has gone")
    assert os.strerror(errno.EIO) in info.describe(str(log_path))["failure"]
    with shmlog.open(log_path) as log:
        assert log.recovery is not None and log.recovery.failure is not None
        assert f"it had failed: {os.strerror(errno.EIO)}" in caplog.text
    until(lambda: info.describe(str(log_path))["state"] == "clean", "the block has gone")
    assert info.describe(str(log_path))["failure"] is None


@pytest.mark.parametrize("held_by", ["fail", "step"])
def test_a_signal_handler_that_fails_the_log_may_interrupt_whoever_holds_the_step_lock(
    log_path: Path, monkeypatch: pytest.MonkeyPatch, held_by: str
) -> None:
    """In a thread of its own, so that a lock that is never free is a failure, not a hang."""
    with shmlog.open(log_path, create=True) as log:
        control: ControlBlock = log._joined.control

        def handler() -> None:
            with control._step_lock:  # where the handler came in
                control.fail(errno.EIO, 0) if held_by == "fail" else control.step()
                control.fail(errno.EIO, 0)

        thread = threading.Thread(target=handler, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert control.failed and control.limit_lsn == 0
