"""Closing: what is durable when close() has returned, and what it says where that cannot be."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from support.processes import DEADLINE_S, SEGMENT_BYTES, Child, Wire, assert_healthy, flusher_of, stopped
from support.processes import flusher_pid as find_flusher

import shmlog
from shmlog.format.layout import ROLE_HANDLE

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@contextlib.contextmanager
def _staying_flusher(path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A flusher that stays until the block is left; it then ends in order."""
    with flusher_of(path, *arguments) as flusher:
        yield flusher
        flusher.terminate()
        assert flusher.wait(DEADLINE_S) == 0


Mode = Literal["auto", "external"]
_MODES = pytest.mark.parametrize("mode", ["auto", "external"])


@_MODES
def test_the_last_close_beside_a_staying_flusher_returns_when_all_is_durable(
    log_path: Path, mode: Mode
) -> None:
    shmlog.open(log_path, create=True).close()
    with _staying_flusher(log_path, "--sync-interval", "3600"):
        with shmlog.open(log_path, flusher=mode) as log:
            log.append(b"first", durable=True)
            lsn = log.append(b"second")
        with shmlog.open_readonly(log_path) as reader:
            assert reader.live
            assert reader.durable_lsn > lsn


@_MODES
def test_a_close_that_is_not_the_last_does_not_wait(log_path: Path, mode: Mode) -> None:
    shmlog.open(log_path, create=True).close()
    with (
        _staying_flusher(log_path, "--sync-interval", "3600") as flusher,
        shmlog.open(log_path, flusher=mode) as other,
    ):
        log = shmlog.open(log_path, flusher=mode)
        log.append(b"x")
        with stopped(flusher.pid):
            log.close()
        assert_healthy(other)


@_MODES
def test_a_last_close_beside_a_suspended_flusher_says_what_is_not_durable(log_path: Path, mode: Mode) -> None:
    shmlog.open(log_path, create=True).close()
    with _staying_flusher(log_path) as flusher:
        log = shmlog.open(log_path, flusher=mode)
        log.append(b"x", durable=True)
        log._timeout = 0.3
        with stopped(flusher.pid):
            lsn = log.append(b"y")
            with pytest.raises(TimeoutError, match=f"from LSN {lsn} on is not known to be durable"):
                log.close()
            assert log.closed
            log.close()
            with pytest.raises(shmlog.ClosedError):
                log.append(b"z")
        with shmlog.open(log_path, flusher=mode) as again:
            again.wait_durable(lsn)
            assert [bytes(record.data) for record in again.read()] == [b"x", b"y"]


def test_a_last_close_whose_own_flusher_is_suspended_says_what_is_not_durable(log_path: Path) -> None:
    log = shmlog.open(log_path, create=True)
    log.append(b"x", durable=True)
    log._timeout = 0.5
    with stopped(find_flusher(log)):
        lsn = log.append(b"y")
        with pytest.raises(TimeoutError, match=f"from LSN {lsn} on is not known to be durable"):
            log.close()
        assert log.closed
    with shmlog.open(log_path) as again:
        again.wait_durable(lsn)


def test_a_last_external_close_with_no_flusher_warns_and_does_not_wait(
    log_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shmlog.open(log_path, create=True).close()
    with flusher_of(log_path) as flusher:
        log = shmlog.open(log_path, flusher="external", timeout=3600)
        log.append(b"x", durable=True)
        flusher.kill()
        flusher.wait()
        lsn = log.append(b"y")
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "shmlog"):
            log.close()
        assert time.monotonic() - began < 60
        assert f"from LSN {lsn} on is not known to be durable" in caplog.text
    with shmlog.open(log_path) as again:
        again.wait_durable(lsn)
        assert [bytes(record.data) for record in again.read()] == [b"x", b"y"]


def test_a_staying_flusher_that_dies_during_an_auto_close_is_replaced(log_path: Path) -> None:
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()

    def use(wire: Wire) -> None:
        log = shmlog.open(log_path)
        log.append(b"x", durable=True)  # there is room from now on
        wire.say("open")
        wire.hear()
        log.append(b"y")
        wire.say("appended")
        log.close()

    with flusher_of(log_path) as flusher, Child(use) as child:
        child.hear()
        with stopped(flusher.pid):
            child.say("go")
            child.hear()
            flusher.kill()
            flusher.wait()
            child.result()
    with shmlog.open_readonly(log_path) as reader:
        assert not reader.live
        assert reader.recovery is not None and reader.recovery.case.value == "clean"
        assert [bytes(record.data) for record in reader.read()] == [b"x", b"y"]


def test_a_close_before_another_handles_says_nothing_of_what_that_one_sees_to(
    log_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other may have gone by the time that the first one has looked at what is durable."""
    shmlog.open(log_path, create=True).close()
    with _staying_flusher(log_path, "--sync-interval", "3600") as flusher:
        log, other = shmlog.open(log_path), shmlog.open(log_path)
        log.append(b"x")
        durable = type(log._joined.control).durable_lsn

        def gone_meanwhile(control: object) -> int:
            monkeypatch.undo()
            other._joined.detach()
            return int(durable.fget(control))  # type: ignore[attr-defined]

        with stopped(flusher.pid), caplog.at_level(logging.WARNING, "shmlog"):
            monkeypatch.setattr(type(log._joined.control), "durable_lsn", property(gone_meanwhile))
            log.close()
        other._joined.participants.take(ROLE_HANDLE)
        other.close()
    assert not caplog.text


def _in_a_variable(log: shmlog.Log) -> object:
    return log.reserve(100)


def _in_a_list(log: shmlog.Log) -> object:
    return [log.reserve(100), {"another": log.reserve(100)}]


def _behind_a_view(log: shmlog.Log) -> object:
    return log.reserve(100).buffer[10:20]


def _behind_an_array(log: shmlog.Log) -> object:
    return log.reserve(96).array("<u4", (4, 6))[1]


@pytest.mark.parametrize("keep", [_in_a_variable, _in_a_list, _behind_a_view, _behind_an_array])
def test_an_exception_gives_up_the_reservations_it_leaves_open_and_goes_through(
    log_path: Path, keep: Callable[[shmlog.Log], object]
) -> None:
    began = time.monotonic()
    with pytest.raises(KeyError) as caught, shmlog.open(log_path, create=True, timeout=30) as log:
        log.append(b"before")
        kept = keep(log)
        log.append(b"behind")
        raise KeyError("the real error")
    assert time.monotonic() - began < 25
    assert kept is not None
    assert not hasattr(caught.value, "__notes__")
    with shmlog.open_readonly(log_path) as reader:
        assert reader.recovery is not None and reader.recovery.case.value == "clean"
        assert [bytes(record.data) for record in reader.read()] == [b"before", b"behind"]


def test_an_exception_leaves_another_logs_reservation_open(log_path: Path, tmp_path: Path) -> None:
    with shmlog.open(tmp_path / "outer", create=True) as outer:
        reservation = outer.reserve(4)
        reservation.buffer[:] = b"kept"
        with pytest.raises(KeyError), shmlog.open(log_path, create=True) as log:
            log.append(b"x" * 1000)
            given_up = log.reserve(4)
            raise KeyError(reservation.lsn)
        with pytest.raises(ValueError, match="aborted"):
            given_up.publish()
        reservation.publish()
        outer.wait_committed()
        assert [bytes(record.data) for record in outer.read()] == [b"kept"]


def test_an_exception_lets_be_what_another_thread_is_about_to_publish(log_path: Path) -> None:
    reserved, publish = threading.Event(), threading.Event()

    class Worker(threading.Thread):
        def run(self) -> None:
            self.reservation = log.reserve(4, timeout=30)
            self.reservation.buffer[:] = b"kept"
            reserved.set()
            publish.wait(DEADLINE_S)
            self.reservation.publish()

    log = shmlog.open(log_path, create=True, timeout=0.2)
    worker = Worker()
    worker.start()
    try:
        assert reserved.wait(DEADLINE_S)
        with pytest.raises(KeyError) as caught, log:
            raise KeyError("the real error")
        assert "1 appends or reservations" in caught.value.__notes__[0]
        with pytest.raises(TimeoutError, match="1 appends or reservations"):
            log.close()
    finally:
        publish.set()
        worker.join()
    log.wait_durable(timeout=30)
    assert [bytes(record.data) for record in log.read()] == [b"kept"]
    log.close()
