"""What a process does with a log while it is harmed, and what must be so afterwards.

    user      opens, appends, reads, commits a cursor, trims and closes, served by a flusher
    forker    opens, forks, and appends in the child
    maker     makes a log and opens it; then it is made again
    opener    recovers a log whose control block is gone, with a hole in it

After each: whoever was harmed has ended with success or a typed error, by no signal but the
kill; a new process opens the log, finds every record that append() returned, whole, once and
in order, no mark and no cursor lower than it was, and goes on appending.

This module knows logs.  It may not know how a process is harmed.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import mmap
import os
import pkgutil
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import posix_ipc
from crash.stores.serving import be_flusher, served
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    log_id,
    lose_shared_memory,
    payload,
    shared_names,
    until,
    whose,
)

import shmlog
from shmlog.memory.block import bell_name
from shmlog.tools.create import create

T = TypeVar("T")

WRITER, LATER = 1, 2
TYPED = (OSError, shmlog.ShmlogError, MemoryError)
LATE_S = 30.0
SIZES = (20_000, 20_000, 20_000, 20_000, 40, 100, 16, 64, 64, 64, 150)
"""Of the user's records: four that roll, an atomic batch of three, three rows, a reservation."""
BATCH = range(4, 7)


@dataclass(frozen=True)
class Harm:
    """What happens to a process: `under` is entered in it, `kills` says whether it may be killed,
    `excused` what else it may end with."""

    under: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    kills: bool = False
    excused: tuple[type[BaseException], ...] = ()


NONE = Harm()


class Said:
    """What the user was told, where a kill cannot take it back."""

    _RECORD = struct.Struct("<QQ")
    MARKS = ("durable", "trimmed", "cursor")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)
        self._marks = memoryview(self._memory)[:64].cast("Q")

    def record(self, number: int, lsn: int) -> None:
        self._RECORD.pack_into(self._memory, 64 + number * self._RECORD.size, 1, lsn)

    def mark(self, name: str, lsn: int) -> None:
        at = self.MARKS.index(name)
        self._marks[at] = max(self._marks[at], lsn)

    def records(self) -> dict[int, int]:
        """Number -> LSN of every record that was returned."""
        found = {}
        for number in range(len(SIZES)):
            there, lsn = self._RECORD.unpack_from(self._memory, 64 + number * self._RECORD.size)
            if there:
                found[number] = lsn
        return found

    def marks(self) -> dict[str, int]:
        return dict(zip(self.MARKS, self._marks, strict=False))


# --------------------------------------------------------------------- the processes


def import_all() -> None:
    """Now, in the parent: or a child would be harmed while it imports."""
    for name in shmlog.__all__:
        getattr(shmlog, name)
    for module in pkgutil.walk_packages(shmlog.__path__, "shmlog."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    codecs.lookup("ascii")


def _try(errors: list[str], action: Callable[[], T], times: int = 1) -> T | None:
    """Do it, or note the typed error that it ended with."""
    for _ in range(times):
        try:
            return action()
        except TYPED as error:
            errors.append(f"{type(error).__name__}: {error}")
    return None


def _bodies() -> list[bytes]:
    return [payload(WRITER, number, size) for number, size in enumerate(SIZES)]


def _use(wire: Wire, path: Path, said: Said, harm: Harm) -> list[str]:
    """Everything that a user can do, once; the errors."""
    errors: list[str] = []
    bodies = _bodies()
    rows = np.frombuffer(b"".join(bodies[7:10]), np.uint8).reshape(3, 64)
    with harm.under():
        log = _try(errors, lambda: shmlog.open(path, flusher="external", timeout=LATE_S), 2)
    if log is None:
        return [*errors, "not opened at the second try"]
    wire.say("opened")
    wire.hear()
    with harm.under():
        for number in range(4):
            lsn = _try(errors, lambda: log.append(bodies[number], WRITER))  # noqa: B023
            if lsn is not None:
                said.record(number, lsn)
        for first, append in (
            (4, lambda: log.append_many(bodies[4:7], WRITER, atomic=True)),
            (7, lambda: log.append_array(rows, WRITER)),
            (10, lambda: [_reserve(log, bodies[10])]),
        ):
            lsns = _try(errors, append)
            for number, lsn in enumerate([] if lsns is None else lsns, first):
                said.record(number, int(lsn))
        _try(errors, log.wait_durable)
        said.mark("durable", log.durable_lsn)
        _try(errors, lambda: [record.data[:1] for record in log.read()])
        _try(errors, lambda: _consume(log, said))
        _try(errors, lambda: said.mark("trimmed", log.trim(log.durable_lsn)))
        said.mark("durable", log.durable_lsn)
        _try(errors, log.statistics)
        _try(errors, log.close, 2)
    return errors


def _reserve(log: shmlog.Log, body: bytes) -> int:
    with log.reserve(len(body), WRITER) as reservation:
        reservation.buffer[:] = body
    return reservation.lsn


def _consume(log: shmlog.Log, said: Said) -> None:
    with log.cursor("c") as cursor:
        for _ in cursor.batches():
            pass
        said.mark("cursor", cursor.commit())


def _fork(wire: Wire, path: Path, said: Said, harm: Harm) -> list[str]:
    """A handle is used again in a forked child, which is the one that is harmed."""
    errors: list[str] = []
    with shmlog.open(path, flusher="external", timeout=LATE_S) as log:
        wire.say("opened")
        wire.hear()
        said.record(0, log.append(_bodies()[0], WRITER))
        with harm.under():
            pid = os.fork()
            if not pid:
                said.record(1, log.append(_bodies()[1], WRITER, durable=True))
                log.close()
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) not in ((0, -9) if harm.kills else (0,)):
            raise AssertionError(f"the forked child ended with {os.waitstatus_to_exitcode(status)}")
        said.record(2, log.append(_bodies()[2], WRITER, durable=True))
        said.mark("durable", log.durable_lsn)
    return errors


def _serve(wire: Wire, path: Path, harm: Harm) -> int:
    with harm.under():
        return be_flusher(wire, path, on_demand=True)


def _make(wire: Wire, path: Path, harm: Harm) -> list[str]:
    """A log is made, opened and closed, though nobody serves it."""
    errors: list[str] = []
    with harm.under():
        made = _try(errors, lambda: create(path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600))
        log = _try(errors, lambda: shmlog.open(path, flusher="external")) if made else None
        if log:
            log.close()
    return errors


def _open(wire: Wire, path: Path, harm: Harm) -> list[str]:
    errors: list[str] = []
    with harm.under():
        log = _try(errors, lambda: shmlog.open(path, flusher="external"), 2)
        if log:
            log.close()
    return errors


def _leave_a_hole(wire: Wire, path: Path, said: Said) -> None:
    """Two records with an open reservation between them, to be killed with."""
    with shmlog.open(path, flusher="external", timeout=LATE_S) as log:
        wire.say("opened")
        wire.hear()
        said.record(0, log.append(_bodies()[0], WRITER, durable=True))
        said.mark("durable", log.durable_lsn)
        with log.reserve(100, WRITER):
            said.record(1, log.append(_bodies()[1], WRITER))
            wire.say("held")
            wire.hear()


def _look(wire: Wire, path: Path) -> dict[str, Any]:
    """A new process: what it finds in the log, having gone on."""
    with shmlog.open(path, flusher="external", timeout=LATE_S) as log:
        wire.say("opened")
        wire.hear()
        lsn = log.append(payload(LATER, 0, 100), LATER, durable=True)
        found = [(record.lsn, record.tag, *whose(record.data)) for record in log.read()]
        with log.cursor("c") as cursor:
            place = cursor.lsn
        return {
            "records": [(at, number) for at, tag, _, number in found if tag == WRITER],
            "later": [at for at, tag, _, _ in found if tag == LATER] == [lsn],
            "durable": log.durable_lsn,
            "trimmed": log.trimmed_lsn,
            "cursor": place,
        }


# ------------------------------------------------------------------------- one run


class Run:
    """One log, the harm that is done to one of its processes, and what came of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said = Said()
        self.problems: list[str] = []

    def end(self, who: str, child: Child, harm: Harm = NONE) -> list[str]:
        """Wait for a child; the typed errors that it met."""
        errors: list[str] = []
        try:
            value = child.hear(LATE_S)
            errors = value if isinstance(value, list) else []
        except EOFError:
            pass  # its status says why
        except (*TYPED, *harm.excused) as error:
            errors = [f"{type(error).__name__}: {error}"]
        except BaseException as error:
            self.problems.append(f"{who}: {type(error).__name__}: {error}")
        if child.wait(LATE_S) < 0 and not (harm.kills and child.status == -9):
            self.problems.append(f"{who} ended by signal {-child.wait()}")
        return errors

    def user(self, user: Harm = NONE, flusher: Harm = NONE) -> list[str]:
        """A user and its flusher, either of them harmed: the errors that the user met."""
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        with Child(_use, self.path, self.said, user) as child:
            return self._through("the user", child, user, flusher)

    def forker(self, harm: Harm) -> list[str]:
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        with Child(_fork, self.path, self.said, harm) as child:
            return self._through("the forker", child, NONE, NONE)

    def _through(self, who: str, child: Child, harm: Harm, flusher: Harm) -> list[str]:
        """Serve the child to its end; another flusher does if the first one ends before."""
        if not self._opened(child):
            return self.end(who, child, harm)
        with Child(_serve, self.path, flusher) as serving:
            child.say("go on")
            until(lambda: child._wire.poll(0) or _ended(serving), "either ends", LATE_S * 2)
            if child._wire.poll(0):
                errors = self.end(who, child, harm)
                self._ring()
                self.end("the flusher", serving, flusher)
                return errors
            self.end("the flusher", serving, flusher)
        with Child(_serve, self.path, NONE) as another:
            errors = self.end(who, child, harm)
            self._ring()
            self.end("the next flusher", another)
        return errors

    def maker(self, harm: Harm) -> None:
        with Child(_make, self.path, harm) as child:
            self.end("the maker", child, harm)
        with Child(_make, self.path, NONE) as child:
            errors = self.end("the next maker", child)
        if not all("FileExistsError" in error for error in errors):
            self.problems.append(f"the log cannot be made again: {errors}")

    def opener(self, harm: Harm) -> None:
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        with Child(_leave_a_hole, self.path, self.said) as child:
            child.hear()
            with Child(_serve, self.path, NONE) as flusher:
                child.say("go on")
                child.hear()
                flusher.kill()
                child.kill()
        lose_shared_memory(self.path)
        with Child(_open, self.path, harm) as child:
            self.end("the opener", child, harm)

    def _ring(self) -> None:
        """Let the flusher look at once whether it is still needed: its users have ended."""
        with contextlib.suppress(posix_ipc.ExistentialError):
            bell = posix_ipc.Semaphore(bell_name(bytes.fromhex(log_id(self.path)), "c"))
            bell.release()
            bell.close()

    def _opened(self, child: Child) -> bool:
        with contextlib.suppress(EOFError, *TYPED):
            return bool(child.hear() == "opened")
        return False

    def look(self, lose: bool) -> None:
        """Open the log in a new process, without the control block if it is to be lost, and compare."""
        if lose and not served(self.path):
            lose_shared_memory(self.path)
        with Child(_look, self.path) as child:
            child.hear()
            with Child(_serve, self.path, NONE) as flusher:
                child.say("go on")
                found = child.result()
                self._ring()
                self.end("the last flusher", flusher)
        self._compare(found)

    def _compare(self, found: dict[str, Any]) -> None:
        numbers = [number for _, number in found["records"]]
        if numbers != sorted(set(numbers)):
            self.problems.append(f"records out of order or twice: {numbers}")
        places = {number: lsn for lsn, number in found["records"]}
        for number, lsn in self.said.records().items():
            if lsn >= found["trimmed"] and places.get(number) != lsn:
                self.problems.append(f"record {number}, returned at {lsn}, is at {places.get(number)}")
        if len(set(BATCH) & set(numbers)) not in (0, len(BATCH)) and not found["trimmed"]:
            self.problems.append(f"an atomic batch is there in part: {numbers}")
        for mark, lsn in self.said.marks().items():
            if found[mark] < lsn:
                self.problems.append(f"{mark} went back from {lsn} to {found[mark]}")
        if not found["later"]:
            self.problems.append("the log does not go on")
        if left := shared_names(self.path):
            self.problems.append(f"left in /dev/shm: {[entry.name for entry in left]}")


def _ended(child: Child) -> bool:
    with contextlib.suppress(AssertionError):
        child.wait(0.001)
    return child.status is not None


@contextlib.contextmanager
def a_run(scratch: Path) -> Iterator[Run]:
    """A run whose errors are problems, and which leaves nothing in /dev/shm."""
    run = Run(scratch / "log")
    try:
        yield run
    except Exception as error:
        run.problems.append(f"{type(error).__name__}: {error}")
    finally:
        if run.path.exists():
            with contextlib.suppress(OSError, ValueError, KeyError):
                lose_shared_memory(run.path)
