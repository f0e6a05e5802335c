"""What a process does with a log while it is harmed, and what must be so afterwards.

    user      opens, appends, reads, commits a cursor, trims and closes, served by a flusher
    starter   opens a log that nobody serves, and starts its flusher
    forker    opens, forks, and appends in the child
    maker     makes a log and opens it; then it is made again
    opener    recovers a log whose control block is gone, with a hole in it

After each: whoever was harmed has ended with success or a typed error, by no signal but the
kill; a new process opens the log, finds every record that append() returned, whole, once and
in order, no mark and no cursor lower than it was, and goes on appending.

This module knows logs.  It may not know how a process is harmed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import posix_ipc
from crash.stores.serving import served
from crash.stores.users import (
    BATCH,
    LATE_S,
    NONE,
    TYPED,
    Harm,
    Said,
    leave_a_hole,
    look,
    make,
    open_only,
    serve,
    start_flusher,
    use,
    use_after_fork,
)
from support.processes import (
    SEGMENT_BYTES,
    Child,
    flusher_pids,
    log_id,
    lose_shared_memory,
    shared_names,
    until,
)

from shmlog.memory.block import bell_name
from shmlog.tools.create import create


class Run:
    """One log, the harm that is done to one of its processes, and what came of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said = Said()
        self.problems: list[str] = []
        self.starts = False
        """whether flushers may have been started that are nobody's children"""

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
        with Child(use, self.path, self.said, user) as child:
            return self._through("the user", child, user, flusher)

    def forker(self, harm: Harm) -> list[str]:
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        with Child(use_after_fork, self.path, self.said, harm) as child:
            return self._through("the forker", child, NONE, NONE)

    def starter(self, harm: Harm) -> None:
        self.starts = True
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        with Child(start_flusher, self.path, self.said, harm) as child:
            self.end("the starter", child, harm)

    def _through(self, who: str, child: Child, harm: Harm, flusher: Harm) -> list[str]:
        """Serve the child to its end; another flusher does if the first one ends before."""
        if not self._opened(child):
            return self.end(who, child, harm)
        with Child(serve, self.path, flusher) as serving:
            child.say("go on")
            until(lambda: child._wire.poll(0) or _ended(serving), "either ends", LATE_S * 2)
            if child._wire.poll(0):
                errors = self.end(who, child, harm)
                self._ring()
                self.end("the flusher", serving, flusher)
                return errors
            self.end("the flusher", serving, flusher)
        with Child(serve, self.path, NONE) as another:
            errors = self.end(who, child, harm)
            self._ring()
            self.end("the next flusher", another)
        return errors

    def maker(self, harm: Harm) -> None:
        with Child(make, self.path, harm) as child:
            self.end("the maker", child, harm)
        with Child(make, self.path, NONE) as child:
            errors = self.end("the next maker", child)
        if not all("FileExistsError" in error for error in errors):
            self.problems.append(f"the log cannot be made again: {errors}")

    def opener(self, harm: Harm) -> None:
        create(self.path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600)
        with Child(leave_a_hole, self.path, self.said) as child:
            child.hear()
            with Child(serve, self.path, NONE) as flusher:
                child.say("go on")
                child.hear()
                flusher.kill()
                child.kill()
        lose_shared_memory(self.path)
        with Child(open_only, self.path, harm) as child:
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
        with Child(look, self.path) as child:
            child.hear()
            with Child(serve, self.path, NONE) as flusher:
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
        until(lambda: not shared_names(self.path), "nothing is left in /dev/shm")


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
        try:
            until(lambda: not (run.starts and flusher_pids(run.path)), "every flusher has left")
        except AssertionError as error:
            run.problems.append(str(error))
        if run.path.exists():
            with contextlib.suppress(OSError, ValueError, KeyError):
                lose_shared_memory(run.path)
