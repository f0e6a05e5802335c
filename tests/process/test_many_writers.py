"""Many writers at once: processes made in every way, threads, and rolls on the way."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    check_records,
    payload,
    until,
)

import shmlog
from shmlog.disk.segments import map_segment

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

RECORDS = 1200


def _write(path: Path, writer: int, count: int, most: int = 2000) -> list[int]:
    with shmlog.open(path) as log:
        return append_some(log, writer, count, most=most)


def _write_child(wire: Wire, path: Path, writer: int, count: int, most: int) -> list[int]:
    return _write(path, writer, count, most)


def _write_queue(queue: Any, path: Path, writer: int, count: int) -> None:
    queue.put((writer, _write(path, writer, count)))


def _write_pickled(log: shmlog.Log, writer: int, count: int) -> list[int]:
    return append_some(log, writer, count)


_inherited: shmlog.Log | None = None


def _write_inherited(writer: int, count: int) -> tuple[int, list[int]]:
    assert _inherited is not None
    return os.getpid(), append_some(_inherited, writer, count)


def _close_inherited() -> None:
    assert _inherited is not None
    _inherited.close()


def _segments(path: Path) -> int:
    return len(list((path / "segments").iterdir()))


@pytest.mark.parametrize("segment_bytes", [64 << 10, 256 << 10, 1 << 20])
def test_forked_writers_lose_and_double_no_record_over_rolls(log_path: Path, segment_bytes: int) -> None:
    most = 8000
    with (
        shmlog.open(log_path, create=True, segment_bytes=segment_bytes, window_bytes=1 << 20) as log,
        contextlib.ExitStack() as stack,
    ):
        children = {
            writer: stack.enter_context(Child(_write_child, log_path, writer, RECORDS, most))
            for writer in (1, 2, 3)
        }
        returned = {n: child.result() for n, child in children.items()}
        check_records(log, returned)
        assert _segments(log_path) >= log.committed_lsn // segment_bytes > 2
        assert log.statistics().records == 3 * RECORDS
        assert log.statistics().holes_filled == 0
        assert_healthy(log)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_writers_of_every_start_method_share_a_log(log_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        queue = context.SimpleQueue()
        workers = [context.Process(target=_write_queue, args=(queue, log_path, n, RECORDS)) for n in (1, 2)]
        for worker in workers:
            worker.start()
        returned = dict(queue.get() for _ in workers)
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
            worker.close()
        queue.close()
        check_records(log, returned)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_handle_pickled_as_an_argument_is_opened_by_path_in_the_worker(log_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            futures = {n: pool.submit(_write_pickled, log, n, 400) for n in (1, 2, 3)}
            returned = {n: future.result(60) for n, future in futures.items()}
        check_records(log, returned)


def test_a_pickled_handle_keeps_its_settings_and_is_a_participant_of_its_own(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, timeout=7.5, sync_interval=0.25) as log:
        with pickle.loads(pickle.dumps(log)) as other:
            assert other.path == log.path
            assert (other._timeout, other._sync_interval) == (7.5, 0.25)
            assert other.writer_number != log.writer_number
        log.append(b"the first handle lives on", durable=True)


@pytest.mark.parametrize("kind", ["Pool", "ProcessPoolExecutor"])
def test_a_log_opened_before_a_fork_pool_just_works_in_the_workers(log_path: Path, kind: str) -> None:
    global _inherited
    context = multiprocessing.get_context("fork")
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        _inherited = log
        mine = append_some(log, 0, 100)
        arguments = [(n, 300) for n in range(1, 9)]
        if kind == "Pool":
            pool = context.Pool(2)
            results = pool.starmap(_write_inherited, arguments, chunksize=1)
            pool.close()
            pool.join()
        else:
            with ProcessPoolExecutor(2, mp_context=context) as executor:
                results = list(executor.map(_write_inherited, *zip(*arguments, strict=True)))
        _inherited = None
        returned = {n: lsns for (n, _), (_, lsns) in zip(arguments, results, strict=True)}
        mine += append_some(log, 0, 100, first=100)
        check_records(log, returned | {0: mine})
        numbers = {record.writer for record in log.read()}
        assert len(numbers) == 1 + len({pid for pid, _ in results}), "each process has its own"


def test_a_worker_error_crosses_the_pool_intact(log_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(FileNotFoundError):
            pool.submit(_write, log_path, 1, 1).result(60)
        shmlog.open(log_path, create=True).close()
        with pytest.raises(shmlog.RecordTooLargeError, match="the limit is"):
            pool.submit(_write_too_large, log_path).result(60)


def _write_too_large(path: Path) -> None:
    with shmlog.open(path) as log:
        log.append(bytes(log.record_bytes_max + 1))


def _in_threads(work: Callable[[int], Any], count: int) -> dict[int, Any]:
    """Run work(n) in `count` threads at once; their results, or the first error."""
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def body(n: int) -> None:
        try:
            gate.wait(30)
            results[n] = work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("most", [400, 30_000])
def test_threads_sharing_a_handle_lose_no_record(log_path: Path, most: int) -> None:
    """With large payloads the copy runs without the GIL, so appends really overlap."""
    with shmlog.open(log_path, create=True, segment_bytes=256 << 10, window_bytes=1 << 20) as log:
        returned = _in_threads(lambda n: append_some(log, n, 400, most=most), 6)
        check_records(log, returned)


def test_more_threads_than_claims_wait_for_one_another(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        returned = _in_threads(lambda n: append_some(log, n, 60, most=100_000), 24)
        check_records(log, returned)


def test_threads_and_processes_appending_batches_keep_each_batch_in_order(log_path: Path) -> None:
    def batches(log: shmlog.Log, writer: int) -> list[int]:
        lsns: list[int] = []
        for _ in range(40):
            rows = [payload(writer, len(lsns) + n, 16 + 37 * n) for n in range(30)]
            lsns += log.append_many(rows, writer, atomic=len(lsns) % 60 == 0).tolist()
        return lsns

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        with Child(lambda wire: batches(log, 9)) as child:
            returned = _in_threads(lambda n: batches(log, n), 3)
            returned[9] = child.result()
        check_records(log, returned)


@pytest.mark.parametrize("size", [100, 40_000])
def test_close_during_appends_lets_each_append_finish_or_raise_closed(log_path: Path, size: int) -> None:
    """What returned is there; what raised ClosedError is not."""
    with shmlog.open(log_path, create=True, segment_bytes=1 << 20, window_bytes=4 << 20) as keeper:
        log = shmlog.open(log_path)
        returned: dict[int, list[int]] = {n: [] for n in range(4)}
        closed: list[int] = []

        def work(n: int) -> None:
            try:
                while True:
                    returned[n].append(log.append(payload(n, len(returned[n]), size)))
            except shmlog.ClosedError:
                closed.append(n)

        def close_when_busy() -> None:
            until(lambda: all(len(lsns) > 5 for lsns in returned.values()), "all threads append")
            log.close()

        _in_threads(lambda n: close_when_busy() if n == 4 else work(n), 5)
        assert sorted(closed) == [0, 1, 2, 3]
        check_records(keeper, returned)
        assert keeper.statistics().holes_filled == 0
        assert_healthy(keeper)


def test_close_refused_by_an_open_reservation_leaves_the_handle_usable(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        with log.reserve(10) as reservation:
            log._timeout = 0.05
            with pytest.raises(TimeoutError, match="1 appends or reservations"):
                log.close()
            log._timeout = 30
            reservation.buffer[:] = b"0123456789"
            second = log.append(b"after the refused close", timeout=30)
        log.wait_committed(second, 30)
        assert [bytes(record.data) for record in log.read()] == [b"0123456789", b"after the refused close"]


def test_a_subprocess_started_while_a_log_is_open_does_not_hold_it(log_path: Path) -> None:
    """exec closes the descriptors, so the log can be taken down while the program runs on."""
    log = shmlog.open(log_path, create=True)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        log.append(b"x")
        names = os.listdir(f"/proc/{process.pid}/fd")
        links = [os.readlink(f"/proc/{process.pid}/fd/{name}") for name in names]
        assert not any(str(log_path) in link or "shmlog" in link for link in links)
        log.close()
        with shmlog.open_readonly(log_path) as dead:
            assert not dead.live
            assert dead.recovery is not None and dead.recovery.case.value == "clean"
    finally:
        process.communicate(b"\n", timeout=30)
    assert process.returncode == 0


def test_eight_processes_creating_one_log_at_once_get_the_same_log(log_path: Path) -> None:
    def create(wire: Wire) -> tuple[bytes, int]:
        wire.say("here")
        wire.hear()
        with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
            lsn = log.append(payload(os.getpid(), 0, 64))
            wire.say((log._directory.identity.log_id, os.getpid(), lsn))
            wire.hear()

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(create)) for _ in range(8)]
        for child in children:
            child.hear()
        for child in children:
            child.say("go")
        made = [child.hear() for child in children]
        assert len({log_id for log_id, _, _ in made}) == 1
        with shmlog.open(log_path) as log:
            check_records(log, {pid: [lsn] for _, pid, lsn in made})
            assert log.statistics().flushers == 1
        for child in children:
            child.say("end")
            child.result()


def test_interpreter_exit_with_an_open_handle_and_views_is_quiet_and_loses_nothing(log_path: Path) -> None:
    """No resource-tracker warning, no traceback, and the block goes with its last user."""
    program = f"""
import shmlog
log = shmlog.open({str(log_path)!r}, create=True)
for n in range(100):
    log.append(b'%d' % n)
log.wait_committed()
views = [record.data for record in log.read()]
batch = next(log.read_batches())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    with shmlog.open(log_path) as log:
        log.wait_committed()
        assert [bytes(record.data) for record in log.read()] == [b"%d" % n for n in range(100)]


def test_an_attacher_that_exits_does_not_take_the_control_block_with_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        program = f"import shmlog; shmlog.open({str(log_path)!r}).append(b'x')"
        done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        with shmlog.open(log_path) as second:
            second.append(b"y")
        assert_healthy(log)


@pytest.mark.holds("A5")
def test_a_buffer_that_changes_while_it_is_appended_harms_nobody(log_path: Path) -> None:
    array = np.zeros(1 << 20, np.uint8)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            np.invert(array, out=array)

    with shmlog.open(log_path, create=True) as log:
        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(20):
                log.append(array)
                log.append_many([array[:100], array])
                log.append_array(array.reshape(256, -1))
        finally:
            stop.set()
            thread.join()
        log.append(b"an innocent record", durable=True)
        assert sum(1 for _ in log.read()) == 20 * (1 + 2 + 256) + 1
    assert shmlog.verify(log_path).ok


@pytest.mark.holds("A4")
def test_a_segment_that_is_mapped_late_does_not_replace_a_newer_one(log_path: Path) -> None:
    def use(wire: Wire) -> int:
        with shmlog.open(log_path, timeout=5) as log:
            while log.reserved_lsn < 20 * SEGMENT_BYTES:
                log.append(bytes(30_000))
            open_one = log.reserve(100)
            newest = log._directory.identity.geometry.segment_no(open_one.lsn)
            for number in range(newest):  # as threads do that were descheduled since they asked
                log._map(number, map_segment(log._directory, number * SEGMENT_BYTES, writable=True))
            open_one.abort()
            append_some(log, 0, 10)
        return 0

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        with Child(use) as child:
            child.result()
        log.append(b"x", durable=True)
    assert shmlog.verify(log_path).ok


def test_nobody_dies_and_no_hole_is_filled(log_path: Path) -> None:
    """Many slow reservations, durable waits and idle participants: whoever looks for a hole
    takes long, and the flusher's other threads commit meanwhile."""

    def write(wire: Wire, writer: int) -> list[int]:
        rng = random.Random(writer)
        lsns = []
        with shmlog.open(log_path) as log:
            for sequence in range(400):
                data = payload(writer, sequence, 64)
                with log.reserve(len(data), writer) as reservation:
                    reservation.buffer[:] = data
                    until_ns = time.monotonic_ns() + rng.randrange(3_000_000) * rng.randrange(2)
                    while time.monotonic_ns() < until_ns:
                        pass
                lsns.append(reservation.lsn)
                if writer % 3:
                    log.wait_durable(reservation.lsn, 30)
        return lsns

    with shmlog.open(log_path, create=True) as log, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(shmlog.open(log_path))
        children = [stack.enter_context(Child(write, writer)) for writer in range(6)]
        returned = {writer: child.result() for writer, child in enumerate(children)}
        assert log.statistics().holes_filled == 0
        check_records(log, returned)
