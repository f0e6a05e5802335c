"""Reading a log from its beginning: by record, by batch, as arrays, to Arrow, checksums on and off;
and taking records out of it by their LSNs.

Each contender reads what the same number of `append_array` rows left, twice: once
on the clock, only counting, and once off it to check what it got. The baseline
reads the log's segment files sequentially and does nothing with the bytes.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bench.kit.harness import Contender, Heat, Options, Outcome, alone, throughput
from bench.kit.peer import Job, job_of
from bench.kit.records import digest_of, expected_digest, pool
from bench.kit.subject import fill, on_log, open_log
from bench.kit.workers import Skipped, in_child
from bench.peers import others

SIZES = (128, 4096)
MAX_BYTES = 64 << 20
READ_BYTES = 1 << 20
ARRAYS = 1000
TAKEN = 4096
TAKES = 101
ARRAY_RECORDS = (256, 4096, 65536)
COLUMNS = ("records_per_s", "mb_per_s", "ns_per_record", "us_per_batch")


@dataclass(frozen=True)
class Way:
    """One way to read a log: containers of records, how many each has, and their payloads."""

    name: str
    containers: Callable[[Any, int], Iterator[Any]]
    count: Callable[[Any], int]
    payloads: Callable[[Any], Iterator[Any]]
    package: str = ""
    """that it needs"""


def _batches(verify: bool) -> Callable[[Any, int], Iterator[Any]]:
    return lambda log, _record_bytes: log.read_batches(verify=verify)


def _arrays(log: Any, record_bytes: int) -> Iterator[Any]:
    return (batch.array((np.uint8, record_bytes)) for batch in log.read_batches(verify=False))


def _arrow(log: Any, _record_bytes: int) -> Iterator[Any]:
    return (batch.to_arrow() for batch in log.read_batches(verify=False))


def _scan(package: str, take: Callable[[Any, Any], Any]) -> Callable[[Any, int], Iterator[Any]]:
    """All of a log at once, as what `take(package, scan)` makes of it."""
    return lambda log, _record_bytes: iter([take(importlib.import_module(package), log.scan())])


def _data_of_table(table: Any) -> Iterator[Any]:
    return (item.as_py() for item in table.column("data"))


def _data_of_relation(relation: Any) -> Iterator[Any]:
    return (data for (data,) in relation.project("data").fetchall())


def _counted(relation: Any) -> int:
    return int(relation.aggregate("count(*)").fetchall()[0][0])


def _data_of_batch(batch: Any) -> Iterator[Any]:
    return (record.data for record in batch)


_pyarrow = _scan("pyarrow", lambda arrow, scan: arrow.RecordBatchReader.from_stream(scan).read_all())
_polars = _scan("polars", lambda polars, scan: polars.DataFrame(scan))
_duckdb = _scan("duckdb", lambda duckdb, scan: duckdb.from_arrow(scan))

WAYS = (
    Way("shmlog by record", lambda log, _: log.read(), lambda _: 1, lambda record: iter((record.data,))),
    Way("shmlog indexed, checksum on", _batches(verify=True), len, _data_of_batch),
    Way("shmlog indexed, checksum off", _batches(verify=False), len, _data_of_batch),
    Way("shmlog as arrays, checksum off", _arrays, len, iter),
    Way("shmlog to Arrow, checksum off", _arrow, len, _data_of_table, "pyarrow"),
    Way("shmlog scan to pyarrow", _pyarrow, len, _data_of_table, "pyarrow"),
    Way("shmlog scan to polars", _polars, len, lambda frame: iter(frame["data"]), "polars"),
    Way("shmlog scan counted by DuckDB", _duckdb, _counted, _data_of_relation, "duckdb"),
)


def heats(options: Options) -> Iterator[Heat]:
    for record_bytes in options.sizes_of(SIZES):
        job = job_of(options, record_bytes, records_max=MAX_BYTES // record_bytes)
        yield Heat(
            title=f"read {record_bytes} B records",
            contenders=[
                Contender("read() of the files", alone(_read_file, job), "no parsing at all"),
                *(on_log(way.name, alone(_read, way, job)) for way in WAYS),
                *(peer.contender("read_all", job) for peer in others(options)),
            ],
            columns=COLUMNS,
            compare="mb_per_s",
        )
    yield as_array(options)
    yield taking(options)


def as_array(options: Options) -> Heat:
    """`batch.array()` on batches of different length: it must not depend on it."""
    job = job_of(options, SIZES[0], records_max=ARRAY_RECORDS[-1])
    lengths = [each for each in ARRAY_RECORDS if each <= job.records_max or not options.is_small]
    return Heat(
        title=f"batch.array() of {SIZES[0]} B records",
        contenders=[on_log(f"batch of {records}", alone(_make_arrays, job, records)) for records in lengths],
        columns=("us_per_array", "records"),
        compare="us_per_array",
    )


def _make_arrays(directory: Path, job: Job, records: int) -> dict[str, float]:
    in_child(fill, directory, job.record_bytes, job.records_max)
    with open_log(directory) as log:
        batch = next(log.read_batches(records=records, verify=False))
        begin_ns = time.monotonic_ns()
        for _ in range(ARRAYS):
            array = batch.array((np.uint8, SIZES[0]), copy=False)
        us = (time.monotonic_ns() - begin_ns) / 1e3 / ARRAYS
        return {"us_per_array": us, "records": len(array)}


def taking(options: Options) -> Heat:
    """Records from anywhere by their LSNs, beside the same rows of an array in memory."""
    job = job_of(options, SIZES[0], records_max=MAX_BYTES // SIZES[0])
    dtype = (np.uint8, (job.record_bytes,))
    return Heat(
        title=f"take {TAKEN} records of {SIZES[0]} B",
        contenders=[
            Contender("rows[index] of an array", alone(_take_of_array, job), "no log, no checksum"),
            on_log("shmlog take() as rows", alone(_take, job, lambda log, lsns: log.take(lsns, dtype))),
            on_log("shmlog take() as a batch", alone(_take, job, lambda log, lsns: log.take(lsns))),
        ],
        columns=("us_per_take",),
        compare="us_per_take",
    )


def _take(directory: Path, job: Job, take: Callable[[Any, Any], object]) -> dict[str, float]:
    in_child(fill, directory, job.record_bytes, job.records_max)
    with open_log(directory) as log:
        return _median_us(partial(take, log), np.concatenate([batch.lsn for batch in log.read_batches()]))


def _take_of_array(_directory: Path, job: Job) -> dict[str, float]:
    rows = np.ones((job.records_max, job.record_bytes), np.uint8)
    return _median_us(lambda pick: rows[pick], np.arange(job.records_max))


def _median_us(one: Callable[[Any], object], among: Any) -> dict[str, float]:
    """The median time of one call, each with another pick."""
    random, times = np.random.default_rng(7), []
    for _ in range(TAKES):
        pick = random.choice(among, TAKEN)
        begin_ns = time.monotonic_ns()
        one(pick)
        times.append((time.monotonic_ns() - begin_ns) / 1e3)
    return {"us_per_take": float(np.median(times))}


class _Nothing:
    """A log of which nothing is read."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def scan(self) -> Any:
        return self._log.scan(stop=0)

    def read_batches(self, **_options: Any) -> Iterator[Any]:
        return iter(())


def _read(directory: Path, way: Way, job: Job) -> Outcome:
    if way.package and importlib.util.find_spec(way.package) is None:
        raise Skipped(f"{way.package} is not installed")
    in_child(fill, directory, job.record_bytes, job.records_max)
    with open_log(directory) as log:
        if way.package:  # its import and first use are no part of the time
            for container in way.containers(_Nothing(log), job.record_bytes):
                way.count(container)
        count = containers = 0
        begin_ns = time.monotonic_ns()
        for container in way.containers(log, job.record_bytes):
            count += way.count(container)
            containers += 1
        seconds = (time.monotonic_ns() - begin_ns) / 1e9
        digest = digest_of(chain.from_iterable(map(way.payloads, way.containers(log, job.record_bytes))))
    values = throughput(count, job.record_bytes, seconds) | {"us_per_batch": seconds * 1e6 / containers}
    return Outcome(values, digest, expected_digest(0, job.records_max, job.record_bytes))


def _read_file(directory: Path, job: Job) -> dict[str, float]:
    path = directory / "file"
    lap = b"".join(pool(0, job.record_bytes))
    with path.open("wb") as file:
        for _ in range(0, job.records_max * job.record_bytes, len(lap)):
            file.write(lap)
    begin_ns = time.monotonic_ns()
    with path.open("rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass
    return throughput(job.records_max, job.record_bytes, (time.monotonic_ns() - begin_ns) / 1e9)
