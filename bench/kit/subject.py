"""shmlog itself as a contender, through its public interface alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.kit.drivers import StorePeer
from bench.kit.harness import Contender, Outcome
from bench.kit.peer import Job, Writer
from bench.kit.records import Digest, digest_of, pool
from bench.kit.workers import Skipped, WorkerError, held_in_child

SYNC_INTERVAL_S = 1.0
"""Between syncs that nobody waits for.  The peers at the page cache's level are not synced
at all, and syncing a gigabyte a second every 10 ms measures the disk."""
FLUSHER_START_S = 5.0
FLUSHER_EXIT_S = 20.0
SMALL_BYTES = 1 << 22
SHARED_MEMORY = Path("/dev/shm")


def open_log(directory: Path, **options: Any) -> Any:
    """`shmlog.open`; in a child only, so that the parent never holds a log across a fork."""
    import shmlog

    return shmlog.open(directory, **options)


def create_log(directory: Path, payload_bytes: int, **options: Any) -> Any:
    """A new log, with the default sizes unless it will hold so little that making it would
    take longer than using it, as at toy size."""
    if payload_bytes <= SMALL_BYTES:
        options = {"segment_bytes": SMALL_BYTES, "window_bytes": SMALL_BYTES} | options
    return open_log(directory, create=True, **options)


def fill(directory: Path, record_bytes: int, records: int) -> None:
    """Append so many records to a new log and close it."""
    with create_log(directory, records * record_bytes) as log:
        append_rows(log, record_bytes, records)


def append_rows(log: Any, record_bytes: int, records: int) -> None:
    """Append so many records of writer 0 in arrays."""
    rows = np.frombuffer(b"".join(pool(0, record_bytes)), np.uint8).reshape(-1, record_bytes)
    for begin in range(0, records, len(rows)):
        log.append_array(rows[: records - begin])


def digest_log(directory: Path) -> Digest:
    """The digest of all records of a log."""
    with open_log(directory) as log:
        return digest_of(record.data for record in log.read())


def on_log(name: str, measure: Callable[[Path], Outcome], remark: str = "") -> Contender:
    """A contender that makes a log at the path it is given; its flusher is then seen off."""

    def run(directory: Path) -> Outcome:
        require_shmlog()
        with flusher_seen_off(directory / "log"):
            return measure(directory / "log")

    return Contender(name, run, remark)


def require_shmlog() -> str:
    """Its version; raises `Skipped` when it cannot be imported."""
    try:
        import shmlog

        # Loads what it needs: harmless before a fork, and no child has to do it then.
        _ = shmlog.open
    except ImportError as error:
        raise Skipped(f"shmlog cannot be imported: {error}") from None
    return shmlog.__version__


def flusher_pid(directory: Path) -> int | None:
    """The process that flushes the log in `directory`, if one runs."""
    wanted = str(directory).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"flush" in arguments and wanted in arguments:
            return int(path.parent.name)
    return None


def require_flusher(directory: Path) -> int:
    """The same, raising `Skipped` if none runs."""
    if (pid := flusher_pid(directory)) is None:
        raise Skipped("no flusher process was found")
    return pid


def kill_flusher(directory: Path) -> None:
    """Kill the log's flusher, and any that is just being started, and see them gone."""
    while (pid := flusher_pid(directory)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # Its command line goes first, its locks last.
        while _is_running(pid):
            time.sleep(0.0005)


def _is_running(pid: int) -> bool:
    """False once the last thread has gone, even if nobody has reaped the process yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return False
    return state not in "ZX" or threads > 1


def shared_memory_of(directory: Path) -> list[Path]:
    """What the log in `directory` has in shared memory: its control block and semaphores."""
    identity = json.loads((directory / "shmlog.json").read_text())
    return list(SHARED_MEMORY.glob(f"*shmlog-{identity['log_id'].replace('-', '')[:16]}*"))


def await_flusher_exit(directory: Path) -> None:
    """Wait until the flusher has gone, so that it neither outlives nor disturbs the next contender."""
    deadline_s = time.monotonic() + FLUSHER_EXIT_S
    while flusher_pid(directory) is not None:
        if time.monotonic() >= deadline_s:
            kill_flusher(directory)
            raise WorkerError(f"the flusher did not leave within {FLUSHER_EXIT_S:g} s")
        time.sleep(0.01)
    for path in shared_memory_of(directory):
        print(f"shmlog left {path} behind", file=sys.stderr)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def flusher_seen_off(directory: Path) -> Iterator[None]:
    """Leave only when the log's flusher has gone."""
    try:
        yield
    finally:
        await_flusher_exit(directory)


@contextlib.contextmanager
def log_kept_open(job: Job) -> Iterator[None]:
    """A new log with a flusher that runs throughout, as in a program that has been up for a while."""
    log = job.directory / "log"
    size = job.records_max * job.record_bytes
    with flusher_seen_off(log), held_in_child(_running_log, log, size):
        yield


@contextlib.contextmanager
def _running_log(directory: Path, payload_bytes: int) -> Iterator[None]:
    with create_log(directory, payload_bytes, sync_interval=SYNC_INTERVAL_S) as log:
        deadline_s = time.monotonic() + FLUSHER_START_S
        while log.statistics().flusher_pid is None and time.monotonic() < deadline_s:
            time.sleep(0.001)
        yield


class ShmlogWriter(Writer):
    """`append` one by one; `append_many` in batches; `append(durable=True)`."""

    def __init__(self, log: Any) -> None:
        super().__init__(log, log.append, log.append_many)

    def append_durable(self, data: bytes) -> None:
        self.store.append(data, durable=True)


class ArrayWriter(ShmlogWriter):
    """Batches by `append_array`: one record for each row."""

    def __init__(self, log: Any) -> None:
        Writer.__init__(self, log, log.append, log.append_array)

    def prepare_batch(self, records: Sequence[bytes]) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(records), dtype=np.uint8).reshape(len(records), -1)


class FilledWriter(ShmlogWriter):
    """Records made in a buffer of the caller's, which is then appended: what `reserve` is instead of."""

    def __init__(self, log: Any) -> None:
        Writer.__init__(self, log)
        self.buffer = bytearray()

    def append(self, data: bytes) -> None:
        self.buffer[:] = data
        self.store.append(self.buffer)


class ReserveWriter(ShmlogWriter):
    """Records written in place: `with log.reserve(n) as r: r.buffer[:] = data`."""

    def __init__(self, log: Any) -> None:
        Writer.__init__(self, log)

    def append(self, data: bytes) -> None:
        with self.store.reserve(len(data)) as reservation:
            reservation.buffer[:] = data


class Shmlog(StorePeer):
    """shmlog, written to in one of its ways."""

    durability = "page cache, checksummed, synced every second"
    durable_by = "append(durable=True)"

    def __init__(self, name: str = "shmlog", writer: type[ShmlogWriter] = ShmlogWriter) -> None:
        self.name, self.writer = name, writer

    def version(self) -> str:
        return require_shmlog()

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return self.writer(open_log(job.directory / "log"))

    def records(self, job: Job) -> Iterator[memoryview]:
        with open_log(job.directory / "log") as log:
            log.wait_committed()
            for record in log.read():
                yield record.data

    def kept_running(self, job: Job) -> contextlib.AbstractContextManager[object]:
        return log_kept_open(job)
