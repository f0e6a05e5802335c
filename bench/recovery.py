"""Opening a log again: closed, killed, and killed with its control block lost; and verifying it.

Recovery is timed at its worst, killed before anything was synced, so that every byte
must be checked and written to the disk, and as it is in use, with the default sync
interval.  The floors are CRC-32C over as many bytes in memory and, for what must
become durable, a plain write and fdatasync of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.kit.floors import crc32c_bytes_per_s
from bench.kit.harness import Contender, Heat, Options, Outcome, throughput
from bench.kit.peer import job_of
from bench.kit.records import Digest, expected_digest
from bench.kit.subject import (
    append_rows,
    create_log,
    digest_log,
    fill,
    kill_flusher,
    on_log,
    open_log,
    shared_memory_of,
)
from bench.kit.workers import CONTEXT, WorkerError, in_child, time_limit_s
from bench.peers import others

RECORD_BYTES = 1024
SIZES_MB = (64, 256, 1024)
NEVER_S = 86400.0
SYNC_S = 0.01
"""shmlog's default sync interval"""
COLUMNS = ("seconds", "mb_per_s")


def heats(options: Options) -> Iterator[Heat]:
    for size_mb in (1,) if options.toy else SIZES_MB:
        yield recovering(options, records=size_mb * 1_000_000 // RECORD_BYTES)
    yield reopening(options)


def recovering(options: Options, records: int) -> Heat:
    total = records * RECORD_BYTES

    def crc(_directory: Path) -> Outcome:
        return _outcome(records, total / crc32c_bytes_per_s(options.seconds))

    def write_and_sync(directory: Path) -> Outcome:
        return _outcome(records, _write_and_sync(directory / "plain", total))

    return Heat(
        title=f"recover and verify {total / 1e6:.0f} MB of {RECORD_BYTES} B records",
        contenders=[
            Contender("CRC-32C over memory", crc, "the crc32c package"),
            Contender("write + fdatasync", write_and_sync, "as many bytes to a new file"),
            on_log("shmlog open, closed", _measure(_close, _open, records)),
            on_log("shmlog open, killed", _measure(_kill, _open, records), "control block still there"),
            on_log("shmlog recover", _measure(_lose(SYNC_S), _open, records), "killed, block lost"),
            on_log("shmlog recover, never synced", _measure(_lose(NEVER_S), _open, records), "the same"),
            on_log("shmlog verify", _measure(_close, _verify, records)),
        ],
        columns=COLUMNS,
        compare="mb_per_s",
    )


def reopening(options: Options) -> Heat:
    job = job_of(options, RECORD_BYTES)
    return Heat(
        title=f"open again after appending for {options.seconds:g} s, closed",
        contenders=[
            on_log("shmlog open, closed", _measure(_close, _open, job.records_max)),
            *(peer.contender("reopen", job) for peer in others(options)),
        ],
        columns=("seconds",),
        compare="seconds",
    )


def _outcome(records: int, seconds: float, digest: Digest | None = None) -> Outcome:
    expected = expected_digest(0, records, RECORD_BYTES) if digest else None
    return Outcome(throughput(records, RECORD_BYTES, seconds), digest, expected)


def _measure(
    leave: Callable[[Path, int], None], enter: Callable[[Path], float], records: int
) -> Callable[[Path], Outcome]:
    """Fill a log, leave it in some way, and time how long entering it takes."""

    def measure(log: Path) -> Outcome:
        leave(log, records)
        seconds = in_child(enter, log)
        return _outcome(records, seconds, in_child(digest_log, log))

    return measure


def _open(log: Path) -> float:
    import shmlog

    _ = shmlog.open, shmlog.Recovery  # loaded by now, so that the time does not include the import
    begin_ns = time.monotonic_ns()
    with open_log(log):
        return (time.monotonic_ns() - begin_ns) / 1e9


def _verify(log: Path) -> float:
    import shmlog

    verify = shmlog.verify  # loaded by now
    begin_ns = time.monotonic_ns()
    report = verify(str(log))
    seconds = (time.monotonic_ns() - begin_ns) / 1e9
    if not report.ok:
        raise WorkerError(f"verify: {report}")
    return seconds


def _close(log: Path, records: int) -> None:
    in_child(fill, log, RECORD_BYTES, records)


def _kill(log: Path, records: int, sync_interval: float = NEVER_S) -> None:
    child = CONTEXT.Process(target=_fill_and_die, args=(log, records, sync_interval))
    child.start()
    child.join(time_limit_s.get())
    if child.exitcode != -signal.SIGKILL:
        child.kill()
        child.join()
        raise WorkerError("the writer did not get to its end")
    kill_flusher(log)


def _fill_and_die(log: Path, records: int, sync_interval: float) -> None:
    opened = create_log(log, records * RECORD_BYTES, sync_interval=sync_interval)
    append_rows(opened, RECORD_BYTES, records)
    opened.wait_committed()
    # The flusher first: left alone for a moment it would settle the log.
    kill_flusher(log)
    os.kill(os.getpid(), signal.SIGKILL)


def _lose(sync_interval: float) -> Callable[[Path, int], None]:
    def leave(log: Path, records: int) -> None:
        _kill(log, records, sync_interval)
        for path in shared_memory_of(log):
            path.unlink()

    return leave


def _write_and_sync(path: Path, total: int) -> float:
    chunk = os.urandom(1 << 20)
    begin_ns = time.monotonic_ns()
    with open(path, "wb", buffering=0) as file:
        for _ in range(-(-total // len(chunk))):
            file.write(chunk)
        os.fdatasync(file.fileno())
    return (time.monotonic_ns() - begin_ns) / 1e9
