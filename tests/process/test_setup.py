"""Set-up and tear-down under byte 1 of LOCK, and who sits on it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.processes import Child, Wire

import shmlog
from shmlog.system.locks import SETUP_BYTE, LockFile


def test_a_process_frozen_in_the_set_up_is_named_to_whoever_waits_for_it(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()

    def freeze(wire: Wire) -> None:
        lock = LockFile(str(log_path / "LOCK"))
        assert lock.try_lock(SETUP_BYTE)
        os.kill(os.getpid(), signal.SIGSTOP)
        lock.close()

    with Child(freeze) as frozen:
        os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(TimeoutError, match=rf"pid {frozen.pid} \(\S+\), stopped\) has been setting"):
            shmlog.open(log_path, timeout=0.3)
        os.kill(frozen.pid, signal.SIGCONT)
        frozen.result()
    with shmlog.open(log_path) as log:
        log.append(b"and it goes on", durable=True)
