"""A flusher that a handle starts: it has its own descriptors and writes to its own log only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import flusher_pid

import shmlog
from shmlog.format.layout import CB


def test_a_started_flusher_holds_no_descriptor_of_the_one_that_started_it(log_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reading, writing = os.pipe()
        try:
            mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in (server.fileno(), reading)}
            for fd in (server.fileno(), writing):
                os.set_inheritable(fd, True)
            with shmlog.open(log_path, create=True) as log:
                log.append(b"x", durable=True)
                held = Path("/proc", str(flusher_pid(log)), "fd")
                assert not mine & {os.readlink(fd) for fd in held.iterdir()}
        finally:
            os.close(reading)
            os.close(writing)


@pytest.mark.parametrize("there", ["a link", "a FIFO"])
def test_a_flusher_whose_log_is_no_file_writes_to_nothing_and_serves(log_path: Path, there: str) -> None:
    victim = log_path.parent / "victim"
    victim.write_bytes(b"mine")
    shmlog.open(log_path, create=True, flusher="external").close()
    own_log = log_path / "flusher.log"
    own_log.unlink(missing_ok=True)
    if there == "a FIFO":
        os.mkfifo(own_log)
    else:
        own_log.symlink_to(victim)
    with shmlog.open(log_path) as log:
        log.append(b"x", durable=True, timeout=30)
        held = Path("/proc", str(flusher_pid(log)), "fd")
        assert not {str(own_log), str(victim)} & {os.readlink(fd) for fd in held.iterdir()}
    assert victim.read_bytes() == b"mine"
    assert list(log_path.glob("flusher.log*")) == [own_log]


def test_a_log_whose_segments_are_elsewhere_is_refused(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
    segments, elsewhere = log_path / "segments", log_path.parent / "elsewhere"
    segments.rename(elsewhere)
    segments.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    for look in (shmlog.open, shmlog.verify):
        with pytest.raises(shmlog.FormatError, match="segments is a symbolic link"):
            look(log_path)
    assert sorted(elsewhere.iterdir()) == before


def test_a_flusher_that_comes_after_its_session_does_not_serve_the_next(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    with shmlog.open(log_path, flusher="external") as log:
        command = [sys.executable, "-m", "shmlog", "flush", str(log_path), "--detach", "--session"]
        late = subprocess.run([*command, "12345"], timeout=60)
        assert late.returncode == 0
        assert log.statistics().flusher_pid is None
        created_ns = log._joined.control.load(CB.CREATED_NS)
        with subprocess.Popen([*command, str(created_ns)]) as own:
            log.append(b"x", durable=True, timeout=60)
            log.close()
            assert own.wait(60) == 0
