"""Runs under the shim: a user or a flusher whose n-th call of a name fails or kills it.

    user      a process that opens, appends, reads, commits a cursor, trims and closes, under fault
    flusher   the one that serves it, on demand; if it dies another one takes over
    maker     a process that makes a log and opens it; then it is made again

After each: whoever was under fault has ended with success or a typed error, by no signal but
the kill; a new process opens the log, finds every record that append() returned, whole, once
and in order, no mark and no cursor lower than it was, and goes on appending.

    python -m crash.stores.calling SECONDS SEED [--first]     prints a tally as JSON
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import mmap
import pkgutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from crash.kit import Budget, Tally
from crash.stores.nth import ALLOCATIONS, KILL, Counts, native_core
from crash.stores.serving import be_flusher, served
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    lose_shared_memory,
    payload,
    shared_names,
    until,
    whose,
)

import shmlog
from shmlog.tools.create import create

T = TypeVar("T")

WRITER, LATER = 1, 2
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EMFILE, errno.EACCES)
TYPED = (OSError, shmlog.ShmlogError, MemoryError)
LATE_S = 30.0
WORKERS = 4
"""Runs at a time: each waits for the most part, for flushers to leave."""
STOP_AT_FIRST = "--first"
SIZES = (20_000, 20_000, 20_000, 20_000, 40, 100, 16, 64, 64, 64, 150)
"""Of the user's records: four that roll, an atomic batch of three, three rows, a reservation."""


@dataclass(frozen=True)
class Fault:
    """Which call fails how; name None: none, they are counted."""

    name: str | None = None
    n: int = 0
    action: int = KILL

    def __str__(self) -> str:
        how = errno.errorcode[self.action] if self.action else "KILL"
        return f"{self.name} number {self.n} {how}"


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


@contextlib.contextmanager
def _under(counts: Counts, fault: Fault | None) -> Iterator[None]:
    """Fault None: not even counted."""
    if fault is not None:
        watches = fault.name is None or fault.name in ALLOCATIONS
        counts.arm(fault.name, fault.n, fault.action, native_core() if watches else (0, 0))
    try:
        yield
    finally:
        counts.disarm()


def _try(errors: list[str], action: Callable[[], T], times: int = 1) -> T | None:
    """Do it, or note the typed error that it ended with."""
    for _ in range(times):
        try:
            return action()
        except TYPED as error:
            errors.append(f"{type(error).__name__}: {error}")
    return None


def _use(wire: Wire, path: Path, said: Said, counts: Counts, fault: Fault | None) -> list[str]:
    """Everything that a user can do, once; the errors."""
    errors: list[str] = []
    bodies = [payload(WRITER, number, size) for number, size in enumerate(SIZES)]
    rows = np.frombuffer(b"".join(bodies[7:10]), np.uint8).reshape(3, 64)
    with _under(counts, fault):
        log = _try(errors, lambda: shmlog.open(path, flusher="external", timeout=LATE_S), 2)
    if log is None:
        return [*errors, "not opened at the second try"]
    wire.say("opened")
    wire.hear()
    with _under(counts, fault):
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


def _serve(wire: Wire, path: Path, counts: Counts, fault: Fault | None) -> int:
    with _under(counts, fault):
        return be_flusher(wire, path, on_demand=True)


def _make(wire: Wire, path: Path, said: Said, counts: Counts, fault: Fault | None) -> list[str]:
    """A log is made, opened and closed, though nobody serves it."""
    errors: list[str] = []
    with _under(counts, fault):
        made = _try(errors, lambda: create(path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600))
        log = _try(errors, lambda: shmlog.open(path, flusher="external")) if made else None
        if log:
            log.close()
    return errors


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
    """One log, one fault, and what came of it."""

    def __init__(self, scratch: Path, counts: Counts) -> None:
        self.path = scratch / "log"
        self.counts = counts
        self.said = Said()
        self.problems: list[str] = []

    def end(self, who: str, child: Child, fault: Fault | None) -> list[str] | None:
        """Wait for a child; the errors that it met, or None if it was killed as it should be."""
        try:
            value = child.hear(LATE_S) if child._wire.poll(LATE_S) else self.problems.append(f"{who} hangs")
        except EOFError:
            value = None
        except TYPED as error:
            value = [f"{type(error).__name__}: {error}"]
        except BaseException as error:
            value = None
            if fault is not None and fault.name == "pthread_create" and isinstance(error, RuntimeError):
                child.wait(LATE_S)
                return [str(error)]
            self.problems.append(f"{who}: {type(error).__name__}: {error}")
        status = child.wait(LATE_S)
        killed = fault is not None and fault.name is not None and fault.action == KILL
        if status < 0 and not (killed and status == -9):
            self.problems.append(f"{who} ended by signal {-status}")
        return value if isinstance(value, list) else [] if status >= 0 else None

    def user(self, user: Fault | None, flusher: Fault | None) -> tuple[list[str] | None, list[str] | None]:
        """A user and its flusher, either under fault: the errors that each met."""
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        first: list[str] | None = []
        with Child(_use, self.path, self.said, self.counts, user) as child:
            if not self._opened(child):
                return self.end("the user", child, user), []
            with Child(_serve, self.path, self.counts, flusher) as serving:
                child.say("go on")
                until(lambda: child._wire.poll(0) or _ended(serving), "either ends", LATE_S * 2)
                if not child._wire.poll(0):
                    first = self.end("the flusher", serving, flusher)
                    with Child(_serve, self.path, self.counts, None) as next_one:
                        errors = self.end("the user", child, user)
                        self.end("the next flusher", next_one, None)
                    return errors, first
                errors = self.end("the user", child, user)
                first = self.end("the flusher", serving, flusher)
                return errors, first

    def _opened(self, child: Child) -> bool:
        try:
            return bool(child.hear() == "opened")
        except EOFError:
            return False
        except TYPED:
            return False

    def look(self, lose: bool) -> None:
        """Open the log in a new process and compare."""
        if lose and not served(self.path):
            with contextlib.suppress(FileNotFoundError):
                lose_shared_memory(self.path)
        with Child(_look, self.path) as child:
            child.hear()
            with Child(_serve, self.path, self.counts, None) as flusher:
                child.say("go on")
                found = child.result()
                self.end("the last flusher", flusher, None)
        self._compare(found)

    def _compare(self, found: dict[str, Any]) -> None:
        numbers = [number for _, number in found["records"]]
        if numbers != sorted(set(numbers)):
            self.problems.append(f"records out of order or twice: {numbers}")
        places = {number: lsn for lsn, number in found["records"]}
        for number, lsn in self.said.records().items():
            if lsn >= found["trimmed"] and places.get(number) != lsn:
                self.problems.append(f"record {number}, returned at {lsn}, is at {places.get(number)}")
        batch = {number for number in numbers if 4 <= number < 7}
        if len(batch) not in (0, 3) and not any(number < 4 for number in numbers) and not found["trimmed"]:
            self.problems.append(f"an atomic batch is in part: {sorted(batch)}")
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


def _once(who: str, fault: Fault, counts: Counts) -> list[str]:
    """One run with a fault; the problems."""
    with tempfile.TemporaryDirectory(prefix="shmlog-calls-") as scratch:
        counts.clear()
        run = Run(Path(scratch), counts)
        try:
            if who == "maker":
                with Child(_make, run.path, run.said, counts, fault) as child:
                    run.end("the maker", child, fault)
                with Child(_make, run.path, run.said, counts, None) as child:
                    errors = run.end("the next maker", child, None)
                if errors and not all("FileExistsError" in error for error in errors):
                    run.problems.append(f"cannot be made again: {errors}")
            elif who == "user":
                run.user(fault, None)
            else:
                errors, _ = run.user(None, fault)
                _judge_user(run, errors, fault)
            delivered = counts.delivered()
            run.look(lose=fault.n % 2 == 1)
            if fault.name is not None and not delivered:
                return [NOT_REACHED]
        except Exception as error:
            run.problems.append(f"{type(error).__name__}: {error}")
        finally:
            if run.path.exists():
                with contextlib.suppress(Exception):
                    lose_shared_memory(run.path)
        return run.problems


NOT_REACHED = "not reached"


def _judge_user(run: Run, errors: list[str] | None, fault: Fault) -> None:
    """What a user may see of a fault that met its flusher."""
    if fault.action in (KILL, errno.EINTR) and errors:
        run.problems.append(f"the user was told {errors}")
    failed = Path(run.path, "FAILED").exists() or any("LogFailedError" in error for error in errors or ())
    if fault.name == "fdatasync" and fault.action in (errno.EIO, errno.ENOSPC) and not failed:
        run.problems.append(f"a sync failed and nobody was told: {errors}")


def plan(counts: Counts) -> list[tuple[str, Fault]]:
    """Every call that each of them makes, times everything that can come of it."""
    found = []
    for who in ("flusher", "user", "maker"):
        if problems := _once(who, Fault(), counts):
            raise AssertionError(f"{who} without a fault: {problems}")
        for name, count in counts.made().items():
            if name not in counts.names:
                continue
            actions = (errno.ENOMEM,) if name in ALLOCATIONS else (KILL, *ERRORS)
            found += [(who, Fault(name, n, action)) for n in range(1, count + 1) for action in actions]
    return found


def _import_all() -> None:
    """Now, in the parent: or the calls that an import makes would be counted in the children."""
    for name in shmlog.__all__:
        getattr(shmlog, name)
    for module in pkgutil.walk_packages(shmlog.__path__, "shmlog."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)


def _work(wire: Wire, faults: Sequence[tuple[str, Fault]], budget: Budget) -> tuple[Tally, int]:
    """One run after the other; the tally, and how many calls were not reached this time."""
    counts, tally, missed = Counts(), Tally(), 0
    for who, fault in faults:
        if not budget or (tally.violations and STOP_AT_FIRST in sys.argv):
            break
        problems = _once(who, fault, counts)
        if problems == [NOT_REACHED]:
            missed += 1
        elif problems:
            tally.violate(f"{who}, {fault}: {'; '.join(problems)}")
        else:
            tally.survive()
    return tally, missed


def main() -> int:
    budget = Budget(float(sys.argv[1]), int(sys.argv[2]))
    _import_all()
    gc.freeze()
    faults = plan(Counts())
    budget.random(0).shuffle(faults)
    faults.sort(key=lambda fault: fault[1].action not in (KILL, errno.EIO, errno.ENOMEM))  # these first
    whole, missed = Tally(), 0
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Child(_work, faults[n::WORKERS], budget)) for n in range(WORKERS)]
        for worker in workers:
            tally, not_reached = worker.result(max(0.0, budget.left_s()) + 4 * LATE_S)
            whole.survive(tally.survived)
            for violation in tally.violations:
                whole.violate(violation)
            missed += not_reached
    whole.figures["calls x faults"] = len(faults)
    whole.figures["not reached this time"] = missed
    whole.figures["no time for"] = len(faults) - whole.tried - missed
    print(json.dumps(asdict(whole)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
