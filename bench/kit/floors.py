"""Floors: the least that a job could cost on this machine, measured like any contender.

- os.write (peers/files.py): one system call a record, no frame, no checksum
- empty C call: what Python takes to call a function that does nothing
- mapped file: a copy into a prefaulted map; durable: and fdatasync
- semaphore: two posix_ipc semaphores, posted back and forth by two processes
- crc32c: the crc32c package over a buffer larger than the caches
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
import uuid
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from bench.kit.drivers import StorePeer
from bench.kit.peer import Job, Writer
from bench.kit.records import Digest
from bench.kit.workers import Skipped, Target, run_workers

CRC_BYTES = 64 << 20
MADV_POPULATE_WRITE = 23


class MappedFile(StorePeer):
    """Records copied into a preallocated, prefaulted shared map, one file for each writer.

    There is no frame, no checksum, no order between writers and no end mark: it
    is what the copy (and the sync) alone costs.
    """

    durability = "page cache; no frame, no checksum, no order"
    durable_by = "store and fdatasync in a bare loop"

    def __init__(self, name: str) -> None:
        self.name = name

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        share = job.records_max // job.processes + job.warmup_records + job.block_records + 1
        return _MappedWriter(job.directory / f"{os.getpid()}.map", share * job.record_bytes)

    def records(self, job: Job) -> Iterator[bytes]:
        for path in job.directory.glob("*.map"):
            with path.open("rb") as file:
                while (data := file.read(job.record_bytes)) and any(data[:16]):
                    yield data


class EmptyCall(StorePeer):
    """A call from Python into C, and nothing else."""

    name = "an empty C call"
    durability = "nothing is appended"

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _EmptyWriter(None, append=callable)

    def records(self, job: Job) -> Iterator[bytes]:
        return iter(())

    def read_back(self, job: Job) -> Digest | None:
        return None


class _EmptyWriter(Writer):
    def close(self) -> None:
        pass


class _MappedWriter(Writer):
    def __init__(self, path: Path, map_bytes: int) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self.fd, 0, map_bytes)
        self.map = mmap.mmap(self.fd, map_bytes)
        self.map.madvise(MADV_POPULATE_WRITE)
        os.fsync(self.fd)
        self.array = np.frombuffer(self.map, dtype=np.uint8)
        self.position = 0

    def append(self, data: bytes) -> None:
        end = self.position + len(data)
        self.array[self.position : end] = np.frombuffer(data, dtype=np.uint8)
        self.position = end

    def append_durable(self, data: bytes) -> None:
        self.append(data)
        os.fdatasync(self.fd)

    def close(self) -> None:
        del self.array
        self.map.close()
        os.close(self.fd)


def semaphore_round_trips(rounds: int, rest_s: float) -> list[int]:
    """Latencies, in nanoseconds, of waking a sleeping process and being woken by it."""
    with _semaphores() as names:
        targets: list[Target] = [(_echo, (names, rounds)), (_ping, (names, rounds, rest_s))]
        _echoed, samples = run_workers(targets)
    return list(samples)


def semaphore_relay(rounds: int, rest_s: float) -> list[int]:
    """Latencies, in nanoseconds, from one process to another that sleeps, by way of a third
    that sleeps too: what any log must take whose writers do not wake its readers."""
    with _semaphores() as names, contextlib.closing(mmap.mmap(-1, 8 * rounds)) as stamps:
        targets: list[Target] = [
            (_receive, (names, stamps, rounds)),
            (_echo, (names, rounds)),
            (_send, (names, stamps, rounds, rest_s)),
        ]
        samples, _relayed, _sent = run_workers(targets)
    return list(samples)


@contextlib.contextmanager
def _semaphores() -> Iterator[tuple[str, str]]:
    posix_ipc = _posix_ipc()
    names = (f"/bench-{uuid.uuid4().hex}", f"/bench-{uuid.uuid4().hex}")
    for name in names:
        posix_ipc.Semaphore(name, posix_ipc.O_CREX).close()
    try:
        yield names
    finally:
        for name in names:
            posix_ipc.unlink_semaphore(name)


def _posix_ipc() -> Any:
    try:
        import posix_ipc
    except ImportError:
        raise Skipped("posix_ipc is not installed") from None
    return posix_ipc


def _echo(barrier: Barrier, names: tuple[str, str], rounds: int) -> None:
    there, back = (_posix_ipc().Semaphore(name) for name in names)
    barrier.wait()
    for _ in range(rounds):
        there.acquire()
        back.release()


def _send(barrier: Barrier, names: tuple[str, str], stamps: mmap.mmap, rounds: int, rest_s: float) -> None:
    there = _posix_ipc().Semaphore(names[0])
    begun_ns = np.frombuffer(stamps, np.int64)
    barrier.wait()
    for index in range(rounds):
        time.sleep(rest_s)
        begun_ns[index] = time.monotonic_ns()
        there.release()


def _receive(barrier: Barrier, names: tuple[str, str], stamps: mmap.mmap, rounds: int) -> list[int]:
    back = _posix_ipc().Semaphore(names[1])
    begun_ns = np.frombuffer(stamps, np.int64)
    samples = []
    barrier.wait()
    for index in range(rounds):
        back.acquire()
        samples.append(time.monotonic_ns() - int(begun_ns[index]))
    return samples


def _ping(barrier: Barrier, names: tuple[str, str], rounds: int, rest_s: float) -> list[int]:
    there, back = (_posix_ipc().Semaphore(name) for name in names)
    samples = []
    barrier.wait()
    for _ in range(rounds):
        time.sleep(rest_s)
        begin_ns = time.monotonic_ns()
        there.release()
        back.acquire()
        samples.append(time.monotonic_ns() - begin_ns)
    return samples


def crc32c_bytes_per_s(seconds: float) -> float:
    """How fast the crc32c package goes over memory."""
    try:
        import crc32c
    except ImportError:
        raise Skipped("crc32c is not installed") from None
    buffer = np.random.default_rng(1).bytes(CRC_BYTES)
    count = 0
    begin_s = now_s = time.monotonic()
    while count == 0 or now_s - begin_s < seconds:
        crc32c.crc32c(buffer)
        count += 1
        now_s = time.monotonic()
    return count * CRC_BYTES / (now_s - begin_s)
