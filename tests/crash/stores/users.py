"""The processes of a scenario, each of which may be harmed, and what they were told.

This module knows what a process does with a log.  It may not know how it is harmed, nor what
must be so afterwards.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import mmap
import os
import pkgutil
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from crash.stores.serving import be_flusher
from support.processes import (
    SEGMENT_BYTES,
    Wire,
    payload,
    whose,
)

import shmlog
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


def import_all() -> None:
    """Now, in the parent: or a child would be harmed while it imports."""
    for name in shmlog.__all__:
        getattr(shmlog, name)
    for module in pkgutil.walk_packages(shmlog.__path__, "shmlog."):
        if "__main__" not in module.name and ".integrations" not in module.name:  # they need extras
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


def use(wire: Wire, path: Path, said: Said, harm: Harm) -> list[str]:
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


def use_after_fork(wire: Wire, path: Path, said: Said, harm: Harm) -> list[str]:
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


def start_flusher(wire: Wire, path: Path, said: Said, harm: Harm) -> list[str]:
    """A handle starts its flusher, a new interpreter, and uses it."""
    errors: list[str] = []
    with harm.under():
        log = _try(errors, lambda: shmlog.open(path, timeout=LATE_S), 2)
        if log is None:
            return [*errors, "not opened at the second try"]
        lsn = _try(errors, lambda: log.append(_bodies()[0], WRITER, durable=True))
        if lsn is not None:
            said.record(0, lsn)
            said.mark("durable", log.durable_lsn)
        _try(errors, log.close, 2)
    return errors


def serve(wire: Wire, path: Path, harm: Harm) -> int:
    with harm.under():
        return be_flusher(wire, path, on_demand=True)


def make(wire: Wire, path: Path, harm: Harm) -> list[str]:
    """A log is made, opened and closed, though nobody serves it."""
    errors: list[str] = []
    with harm.under():
        made = _try(errors, lambda: create(path, SEGMENT_BYTES, SEGMENT_BYTES, 0o600))
        log = _try(errors, lambda: shmlog.open(path, flusher="external")) if made else None
        if log:
            log.close()
    return errors


def open_only(wire: Wire, path: Path, harm: Harm) -> list[str]:
    errors: list[str] = []
    with harm.under():
        log = _try(errors, lambda: shmlog.open(path, flusher="external"), 2)
        if log:
            log.close()
    return errors


def leave_a_hole(wire: Wire, path: Path, said: Said) -> None:
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


def look(wire: Wire, path: Path) -> dict[str, Any]:
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
