"""Limits: of a process (descriptors, memory, mappings), of the log (participants, sizes, LSNs), and
clocks that jump.  Always an error that says so, and the log goes on."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.namespaces import needs_namespaces, run_in_namespace
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    check_records,
    payload,
)

import shmlog
from shmlog._native import filler
from shmlog.disk import directory, segment
from shmlog.disk.segments import segment_path
from shmlog.format.geometry import LSN_MAX
from shmlog.format.layout import KIND_FILL, SEGMENT_HEADER_BYTES
from shmlog.format.marks import Header, Mark
from shmlog.system import files

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ROLL_BYTES = SEGMENT_BYTES // 2 - 1024
"""Three such records need two segments, and are copied through their maps."""


def _no_descriptors() -> Callable[[], None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _no_address_space() -> Callable[[], None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_AS, before)


def _no_mappings() -> Callable[[], None]:
    """As many as /proc/sys/vm/max_map_count allows are there already: every other page of a
    large one is protected, so that neighbours cannot be merged."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pages = int(Path("/proc/sys/vm/max_map_count").read_text()) + 10
    area = mmap.mmap(-1, pages * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for n in range(0, pages, 2):
        where = ctypes.c_void_p(begin + n * mmap.PAGESIZE)
        if libc.mprotect(where, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ):
            break
    else:
        raise AssertionError("the limit was not reached")
    with contextlib.suppress(OSError):  # the last one or two
        keep = [mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED) for _ in range(4)]
        raise AssertionError(f"{len(keep)} more")

    return area.close


def _under_limit(wire: Wire, path: Path, limit: Callable[[], Callable[[], None]]) -> list[str]:
    outcomes = []
    handles = (shmlog.Log, shmlog.ReadonlyLog)  # now: their modules are read when they are asked for
    log = shmlog.open(path, timeout=5)
    lsns = [log.append(payload(1, 0, 100))]
    log.wait_durable()
    calls: dict[str, Callable[[], object]] = {
        "append": lambda: lsns.append(log.append(payload(1, len(lsns), ROLL_BYTES))),
        "read": lambda: sum(1 for _ in log.read()),
        "open": lambda: shmlog.open(path, timeout=1),
        "readonly": lambda: shmlog.open_readonly(path),
        "cursor": lambda: log.cursor("c").close(),
        "verify": lambda: shmlog.verify(path),
    }
    for _ in range(2):  # what failed once has not spoilt the handle
        give_back = limit()
        try:
            for name, call in itertools.chain([next(iter(calls.items()))] * 3, calls.items()):
                try:
                    made = call()
                except (OSError, MemoryError) as error:
                    outcomes.append(f"{name}: {type(error).__name__}")
                else:
                    if isinstance(made, handles):
                        made.close()
        finally:
            give_back()
    for _ in range(3):
        lsns.append(log.append(payload(1, len(lsns), ROLL_BYTES), durable=True, timeout=30))
    wire.say(lsns)
    log.close()
    return outcomes


@pytest.mark.parametrize("limit", [_no_descriptors, _no_address_space, _no_mappings])
def test_a_process_at_its_limit_gets_an_error_and_its_handle_works_again(
    log_path: Path, limit: Callable[[], Callable[[], None]]
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        with Child(_under_limit, log_path, limit) as child:
            lsns = child.hear()
            outcomes = child.result()
        # a writer without mappings gives one up before it takes the next
        met = "read" if limit is _no_mappings else "append"
        assert any(outcome.startswith(met) for outcome in outcomes), outcomes
        check_records(log, {1: lsns})
        assert log.statistics().holes_filled == 0
        assert_healthy(log)


def test_a_writer_with_a_file_size_limit_appends_as_others_do(log_path: Path) -> None:
    """RLIMIT_FSIZE: a store into a mapping is no write, and the flusher makes the files."""

    def write(wire: Wire) -> list[int]:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with shmlog.open(log_path) as log:
            lsns = append_some(log, 1, 300)
            log.wait_durable()
        return lsns

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append(payload(0, 0, 100), durable=True)
        with Child(write) as child:
            lsns = child.result()
        check_records(log, {0: [0], 1: lsns})


def test_records_of_gigabytes_are_refused_before_anything_is_reserved(log_path: Path) -> None:
    """The memory is never touched: it is not there."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        for size in ((1 << 31) - 1, 1 << 31, (1 << 32) - 32, 1 << 32, (1 << 32) + 1):
            huge = np.zeros(size, np.uint8)
            for call in (
                lambda: log.append(huge),  # noqa: B023
                lambda: log.append_many([b"x", huge]),  # noqa: B023
                lambda: log.append_array(huge.reshape(1, -1)),  # noqa: B023
                lambda: log.reserve(len(huge)),  # noqa: B023
            ):
                with pytest.raises(shmlog.RecordTooLargeError):
                    call()
        assert log.reserved_lsn == 0
        assert_healthy(log, 10)


@pytest.mark.crash
def test_a_million_empty_records_are_all_read(log_path: Path) -> None:
    count = 1 << 20
    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        lsns = log.append_array(np.empty((count, 0), np.uint8))
        log.wait_committed()
        assert np.array_equal(lsns, np.arange(count, dtype=np.uint64) * 32)
        assert sum(len(batch) for batch in log.read_batches()) == count


# ------------------------------------------------------------------ the log's own


def test_the_log_ends_where_its_lsns_do_and_its_last_record_is_read(log_path: Path) -> None:
    """A log whose first segment is the last but one before LSN_MAX."""
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES).close()
    where = directory.load(str(log_path))
    first = LSN_MAX - 2 * SEGMENT_BYTES
    for name in (log_path / "segments").iterdir():
        name.unlink()
    identity = where.identity
    header = Header(identity.log_id, first, SEGMENT_BYTES, 1, 0)
    mark = Mark(1, first + 32, 1, first, True, where.origin(files.boot_id()))
    fd = segment.create(segment_path(where, first), header, mark, identity.geometry, 0o600)
    os.pwrite(fd, filler(KIND_FILL, first, 32, 0, 0, identity.seed), SEGMENT_HEADER_BYTES)
    os.close(fd)
    with shmlog.open(log_path) as log:
        assert (log.trimmed_lsn, log.reserved_lsn) == (first, first + 32)
        lsns = []
        with pytest.raises(shmlog.LogFullError):
            while True:
                lsns.append(log.append(payload(1, len(lsns), 1000), timeout=1))
        assert LSN_MAX - 2 * 1056 < lsns[-1] < LSN_MAX
        log.wait_durable(timeout=30)
        check_records(log, {1: lsns})
        batch = list(log.read_batches())[-1]
        assert int(batch.lsn[-1]) == lsns[-1], "unsigned all the way"
    with shmlog.open(log_path) as log:
        check_records(log, {1: lsns})
        with pytest.raises(shmlog.LogFullError):
            log.append(bytes(2000), timeout=0.5)
    assert shmlog.verify(log_path).ok


@pytest.mark.crash
def test_as_many_handles_as_there_are_slots_and_one_more(log_path: Path) -> None:
    def open_all(wire: Wire) -> int:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        handles = []
        try:
            while True:
                handles.append(shmlog.open(log_path, timeout=1))
        except shmlog.AttachError as error:
            wire.say((len(handles), str(error)))
        for n, log in enumerate(handles):
            log.append(payload(n + 1, 0, 100), n + 1)
        handles[0].wait_durable()
        wire.say("appended")
        os._exit(0)

    with shmlog.open(log_path, create=True) as log:
        with Child(open_all) as child:
            count, message = child.hear(timeout=200)
            # the parent and the flusher have one each
            assert count == 1014 and "all 1016 participant slots" in message
            assert child.hear(timeout=60) == "appended"
            child.wait()
        log.wait_committed()
        assert sum(1 for _ in log.read()) == count
        with contextlib.closing(shmlog.open(log_path)) as another:
            assert_healthy(another)


@pytest.mark.crash
def test_a_process_without_memory_appends_whole_records_or_none(log_path: Path) -> None:
    """MemoryError anywhere in Python's half: the limit is below what each call needs, a little more
    of it each time."""

    def write(wire: Wire) -> list[int]:
        log = shmlog.open(log_path)
        lsns: list[int] = [log.append(payload(1, 0, 100))]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        errors = 0
        for step in range(60):
            records = [payload(1, len(lsns) + n, 5000) for n in range(100)]
            resource.setrlimit(resource.RLIMIT_AS, (used + step * 65536, hard))
            try:
                lsns += log.append_many(records, 1).tolist()
            except (MemoryError, OSError) as error:
                done = getattr(error, "appended", 0)
                errors += 1
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
                log.wait_committed()
                mine = [record.lsn for record in log.read()]
                assert len(mine) == len(lsns) + done
                lsns = mine
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        wire.say(errors)
        log.close()
        return lsns

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        with Child(write) as child:
            assert child.hear() > 0, "memory was short"
            lsns = child.result()
        check_records(log, {1: lsns})
        assert log.statistics().holes_filled == 0


# ------------------------------------------------------------ signals and clocks


def test_a_storm_of_signals_interrupts_no_append_and_no_wait(log_path: Path) -> None:
    """EINTR out of every system call, in a writer and in its flusher."""

    def storm(function: Callable[[], object]) -> object:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        try:
            return function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def flush(wire: Wire) -> object:
        from shmlog.session import sidecar

        return storm(lambda: sidecar.run(str(log_path), 0.001, 0o600, False))

    def write(wire: Wire) -> object:
        def work() -> list[int]:
            with shmlog.open(log_path, flusher="external") as log:
                lsns = []
                for n in range(200):
                    lsns.append(log.append(payload(1, n, 1000), durable=n % 4 == 0))
                return lsns

        return storm(work)

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(flush) as flusher, Child(write) as writer:
        lsns = writer.result()
        flusher.signal(signal.SIGTERM)
        assert flusher.result() == 0
    with shmlog.open(log_path) as log:
        check_records(log, {1: lsns})


_SHIM = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *ahead = getenv("AHEAD_S");
    if (clock == CLOCK_REALTIME && ahead)
        now->tv_sec += atol(ahead);
    return result;
}
"""


def test_a_clock_that_is_years_off_changes_no_order_and_no_promise(log_path: Path, tmp_path: Path) -> None:
    """The wall clock of one writer is ten years ahead, of another before 1970."""
    shim = tmp_path / "shim.so"
    built = subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", shim], input=_SHIM, text=True, capture_output=True
    )
    assert built.returncode == 0, built.stderr
    program = "import shmlog, sys; log = shmlog.open(sys.argv[1]); print(log.append(b'x', durable=True))"
    lsns, times = [], []
    with shmlog.open(log_path, create=True) as log:
        for ahead in (315_360_000, -int(time.time()) - 100_000, 0):
            environment = os.environ | {"LD_PRELOAD": str(shim), "AHEAD_S": str(ahead)}
            command = [sys.executable, "-c", program, str(log_path)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            lsns.append(int(done.stdout))
        records = list(log.read())
        assert [record.lsn for record in records] == sorted(lsns)
        times = [record.time_ns for record in records]
        assert times[0] > times[2] > 0 > times[1], "the clocks were off"
        for time_ns in (*times, 0, 2**63 - 1, -(2**63)):
            assert 0 <= log.seek_time(time_ns) <= log.committed_lsn
        assert_healthy(log)


@pytest.mark.crash
@needs_namespaces
def test_a_process_of_another_time_namespace_shares_the_log(log_path: Path) -> None:
    """Its monotonic clock is eleven days ahead: no wait and no start of a flusher counts on ours."""
    program = """
        import sys
        import shmlog
        from support.processes import append_some
        with shmlog.open(sys.argv[1], timeout=20) as log:
            lsns = append_some(log, 2, 50)
            log.wait_durable()
        print(*lsns)
    """
    with shmlog.open(log_path, create=True, timeout=20) as log:
        log.append(payload(1, 0, 100), durable=True)
        ahead = ("-T", "--monotonic", "1000000", "--boottime", "1000000", "--fork")
        theirs = run_in_namespace("true", program, log_path, unshare=ahead)
        mine = [0, log.append(payload(1, 1, 100), durable=True)]
        check_records(log, {1: mine, 2: [int(lsn) for lsn in theirs.split()]})
    theirs = run_in_namespace("true", program.replace("log, 2", "log, 3"), log_path, unshare=ahead)
    with shmlog.open(log_path) as log:
        assert log.recovery is not None and log.recovery.case.value == "clean"
        assert_healthy(log)


# ----------------------------------------------------------------- ends of threads


@pytest.mark.crash
def test_daemon_threads_that_append_while_the_interpreter_ends_lose_nothing_returned(
    log_path: Path, tmp_path: Path
) -> None:
    program = """
import os, sys, threading
import shmlog
from support.processes import note, payload
log = shmlog.open(sys.argv[1])
started = threading.Barrier(5)
def work(writer):
    fd = os.open(f"{sys.argv[2]}/{writer}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for n in range(10**9):
        note(fd, n, log.append(payload(writer, n, 100), writer))
        if n == 20:
            started.wait()
for writer in range(1, 5):
    threading.Thread(target=work, args=(writer,), daemon=True).start()
started.wait()
"""
    from support.processes import read_side

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, log_path, tmp_path],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    with shmlog.open(log_path) as log:
        sides = {writer: read_side(tmp_path / f"{writer}") for writer in range(1, 5)}
        assert all(len(lsns) > 20 for lsns in sides.values())
        check_records(log, sides, killed=sides)
        assert_healthy(log)
