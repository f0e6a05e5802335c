"""What a log costs beside the work: the idle flusher's share of a core, and the memory of
each process once much has been appended and read.

The baseline is a Python process that sleeps, since the flusher is one, too. Pages of
mapped segments count as resident (file) until the kernel wants them back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.kit.harness import Contender, Goal, Heat, Options, Outcome, main
from bench.kit.records import payload
from bench.kit.subject import on_log, open_log, require_flusher
from bench.kit.workers import in_child

WATCH_S = 5.0
WATCH_TOY_S = 0.3
SETTLE_S = 0.5
RECORD_BYTES = 128
COLUMNS = ("cpu_percent", "rss_mib", "pss_mib", "anon_mib", "file_mib", "shmem_mib")
MEMORY_MB = 256
SECTOR_BYTES = 512


def heats(options: Options) -> Iterator[Heat]:
    watch_s = WATCH_TOY_S if options.toy else WATCH_S

    def python(_directory: Path) -> Outcome:
        return Outcome(_watch_python(watch_s))

    def flusher(log: Path) -> Outcome:
        return Outcome(in_child(_watch_flusher, log, watch_s))

    yield Heat(
        title=f"idle for {watch_s:g} s",
        contenders=[Contender("a sleeping Python", python), on_log("shmlog flusher", flusher)],
        columns=(*COLUMNS, "disk_mb"),
        compare="rss_mib",
        goals=(
            Goal("shmlog flusher", at_most=1, of="cpu_percent"),
            Goal("shmlog flusher", at_most=40, of="rss_mib"),
            Goal("shmlog flusher", at_most=12, of="pss_mib"),
            Goal("shmlog flusher", at_most=20, of="disk_mb"),
        ),
    )
    megabytes = max(1, min(MEMORY_MB, options.max_bytes // 1_000_000))

    def numpy(_directory: Path) -> Outcome:
        return Outcome(in_child(_import_numpy))

    def busy(who: str) -> Contender:
        return on_log(f"shmlog {who}", lambda log: Outcome(in_child(_use, log, megabytes, who)))

    yield Heat(
        title=f"memory after {megabytes} MB of {RECORD_BYTES} B records",
        contenders=[Contender("a Python with NumPy", numpy), busy("writer"), busy("reader"), busy("flusher")],
        columns=COLUMNS[1:],
        compare="rss_mib",
        parameters={"record_bytes": RECORD_BYTES, "megabytes": megabytes},
    )


def _import_numpy() -> dict[str, float]:
    import numpy  # noqa: F401 - it is what is measured

    return memory_mib(os.getpid())


def _use(directory: Path, megabytes: int, who: str) -> dict[str, float]:
    with open_log(directory, create=True) as log:
        rows = np.zeros((1024, RECORD_BYTES), np.uint8)
        for _ in range(megabytes * 1_000_000 // rows.nbytes):
            log.append_array(rows)
        log.wait_durable()
        if who == "writer":
            return memory_mib(os.getpid())
        if who == "flusher":
            return memory_mib(require_flusher(directory))
        values: dict[str, float] = in_child(_read, directory)
        return values


def _read(directory: Path) -> dict[str, float]:
    with open_log(directory) as log:
        assert sum(len(batch) for batch in log.read_batches())
        return memory_mib(os.getpid())


def _watch_flusher(directory: Path, watch_s: float) -> dict[str, float]:
    with open_log(directory, create=True) as log:
        log.append(payload(0, 0, RECORD_BYTES), durable=True)
        disk = sum(each.stat().st_blocks for each in directory.rglob("*")) * SECTOR_BYTES
        return _watch(require_flusher(directory), watch_s) | {"disk_mb": disk / 1e6}


def _watch_python(watch_s: float) -> dict[str, float]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        return _watch(child.pid, watch_s)
    finally:
        child.kill()
        child.wait()


def _watch(pid: int, watch_s: float) -> dict[str, float]:
    time.sleep(SETTLE_S)
    before_s, begin_s = cpu_seconds(pid), time.monotonic()
    time.sleep(watch_s)
    after_s = cpu_seconds(pid)
    share = (after_s - before_s) / (time.monotonic() - begin_s)
    return {"cpu_percent": 100 * share, **memory_mib(pid)}


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process, and what it is made of: mapped segments count as file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "Rss"))}
    names = {"rss_mib": "VmRSS", "anon_mib": "RssAnon", "file_mib": "RssFile", "shmem_mib": "RssShmem"}
    memory = {name: int(fields[field]) / 1024 for name, field in names.items()}
    rolled_up = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return memory | {"pss_mib": int(rolled_up[rolled_up.index("Pss:") + 1]) / 1024}


if __name__ == "__main__":
    sys.exit(main("idle", heats))
