"""A flusher as a service: what the manager that started it is told, and when it hears no more."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire
from support.stuck import flush_until_stuck

import shmlog
from shmlog.session import sidecar

SIZES = {"segment_bytes": SEGMENT_BYTES, "window_bytes": SEGMENT_BYTES}
DEADLINE_S = 40.0
WATCHDOG_S = 0.4


class Heard:
    """What a manager's socket receives; NOTIFY_SOCKET names it."""

    def __init__(self, address: str) -> None:
        self.name = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.name, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}

    def until(self, wanted: Callable[[str], bool]) -> str:
        """The first datagram that is wanted; those before it are passed over."""
        self._socket.settimeout(DEADLINE_S)
        while not wanted(text := self._socket.recv(4096).decode()):
            pass
        return text

    def said(self, text: str) -> str:
        return self.until(lambda heard: text in heard)

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long, after what is there already."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def heard(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Heard]:
    abstract = getattr(request, "param", "path") == "abstract"
    made = Heard(f"@shmlog-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, flusher="external", timeout=20, **SIZES) as made:
        yield made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may have failed
        shmlog.open(log_path).close()  # with a flusher of its own, which leaves nothing behind


def started(log: shmlog.Log, heard: Heard, **more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shmlog", "flush", log.path]
    env = {**os.environ, **heard.environment, **more}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


@pytest.mark.parametrize("heard", ["path", "abstract"], indirect=True)
def test_ready_comes_once_the_lease_is_held_and_stopping_at_sigterm(log: shmlog.Log, heard: Heard) -> None:
    with started(log, heard) as process:
        try:
            assert heard.until(lambda text: True) == "READY=1", "first of all"
            assert log.statistics().flusher_pid == process.pid
            assert log.path in heard.said("STATUS=flusher")
            heard.said("WATCHDOG=1")
            log.append(b"", durable=True)
            process.send_signal(signal.SIGTERM)
            heard.said("STOPPING=1")
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
    assert heard.silent(0.1)


def test_a_flusher_that_finds_the_lease_taken_is_never_ready(log: shmlog.Log, heard: Heard) -> None:
    with started(log, heard) as first:
        try:
            heard.said("READY=1")
            with started(log, heard) as second:
                assert second.wait(DEADLINE_S) == 1
            first.terminate()
            assert "STOPPING" in heard.until(lambda text: "READY" in text or "STOPPING" in text)
        finally:
            first.kill()


def test_a_watchdog_of_another_process_is_not_pinged(log: shmlog.Log, heard: Heard) -> None:
    with started(log, heard, WATCHDOG_PID="1") as process:
        try:
            heard.said("STATUS=")
            assert heard.silent(3 * WATCHDOG_S)
            process.terminate()
            heard.said("STOPPING=1")
        finally:
            process.kill()


def test_a_frozen_flusher_pings_no_more(log: shmlog.Log, heard: Heard) -> None:
    with started(log, heard) as process:
        try:
            heard.said("WATCHDOG=1")
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            assert heard.silent(3 * WATCHDOG_S)
            process.send_signal(signal.SIGCONT)
            heard.said("WATCHDOG=1")
        finally:
            process.kill()


def test_the_flusher_of_a_failed_log_pings_no_more_and_says_why(log: shmlog.Log, heard: Heard) -> None:
    with started(log, heard) as process:
        try:
            heard.said("WATCHDOG=1")
            log._joined.control.fail(errno.EIO, log.durable_lsn)
            heard.said("STATUS=the log has failed")
            assert heard.silent(3 * WATCHDOG_S)
        finally:
            process.kill()


def _flush_until_stuck(wire: Wire, path: str, environment: dict[str, str]) -> int:
    sidecar.STANDS_S = 2.0
    os.environ.update(environment)
    return flush_until_stuck(wire, path, 0.01)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_flusher_whose_sync_is_stuck_pings_no_more_until_it_goes_on(log: shmlog.Log, heard: Heard) -> None:
    with Child(_flush_until_stuck, log.path, heard.environment) as child:
        heard.said("WATCHDOG=1")
        log.append(b"", durable=True)
        child.say("stick")
        assert child.hear() == "will be stuck"
        log.append(b"is not durable")
        assert child.hear() == "stuck"
        heard.said("STATUS=a loop stands still")
        assert heard.silent(3 * WATCHDOG_S)
        child.say("go on")
        heard.said("STATUS=flusher")
        heard.said("WATCHDOG=1")
        child.signal(signal.SIGTERM)
        assert child.result() == 0


def test_a_flusher_that_was_started_on_demand_tells_nobody(
    log_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in heard.environment.items():
        monkeypatch.setenv(name, value)
    with shmlog.open(log_path, create=True, **SIZES) as log:
        log.append(b"", durable=True)
        assert log.statistics().flusher_pid is not None
        assert heard.silent(1.0), "it belongs to no service"


def test_the_unit_of_the_page_works_on_the_first_start_and_on_the_next(tmp_path: Path, heard: Heard) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/sidecar-flusher.md").read_text()
    (unit,) = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = dict(re.findall(r"^(ExecStartPre|ExecStart|Type|WantedBy)=(.*)$", unit, re.MULTILINE))
    assert (lines["Type"], lines["WantedBy"]) == ("notify", "multi-user.target")

    def command(name: str) -> list[str]:
        program, *words = lines[name].split()
        assert program.endswith("/shmlog")
        return [sys.executable, "-m", "shmlog", *(w.replace("/var/lib/app", str(tmp_path)) for w in words)]

    env = {**os.environ, **heard.environment}
    for _ in range(2):
        subprocess.run(command("ExecStartPre"), check=True, env=env, timeout=60, stdout=subprocess.DEVNULL)
        with subprocess.Popen(command("ExecStart"), env=env, stderr=subprocess.DEVNULL) as process:
            try:
                heard.said("READY=1")
                process.terminate()
                heard.said("STOPPING=1")
                assert process.wait(DEADLINE_S) == 0
            finally:
                process.kill()
    shmlog.open(tmp_path / "events").close()
