"""What a log costs beside the work: the idle flusher's share of a core, and the memory of
each process once much has been appended and read.

The baseline is a Python process that sleeps, since the flusher is one, too. Pages of
mapped segments count as resident (file) until the kernel wants them back. What several flushers
share counts in the `pss` of each by its part, so that ten of them say what one more costs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.kit.harness import Contender, Heat, Options, Outcome, alone
from bench.kit.records import payload
from bench.kit.subject import flusher_seen_off, on_log, open_log, require_flusher, require_shmlog
from bench.kit.workers import in_child

WATCH_S = 5.0
WATCH_TOY_S = 0.3
SETTLE_S = 0.5
LOGS = 10
LOGS_TOY = 2
RECORD_BYTES = 128
COLUMNS = ("cpu_percent", "rss_mib", "pss_mb", "anon_mib", "file_mib", "shmem_mib")
MEMORY_MB = 256
SECTOR_BYTES = 512


def heats(options: Options) -> Iterator[Heat]:
    watch_s = WATCH_TOY_S if options.toy else WATCH_S

    def flushers(name: str, count: int) -> Contender:
        def run(directory: Path) -> Outcome:
            require_shmlog()
            logs = [directory / f"log-{number}" for number in range(count)]
            with contextlib.ExitStack() as leaving:
                for log in logs:
                    leaving.enter_context(flusher_seen_off(log))
                return Outcome(in_child(_watch_flushers, logs, watch_s))

        return Contender(name, run)

    for title, contender in (
        ("idle", flushers("shmlog flusher", 1)),
        ("ten idle logs", flushers("shmlog, each of ten", LOGS_TOY if options.toy else LOGS)),
    ):
        yield Heat(
            title=f"{title} for {watch_s:g} s",
            contenders=[Contender("a sleeping Python", alone(_watch_python, watch_s)), contender],
            columns=(*COLUMNS, "disk_mb"),
            compare="rss_mib",
        )
    megabytes = max(1, min(MEMORY_MB, options.max_bytes // 1_000_000))

    yield Heat(
        title=f"memory after {megabytes} MB of {RECORD_BYTES} B records",
        contenders=[
            Contender("a Python with NumPy", alone(_import_numpy)),
            *(
                on_log(f"shmlog {who}", alone(_use, megabytes, who))
                for who in ("writer", "reader", "flusher")
            ),
        ],
        columns=COLUMNS[1:],
        compare="rss_mib",
    )


def _import_numpy(_directory: Path) -> dict[str, float]:
    import numpy  # noqa: F401 - it is what is measured

    return memory_of(os.getpid())


def _use(directory: Path, megabytes: int, who: str) -> dict[str, float]:
    with open_log(directory, create=True) as log:
        rows = np.zeros((1024, RECORD_BYTES), np.uint8)
        for _ in range(megabytes * 1_000_000 // rows.nbytes):
            log.append_array(rows)
        log.wait_durable()
        if who == "writer":
            return memory_of(os.getpid())
        if who == "flusher":
            return memory_of(require_flusher(directory))
        values: dict[str, float] = in_child(_read, directory)
        return values


def _read(directory: Path) -> dict[str, float]:
    with open_log(directory) as log:
        assert sum(len(batch) for batch in log.read_batches())
        return memory_of(os.getpid())


def _watch_flushers(directories: Sequence[Path], watch_s: float) -> dict[str, float]:
    with contextlib.ExitStack() as leaving:
        for directory in directories:
            log = leaving.enter_context(open_log(directory, create=True))
            log.append(payload(0, 0, RECORD_BYTES), durable=True)
        blocks = sum(each.stat().st_blocks for directory in directories for each in directory.rglob("*"))
        watched = _watch([require_flusher(directory) for directory in directories], watch_s)
        return watched | {"disk_mb": blocks * SECTOR_BYTES / 1e6 / len(directories)}


def _watch_python(_directory: Path, watch_s: float) -> dict[str, float]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        return _watch([child.pid], watch_s)
    finally:
        child.kill()
        child.wait()


def _watch(pids: Sequence[int], watch_s: float) -> dict[str, float]:
    """What each of them takes, on average."""
    time.sleep(SETTLE_S)
    before_s, begin_s = sum(map(cpu_seconds, pids)), time.monotonic()
    time.sleep(watch_s)
    share = (sum(map(cpu_seconds, pids)) - before_s) / (time.monotonic() - begin_s) / len(pids)
    memory = [memory_of(pid) for pid in pids]
    means = {name: sum(each[name] for each in memory) / len(pids) for name in memory[0]}
    return {"cpu_percent": 100 * share, **means}


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> dict[str, float]:
    """Resident memory of a process, and what it is made of: mapped segments count as file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "Rss"))}
    names = {"rss_mib": "VmRSS", "anon_mib": "RssAnon", "file_mib": "RssFile", "shmem_mib": "RssShmem"}
    memory = {name: int(fields[field]) / 1024 for name, field in names.items()}
    rolled_up = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return memory | {"pss_mb": int(rolled_up[rolled_up.index("Pss:") + 1]) * 1024 / 1e6}
