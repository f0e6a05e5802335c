"""Rolling to the next segment: the slowest appends with and without it.

The same records go into a log of one large segment and into one of small
segments; every append is timed, and so is the same loop on a plain file, to show
what the machine itself does to the tail of the distribution.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.kit.harness import Contender, Goal, Heat, Options, Outcome, latency, main
from bench.kit.peer import Job
from bench.kit.records import Digest, digest_of, expected_digest, pool
from bench.kit.subject import flusher_seen_off, open_log, require_shmlog
from bench.kit.workers import in_child
from bench.peers.files import OsWrite

RECORD_BYTES = 1024
APPENDS_MAX = 200_000
SMALL_SEGMENT_BYTES = 1 << 22
FRAME_BYTES_MAX = 64
WARMUP = 64
COLUMNS = ("p50_us", "p99_us", "p99.9_us", "max_us", "rolls")
BASELINE = "shmlog without rolls"


def heats(options: Options) -> Iterator[Heat]:
    appends = max(100, min(APPENDS_MAX, options.max_bytes // RECORD_BYTES))
    stored = appends * (RECORD_BYTES + FRAME_BYTES_MAX)
    small = min(SMALL_SEGMENT_BYTES, 1 << max(16, (stored // 8).bit_length()))
    large = 1 << stored.bit_length()
    yield Heat(
        title=f"append {RECORD_BYTES} B, {appends} times, with and without rolls",
        contenders=[
            Contender(BASELINE, _shmlog(large, appends, options), f"one segment of {large >> 20} MiB"),
            Contender(
                "shmlog with rolls", _shmlog(small, appends, options), f"segments of {small >> 10} KiB"
            ),
            Contender("os.write", _os_write(appends, options), "for the machine's own tail"),
        ],
        columns=COLUMNS,
        compare="p99.9_us",
        baseline=BASELINE,
        parameters={"record_bytes": RECORD_BYTES, "appends": appends, "segment_bytes": small},
        goals=(Goal("shmlog with rolls", at_most=2),),
    )


def _shmlog(segment_bytes: int, appends: int, options: Options) -> Callable[[Path], Outcome]:
    def run(directory: Path) -> Outcome:
        require_shmlog()
        with flusher_seen_off(directory / "log"):
            samples, rolls, digest = in_child(
                _append_to_log, directory / "log", segment_bytes, appends, time_limit_s=options.time_limit_s
            )
        return Outcome(latency(samples) | {"rolls": rolls}, digest, _expected(appends))

    return run


def _append_to_log(directory: Path, segment_bytes: int, appends: int) -> tuple[NDArray[Any], int, Digest]:
    with open_log(directory, create=True, segment_bytes=segment_bytes) as log:
        samples = _time_each(log.append, appends)
        log.wait_committed()
        digest = digest_of(record.data for record in log.read())
        return samples, log.committed_lsn // segment_bytes, digest


def _os_write(appends: int, options: Options) -> Callable[[Path], Outcome]:
    def run(directory: Path) -> Outcome:
        samples, digest = in_child(
            _append_to_file, directory, appends, options, time_limit_s=options.time_limit_s
        )
        return Outcome(latency(samples) | {"rolls": 0}, digest, _expected(appends))

    return run


def _append_to_file(directory: Path, appends: int, options: Options) -> tuple[NDArray[Any], Digest]:
    job = Job(directory, RECORD_BYTES, appends, options.seconds)
    writer = OsWrite().open_writer(job)
    samples = _time_each(writer.append, appends)
    writer.close()
    return samples, digest_of(OsWrite().records(job))


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


def _expected(appends: int) -> Digest:
    return expected_digest(0, WARMUP + appends, RECORD_BYTES)


if __name__ == "__main__":
    sys.exit(main("roll", heats))
