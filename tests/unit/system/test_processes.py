"""What is told of other processes, for people."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from shmlog.system.locks import LockFile
from shmlog.system.processes import describe, lock_holders


def test_a_process_is_described_by_its_name_and_whether_it_is_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert describe(child.pid).startswith(f"pid {child.pid} (python")
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert describe(child.pid).endswith("), stopped")
        child.kill()
        child.wait()
        assert describe(child.pid) == f"pid {child.pid}"


def test_the_holder_of_a_lock_is_found_by_the_byte(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = LockFile(path)
    lock.try_lock(7)
    assert lock_holders(path, 7) == [os.getpid()]
    assert lock_holders(path, 6) == lock_holders(path, 8) == []
    lock.close()
    assert lock_holders(path, 7) == []
