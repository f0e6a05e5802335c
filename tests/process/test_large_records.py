"""Large records: their payloads go in by a system call, which may be cut short, refused, or lead
to another file than it did.

The C library's pwritev is replaced, in a process of its own, by one that does as it is told.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import shmlog

LARGE = (32767, 32768, 32769, 100_001, 262_144)

SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int64_t pwritev_calls, pwritev_most = -1, pwritev_error, pwritev_error_from;

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    struct iovec first = parts[0];
    if (pwritev_calls++ >= pwritev_error_from && pwritev_error) {
        errno = (int)pwritev_error;
        return -1;
    }
    if (pwritev_most >= 0 && (first.iov_len || count == 1)) {
        if (first.iov_len > (size_t)pwritev_most)
            first.iov_len = (size_t)pwritev_most;
        return pwrite(fd, first.iov_base, first.iov_len, offset);
    }
    return syscall(SYS_pwritev, fd, parts, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev(fd, parts, count, offset);
}
"""
HEAD = """
import ctypes, errno, os, sys
import numpy as np
import shmlog
shim = ctypes.CDLL(None)
def tell(**words):
    for word, value in words.items():
        ctypes.c_int64.in_dll(shim, "pwritev_" + word).value = value
def calls():
    return ctypes.c_int64.in_dll(shim, "pwritev_calls").value
path = sys.argv[1]
log = shmlog.open(path, create=True, segment_bytes=1 << 20, window_bytes=1 << 21)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("shim")
    (where / "shim.c").write_text(SHIM)
    compiler = shlex.split(os.environ.get("CC") or "cc")
    subprocess.run([*compiler, "-shared", "-fPIC", "shim.c", "-o", "shim.so"], cwd=where, check=True)
    return where / "shim.so"


def run(shim: Path, path: Path, program: str) -> None:
    environment = os.environ | {"LD_PRELOAD": str(shim), "SHMLOG_PYTHON": sys.executable}
    command = [sys.executable, "-c", HEAD + program, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert shmlog.verify(path).ok


@pytest.mark.parametrize("size", LARGE)
def test_a_large_record_is_read_back_whole_however_it_was_appended(log_path: Path, size: int) -> None:
    generator = np.random.default_rng(size)
    rows = generator.integers(0, 256, (3, size), np.uint8)
    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        for _ in range(3):  # over the ends of segments
            log.append(rows[0].tobytes())
            log.append(bytearray(rows[1]))
            with log.reserve(size) as reservation:
                reservation.array("u1")[:] = rows[2]
            log.append_array(rows)
            log.append_many([rows[0].tobytes(), b"small", rows[1]], atomic=True)
        log.wait_durable()
        found = [bytes(record.data) for record in log.read()]
    row = [data.tobytes() for data in rows]
    assert found == 3 * [*row, *row, row[0], b"small", row[1]]
    assert shmlog.verify(log_path).ok


def test_bytes_of_a_reservation_changed_after_it_was_published_change_no_record(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        with log.reserve(65536) as reservation:
            mine = reservation.array("u1")
            assert not mine.any()
            mine[:] = 7
        mine[:] = 9
        log.wait_committed()
        assert [bytes(record.data) for record in log.read()] == [b"\7" * 65536]


def test_a_large_reservation_holds_nothing_of_an_earlier_one(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        for size in (200_000, 200_000, 100_000):
            with log.reserve(size) as reservation:
                assert bytes(reservation.buffer) == bytes(size)
                reservation.buffer[:] = b"\xff" * size
            del reservation
        log.wait_committed()
        assert [len(record.data) for record in log.read()] == [200_000, 200_000, 100_000]


@pytest.mark.holds("A5")
def test_an_array_of_a_reservation_that_changes_while_it_is_published_harms_nobody(log_path: Path) -> None:
    views: list[np.ndarray] = []
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for view in views[-1:]:
                np.invert(view, out=view)

    with shmlog.open(log_path, create=True) as log:
        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(20):
                reservation = log.reserve(1 << 20)
                views.append(reservation.array(np.uint8))
                reservation.publish()
        finally:
            stop.set()
            thread.join()
        log.append(b"an innocent record", durable=True)
    assert shmlog.verify(log_path).ok


def test_a_payload_that_the_kernel_takes_in_small_parts_is_whole(shim: Path, log_path: Path) -> None:
    program = """
with log:
    tell(most=5000)
    data = os.urandom(65537)
    for _ in range(20):
        log.append(data)
        log.append(bytearray(data))
    assert calls() > 400, calls()
    log.wait_committed()
    assert all(record.data == data for record in log.read())
"""
    run(shim, log_path, program)


@pytest.mark.holds("H9")
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_payload_that_the_disk_refuses_is_an_error_of_that_record_alone(
    shim: Path, log_path: Path, error: str, at: int
) -> None:
    program = f"""
with log:
    good = [log.append(b"before"), log.append(bytes(65536))]
    def append(): log.append(bytes(65536))
    def many(): log.append_many([b"a", bytes(65536), bytes(65536)], atomic=True)
    def array(): log.append_array(np.zeros((3, 65536), "u1"))
    def reserved():
        with log.reserve(65536): pass
    for way in append, many, array, reserved:
        for _ in range(6):  # over the end of a segment
            tell(error=errno.{error}, calls=0, error_from={at})
            try:
                way()
                raise SystemExit("it was appended")
            except OSError as error:
                assert error.errno == errno.{error}, error
                assert not isinstance(error, shmlog.ShmlogError), error
            tell(error=0)
            good.append(log.append(bytes(40_000), durable=True))
    assert [record.lsn for record in log.read()] == good
    assert log.statistics().failed is None and log.statistics().holes_filled == 0
"""
    run(shim, log_path, program)


@pytest.mark.holds("H9")
def test_a_call_that_cannot_be_made_at_all_stops_no_append(shim: Path, log_path: Path) -> None:
    program = """
with log:
    tell(error=errno.EPERM)
    for _ in range(20):
        log.append(b"x" * 65537)
    assert calls() == 20
    log.wait_committed()
    assert all(record.data == b"x" * 65537 for record in log.read())
"""
    run(shim, log_path, program)


@pytest.mark.holds("H8")
def test_nothing_is_written_to_a_file_that_took_the_descriptors_number(shim: Path, log_path: Path) -> None:
    program = """
with log:
    log.append(bytes(65536))
    segments = os.path.realpath(path) + "/segments"
    numbers = {int(n) for n in os.listdir("/proc/self/fd")}
    mine = [n for n in numbers if os.path.exists(f"/proc/self/fd/{n}")
            and os.readlink(f"/proc/self/fd/{n}").startswith(segments)]
    assert mine
    for n in mine:
        victim = os.open(path + ".victim", os.O_RDWR | os.O_CREAT)
        os.truncate(victim, 8192 + (1 << 20))
        os.dup2(victim, n)
    before = calls()
    log.append(b"x" * 65536, durable=True)
    assert calls() == before
    with open(path + ".victim", "rb") as file:
        assert not any(file.read())
    assert [len(record.data) for record in log.read()] == [65536, 65536]
    for n in mine:
        assert os.path.exists(f"/proc/self/fd/{n}")
for n in mine:
    assert os.readlink(f"/proc/self/fd/{n}").endswith("victim")  # nor closed
os.unlink(path + ".victim")
"""
    run(shim, log_path, program)


@pytest.mark.holds("H8")
def test_a_segment_that_was_cut_is_an_error_and_does_not_grow_again(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        log.append(bytes(65536), durable=True)
        segment = log_path / "segments" / f"{0:020d}.seg"
        os.truncate(segment, 12288)
        with pytest.raises(shmlog.LogFailedError):
            log.append(bytes(65536))
        assert segment.stat().st_size == 12288
