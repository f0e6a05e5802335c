"""Reading a log from its beginning: by record, by batch, as arrays, to Arrow, checksums on and off.

Each contender reads what the same number of `append_array` rows left, twice: once
on the clock, only counting, and once off it to check what it got. The baseline
reads the log's segment files sequentially and does nothing with the bytes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bench.kit.harness import Contender, Goal, Heat, Options, Outcome, chosen, main, throughput
from bench.kit.peer import Job, job_of
from bench.kit.records import Digest, digest_of, expected_digest, pool
from bench.kit.subject import fill, on_log, open_log
from bench.kit.workers import in_child
from bench.peers import others

SIZES = (128, 4096)
MAX_BYTES = 64 << 20
READ_BYTES = 1 << 20
ARRAYS = 1000
ARRAY_RECORDS = (256, 4096, 65536)
COLUMNS = ("records_per_s", "mb_per_s", "ns_per_record", "us_per_batch")


@dataclass(frozen=True)
class Way:
    """One way to read a log: containers of records, how many each has, and their payloads."""

    name: str
    containers: Callable[[Any, int], Iterator[Any]]
    count: Callable[[Any], int]
    payloads: Callable[[Any], Iterator[Any]]


def _batches(verify: bool) -> Callable[[Any, int], Iterator[Any]]:
    return lambda log, _record_bytes: log.read_batches(verify=verify)


def _arrays(log: Any, record_bytes: int) -> Iterator[Any]:
    return (batch.array((np.uint8, record_bytes)) for batch in log.read_batches(verify=False))


def _arrow(log: Any, _record_bytes: int) -> Iterator[Any]:
    return (batch.to_arrow() for batch in log.read_batches(verify=False))


def _data_of_batch(batch: Any) -> Iterator[Any]:
    return (record.data for record in batch)


WAYS = (
    Way("shmlog by record", lambda log, _: log.read(), lambda _: 1, lambda record: iter((record.data,))),
    Way("shmlog indexed, checksum on", _batches(verify=True), len, _data_of_batch),
    Way("shmlog indexed, checksum off", _batches(verify=False), len, _data_of_batch),
    Way("shmlog as arrays, checksum off", _arrays, len, iter),
    Way("shmlog to Arrow", _arrow, len, lambda table: (item.as_py() for item in table.column("data"))),
)


def heats(options: Options) -> Iterator[Heat]:
    for record_bytes in chosen((128,) if options.toy else SIZES, options.sizes):
        job = job_of(options, record_bytes, records_max=MAX_BYTES // record_bytes)
        goals = (
            Goal("shmlog indexed, checksum off", at_least=20e6, of="records_per_s"),
            Goal("shmlog indexed, checksum on", at_least=5e6, of="records_per_s"),
        )
        yield Heat(
            title=f"read {record_bytes} B records",
            contenders=[
                Contender("read() of the files", _files(job), "no parsing at all"),
                *(on_log(way.name, _reading(way, job)) for way in WAYS),
                *(peer.contender("read_all", job) for peer in others(options)),
            ],
            columns=COLUMNS,
            compare="mb_per_s",
            parameters={"record_bytes": record_bytes, "records": job.records_max},
            goals=goals if record_bytes == SIZES[0] else (),
        )
    yield as_array(options)


def as_array(options: Options) -> Heat:
    """`batch.array()` on batches of different length: it must not depend on it."""
    job = job_of(options, SIZES[0], records_max=ARRAY_RECORDS[-1])

    def entering(records: int) -> Contender:
        def measure(log: Path) -> Outcome:
            in_child(fill, log, job.record_bytes, job.records_max)
            return Outcome(in_child(_make_arrays, log, records))

        return on_log(f"batch of {records}", measure)

    fitting = [records for records in ARRAY_RECORDS if records <= job.records_max]
    return Heat(
        title=f"batch.array() of {SIZES[0]} B records",
        contenders=[entering(records) for records in fitting],
        columns=("us_per_array", "records"),
        compare="us_per_array",
        parameters={"record_bytes": SIZES[0]},
    )


def _make_arrays(directory: Path, records: int) -> dict[str, float]:
    with open_log(directory) as log:
        batch = next(log.read_batches(records=records, verify=False))
        begin_ns = time.monotonic_ns()
        for _ in range(ARRAYS):
            array = batch.array((np.uint8, SIZES[0]), copy=False)
        us = (time.monotonic_ns() - begin_ns) / 1e3 / ARRAYS
        return {"us_per_array": us, "records": len(array)}


def _reading(way: Way, job: Job) -> Callable[[Path], Outcome]:
    def measure(log: Path) -> Outcome:
        in_child(fill, log, job.record_bytes, job.records_max)
        count, containers, seconds, digest = in_child(_read, way, log, job.record_bytes)
        values = throughput(count, job.record_bytes, seconds)
        values["us_per_batch"] = seconds * 1e6 / containers
        return Outcome(values, digest, expected_digest(0, job.records_max, job.record_bytes))

    return measure


def _read(way: Way, directory: Path, record_bytes: int) -> tuple[int, int, float, Digest]:
    with contextlib.suppress(ImportError):
        import pyarrow  # noqa: F401 - so that no way's time includes it
    with open_log(directory) as log:
        count = containers = 0
        begin_ns = time.monotonic_ns()
        for container in way.containers(log, record_bytes):
            count += way.count(container)
            containers += 1
        seconds = (time.monotonic_ns() - begin_ns) / 1e9
        digest = digest_of(chain.from_iterable(map(way.payloads, way.containers(log, record_bytes))))
    return count, containers, seconds, digest


def _files(job: Job) -> Callable[[Path], Outcome]:
    def run(directory: Path) -> Outcome:
        seconds = in_child(_read_file, directory / "file", job)
        return Outcome(throughput(job.records_max, job.record_bytes, seconds))

    return run


def _read_file(path: Path, job: Job) -> float:
    lap = b"".join(pool(0, job.record_bytes))
    with path.open("wb") as file:
        for _ in range(0, job.records_max * job.record_bytes, len(lap)):
            file.write(lap)
    begin_ns = time.monotonic_ns()
    with path.open("rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass
    return (time.monotonic_ns() - begin_ns) / 1e9


if __name__ == "__main__":
    sys.exit(main("read", heats))
