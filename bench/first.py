"""The first append of a session: what it takes while the flusher is still being started.

The floor opens a file for appending and writes to it. `first_us` is the append alone, `open_us`
the opening before it, `durable_us` the wait for the first sync after it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.kit.harness import Contender, Heat, Options, alone
from bench.kit.records import payload
from bench.kit.subject import on_log, open_log

RECORD_BYTES = 128
SESSIONS = 10
SESSIONS_TOY = 1
IMPORTS = 5
COLUMNS = ("first_us", "open_us", "durable_us")


def heats(options: Options) -> Iterator[Heat]:
    sessions = SESSIONS_TOY if options.toy else SESSIONS

    yield Heat(
        title=f"first append of {RECORD_BYTES} B of a session",
        contenders=[
            Contender("open, os.write, fdatasync", alone(_write, sessions)),
            on_log("shmlog, a new log", alone(_append, sessions, True)),
            on_log("shmlog, an old log", alone(_append, sessions, False)),
        ],
        columns=COLUMNS,
        compare="first_us",
    )
    yield Heat(
        title="import",
        contenders=[
            Contender("import numpy", alone(_import, "import numpy")),
            Contender("import shmlog", alone(_import, "import shmlog; shmlog.open")),
        ],
        columns=("import_ms",),
        compare="import_ms",
    )


def _import(_directory: Path, statement: str) -> dict[str, float]:
    """The median time of an import in a Python that has just been started."""
    timed = f"import time; t = time.perf_counter_ns(); {statement}; print(time.perf_counter_ns() - t)"
    command = [sys.executable, "-c", timed]
    times = [int(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(IMPORTS)]
    return {"import_ms": float(np.median(times)) / 1e6}


def _write(directory: Path, sessions: int) -> dict[str, float]:
    record, times = payload(0, 0, RECORD_BYTES), []
    for _ in range(sessions):
        begin = time.perf_counter_ns()
        fd = os.open(directory / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        opened = time.perf_counter_ns()
        os.write(fd, record)
        written = time.perf_counter_ns()
        os.fdatasync(fd)
        times.append((begin, opened, written, time.perf_counter_ns()))
        os.close(fd)
    return _medians(times)


def _append(directory: Path, sessions: int, new: bool) -> dict[str, float]:
    record, times = payload(0, 0, RECORD_BYTES), []
    with open_log(directory, create=True) as log:
        log.append(record)
    for number in range(sessions):
        begin = time.perf_counter_ns()
        path = directory.with_name(f"log-{number}") if new else directory
        with open_log(path, create=True) as log:
            opened = time.perf_counter_ns()
            lsn = log.append(record)
            written = time.perf_counter_ns()
            log.wait_durable(lsn)
            times.append((begin, opened, written, time.perf_counter_ns()))
    return _medians(times)


def _medians(times: list[tuple[int, int, int, int]]) -> dict[str, float]:
    opened, first, durable = np.median(np.diff(times), axis=0) / 1e3
    return {"first_us": float(first), "open_us": float(opened), "durable_us": float(durable)}
