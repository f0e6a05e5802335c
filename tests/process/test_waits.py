"""Waiting: who waits is woken, times out, or is told why it never will be."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, append_some, assert_healthy, payload, stopped, until
from support.processes import flusher_pid as find_flusher

import shmlog

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class _Thread(threading.Thread):
    """A thread whose result, or error, can be asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._work()
        except BaseException as error:
            self._outcome = error

    def outcome(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self._outcome


def test_a_wait_for_what_is_reached_returns_with_a_timeout_of_zero(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.wait_durable(timeout=0)
        log.wait_committed(0, timeout=0)
        lsn = log.append(b"x", durable=True)
        log.wait_durable(lsn, 0)
        log.wait_committed(lsn, 0)
        log.wait_durable(None, 0)


@pytest.mark.holds("W2")
def test_a_wait_that_cannot_be_served_times_out_and_says_how_far_the_log_is(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        with stopped(find_flusher(log)):
            lsn = log.append(b"y")
            for timeout in (0, 0.01):
                with pytest.raises(TimeoutError, match=rf"after {timeout} s: durable up to {lsn}"):
                    log.wait_durable(lsn, timeout)
        log.wait_durable(lsn, 30)


@pytest.mark.parametrize("method", ["wait_durable", "wait_committed"])
def test_waiting_for_what_nobody_appended_is_a_value_error(log_path: Path, method: str) -> None:
    with shmlog.open(log_path, create=True) as log:
        end = log.append(b"x", durable=True) + 64
        wait = getattr(log, method)
        for lsn in (end + 1, end + 32, 1 << 63, -1):
            with pytest.raises(ValueError, match="nothing has been appended"):
                wait(lsn, 0)
        for wrong in ("0", 1.0, b"x"):
            with pytest.raises((TypeError, AttributeError)):
                wait(wrong, 0)
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                wait(0, wrong)
        with pytest.raises(TypeError, match="timeout"):
            wait(0, "1")


def test_many_threads_in_several_processes_wait_for_different_records(log_path: Path) -> None:
    def work(wire: Wire, writer: int) -> int:
        with shmlog.open(log_path) as log:

            def append_and_wait(thread: int) -> int:
                for n in range(25):
                    lsn = log.append(payload(writer * 100 + thread, n, 60))
                    (log.wait_durable if n % 2 else log.wait_committed)(lsn, 30)
                    assert (log.durable_lsn if n % 2 else log.committed_lsn) > lsn
                return 25

            threads = [_Thread(lambda thread=thread: append_and_wait(thread)) for thread in range(8)]  # type: ignore[misc]
            return sum(thread.outcome() for thread in threads)

    with (
        shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log,
        contextlib.ExitStack() as stack,
    ):
        children = [stack.enter_context(Child(work, n)) for n in (1, 2, 3)]
        assert [child.result() for child in children] == [200, 200, 200]
        log.wait_committed()
        assert sum(1 for _ in log.read()) == 600


def test_waiters_blocked_on_one_hole_all_wake_when_it_is_published(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        reservation = log.reserve(8)
        above = [log.append(b"%d" % n) for n in range(10)]
        before = log.statistics().waits
        threads = [_Thread(lambda lsn=lsn: log.wait_durable(lsn, 30)) for lsn in above]  # type: ignore[misc]
        until(lambda: log.statistics().waits >= before + 10, "all wait")
        assert log.committed_lsn == reservation.lsn
        reservation.publish()
        assert [thread.outcome() for thread in threads] == [None] * 10


def test_closing_a_handle_ends_its_waits_with_closed_and_nobody_elses(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as keeper, shmlog.open(log_path) as log:
        reservation = keeper.reserve(8)
        lsn = keeper.append(b"above")
        before = log.statistics().waits
        calls: list[Callable[[], Any]] = [
            lambda: log.wait_durable(lsn, 60),
            lambda: log.wait_committed(lsn, 60),
            lambda: log.append(b"x", durable=True, timeout=60),
            lambda: next(log.tail()),
        ]
        threads = [_Thread(call) for call in calls]
        until(lambda: log.statistics().waits >= before + len(calls), "all wait")
        patient = _Thread(lambda: keeper.wait_durable(lsn, 60))
        log.close()
        assert [type(thread.outcome()) for thread in threads] == [shmlog.ClosedError] * len(calls)
        reservation.publish()
        assert patient.outcome() is None


def test_tail_yields_each_record_once_over_rolls_and_then_times_out(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:

        def write(wire: Wire) -> list[int]:
            wire.hear()
            with shmlog.open(log_path) as writer:
                lsns = []
                for n in range(0, 800, 100):
                    lsns += append_some(writer, 1, 100, first=n, seed=n)
                    writer.wait_committed()
                return lsns

        with Child(write) as child:
            tail = log.tail(0, timeout=0.5)
            child.say("go")
            seen = []
            with pytest.raises(TimeoutError, match="no record was committed"):
                for record in tail:
                    seen.append(record.lsn)
                    if len(seen) == 800:
                        written = child.result()
            assert seen == written
            assert len(list((log_path / "segments").iterdir())) > 3


@pytest.mark.parametrize("handle", ["log", "readonly"])
def test_tail_wakes_for_each_record_of_another_process(log_path: Path, handle: str) -> None:
    """Ping-pong: the writer appends the next record only when the last one was seen."""
    with shmlog.open(log_path, create=True) as log:
        log.append(b"before the tail began", durable=True)

        def write(wire: Wire) -> None:
            with shmlog.open(log_path) as writer:
                for n in range(30):
                    assert wire.hear() == n
                    writer.append(b"%d" % n)

        with Child(write) as child, contextlib.ExitStack() as stack:
            reader = log if handle == "log" else stack.enter_context(shmlog.open_readonly(log_path))
            tail = reader.tail(timeout=30)
            for n in range(30):
                child.say(n)
                assert bytes(next(tail).data) == b"%d" % n
            child.result()


@pytest.mark.holds("S1")
def test_a_failed_log_wakes_everybody_and_refuses_appends_in_every_process(log_path: Path) -> None:
    def wait(wire: Wire) -> list[str]:
        log = shmlog.open(log_path)
        wire.say("here")
        lsn = wire.hear()
        found = []
        calls: list[Callable[[], Any]] = [
            lambda: log.wait_committed(lsn, 60),
            lambda: log.wait_durable(lsn, 60),
            lambda: log.append(b"x", timeout=60),
            lambda: log.append_many([b"x"], timeout=60),
            lambda: log.reserve(10, timeout=60),
        ]
        for call in calls:
            try:
                call()
                found.append("returned")
            except shmlog.LogFailedError as error:
                found.append(f"{error.errno} {error.lsn}")
        log.close()
        return found

    with shmlog.open(log_path, create=True) as log:
        durable = log.append(b"durable", durable=True)
        end = log.durable_lsn
        with Child(wait) as child:
            child.hear()
            reservation = log.reserve(8)
            above = log.append(b"above")
            before = log.statistics().waits
            child.say(above)
            waiter = _Thread(lambda: log.wait_durable(above, 60))
            until(lambda: log.statistics().waits >= before + 2, "both wait")
            log._joined.control.fail(errno.EIO, end)
            assert isinstance(waiter.outcome(), shmlog.LogFailedError)
            assert child.result() == [f"{errno.EIO} {end}"] * 5
        with pytest.raises(shmlog.LogFailedError, match="Input/output error"):
            log.append(b"x")
        reservation.abort()
        with shmlog.open(log_path) as late, pytest.raises(shmlog.LogFailedError):
            late.append(b"x")
        assert log.statistics().failed is not None and "Input/output error" in log.statistics().failed
        assert log.durable_lsn == end, "nothing above is ever called durable"
        assert next(iter(log.read())).lsn == durable, "what is committed is readable"
        log.wait_durable(durable, 0)
    with shmlog.open(log_path) as log:  # a new life, from the files
        assert log.recovery is not None
        assert_healthy(log)
