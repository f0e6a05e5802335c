"""A flusher that finds many small segments unsynced catches up a few at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import shmlog

SMALL = 64 << 10


def test_a_backlog_of_more_segments_than_one_sync_takes_becomes_durable(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SMALL, sync_interval=3600) as log:
        rows = [b"%05d" % number * 200 for number in range(8000)]
        log.append_many(rows)
        log.wait_committed()
        assert log.committed_lsn > 100 * SMALL
        assert log.durable_lsn == 0
        pid = log.statistics().flusher_pid
        assert pid
        os.kill(pid, signal.SIGKILL)  # and the next one finds the backlog
        log.wait_durable()
        assert log.durable_lsn == log.reserved_lsn
        assert [bytes(record.data) for record in log.read()] == rows


def test_a_flusher_needs_few_descriptors_of_the_process_that_starts_it(log_path: Path) -> None:
    code = (
        "import resource, sys, shmlog; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096));"
        "log = shmlog.open(sys.argv[1], create=True, segment_bytes=65536, sync_interval=3600);"
        "log.append_many([bytes(1000)] * 8000); log.wait_durable(); print(log.durable_lsn); log.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(log_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) > 100 * SMALL
