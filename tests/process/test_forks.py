"""Forks of a process that has a log open: the child never keeps the parent's lock alive,
and becomes a participant of its own when it uses the handle."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    block_path,
    check_records,
    is_alive,
    nobody_lives,
    payload,
    until,
)

import shmlog

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_forked_child_appends_under_a_slot_of_its_own(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        mine = append_some(log, 0, 50)

        def use(wire: Wire) -> tuple[int, list[int]]:
            lsns = append_some(log, 1, 50)
            number = log.writer_number
            log.close()
            return number, lsns

        with Child(use) as child:
            number, theirs = child.result()
        assert number != log.writer_number
        mine += append_some(log, 0, 50, first=50)
        check_records(log, {0: mine, 1: theirs})
        assert_healthy(log)


def test_a_forked_child_reads_waits_and_tails_with_the_inherited_handle(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsn = log.append(b"parent's")

        def use(wire: Wire) -> list[bytes]:
            log.wait_durable(lsn)
            before = [bytes(record.data) for record in log.read()]
            own = log.append(b"child's")
            record = next(iter(log.tail(own, timeout=30)))
            log.close()
            return [*before, bytes(record.data)]

        with Child(use) as child:
            assert child.result() == [b"parent's", b"child's"]


def test_a_child_that_closes_the_inherited_handle_does_not_close_the_parents(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsn = log.append(b"x")

        def use(wire: Wire) -> str:
            log.close()
            try:
                log.append(b"y")
            except shmlog.ClosedError:
                return "closed"
            return "open"

        with Child(use) as child:
            assert child.result() == "closed"
        assert log.append(b"z") > lsn
        assert_healthy(log)


@pytest.mark.parametrize("ending", ["_exit", "SIGKILL", "SIGTERM", "abort"])
def test_a_child_that_used_the_log_and_ends_without_closing_stops_nobody(log_path: Path, ending: str) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        mine = append_some(log, 0, 20)

        def use(wire: Wire) -> None:
            wire.say(append_some(log, 1, 20))
            if ending == "_exit":
                os._exit(3)
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.kill(os.getpid(), {"SIGKILL": 9, "SIGTERM": 15, "abort": 6}[ending])

        with Child(use) as child:
            theirs = child.hear()
            assert child.wait() == {"_exit": 3, "SIGKILL": -9, "SIGTERM": -15, "abort": -6}[ending]
        mine += append_some(log, 0, 20, first=20)
        check_records(log, {0: mine, 1: theirs})
        until(
            lambda: [each.pid for each in log.statistics().participants].count(child.pid) == 0,
            "the dead child's slot is given back",
        )
        assert_healthy(log)


def test_a_parents_death_is_noticed_though_its_child_lives_on_and_never_used_the_log(log_path: Path) -> None:
    """The child inherited the descriptor whose lock says that the parent lives."""
    shmlog.open(log_path, create=True).close()

    def parent(wire: Wire) -> None:
        log = shmlog.open(log_path)
        reservation = log.reserve(100)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                os.close(keep_writer)
                os.read(keep_reader, 1)  # until the test has closed its end
            os._exit(0)
        os.close(keep_writer)
        wire.say((child, log.writer_number, reservation.lsn))
        wire.hear()

    keep_reader, keep_writer = os.pipe()
    grandchild = None
    try:
        with shmlog.open(log_path) as log, Child(parent) as child:
            grandchild, number, lsn = child.hear()
            above = log.append(b"above the hole")
            child.kill()
            log.wait_committed(above, 30)
            assert is_alive(grandchild)
            assert [record.lsn for record in log.read()] == [above] and lsn < above
            until(lambda: all(each.number != number for each in log.statistics().participants))
            assert_healthy(log)
        assert is_alive(grandchild)
        assert nobody_lives(log_path) and not block_path(log_path).exists()
    finally:
        os.close(keep_writer)
        os.close(keep_reader)
        if grandchild is not None:
            until(lambda: not is_alive(grandchild), "the grandchild ends")


def test_an_idle_forked_child_does_not_keep_a_closed_log_alive(log_path: Path) -> None:
    log = shmlog.open(log_path, create=True)
    log.append(b"x")
    with Child(lambda wire: wire.hear()) as child:
        log.close()
        assert nobody_lives(log_path) and not block_path(log_path).exists()
        child.say("end")
        child.result()


def test_double_fork_gives_the_grandchild_a_slot_of_its_own(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        mine = append_some(log, 0, 30)

        def middle(wire: Wire) -> tuple[list[int], list[int], int]:
            own = append_some(log, 1, 30)
            with Child(lambda inner: (append_some(log, 2, 30), log.writer_number, log.close())) as child:
                theirs, number, _ = child.result()
            own += append_some(log, 1, 30, first=30)
            assert number != log.writer_number
            log.close()
            return own, theirs, number

        with Child(middle) as child:
            own, theirs, _ = child.result()
        check_records(log, {0: mine, 1: own, 2: theirs})


def test_double_fork_without_use_in_the_middle_still_appends_in_the_grandchild(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:

        def middle(wire: Wire) -> list[int]:
            with Child(lambda inner: (append_some(log, 2, 30), log.close())) as child:
                lsns: list[int] = child.result()[0]
                return lsns

        with Child(middle) as child:
            check_records(log, {2: child.result()})


def test_forks_from_one_thread_while_others_append_lose_and_double_nothing(log_path: Path) -> None:
    """A fork may land in the middle of another thread's append: that belongs to the parent."""
    with shmlog.open(log_path, create=True, segment_bytes=256 << 10, window_bytes=1 << 20) as log:
        returned: dict[int, list[int]] = {0: [], 1: []}
        end = threading.Event()

        def work(n: int) -> None:
            size = 100 if n else 30_000
            while not end.is_set():
                returned[n].append(log.append(payload(n, len(returned[n]), size)))

        threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        try:
            for n in range(2, 22):
                with Child(lambda wire, n: (append_some(log, n, 10), log.close()), n) as child:
                    returned[n] = child.result()[0]
        finally:
            end.set()
            for thread in threads:
                thread.join()
        check_records(log, returned)
        assert log.statistics().holes_filled == 0
        assert_healthy(log)


def test_a_fork_while_another_thread_is_waiting_for_room_leaves_the_child_free(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=64 << 10) as log:
        reservation = log.reserve(100)
        for _ in range(3):
            log.append(bytes(16_000))
        outcome: list[object] = []
        waiter = threading.Thread(target=lambda: outcome.append(log.append(bytes(30_000), timeout=30)))
        waiter.start()
        try:
            until(lambda: log.statistics().waits > 0, "the other thread waits")

            def use(wire: Wire) -> str:
                try:
                    log.append(bytes(30_000), timeout=0.01)
                except shmlog.LogFullError as error:
                    log.close()
                    return str(error)
                return "appended"

            with Child(use) as child:
                assert f"pid {os.getpid()}" in child.result()
        finally:
            reservation.publish()
            waiter.join()
        assert isinstance(outcome[0], int)
        assert_healthy(log)


def test_a_reservation_open_in_the_parent_cannot_be_published_by_the_child(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        reservation = log.reserve(16)
        reservation.buffer[:] = b"the parent's own"

        def use(wire: Wire) -> str:
            try:
                reservation.publish()
            except ValueError as error:
                reservation.abort()
                log.close()
                return str(error)
            return "published"

        with Child(use) as child:
            assert "parent" in child.result()
        above = log.append(b"above")
        with pytest.raises(TimeoutError):
            log.wait_committed(above, 0.02)
        reservation.publish()
        log.wait_committed(above, 30)
        assert [bytes(record.data) for record in log.read()] == [b"the parent's own", b"above"]


def test_a_child_does_not_join_another_log_that_took_the_path_of_its_handle(
    log_path: Path,
) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"old", durable=True)
        old = log_path.rename(log_path.with_name("moved"))
        with shmlog.open(log_path, create=True) as fresh:
            fresh.append(b"new")

            def use(wire: Wire) -> str:
                try:
                    log.append(b"in the wrong log")
                except shmlog.ShmlogError as error:
                    return type(error).__name__
                except OSError as error:
                    return type(error).__name__
                return "appended"

            with Child(use) as child:
                assert child.result() != "appended"
            fresh.wait_committed()
            assert [bytes(record.data) for record in fresh.read()] == [b"new"]
        shutil.rmtree(log_path)
        old.rename(log_path)


def test_the_flusher_is_no_child_of_the_process_that_started_it(log_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with shmlog.open(log_path, create=True) as log:
                log.append(b"x", durable=True)
                with contextlib.suppress(ChildProcessError):
                    os.wait()  # would also find one that has ended
                    os._exit(2)
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_that_python_does_not_see_drops_the_parents_lock_in_the_child(log_path: Path) -> None:
    """fork() called from C, as a library would: no hook of Python's runs."""
    import ctypes

    libc = ctypes.PyDLL(None)  # the GIL stays held: nobody would give it back in the child

    def parent(wire: Wire) -> None:
        log = shmlog.open(log_path)
        reservation = log.reserve(100)
        child = libc.fork()
        if not child:
            while True:
                signal.pause()
        wire.say((child, reservation.lsn))
        wire.hear()

    with shmlog.open(log_path, create=True) as log, Child(parent) as process:
        child, lsn = process.hear()
        try:
            above = log.append(b"above")
            process.kill()
            log.wait_committed(above, 30)
            assert is_alive(child) and lsn < above
            assert [record.lsn for record in log.read()] == [above]
        finally:
            os.kill(child, signal.SIGKILL)
            until(lambda: not is_alive(child), "the child has ended")
