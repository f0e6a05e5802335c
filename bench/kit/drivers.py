"""The drivers that put a system to work, by what becomes of its records.

    StorePeer    keeps them: writers append, a reader reads them back
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
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from multiprocessing.synchronize import Barrier
from typing import Any

from bench.kit.harness import Outcome, latency, throughput
from bench.kit.peer import Job, Peer, Writer
from bench.kit.records import Digest, digest_of, expected_of_all, pool
from bench.kit.workers import Skipped, Target, in_child, run_workers

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

    def kept_running(self, job: Job) -> contextlib.AbstractContextManager[object]:
        """What must run beside the writers; nothing, for most."""
        return contextlib.nullcontext()

    def open_callers(self, job: Job) -> list[Writer]:
        """One durable writer for each thread; the same one, where threads may share it."""
        return [self.open_writer(job, durable=True)] * job.threads

    def append(self, job: Job) -> Outcome:
        return self._append(job, _append_one_by_one)

    def append_batch(self, job: Job) -> Outcome:
        return self._append(job, _append_batches)

    def durable(self, job: Job) -> Outcome:
        self.check(job)
        if not self.durable_by:
            raise Skipped(f"is never durable ({self.durability})")
        return self._append(job, _append_durably)

    def _append(self, job: Job, worker: Callable[..., list[Span]]) -> Outcome:
        self.check(job)
        with self.kept_running(job):
            in_child(self.create, job)
            spans = run_workers([(worker, (self, job, writer_no)) for writer_no in range(job.processes)])
            return outcome_of(job, chain.from_iterable(spans), self.read_back(job))

    def read_back(self, job: Job) -> Digest | None:
        """The digest of everything that an earlier job left; None of what keeps nothing."""
        digest: Digest | None = in_child(_digest_store, self, job)
        return digest

    def read_all(self, job: Job) -> Outcome:
        self.check(job)
        records, seconds = in_child(_read_store, self, job)
        return Outcome(throughput(records, job.record_bytes, seconds))

    def reopen(self, job: Job) -> Outcome:
        self.check(job)
        return Outcome({"seconds": in_child(_reopen_store, self, job)})


@dataclass(frozen=True)
class Span:
    """When a writer or waiting caller began and ended, and how much it appended."""

    writer_no: int
    begin_ns: int
    end_ns: int
    warmup_records: int
    records: int
    latencies_ns: Sequence[int] = ()
    """of each record, if it was waited for"""


def outcome_of(job: Job, spans: Iterable[Span], digest: Digest | None, end_ns: int = 0) -> Outcome:
    """Rate of all writers together, and latency if they waited, with the digest to expect."""
    spans = list(spans)
    seconds = (max(end_ns, *(each.end_ns for each in spans)) - min(each.begin_ns for each in spans)) / 1e9
    values = throughput(sum(each.records for each in spans), job.record_bytes, seconds)
    if samples := [sample for each in spans for sample in each.latencies_ns]:
        values |= latency(samples)
    counts = ((each.writer_no, each.warmup_records + each.records) for each in spans)
    return Outcome(values, digest, expected_of_all(counts, job.record_bytes) if digest else None)


def _append_one_by_one(barrier: Barrier, peer: StorePeer, job: Job, writer_no: int) -> list[Span]:
    with contextlib.closing(peer.open_writer(job)) as writer:
        feed = cycle(pool(writer_no, job.record_bytes))
        return [_timed_appends(barrier, job, writer_no, writer.append, feed, step=1)]


def _append_batches(barrier: Barrier, peer: StorePeer, job: Job, writer_no: int) -> list[Span]:
    with contextlib.closing(peer.open_writer(job)) as writer:
        payloads = pool(writer_no, job.record_bytes)
        payloads *= max(1, job.batch // len(payloads))
        batches = [
            writer.prepare_batch(payloads[begin : begin + job.batch])
            for begin in range(0, len(payloads), job.batch)
        ]
        return [_timed_appends(barrier, job, writer_no, writer.append_batch, cycle(batches), step=job.batch)]


def _timed_appends(
    barrier: Barrier,
    job: Job,
    writer_no: int,
    append: Callable[[Any], object],
    feed: Iterator[Any],
    step: int,
) -> Span:
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
    return Span(writer_no, begin_ns, end_ns, job.warmup_records // step * step, calls * step)


def _append_durably(barrier: Barrier, peer: StorePeer, job: Job, writer_no: int) -> list[Span]:
    writers = peer.open_callers(job)
    try:
        calls = [writer.append_durable for writer in writers]
        return wait_durably(barrier, job, writer_no, calls)
    finally:
        for writer in {id(writer): writer for writer in writers}.values():
            writer.close()


def wait_durably(
    barrier: Barrier, job: Job, writer_no: int, calls: Sequence[Callable[[bytes], object]]
) -> list[Span]:
    """Run each of `calls` in a thread of its own, appending and waiting until the job is over."""
    warm = threading.Barrier(len(calls) + 1)
    start = threading.Barrier(len(calls) + 1)
    spans: list[Span] = []
    failures: list[BaseException] = []

    def work(thread_no: int) -> None:
        number = writer_no * len(calls) + thread_no
        feed = cycle(pool(number, job.record_bytes))
        try:
            for data in islice(feed, job.durable_warmup_records):
                calls[thread_no](data)
            warm.wait()
            start.wait()
            spans.append(_timed_durable(job, number, calls[thread_no], feed))
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
    return spans


def _timed_durable(job: Job, number: int, append: Callable[[bytes], object], feed: Iterator[bytes]) -> Span:
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
    return Span(number, begin_ns, now_ns, job.durable_warmup_records, len(latencies_ns), latencies_ns)


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
            (digest, end_ns), *spans = run_workers(targets)
        finally:
            self.discard_channel(in_parent)
        return outcome_of(job, spans, digest, end_ns)


def _send_all(barrier: Barrier, peer: QueuePeer, channel: Any, job: Job, writer_no: int) -> Span:
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
