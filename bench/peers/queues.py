"""Queues between processes: multiprocessing.Queue, faster-fifo, iceoryx2."""

from __future__ import annotations

import ctypes
import os
import queue
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench.kit.drivers import QueuePeer, outcome_of, wait_durably, wait_twice_aside
from bench.kit.harness import Outcome
from bench.kit.peer import Job, Writer
from bench.kit.records import Digest, digest_of
from bench.kit.workers import CONTEXT, Target, in_child, run_workers

END = b""
FIFO_BYTES = 64 << 20
GROUP_MAX = 1024
RECEIVE_TIMEOUT_S = 30.0


class MpQueue(QueuePeer):
    """multiprocessing.Queue and one process that writes what it receives to a file.

    Durable: that process syncs for everyone it has received from meanwhile and
    then wakes each of them by a semaphore, which is group commit by hand.
    """

    name = "multiprocessing.Queue + writer process"
    durability = "none at put(); page cache once received"
    durable_by = "the writer process fdatasyncs each group, a semaphore wakes each caller"

    def version(self) -> str:
        return ""

    def make_channel(self, job: Job) -> Any:
        return CONTEXT.Queue()

    def discard_channel(self, channel: Any) -> None:
        channel.close()

    def open_sender(self, channel: Any, job: Job) -> Writer:
        return _MpSender(channel, channel.put)

    def collect(self, channel: Any, job: Job, ready: Callable[[], object]) -> Iterable[bytes]:
        fd = _open_log(job)
        ready()
        senders_left = job.processes
        while senders_left:
            data = channel.get()
            if data == END:
                senders_left -= 1
            else:
                os.write(fd, data)
                yield data
        os.close(fd)

    def durable(self, job: Job) -> Outcome:
        self.check(job)
        channel = CONTEXT.Queue()
        wakers = [CONTEXT.Semaphore(0) for _ in range(job.processes * job.threads)]
        targets: list[Target]
        targets = [(_sync_groups, (channel, wakers, job))]
        targets += [(_put_and_wait, (channel, wakers, job, number)) for number in range(job.processes)]
        try:
            _nothing, *spans = run_workers(targets)
        finally:
            channel.close()
        return outcome_of(job, chain.from_iterable(spans), in_child(_digest_log, job))


def _open_log(job: Job) -> int:
    return os.open(job.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _read_log(job: Job) -> Iterator[bytes]:
    with (job.directory / "log").open("rb") as file:
        while data := file.read(job.record_bytes):
            yield data


def _digest_log(job: Job) -> Digest:
    return digest_of(_read_log(job))


def _sync_groups(barrier: Barrier, channel: Any, wakers: Sequence[Any], job: Job) -> None:
    fd = _open_log(job)
    wait_twice_aside(barrier)
    senders_left = job.processes
    while senders_left:
        group = [channel.get()]
        try:
            while len(group) < GROUP_MAX:
                group.append(channel.get_nowait())
        except queue.Empty:
            pass
        records = [(number, data) for number, data in group if data != END]
        senders_left -= len(group) - len(records)
        for _number, data in records:
            os.write(fd, data)
        os.fdatasync(fd)
        for number, _data in records:
            wakers[number].release()
    os.close(fd)


def _put_and_wait(barrier: Barrier, channel: Any, wakers: Sequence[Any], job: Job, writer_no: int) -> Any:
    def call_of(number: int) -> Callable[[bytes], None]:
        def append(data: bytes) -> None:
            channel.put((number, data))
            wakers[number].acquire()

        return append

    numbers = range(writer_no * job.threads, (writer_no + 1) * job.threads)
    callers = _Ending(barrier, lambda: channel.put((writer_no, END)))
    return wait_durably(callers, job, writer_no, [call_of(number) for number in numbers])  # type: ignore[arg-type]


@dataclass
class _Ending:
    """A barrier whose second wait first tells the collector that this process is done."""

    barrier: Barrier
    tell: Callable[[], object]
    waits: int = 0

    def wait(self) -> None:
        self.waits += 1
        if self.waits == 2:
            self.tell()
        self.barrier.wait()


class _MpSender(Writer):
    def close(self) -> None:
        self.store.put(END)
        self.store.close()
        self.store.join_thread()


class FasterFifo(QueuePeer):
    """faster-fifo: a byte queue in shared memory under one lock, without pickling here."""

    name = "faster-fifo"
    package = "faster-fifo"
    durability = "none (shared memory)"

    def make_channel(self, job: Job) -> Any:
        from faster_fifo import Queue

        return Queue(max_size_bytes=FIFO_BYTES, loads=bytes, dumps=_same)

    def open_sender(self, channel: Any, job: Job) -> Writer:
        return _FifoSender(channel, channel.put)

    def collect(self, channel: Any, job: Job, ready: Callable[[], object]) -> Iterable[bytes]:
        ready()
        senders_left = job.processes
        while senders_left:
            for data in channel.get_many(timeout=RECEIVE_TIMEOUT_S):
                if data == _FIFO_END:
                    senders_left -= 1
                else:
                    yield data


# It has no empty messages.
_FIFO_END = b"."


def _same(data: bytes) -> bytes:
    return data


class _FifoSender(Writer):
    def close(self) -> None:
        self.store.put(_FIFO_END)


class Iceoryx2(QueuePeer):
    """iceoryx2 publish-subscribe of byte slices, the publisher waiting for room."""

    name = "iceoryx2"
    package = "iceoryx2"
    durability = "none (shared memory)"

    def make_channel(self, job: Job) -> str:
        return f"bench{uuid.uuid4().hex[:12]}_"

    def discard_channel(self, channel: str) -> None:
        # iceoryx2 leaves its node management segment behind, even on a clean exit.
        for path in Path("/dev/shm").glob(channel + "*"):
            path.unlink(missing_ok=True)

    def open_sender(self, channel: str, job: Job) -> Writer:
        return _IceoryxPublisher(channel, job)

    def collect(self, channel: str, job: Job, ready: Callable[[], object]) -> Iterable[memoryview]:
        _node, service = _iceoryx_service(channel, job)
        subscriber = service.subscriber_builder().buffer_size(_ICEORYX_SLOTS).create()
        ready()
        senders_left = job.processes
        while senders_left:
            sample = subscriber.receive()
            if sample is None:
                os.sched_yield()
                continue
            view = sample.payload().as_memory_view()
            if len(view) < job.record_bytes:
                senders_left -= 1
            else:
                yield view
            sample.delete()


_ICEORYX_SLOTS = 64


def _iceoryx_service(channel: str, job: Job) -> tuple[Any, Any]:
    import iceoryx2

    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    config = iceoryx2.config.default()
    config.global_cfg.prefix = iceoryx2.FileName.new(channel)
    config.global_cfg.root_path = iceoryx2.Path.new(f"{job.directory}/")
    node = (
        iceoryx2.NodeBuilder.new()
        .config(config)
        .signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
        .create(iceoryx2.ServiceType.Ipc)
    )
    service = (
        node.service_builder(iceoryx2.ServiceName.new("bench"))
        .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
        .enable_safe_overflow(False)
        .max_publishers(job.processes)
        .max_nodes(job.processes + 1)
        .subscriber_max_buffer_size(_ICEORYX_SLOTS)
        .open_or_create()
    )
    return node, service


class _IceoryxPublisher(Writer):
    def __init__(self, channel: str, job: Job) -> None:
        import iceoryx2

        self.node, self.service = _iceoryx_service(channel, job)
        self.publisher = (
            self.service.publisher_builder()
            .initial_max_slice_len(job.record_bytes)
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )

    def append(self, data: bytes) -> None:
        sample = self.publisher.loan_slice_uninit(len(data))
        ctypes.memmove(sample.payload_ptr, data, len(data))
        sample.assume_init().send()

    def close(self) -> None:
        self.append(END + b".")
