"""Wake-up: from an append in one process to the record in another that was asleep.

Every contender rests between rounds, so that the receiver really sleeps. The
record carries the time of its append; CLOCK_MONOTONIC is one clock for all
processes. The baseline is a semaphore's round trip, there and back. The relay has
the shape that a log with a flusher has: the writer wakes it, and it wakes the reader.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench.kit.floors import semaphore_relay, semaphore_round_trips
from bench.kit.harness import Contender, Heat, Options, Outcome, latency
from bench.kit.subject import on_log, open_log
from bench.kit.workers import CONTEXT, in_child, run_workers

REST_S = 0.0005
ROUNDS = 1000
ROUNDS_TOY = 20
RECORD_BYTES = 128
RECEIVE_TIMEOUT_S = 30.0
COLUMNS = ("p50_us", "p90_us", "p99_us", "max_us")
_STAMP = struct.Struct("<q")
_PADDING = bytes(RECORD_BYTES - _STAMP.size)


def heats(options: Options) -> Iterator[Heat]:
    rounds = ROUNDS_TOY if options.toy else ROUNDS

    def floor(measure: Callable[[int, float], list[int]]) -> Callable[[Path], Outcome]:
        return lambda _directory: Outcome(latency(measure(rounds, REST_S)))

    def pipe(_directory: Path) -> Outcome:
        ends = os.pipe()
        try:
            return _one_way(_read_pipe, _write_pipe, ends, rounds)
        finally:
            for fd in ends:
                os.close(fd)

    def mp_queue(_directory: Path) -> Outcome:
        channel = CONTEXT.Queue()
        try:
            return _one_way(_get_from_queue, _put_into_queue, channel, rounds)
        finally:
            channel.close()

    def tail(log: Path) -> Outcome:
        in_child(_create, log)
        return _one_way(_tail, _append, log, rounds)

    yield Heat(
        title=f"wake-up, {RECORD_BYTES} B",
        contenders=[
            Contender("semaphore round trip", floor(semaphore_round_trips), "there and back"),
            Contender("semaphore relay", floor(semaphore_relay), "one way, by way of a third process"),
            Contender("pipe", pipe, "one way"),
            Contender("multiprocessing.Queue", mp_queue, "one way, by its feeder thread"),
            on_log("shmlog tail", tail, "one way, by way of the flusher"),
        ],
        columns=COLUMNS,
        compare="p50_us",
    )


def _one_way(receive: Callable[..., Any], send: Callable[..., Any], channel: Any, rounds: int) -> Outcome:
    samples, _sent = run_workers([(receive, (channel, rounds)), (_send_all, (send, channel, rounds))])
    return Outcome(latency(samples))


def _send_all(barrier: Barrier, send: Callable[..., Any], channel: Any, rounds: int) -> None:
    def stamped() -> Iterator[Callable[[], bytes]]:
        for _ in range(rounds):
            time.sleep(REST_S)
            yield lambda: _STAMP.pack(time.monotonic_ns()) + _PADDING

    send(barrier, channel, stamped())


def _since(data: Any) -> int:
    now_ns = time.monotonic_ns()
    return now_ns - int(_STAMP.unpack_from(data)[0])


def _create(directory: Path) -> None:
    open_log(directory, create=True).close()


def _append(barrier: Barrier, directory: Path, stamped: Iterator[Callable[[], bytes]]) -> None:
    with open_log(directory) as log:
        barrier.wait()
        for stamp in stamped:
            log.append(stamp())


def _tail(barrier: Barrier, directory: Path, rounds: int) -> list[int]:
    with open_log(directory) as log:
        log.append(b"so that the flusher runs")
        log.wait_committed()
        records = log.tail(start=log.committed_lsn, timeout=RECEIVE_TIMEOUT_S)
        barrier.wait()
        return [_since(record.data) for record in islice(records, rounds)]


def _write_pipe(barrier: Barrier, ends: tuple[int, int], stamped: Iterator[Callable[[], bytes]]) -> None:
    barrier.wait()
    for stamp in stamped:
        os.write(ends[1], stamp())


def _read_pipe(barrier: Barrier, ends: tuple[int, int], rounds: int) -> list[int]:
    barrier.wait()
    return [_since(os.read(ends[0], RECORD_BYTES)) for _ in range(rounds)]


def _put_into_queue(barrier: Barrier, channel: Any, stamped: Iterator[Callable[[], bytes]]) -> None:
    barrier.wait()
    for stamp in stamped:
        channel.put(stamp())
    channel.close()
    channel.join_thread()


def _get_from_queue(barrier: Barrier, channel: Any, rounds: int) -> list[int]:
    barrier.wait()
    return [_since(channel.get(timeout=RECEIVE_TIMEOUT_S)) for _ in range(rounds)]
