"""The tracer, from Python: a child that stands between two stores.

    with Child(function, ...) as child:      # function(wire, ...) calls ask(), and mark() twice
        await_mark(child)
        changes, _ = scan(child, regions)    # from the first mark to the second
    with Child(function, ...) as child:
        await_mark(child)
        run_to(child, regions, changes, n)   # n of the changes are made, no more
        leave(child)                         # the child goes on; or child.kill()

Between its marks a child has one thread.  Only the thread that forked a child traces it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crash.stores.building import library
from support.processes import Child

CHANGES_MAX = 4096
_ENDED = -2
"""As in tracer.c."""


class _Region(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("bytes", ctypes.c_uint64))


class _Change(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("region", ctypes.c_uint64), ("offset", ctypes.c_uint64))


@dataclass(frozen=True)
class Change:
    """One instruction that changed a region, and the first byte that it changed there."""

    address: int
    region: int
    offset: int


class UndeliveredError(AssertionError):
    """The child could not be brought to the place where its fault was to be."""


@functools.cache
def _tracer() -> ctypes.CDLL:
    tracer = ctypes.CDLL(str(library(Path(__file__).with_name("tracer.c"))), use_errno=True)
    tracer.tracer_scan.restype = ctypes.c_int64
    return tracer


def missing() -> str | None:
    """Why nothing can be traced here, or None."""
    if platform.machine() != "x86_64":
        return "breakpoints are written for x86-64"
    pid = os.fork()
    if not pid:
        os._exit(min(255, abs(_tracer().tracer_ask())))
    return "ptrace is forbidden here" if os.waitpid(pid, 0)[1] else None


def ask() -> None:
    """In the child: be traced by the parent, and stand at every mark()."""
    if _tracer().tracer_ask() != 0:
        raise OSError(ctypes.get_errno(), "PTRACE_TRACEME")


def mark() -> None:
    """In the child: stand here; nothing if it is not traced."""
    os.kill(os.getpid(), signal.SIGURG)


def await_mark(child: Child) -> None:
    """Wait until the child stands at its next mark."""
    _, status = os.waitpid(child.pid, 0)
    if not os.WIFSTOPPED(status):
        child.status = os.waitstatus_to_exitcode(status)
        raise UndeliveredError(f"child {child.pid} ended before its mark: {child.status}")


def _regions(views: Sequence[memoryview]) -> ctypes.Array[_Region]:
    found = (_Region * len(views))()
    for region, view in zip(found, views, strict=True):
        region.at = ctypes.addressof(ctypes.c_char.from_buffer(view))
        region.bytes = view.nbytes
    return found


def _note_end(child: Child, result: int) -> None:
    """The tracer has reaped a child that ended."""
    if result == _ENDED:
        child.status = 1


def scan(child: Child, views: Sequence[memoryview]) -> tuple[list[Change], int]:
    """What changes until the next mark, in order; and how many instructions that took."""
    out, instructions = (_Change * CHANGES_MAX)(), ctypes.c_uint64()
    regions = _regions(views)
    found = _tracer().tracer_scan(
        child.pid,
        regions,
        ctypes.c_uint64(len(views)),
        out,
        ctypes.c_uint64(len(out)),
        ctypes.byref(instructions),
    )
    _note_end(child, found)
    if not 0 <= found <= len(out):
        raise UndeliveredError(f"child {child.pid}: the scan ended with {found}")
    return [Change(c.address, c.region, c.offset) for c in out[:found]], instructions.value


def run_to(child: Child, views: Sequence[memoryview], changes: Sequence[Change], n: int) -> None:
    """Let the child make the first n of its changes; UndeliveredError if it made others."""
    addresses = sorted({change.address for change in changes})
    breaks = (ctypes.c_uint64 * len(addresses))(*addresses)
    last = _Change()
    regions = _regions(views)
    result = _tracer().tracer_run_to(
        child.pid,
        regions,
        ctypes.c_uint64(len(views)),
        breaks,
        ctypes.c_uint64(len(addresses)),
        ctypes.c_uint64(n),
        ctypes.byref(last),
    )
    _note_end(child, result)
    if result != 0:
        raise UndeliveredError(f"child {child.pid} did not come to change {n} of {len(changes)}: {result}")
    if n and last.address != changes[n - 1].address:
        raise UndeliveredError(
            f"child {child.pid}: change {n} was made at {last.address:#x}, not {changes[n - 1]}"
        )


def leave(child: Child) -> None:
    """Let the child go on by itself."""
    if _tracer().tracer_leave(child.pid) != 0:
        raise OSError(ctypes.get_errno(), "PTRACE_DETACH")
