"""Rolling to the next segment: the slowest appends with and without it.

The same records go into a log of one large segment and into one of small
segments; every append is timed, and so is the same loop on a plain file, to show
what the machine itself does to the tail of the distribution.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.kit.harness import Contender, Heat, Options, Outcome, alone, latency
from bench.kit.peer import Job, job_of
from bench.kit.records import Digest, digest_of, expected_digest, pool
from bench.kit.subject import on_log, open_log
from bench.peers.files import OsWrite

RECORD_BYTES = 1024
APPENDS_MAX = 200_000
SMALL_SEGMENT_BYTES = 1 << 22
FRAME_BYTES_MAX = 64
WARMUP = 64
COLUMNS = ("p50_us", "p99_us", "p99.9_us", "max_us", "rolls")


def heats(options: Options) -> Iterator[Heat]:
    job = job_of(options, RECORD_BYTES, records_max=APPENDS_MAX)
    appends = job.records_max
    stored = appends * (RECORD_BYTES + FRAME_BYTES_MAX)
    small = min(SMALL_SEGMENT_BYTES, 1 << max(16, (stored // 8).bit_length()))
    large = 1 << stored.bit_length()
    yield Heat(
        title=f"append {RECORD_BYTES} B, {appends} times, with and without rolls",
        contenders=[
            on_log(
                "shmlog without rolls",
                alone(_append_to_log, large, appends),
                f"one segment of {large >> 20} MiB",
            ),
            on_log(
                "shmlog with rolls", alone(_append_to_log, small, appends), f"segments of {small >> 10} KiB"
            ),
            Contender("os.write", alone(_append_to_file, job), "for the machine's own tail"),
        ],
        columns=COLUMNS,
        compare="p99.9_us",
    )


def _append_to_log(directory: Path, segment_bytes: int, appends: int) -> Outcome:
    with open_log(directory, create=True, segment_bytes=segment_bytes) as log:
        samples = _time_each(log.append, appends)
        log.wait_committed()
        digest = digest_of(record.data for record in log.read())
        return _outcome(appends, samples, log.committed_lsn // segment_bytes, digest)


def _append_to_file(directory: Path, job: Job) -> Outcome:
    job = dataclasses.replace(job, directory=directory)
    with contextlib.closing(OsWrite().open_writer(job)) as writer:
        samples = _time_each(writer.append, job.records_max)
    return _outcome(job.records_max, samples, 0, digest_of(OsWrite().records(job)))


def _time_each(append: Callable[[bytes], object], appends: int) -> NDArray[Any]:
    feed = cycle(pool(0, RECORD_BYTES))
    for data in islice(feed, WARMUP):
        append(data)
    times_ns = np.empty(appends + 1, dtype=np.int64)
    now = time.monotonic_ns
    times_ns[0] = now()
    for index, data in enumerate(islice(feed, appends), 1):
        append(data)
        times_ns[index] = now()
    return np.diff(times_ns)


def _outcome(appends: int, samples: NDArray[Any], rolls: int, digest: Digest) -> Outcome:
    expected = expected_digest(0, WARMUP + appends, RECORD_BYTES)
    return Outcome(latency(samples) | {"rolls": rolls}, digest, expected)
