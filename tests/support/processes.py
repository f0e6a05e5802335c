"""Processes: children that a test starts, talks to, stops and kills, and records that
say who wrote them.

    with Child(write_until_killed, path, 3, side_path) as child:
        child.hear()               # what the function said first
        child.kill()
    check_records(log, {3: read_side(side_path)}, killed={3})

A child is forked, so it may be given anything; leaving the block kills and reaps it.
Nothing here sleeps to synchronise: `until` polls a condition with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import shmlog
from shmlog.handle.reading import Reading

DEADLINE_S = 40.0
"""Far more than anything here takes; only a defect runs into it."""

SEGMENT_BYTES = 64 << 10
"""The smallest: a few hundred records roll several times."""

_HEAD = struct.Struct("<IIQ")
_SIDE = struct.Struct("<QQ")
_NOISE = random.Random(20260101).randbytes((1 << 20) + 4096)

HEAD_BYTES = _HEAD.size
FOLLOW_UP = 0xF0110
"""The writer that assert_healthy() appends as; check_records() does not count it."""


def until(condition: Callable[[], Any], what: str = "", timeout: float = DEADLINE_S) -> Any:
    """Poll until the condition is true, and return what it was."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.001)
    return value


# -------------------------------------------------------------------- children


class Child:
    """A forked process that runs function(wire, *arguments)."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._wire, theirs = Pipe()
        self.status: int | None = None
        """the exit code, negative for a signal, once it has been waited for"""
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            return
        with contextlib.suppress(BaseException):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_REAL, 0)  # the parent's test time-out
            self._wire.close()
            run(theirs, function, arguments)
        os._exit(70)

    def hear(self, timeout: float = DEADLINE_S) -> Any:
        """The child's next message; its exception, if it raised one."""
        assert self._wire.poll(timeout), f"child {self.pid} said nothing for {timeout:g} s"
        kind, value = self._wire.recv()
        if kind == "raised":
            error, text = value
            raise AssertionError(f"in child {self.pid}:\n{text}") if error is None else error
        return value

    def say(self, message: Any) -> None:
        self._wire.send(message)

    def result(self, timeout: float = DEADLINE_S) -> Any:
        """What the function returned; the child has exited then."""
        value = self.hear(timeout)
        assert self.wait() == 0
        return value

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and reap."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped, unless it has ended."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self.status = os.waitstatus_to_exitcode(status)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, timeout: float = DEADLINE_S) -> int:
        def ended() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            return bool(pid)

        if self.status is None:
            until(ended, f"child {self.pid} ends", timeout)
        assert self.status is not None
        return self.status

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()
        self._wire.close()


class Wire:
    """The child's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, message: Any) -> None:
        self._connection.send(("said", message))

    def heard(self) -> bool:
        """Whether the parent has said something."""
        return self._connection.poll()

    def hear(self, timeout: float = DEADLINE_S) -> Any:
        if not self._connection.poll(timeout):
            raise TimeoutError("the parent said nothing")
        return self._connection.recv()


def run(connection: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Run a child's function and end the process."""
    try:
        value = function(Wire(connection), *arguments)
        connection.send(("said", value))
        os._exit(0)
    except BaseException as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = None  # type: ignore[assignment]
        connection.send(("raised", (error, text)))
        os._exit(71)


# ------------------------------------------------------------ self-describing records


def payload(writer: int, sequence: int, size: int) -> bytes:
    """The bytes that `writer` appends as its record number `sequence`: every one of
    them follows from the three numbers.  At least HEAD_BYTES."""
    at = (writer * 977 + sequence * 131) & 4095
    return _HEAD.pack(writer, size, sequence) + _NOISE[at : at + size - HEAD_BYTES]


def sizes(seed: int, count: int, most: int = 2000) -> list[int]:
    """Sizes with many small ones and some large ones."""
    rng = random.Random(seed)
    return [HEAD_BYTES + int(rng.random() ** 4 * (most - HEAD_BYTES)) for _ in range(count)]


def whose(data: bytes | memoryview) -> tuple[int, int]:
    """(writer, sequence) of a record; AssertionError unless it is whole."""
    writer, size, sequence = _HEAD.unpack_from(data)
    assert size == len(data), f"writer {writer} record {sequence}: {len(data)} bytes of {size}"
    assert bytes(data) == payload(writer, sequence, size), f"writer {writer} record {sequence} is not whole"
    return writer, sequence


def append_some(
    log: shmlog.Log, writer: int, count: int, *, first: int = 0, most: int = 2000, seed: int = 0
) -> list[int]:
    """Append `count` records of random sizes; their LSNs."""
    lsns = []
    for n, size in enumerate(sizes(seed * 1000 + writer, count, most)):
        lsns.append(log.append(payload(writer, first + n, size), writer))
    return lsns


def collect(log: Reading) -> dict[int, list[int]]:
    """The LSNs of each writer's records as they are read: whole, in LSN order, and each
    writer's in its program order without a gap."""
    found: dict[int, list[int]] = {}
    last = -1
    for record in log.read():
        assert record.lsn > last, f"LSN {record.lsn} after {last}"
        last = record.lsn
        writer, sequence = whose(record.data)
        if writer == FOLLOW_UP:
            continue
        own = found.setdefault(writer, [])
        assert sequence == len(own), f"writer {writer}: record {sequence} where {len(own)} should be"
        own.append(record.lsn)
    return found


def check_records(log: Reading, returned: Mapping[int, Sequence[int]], killed: Collection[int] = ()) -> None:
    """Every returned append is there once, whole, in order, and nothing else is, but at
    most one record (published, not returned yet) of each writer in `killed`."""
    if isinstance(log, shmlog.Log):
        log.wait_committed()
    found = collect(log)
    for writer, lsns in returned.items():
        own = found.pop(writer, [])
        assert own[: len(lsns)] == list(lsns), f"writer {writer} lost a record"
        assert len(own) - len(lsns) <= (writer in killed), f"writer {writer}: records that nobody appended"
    for writer, own in found.items():
        assert writer in killed and len(own) <= 1, f"records of writer {writer}, which appended none"


def note(fd: int, sequence: int, lsn: int) -> None:
    """Remember a returned append where a kill cannot reach it."""
    os.write(fd, _SIDE.pack(sequence, lsn))


def read_side(path: Path) -> list[int]:
    """The LSNs that note() wrote, by sequence."""
    data = path.read_bytes() if path.exists() else b""
    pairs = list(_SIDE.iter_unpack(data[: len(data) // _SIDE.size * _SIDE.size]))
    assert [sequence for sequence, _ in pairs] == list(range(len(pairs)))
    return [lsn for _, lsn in pairs]


def write_until_killed(wire: Wire, path: Path, writer: int, side: Path, most: int = 2000) -> None:
    """Append for ever, noting each returned LSN beside the log."""
    fd = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    rng = random.Random(writer)
    with shmlog.open(path) as log:
        wire.say(os.getpid())
        sequence = 0
        while True:
            size = HEAD_BYTES + int(rng.random() ** 4 * (most - HEAD_BYTES))
            note(fd, sequence, log.append(payload(writer, sequence, size), writer))
            sequence += 1


# ---------------------------------------------------------------- the log's processes


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def flusher_pid(log: shmlog.Log) -> int:
    """The pid of the log's running flusher, once there is one."""

    def running() -> int | None:
        pid = log.statistics().flusher_pid
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        return pid if log.path.encode() in command else None

    found: int = until(running, "a flusher runs")
    return found


def kill_flusher(log: shmlog.Log) -> int:
    """kill -9 the flusher; its lease is free when this returns, or has a new holder."""
    pid = flusher_pid(log)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the flusher is dead")
    return pid


def flusher_pids(path: Path | str) -> list[int]:
    """Every flusher process of the log, those that wait for the lease included."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"shmlog" in words and b"flush" in words and os.fsencode(path) in words:
                found.append(int(entry.name))
    return found


def kill_everybody(path: Path | str, children: Sequence[Child]) -> None:
    """kill -9 the writers and whatever is or wants to be the flusher."""
    for child in children:
        child.stop()  # first, or one of them would start the next flusher
    pids = flusher_pids(path)
    while pids:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(is_alive(pid) for pid in pids))  # noqa: B023
        pids = flusher_pids(path)
    for child in children:
        child.kill()
    until(lambda: nobody_lives(path), "nobody is left")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is no child of ours, suspended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "T", "it has stopped")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def flusher_of(path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A flusher that the test runs itself, as `shmlog flush`; it serves when this yields."""
    command = [sys.executable, "-m", "shmlog", "flush", str(path), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begins = f"begins (pid {process.pid})"
    own_log = Path(path, "flusher.log")

    def serves() -> bool:
        assert process.poll() is None, f"the flusher ended with {process.returncode}"
        return own_log.exists() and begins in own_log.read_text()

    try:
        until(serves, "the flusher serves")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def log_id(path: Path | str) -> str:
    identity: str = json.loads(Path(path, "shmlog.json").read_bytes())["log_id"]
    return identity.replace("-", "")


def shared_names(path: Path | str) -> list[Path]:
    """The log's control block and semaphores in /dev/shm."""
    stem = f"shmlog-{log_id(path)[:16]}"
    return sorted(entry for entry in Path("/dev/shm").iterdir() if stem in entry.name)


def block_path(path: Path | str) -> Path:
    return Path("/dev/shm", f"shmlog-{log_id(path)[:16]}")


def lose_shared_memory(path: Path | str) -> None:
    """What a container that restarts does to the log."""
    for entry in shared_names(path):
        entry.unlink()


def nobody_lives(path: Path | str) -> bool:
    """Whether no process holds a byte of the log's LOCK."""
    from shmlog.session.attachment import somebody_lives
    from shmlog.system.locks import LockFile

    lock = LockFile(os.path.join(path, "LOCK"))
    try:
        return not somebody_lives(lock)
    finally:
        lock.close()


def _look(wire: Wire, path: Path) -> tuple[bool, int]:
    report = shmlog.verify(path)
    with shmlog.open_readonly(path) as log:
        return report.ok, sum(1 for record in log.read() if record.tag == FOLLOW_UP)


def assert_healthy(log: shmlog.Log, count: int = 50) -> None:
    """The log goes on: appends, durably, and another process reads and verifies it."""
    with Child(_look, log.path) as child:
        _, before = child.result()
    for n in range(count):
        log.append(payload(FOLLOW_UP, n, 100), FOLLOW_UP)
    log.wait_durable()
    with Child(_look, log.path) as child:
        assert child.result() == (True, before + count)
