"""What a system must offer to take part, and the drivers that put it to work.

    StorePeer    keeps the records: writers append, a reader reads them back
    QueuePeer    hands them on: senders send, one collector receives
    program.py   (beside this) the same jobs for systems that are not in Python

Invariants
  P1  Only the inner loop is timed, after a warm-up that counts in the digest.
  P2  An append job takes from the moment the last writer is ready to the moment
      the slowest is done; a queue is done when its collector has everything.
  P3  A job ends at `records_max` records or after `seconds`, whichever is first,
      so a slow contender costs no more time than a fast one.

This module knows jobs and digests. It may not know any particular system.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench.kit.harness import Outcome, latency, throughput
from bench.kit.records import Digest, digest_of, expected_digest, pool
from bench.kit.workers import Skipped, Target, in_child, run_workers

BLOCK_BYTES = 1 << 16
BLOCK_RECORDS_MAX = 64
WARMUP_RECORDS_MAX = 256
DURABLE_WARMUP_RECORDS_MAX = 4


@dataclass(frozen=True)
class Job:
    """One measurement: who appends how much, and for how long at most."""

    directory: Path
    record_bytes: int
    records_max: int
    seconds: float
    processes: int = 1
    threads: int = 1
    batch: int = 1
    time_limit_s: float = 120.0

    @property
    def warmup_records(self) -> int:
        return min(self.records_max // 10, WARMUP_RECORDS_MAX) // self.batch * self.batch

    @property
    def durable_warmup_records(self) -> int:
        """What each caller appends before its first wait is timed."""
        return min(self.records_max // 10, DURABLE_WARMUP_RECORDS_MAX)

    @property
    def block_records(self) -> int:
        """How many records to append between two looks at the clock."""
        return max(1, min(BLOCK_RECORDS_MAX, BLOCK_BYTES // self.record_bytes))


class Writer:
    """One process's way in to a store. Methods a store lacks raise `Skipped`."""

    def append(self, data: bytes) -> object:
        """Append one record; return when it is as safe as the peer's `durability` says."""
        raise Skipped("cannot append single records")

    def prepare_batch(self, records: Sequence[bytes]) -> Any:
        """Bring a batch into the form `append_batch` takes; not timed."""
        return list(records)

    def append_batch(self, records: Any) -> object:
        """Append what `prepare_batch` returned, all in one step."""
        raise Skipped("has no batches")

    def append_durable(self, data: bytes) -> object:
        """Append one record; return when it would survive power loss."""
        raise Skipped("is never durable")

    def close(self) -> None:
        """Give back what the writer holds."""


class Peer(ABC):
    """One system, and the jobs it can do. A job it cannot do raises `Skipped`."""

    name: str
    package: str = ""
    durability: str = "none"
    durable_by: str = ""
    single_process: str = ""
    heavy = False

    def version(self) -> str:
        """The version found; raises `Skipped` if the system is not here."""
        if not self.package:
            return ""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise Skipped(f"the package {self.package} is not installed") from None

    def check(self, job: Job) -> None:
        """Raise `Skipped` if this system is missing or cannot take part in such a job."""
        self.version()
        if job.processes > 1 and self.single_process:
            raise Skipped(f"one process only: {self.single_process}")

    def remark(self, durable: bool = False) -> str:
        """What to print beside the figures: the durability level."""
        return self.durable_by if durable else self.durability

    @abstractmethod
    def append(self, job: Job) -> Outcome:
        """Append one record at a time from each of `job.processes` processes."""

    def append_batch(self, job: Job) -> Outcome:
        """The same, `job.batch` records at a time."""
        raise Skipped("has no batches")

    def durable(self, job: Job) -> Outcome:
        """`job.threads` callers in each process, each waiting for every record to be durable."""
        raise Skipped(f"is never durable ({self.durability})")

    def read_all(self, job: Job) -> Outcome:
        """Read what an earlier job left in `job.directory`."""
        raise Skipped("keeps nothing to read again")

    def reopen(self, job: Job) -> Outcome:
        """Time from nothing to ready to append, on what an earlier job left."""
        raise Skipped("keeps nothing to open again")


# Stores


class StorePeer(Peer):
    """A peer that keeps its records in a directory."""

    def create(self, job: Job) -> None:
        """Make an empty store in `job.directory`, in a process of its own."""

    @abstractmethod
    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        """Open the store for appending."""

    @abstractmethod
    def records(self, job: Job) -> Iterator[bytes | memoryview]:
        """Every record kept in the store."""

    def open_callers(self, job: Job) -> list[Writer]:
        """One durable writer for each thread; the same one, where threads may share it."""
        return [self.open_writer(job, durable=True)] * job.threads

    def append(self, job: Job) -> Outcome:
        return self._append(job, _append_one_by_one)

    def append_batch(self, job: Job) -> Outcome:
        return self._append(job, _append_batches)

    def _append(self, job: Job, worker: Callable[..., _Span]) -> Outcome:
        self.check(job)
        in_child(self.create, job, time_limit_s=job.time_limit_s)
        targets = [(worker, (self, job, writer_no)) for writer_no in range(job.processes)]
        spans: list[_Span] = run_workers(targets, job.time_limit_s)
        return _throughput_outcome(job, spans, self._read_back(job))

    def durable(self, job: Job) -> Outcome:
        self.check(job)
        if not self.durable_by:
            raise Skipped(f"is never durable ({self.durability})")
        in_child(self.create, job, time_limit_s=job.time_limit_s)
        targets = [(_append_durably, (self, job, writer_no)) for writer_no in range(job.processes)]
        results: list[list[_Caller]] = run_workers(targets, job.time_limit_s)
        return durable_outcome(job, [caller for each in results for caller in each], self._read_back(job))

    def _read_back(self, job: Job) -> Digest:
        digest: Digest = in_child(_digest_store, self, job, time_limit_s=job.time_limit_s)
        return digest

    def read_all(self, job: Job) -> Outcome:
        self.check(job)
        records, seconds = in_child(_read_store, self, job, time_limit_s=job.time_limit_s)
        return Outcome(throughput(records, job.record_bytes, seconds))

    def reopen(self, job: Job) -> Outcome:
        self.check(job)
        return Outcome({"seconds": in_child(_reopen_store, self, job, time_limit_s=job.time_limit_s)})


@dataclass(frozen=True)
class _Span:
    """When a writer began and ended, and how much it appended."""

    writer_no: int
    begin_ns: int
    end_ns: int
    warmup_records: int
    records: int


@dataclass(frozen=True)
class _Caller:
    """One waiting caller's span and latencies."""

    writer_no: int
    begin_ns: int
    end_ns: int
    warmup_records: int
    latencies_ns: list[int]


def _append_one_by_one(barrier: Barrier, peer: StorePeer, job: Job, writer_no: int) -> _Span:
    with contextlib.closing(peer.open_writer(job)) as writer:
        feed = cycle(pool(writer_no, job.record_bytes))
        return _timed_appends(barrier, job, writer_no, writer.append, feed, step=1)


def _append_batches(barrier: Barrier, peer: StorePeer, job: Job, writer_no: int) -> _Span:
    with contextlib.closing(peer.open_writer(job)) as writer:
        payloads = pool(writer_no, job.record_bytes)
        payloads *= max(1, job.batch // len(payloads))
        batches = [
            writer.prepare_batch(payloads[begin : begin + job.batch])
            for begin in range(0, len(payloads), job.batch)
        ]
        return _timed_appends(barrier, job, writer_no, writer.append_batch, cycle(batches), step=job.batch)


def _timed_appends(
    barrier: Barrier,
    job: Job,
    writer_no: int,
    append: Callable[[Any], object],
    feed: Iterator[Any],
    step: int,
) -> _Span:
    """Feed `append` until the job is over; each call takes `step` records."""
    for data in islice(feed, job.warmup_records // step):
        append(data)
    calls_left = max(1, (job.records_max // job.processes) // step)
    block = max(1, job.block_records // step)
    calls = 0
    barrier.wait()
    begin_ns = time.monotonic_ns()
    deadline_ns = begin_ns + int(job.seconds * 1e9)
    while calls < calls_left and time.monotonic_ns() < deadline_ns:
        for data in islice(feed, block):
            append(data)
        calls += block
    end_ns = time.monotonic_ns()
    # Closing may be slow; it must not disturb those that are still appending.
    barrier.wait()
    return _Span(writer_no, begin_ns, end_ns, job.warmup_records // step * step, calls * step)


def _append_durably(barrier: Barrier, peer: StorePeer, job: Job, writer_no: int) -> list[_Caller]:
    writers = peer.open_callers(job)
    try:
        calls = [writer.append_durable for writer in writers]
        return wait_durably(barrier, job, writer_no, calls)
    finally:
        for writer in {id(writer): writer for writer in writers}.values():
            writer.close()


def wait_durably(
    barrier: Barrier, job: Job, writer_no: int, calls: Sequence[Callable[[bytes], object]]
) -> list[_Caller]:
    """Run each of `calls` in a thread of its own, appending and waiting until the job is over."""
    warm = threading.Barrier(len(calls) + 1)
    start = threading.Barrier(len(calls) + 1)
    callers: list[_Caller] = []
    failures: list[BaseException] = []

    def work(thread_no: int) -> None:
        number = writer_no * len(calls) + thread_no
        feed = cycle(pool(number, job.record_bytes))
        try:
            for data in islice(feed, job.durable_warmup_records):
                calls[thread_no](data)
            warm.wait()
            start.wait()
            callers.append(_timed_durable(job, number, calls[thread_no], feed))
        except BaseException as error:
            failures.append(error)
            warm.abort()
            start.abort()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        warm.wait()
        barrier.wait()
        start.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    barrier.wait()
    return callers


def _timed_durable(
    job: Job, number: int, append: Callable[[bytes], object], feed: Iterator[bytes]
) -> _Caller:
    latencies_ns = []
    begin_ns = now_ns = time.monotonic_ns()
    deadline_ns = begin_ns + int(job.seconds * 1e9)
    records_max = max(1, job.records_max // (job.processes * job.threads))
    for data in islice(feed, records_max):
        append(data)
        before_ns, now_ns = now_ns, time.monotonic_ns()
        latencies_ns.append(now_ns - before_ns)
        if now_ns >= deadline_ns:
            break
    return _Caller(number, begin_ns, now_ns, job.durable_warmup_records, latencies_ns)


def durable_outcome(job: Job, callers: Sequence[_Caller], digest: Digest) -> Outcome:
    """Rate of all callers together and latency of each, with the digest to expect."""
    seconds = (max(each.end_ns for each in callers) - min(each.begin_ns for each in callers)) / 1e9
    samples = [sample for each in callers for sample in each.latencies_ns]
    expected = sum(
        (
            expected_digest(each.writer_no, each.warmup_records + len(each.latencies_ns), job.record_bytes)
            for each in callers
        ),
        Digest(),
    )
    values = throughput(len(samples), job.record_bytes, seconds) | latency(samples)
    return Outcome(values, digest, expected)


def _throughput_outcome(job: Job, spans: Sequence[_Span], digest: Digest, end_ns: int = 0) -> Outcome:
    seconds = (max(end_ns, *(each.end_ns for each in spans)) - min(each.begin_ns for each in spans)) / 1e9
    expected = sum(
        (
            expected_digest(each.writer_no, each.warmup_records + each.records, job.record_bytes)
            for each in spans
        ),
        Digest(),
    )
    records = sum(each.records for each in spans)
    return Outcome(throughput(records, job.record_bytes, seconds), digest, expected)


def _digest_store(peer: StorePeer, job: Job) -> Digest:
    return digest_of(peer.records(job))


def _read_store(peer: StorePeer, job: Job) -> tuple[int, float]:
    begin_ns = time.monotonic_ns()
    count = sum(1 for _ in peer.records(job))
    return count, (time.monotonic_ns() - begin_ns) / 1e9


def _reopen_store(peer: StorePeer, job: Job) -> float:
    begin_ns = time.monotonic_ns()
    with contextlib.closing(peer.open_writer(job)):
        return (time.monotonic_ns() - begin_ns) / 1e9


# Queues


class QueuePeer(Peer):
    """A peer that hands records from many senders to one collector, and keeps none.

    The collector checksums each record as it arrives: that is how it is known
    to have arrived.
    """

    @abstractmethod
    def make_channel(self, job: Job) -> Any:
        """What the parent makes and every child inherits."""

    def discard_channel(self, channel: Any) -> None:
        """Free what `make_channel` made."""

    @abstractmethod
    def open_sender(self, channel: Any, job: Job) -> Writer:
        """A sender; called after the collector is ready."""

    @abstractmethod
    def collect(self, channel: Any, job: Job, ready: Callable[[], object]) -> Iterable[bytes | memoryview]:
        """Receive until every sender has closed; call `ready` once able to receive."""

    def append(self, job: Job) -> Outcome:
        self.check(job)
        channel = in_parent = self.make_channel(job)
        try:
            targets: list[Target]
            targets = [(_collect_all, (self, channel, job))]
            targets += [(_send_all, (self, channel, job, number)) for number in range(job.processes)]
            (digest, end_ns), *spans = run_workers(targets, job.time_limit_s)
        finally:
            self.discard_channel(in_parent)
        return _throughput_outcome(job, spans, digest, end_ns)


def _send_all(barrier: Barrier, peer: QueuePeer, channel: Any, job: Job, writer_no: int) -> _Span:
    barrier.wait()
    with contextlib.closing(peer.open_sender(channel, job)) as sender:
        feed = cycle(pool(writer_no, job.record_bytes))
        return _timed_appends(barrier, job, writer_no, sender.append, feed, step=1)


def _collect_all(barrier: Barrier, peer: QueuePeer, channel: Any, job: Job) -> tuple[Digest, int]:
    def ready() -> None:
        barrier.wait()
        wait_twice_aside(barrier)

    digest = digest_of(peer.collect(channel, job, ready))
    return digest, time.monotonic_ns()


def wait_twice_aside(barrier: Barrier) -> None:
    """Take part in the senders' two waits from a thread, since a collector must receive meanwhile."""
    threading.Thread(target=_wait_twice, args=(barrier,), daemon=True).start()


def _wait_twice(barrier: Barrier) -> None:
    barrier.wait()
    barrier.wait()
