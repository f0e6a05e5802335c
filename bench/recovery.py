"""Opening a log again: closed, killed, and killed with its control block lost; and verifying it.

Recovery is timed at its worst, killed before anything was synced, so that every byte
must be checked and written to the disk, and as it is in use, with the default sync
interval.  The floors are CRC-32C over as many bytes in memory and, for what must
become durable, a plain write and fdatasync of them.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.kit.contenders import contender, job_of, peers
from bench.kit.floors import crc32c_bytes_per_s
from bench.kit.harness import Contender, Goal, Heat, Options, Outcome, main
from bench.kit.peer import Job, Peer
from bench.kit.records import Digest, digest_of, expected_digest
from bench.kit.subject import (
    create_log,
    flusher_seen_off,
    kill_flusher,
    open_log,
    require_shmlog,
    shared_memory_of,
)
from bench.kit.workers import CONTEXT, WorkerError, in_child
from bench.read import append_rows, fill

RECORD_BYTES = 1024
SIZES_MB = (16, 64, 256, 1024)
NEVER_S = 86400.0
SYNC_S = 0.01
"""shmlog's default sync interval"""
COLUMNS = ("seconds", "mb_per_s")
BASELINE = "CRC-32C over memory"


def heats(options: Options) -> Iterator[Heat]:
    fitting = [size for size in SIZES_MB if size * 1e6 <= options.max_bytes] or [1]
    for size_mb in fitting:
        job = job_of(options, RECORD_BYTES)
        yield recovering(options, dataclasses.replace(job, records_max=size_mb * 1_000_000 // RECORD_BYTES))
    yield reopening(options)


def recovering(options: Options, job: Job) -> Heat:
    total = job.records_max * RECORD_BYTES

    def crc(_directory: Path) -> Outcome:
        rate = crc32c_bytes_per_s(options.seconds)
        return Outcome({"seconds": total / rate, "mb_per_s": rate / 1e6})

    return Heat(
        title=f"recover and verify {total / 1e6:.0f} MB of {RECORD_BYTES} B records",
        contenders=[
            Contender(BASELINE, crc, "the crc32c package"),
            Contender("write + fdatasync", _write_and_sync(total), "as many bytes to a new file"),
            Contender("shmlog open, closed", _measure(_close, _open, job)),
            Contender("shmlog open, killed", _measure(_kill, _open, job), "control block still there"),
            Contender("shmlog recover", _measure(_lose(SYNC_S), _open, job), "killed, block lost"),
            Contender("shmlog recover, never synced", _measure(_lose(NEVER_S), _open, job), "the same"),
            Contender("shmlog verify", _measure(_close, _verify, job)),
        ],
        columns=COLUMNS,
        compare="mb_per_s",
        baseline=BASELINE,
        parameters={"record_bytes": RECORD_BYTES, "bytes": total},
        goals=(Goal("shmlog recover", at_least=0.5), Goal("shmlog verify", at_least=0.5)),
    )


def reopening(options: Options) -> Heat:
    job = job_of(options, RECORD_BYTES)
    entered = [_reopening(peer, job) for peer in peers(options)]
    ours = Contender("shmlog open, closed", _measure(_close, _open, job))
    return Heat(
        title=f"open again after appending for {options.seconds:g} s, closed",
        contenders=[ours, *entered],
        columns=("seconds",),
        compare="seconds",
        baseline=ours.name,
        parameters={"record_bytes": RECORD_BYTES},
    )


def _reopening(peer: Peer, job: Job) -> Contender:
    append, reopen = contender(peer, job, "append"), contender(peer, job, "reopen")

    def run(directory: Path) -> Outcome:
        append.run(directory)
        return reopen.run(directory)

    return dataclasses.replace(reopen, run=run)


def _measure(
    leave: Callable[[Path, Job], None], enter: Callable[[Path], float], job: Job
) -> Callable[[Path], Outcome]:
    """Fill a log, leave it in some way, and time how long entering it takes."""

    def run(directory: Path) -> Outcome:
        require_shmlog()
        log = directory / "log"
        with flusher_seen_off(log):
            leave(log, job)
            seconds = in_child(enter, log, time_limit_s=job.time_limit_s)
            digest = in_child(_digest, log, time_limit_s=job.time_limit_s)
        total = job.records_max * RECORD_BYTES
        expected = expected_digest(0, job.records_max, RECORD_BYTES)
        return Outcome({"seconds": seconds, "mb_per_s": total / seconds / 1e6}, digest, expected)

    return run


def _open(log: Path) -> float:

    begin_ns = time.monotonic_ns()
    with open_log(log):
        return (time.monotonic_ns() - begin_ns) / 1e9


def _verify(log: Path) -> float:
    from shmlog.tools.recover import verify

    begin_ns = time.monotonic_ns()
    report = verify(str(log))
    seconds = (time.monotonic_ns() - begin_ns) / 1e9
    if not report.ok:
        raise WorkerError(f"verify: {report}")
    return seconds


def _digest(log: Path) -> Digest:
    with open_log(log) as opened:
        return digest_of(record.data for record in opened.read())


def _close(log: Path, job: Job) -> None:
    in_child(fill, log, job, time_limit_s=job.time_limit_s)


def _kill(log: Path, job: Job, sync_interval: float = NEVER_S) -> None:
    child = CONTEXT.Process(target=_fill_and_die, args=(log, job, sync_interval))
    child.start()
    child.join(job.time_limit_s)
    if child.exitcode != -signal.SIGKILL:
        child.kill()
        child.join()
        raise WorkerError("the writer did not get to its end")
    kill_flusher(log)


def _fill_and_die(log: Path, job: Job, sync_interval: float) -> None:
    opened = create_log(log, job.records_max * RECORD_BYTES, sync_interval=sync_interval)
    append_rows(opened, job)
    opened.wait_committed()
    # The flusher first: left alone for a moment it would settle the log.
    kill_flusher(log)
    os.kill(os.getpid(), signal.SIGKILL)


def _lose(sync_interval: float) -> Callable[[Path, Job], None]:
    def leave(log: Path, job: Job) -> None:
        _kill(log, job, sync_interval)
        for path in shared_memory_of(log):
            path.unlink()

    return leave


def _write_and_sync(total: int) -> Callable[[Path], Outcome]:
    chunk = os.urandom(1 << 20)

    def run(directory: Path) -> Outcome:
        begin_ns = time.monotonic_ns()
        with open(directory / "plain", "wb", buffering=0) as file:
            for _ in range(-(-total // len(chunk))):
                file.write(chunk)
            os.fdatasync(file.fileno())
        seconds = (time.monotonic_ns() - begin_ns) / 1e9
        return Outcome({"seconds": seconds, "mb_per_s": total / seconds / 1e6})

    return run


if __name__ == "__main__":
    sys.exit(main("recovery", heats))
