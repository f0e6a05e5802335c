"""The flusher killed, stopped and raced for: it costs no record, no mark goes back, and
there is never a second one."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    block_path,
    check_records,
    flusher_of,
    flusher_pid,
    flusher_pids,
    is_alive,
    kill_flusher,
    nobody_lives,
    payload,
    read_side,
    stopped,
    until,
    write_until_killed,
)

import shmlog
from shmlog.disk import directory
from shmlog.flusher.flusher import Flusher
from shmlog.flusher.open_segments import OpenSegments
from shmlog.format.layout import ROLE_SIDECAR
from shmlog.session import flushers
from shmlog.session.attachment import attach
from shmlog.system.locks import LEASE_BYTE, LockFile

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _marks(log: shmlog.Log) -> tuple[int, int]:
    return log.durable_lsn, log.committed_lsn


def test_a_durable_wait_completes_though_the_flusher_was_killed(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        mine: list[int] = []
        pids = set()
        for n in range(4):
            mine += append_some(log, 0, 20, first=len(mine), seed=n)
            log.wait_durable(timeout=30)
            before = _marks(log)
            pids.add(kill_flusher(log))
            mine.append(log.append(payload(0, len(mine), 50), 0, durable=True, timeout=30))
            durable, committed = _marks(log)
            assert durable > before[0] and committed > before[1]
            assert log.statistics().flushers == n + 2
        assert len(pids) == 4
        check_records(log, {0: mine})
        assert_healthy(log)


def test_the_flusher_killed_under_load_loses_and_doubles_no_record(log_path: Path, tmp_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        sides = {n: tmp_path / f"side-{n}" for n in (1, 2)}
        with contextlib.ExitStack() as stack:
            for n, side in sides.items():
                stack.enter_context(Child(write_until_killed, log_path, n, side)).hear()
            marks = _marks(log)
            for _ in range(6):
                kill_flusher(log)
                goal = log.committed_lsn + (1 << 20)
                until(lambda: log.committed_lsn > goal, "the log goes on")  # noqa: B023
                now = _marks(log)
                assert now[0] >= marks[0] and now[1] >= marks[1], "a mark went back"
                marks = now
        log.wait_durable(timeout=30)
        check_records(log, {n: read_side(side) for n, side in sides.items()}, killed=sides)
        assert log.statistics().flushers >= 7
        assert_healthy(log)


@pytest.mark.holds("W1")
def test_a_waiter_asleep_when_the_flusher_dies_starts_the_next_one(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        with stopped(flusher_pid(log)):
            lsn = log.append(b"y")
            done: list[bool] = []
            waiter = threading.Thread(target=lambda: (log.wait_durable(lsn, 30), done.append(True)))
            waits = log.statistics().waits
            waiter.start()
            until(lambda: log.statistics().waits > waits, "the waiter waits")
            kill_flusher(log)
        waiter.join()
        assert done == [True]
        assert log.durable_lsn > lsn


@pytest.mark.holds("F1")
def test_a_stopped_flusher_is_waited_for_and_never_replaced(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=64 << 10) as log:
        first = log.append(payload(0, 0, 100), durable=True)
        pid = flusher_pid(log)
        mine = [first]
        with stopped(pid):
            mine += append_some(log, 0, 10, first=1)
            with pytest.raises(TimeoutError, match="not durable after"):
                log.wait_durable(timeout=0.7)  # long enough to have started another
            with pytest.raises(TimeoutError, match="not known to be durable"):
                mine.append(log.append(payload(0, 11, 100), durable=True, timeout=0.05))
            with pytest.raises(shmlog.LogFullError, match=rf"the flusher is pid {pid} .*stopped"):
                while True:
                    log.append(payload(9, log.reserved_lsn, 1000), timeout=0.05)
            assert flusher_pid(log) == pid and log.statistics().flushers == 1
            assert log.durable_lsn <= mine[1]
            tail = log.reserved_lsn
        log.wait_durable(timeout=30)
        assert log.durable_lsn >= tail
        assert log.statistics().flushers == 1
        lsns = [record.lsn for record in log.read()]
        assert lsns[:11] == mine and len(lsns) > 12, "also what was not known to be durable"
        assert_healthy(log)


def test_a_backlog_of_many_segments_becomes_durable(log_path: Path) -> None:
    """More segments than one sync takes, left by a flusher that syncs too seldom."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, sync_interval=10_000) as log:
        lsns = [log.append(payload(1, n, 60_000), timeout=30) for n in range(150)]
        log.wait_committed()
        assert log.committed_lsn - log.durable_lsn > 128 * SEGMENT_BYTES
        log.wait_durable(timeout=60)
        assert log.durable_lsn > lsns[-1]
        more = [log.append(payload(1, 150 + n, 60_000), timeout=30) for n in range(150)]
        assert log.durable_lsn < more[0] + (64 << 10), "closing settles the second backlog"
    with shmlog.open_readonly(log_path) as dead:
        assert dead.recovery is not None and dead.recovery.case.value == "clean"
        check_records(dead, {1: lsns + more})


@pytest.mark.holds("F1")
def test_flushers_started_by_hand_at_once_leave_exactly_one(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, flusher="external") as log:
        command = [sys.executable, "-m", "shmlog", "flush", str(log_path)]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
        try:
            lsn = log.append(b"x", durable=True)
            until(lambda: sum(process.poll() is None for process in processes) == 1, "three give up")
            (winner,) = [process for process in processes if process.poll() is None]
            for process in processes:
                if process is not winner:
                    assert process.returncode == 1
                    assert process.stderr is not None
                    assert b"has a flusher already" in process.stderr.read()
            assert flusher_pid(log) == winner.pid
            assert log.statistics().flushers == 1 and log.durable_lsn > lsn
            winner.send_signal(signal.SIGTERM)
            assert winner.wait(30) == 0
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
                assert process.stderr is not None
                process.stderr.close()
        with flusher_of(log_path):
            log.append(b"the next one goes on", durable=True)
            log.close()
    shmlog.open(log_path).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sidecar_told_to_end_settles_first(log_path: Path, number: signal.Signals) -> None:
    with shmlog.open(log_path, create=True, flusher="external") as log:
        with flusher_of(log_path, "--sync-interval", "1000") as process:
            lsn = log.append(b"published, not yet durable")
            log.wait_committed(lsn, 30)
            process.send_signal(number)
            assert process.wait(30) == 0
        assert log.durable_lsn > lsn
        after = log.append(b"nobody flushes")
        with pytest.raises(TimeoutError):
            log.wait_durable(after, 0.1)
        assert log.statistics().flusher_pid is None
        with flusher_of(log_path):
            log.wait_durable(after, 30)
    with shmlog.open(log_path) as log:
        log.wait_committed()
        assert [record.lsn for record in log.read()] == [lsn, after]


@pytest.mark.holds("S3")
def test_a_successor_writes_anew_what_the_dead_flusher_may_have_synced(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an intent or not: another of its threads may have synced and been told of an error."""
    rewritten = []
    monkeypatch.setattr(OpenSegments, "rewrite", lambda _, begin, end: rewritten.append((begin, end)))
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, flusher="external") as log:
        with flusher_of(log_path, "--sync-interval", "1000") as first:
            log.append(b"durable", durable=True)
            for _ in range(200):
                log.append(bytes(1000))
            log.wait_committed()
            first.kill()
            first.wait()
        durable, reserved = log.durable_lsn, log.reserved_lsn
        assert durable < reserved
        where = directory.load(str(log_path))
        lock = LockFile(where.lock_path)
        assert lock.try_lock(LEASE_BYTE)
        joined = attach(where, 0o600, ROLE_SIDECAR, time.monotonic() + 10, lock)
        flusher = Flusher(
            where, joined.control, joined.participants, joined.number, joined.boot_id, 0o600, 1000, True
        )
        try:
            flusher._take_over()
            assert not rewritten, "what is not committed may still be stored to"
            flusher.settle()
            assert log.durable_lsn == reserved
            log.append(b"of the new one's own time")
            flusher.settle()
        finally:
            flusher.close()
            joined.detach()
            lock.close()
        assert log.durable_lsn > reserved
        assert rewritten[0][0] == durable
        assert rewritten[-1][1] == log.durable_lsn, "the zeros that were prepared above it, too"
        assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(rewritten))
        with flusher_of(log_path) as sidecar:
            log.close()
            sidecar.terminate()
            assert sidecar.wait(30) == 0


@pytest.mark.parametrize("mode", ["external", "auto"])
def test_closing_a_handle_does_not_wait_for_a_flusher_that_stays(
    log_path: Path, mode: Literal["auto", "external"]
) -> None:
    shmlog.open(log_path, create=True).close()
    with flusher_of(log_path) as process:
        for n in range(2):
            with shmlog.open(log_path, flusher=mode, timeout=10_000) as log:
                log.append(b"x", durable=True, timeout=30)
                assert log.statistics().flusher_pid == process.pid, n
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not block_path(log_path).exists()


def test_a_flusher_that_leaves_frees_its_lease_before_the_block_goes(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    block, lock = str(block_path(log_path)), LockFile(str(log_path / "LOCK"), 0o600)
    try:
        for n in range(10):
            log = shmlog.open(log_path)
            assert os.path.exists(block)
            closing = threading.Thread(target=log.close)
            closing.start()
            deadline = time.monotonic() + 30
            while os.path.exists(block):
                assert time.monotonic() < deadline, "the block stays"
            assert not lock.locked(LEASE_BYTE), n
            closing.join(30)
    finally:
        lock.close()


def test_an_external_handle_never_starts_a_flusher(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, flusher="external") as log:
        with pytest.raises(shmlog.LogFullError, match="is the flusher running"):
            log.append(b"x", timeout=0.7)
        assert log.statistics().flushers == 0
    shmlog.open(log_path).close()


def test_processes_that_open_a_log_together_start_one_flusher(
    log_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, python = tmp_path / "starts", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $$ >> "{starts}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o700)
    monkeypatch.setenv("SHMLOG_PYTHON", str(python))

    def use(wire: Wire) -> int:
        wire.hear()
        with shmlog.open(log_path) as log:
            log.append(b"x", durable=True, timeout=30)
            wire.say("appended")
            wire.hear()
        return 0

    shmlog.open(log_path, create=True).close()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(use)) for _ in range(8)]
        for child in children:
            child.say("open")
        for child in children:
            child.hear()
        for child in children:
            child.say("close")
        for child in children:
            assert child.result() == 0
    with shmlog.open(log_path) as log:
        assert len(list(log.read())) == 8
    # for the first handle, for those who opened together, for the last; a slow one may be repeated
    assert 3 <= len(starts.read_text().split()) <= 6


def test_the_flusher_takes_no_module_from_the_current_directory(log_path: Path, tmp_path: Path) -> None:
    for name in ("logging.py", "shmlog.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    program = (
        f"import shmlog; shmlog.open({str(log_path)!r}, create=True).append(b'x', durable=True, timeout=20)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    shmlog.open(log_path).close()


def test_a_flusher_outlives_the_process_that_started_it(log_path: Path) -> None:
    def start(wire: object) -> int:
        log = shmlog.open(log_path, create=True)
        log.append(b"x", durable=True)
        return flusher_pid(log)  # and exit without closing

    with Child(start) as child:
        pid = child.hear()
        with shmlog.open(log_path) as log:
            child.kill()
            assert flusher_pid(log) == pid
            assert os.getsid(pid) != os.getsid(0), "a Ctrl-C at the terminal does not reach it"
            assert_healthy(log)
    until(lambda: not is_alive(pid), "it leaves with the last user")
    assert nobody_lives(log_path) and not block_path(log_path).exists()


def test_the_flusher_leaves_though_its_last_user_was_killed(log_path: Path) -> None:
    def use(wire: object) -> tuple[int, int]:
        log = shmlog.open(log_path, create=True)
        return log.append(b"x"), flusher_pid(log)

    with Child(use) as child:
        lsn, pid = child.hear()
    until(lambda: not is_alive(pid) and not block_path(log_path).exists(), "it takes the block down")
    with shmlog.open_readonly(log_path) as dead:
        assert dead.recovery is not None and dead.recovery.case.value == "clean"
        assert dead.durable_lsn > lsn


def test_a_handle_opened_while_the_flusher_is_leaving_gets_a_log_that_works(log_path: Path) -> None:
    """Hand-over, many times: the last close and the next open meet."""
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()

    def worker(wire: object, n: int) -> list[int]:
        lsns = []
        for _ in range(12):
            with shmlog.open(log_path) as log:
                lsns.append(log.append(payload(n, len(lsns), 100), n, durable=len(lsns) % 3 == 0))
        return lsns

    with Child(worker, 1) as one, Child(worker, 2) as two:
        returned = {1: one.result(), 2: two.result()}
    with shmlog.open(log_path) as log:
        check_records(log, returned)
        assert_healthy(log)


@pytest.mark.parametrize("step", ["punch_hole", "sync_mark", "take_down"])
@pytest.mark.holds("F4")
def test_a_flusher_killed_while_it_leaves_costs_nothing(log_path: Path, step: str) -> None:
    kill = "import os, signal\ndef die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
    at = {
        "punch_hole": "from shmlog.flusher import open_segments as live\n"
        "class Native:\n    punch_hole = staticmethod(die)\n    Mapping = live._native.Mapping\n"
        "live._native = Native\n",
        "sync_mark": "from shmlog.flusher.syncing import Syncer\nbefore = Syncer.sync_mark\n"
        "Syncer.sync_mark = lambda self, clean: die() if clean else before(self, clean)\n",
        "take_down": "from shmlog.session import departure\ndeparture.take_down = die\n",
    }[step]
    run = f"from shmlog.session import sidecar\nsidecar.run({str(log_path)!r}, 0.01, 0o600, True)\n"
    with (
        shmlog.open(
            log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=1 << 20, flusher="external"
        ) as log,
        subprocess.Popen([sys.executable, "-c", kill + at + run]) as flusher,
    ):
        mine = append_some(log, 0, 200)
        log.wait_durable()
        log.close()
        assert flusher.wait(30) == -signal.SIGKILL
    assert block_path(log_path).exists()
    with shmlog.open(log_path, timeout=20) as log:
        mine += append_some(log, 0, 800, first=len(mine))
        check_records(log, {0: mine})
        assert_healthy(log)


def test_flushers_that_fail_one_after_the_other_do_not_use_the_slots_up(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushers, "START_AGAIN_S", (0.1, 0.1))
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 0, 500)
        log.wait_durable()
        at_rest = log.statistics()
        missing = log_path / "segments" / f"{log.durable_lsn // SEGMENT_BYTES * SEGMENT_BYTES:020d}.seg"
        for pid in flusher_pids(log_path):
            os.kill(pid, signal.SIGKILL)
            until(lambda: not is_alive(pid), "the flusher is dead")  # noqa: B023
        missing.rename(tmp := log_path / "elsewhere")

        def failed() -> bool:
            with contextlib.suppress(TimeoutError, shmlog.ShmlogError, OSError):
                log.append(b"x", durable=True, timeout=0.3)
            return log.statistics().flushers >= at_rest.flushers + 5

        try:
            until(failed, "five have failed by themselves")
        finally:
            tmp.rename(missing)
        log.wait_durable(timeout=30)
        used = len(log.statistics().participants)
        assert used <= 4, used


def test_a_flusher_that_cannot_be_started_is_an_error_and_costs_nothing_appended(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsn = log.append(b"x", durable=True)
        monkeypatch.setenv("SHMLOG_PYTHON", "/nonexistent/python")
        kill_flusher(log)
        after = log.append(b"y")
        with pytest.raises((OSError, TimeoutError)):
            log.wait_durable(after, 1.0)
        monkeypatch.delenv("SHMLOG_PYTHON")
        log.wait_durable(after, 30)
        assert [record.lsn for record in log.read()] == [lsn, after]
        assert_healthy(log)
