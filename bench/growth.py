"""Cost of a record as the log grows: it must not depend on what is already there.

Each system grows one log and is timed over a window of records at each size. At
full size: `--max-mb 20000`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

from bench.kit.drivers import StorePeer
from bench.kit.harness import Contender, Heat, Options, Outcome
from bench.kit.peer import Job, job_of
from bench.kit.records import expected_digest, pool
from bench.kit.subject import Shmlog
from bench.kit.workers import in_child
from bench.peers.databases import Lmdb, Sqlite
from bench.peers.files import OsWrite

RECORD_BYTES = 1024
BATCH = 64
# A whole number of batches, so that record after record stays in step with the pool.
WINDOW_RECORDS = 32 * BATCH
STEPS_MB = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
STEPS_TOY_MB = (0.25, 0.5)
ENTERED: tuple[StorePeer, ...] = (OsWrite(), Shmlog(), Sqlite(), Lmdb())


def heats(options: Options) -> Iterator[Heat]:
    steps = STEPS_TOY_MB if options.toy else [step for step in STEPS_MB if step * 1e6 <= options.max_bytes]
    columns = [f"ns at {step:g} MB" for step in steps]
    job = dataclasses.replace(job_of(options, RECORD_BYTES), records_max=int(steps[-1] * 1e6) // RECORD_BYTES)

    def entering(peer: StorePeer) -> Contender:
        def run(directory: Path) -> Outcome:
            here = dataclasses.replace(job, directory=directory)
            peer.check(here)
            with peer.kept_running(here):
                in_child(peer.create, here)
                costs, count = in_child(_grow, peer, here, steps)
                digest = peer.read_back(here)
            values = dict(zip(columns, costs, strict=True)) | {"last/first": costs[-1] / costs[0]}
            return Outcome(values, digest, expected_digest(0, count, RECORD_BYTES))

        return Contender(peer.name, run)

    yield Heat(
        title=f"cost of appending {RECORD_BYTES} B as the log grows",
        contenders=[entering(peer) for peer in ENTERED],
        columns=[*columns, "last/first"],
        compare="last/first",
    )


def _grow(peer: StorePeer, job: Job, steps: list[float]) -> tuple[list[float], int]:
    """Nanoseconds per record at each size, and how many records were appended in all."""
    costs = []
    payloads = pool(0, RECORD_BYTES)
    with contextlib.closing(peer.open_writer(job)) as writer:
        for data in payloads[:BATCH]:
            writer.append(data)
        count = BATCH
        batches = [writer.prepare_batch(payloads[at : at + BATCH]) for at in range(0, len(payloads), BATCH)]
        for step in steps:
            while count < step * 1e6 / RECORD_BYTES:
                writer.append_batch(batches[count // BATCH % len(batches)])
                count += BATCH
            begin_ns = time.monotonic_ns()
            for index in range(count, count + WINDOW_RECORDS):
                writer.append(payloads[index % len(payloads)])
            costs.append((time.monotonic_ns() - begin_ns) / WINDOW_RECORDS)
            count += WINDOW_RECORDS
    return costs, count
