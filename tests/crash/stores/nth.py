"""The n-th call, from Python: what a process counts and which of its calls fails.

    shim()                          to be preloaded: LD_PRELOAD
    NAMES                           what can be counted, in a process that has it preloaded
    arm(which, n, action, counts)   in the child, for the rest of its life

This module knows the shim.  It may not know what is done under it.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from crash.stores.building import library

KILL = 0
"""The action that is no errno."""
ALLOCATIONS = ("malloc", "calloc", "realloc")


def shim() -> Path:
    return library(Path(__file__).with_name("nth.c"))


class Counts:
    """Calls by name, in memory that children share."""

    def __init__(self) -> None:
        self._shim = ctypes.CDLL(None)
        self._shim.nth_name.restype = ctypes.c_char_p
        self.names: list[str] = []
        while name := self._shim.nth_name(len(self.names)):
            self.names.append(name.decode())
        self._memory = mmap.mmap(-1, 4096)
        self.words = memoryview(self._memory).cast("q")

    def clear(self) -> None:
        self._memory[:] = bytes(4096)

    def made(self) -> dict[str, int]:
        return {name: count for name, count in zip(self.names, self.words, strict=False) if count}

    def delivered(self) -> int:
        return self.words[len(self.names)]

    def arm(self, name: str | None, n: int, action: int, watched: tuple[int, int]) -> None:
        """Count from now on; name: whose n-th call it is that fails; watched: the code of which
        allocations count."""
        which = -1 if name is None else self.names.index(name)
        self._shim.nth_watch(ctypes.c_size_t(watched[0]), ctypes.c_size_t(watched[1]))
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._shim.nth_arm(which, ctypes.c_int64(n), action, ctypes.c_void_p(at))

    def disarm(self) -> None:
        self._shim.nth_arm(-1, ctypes.c_int64(0), 0, None)


def native_core() -> tuple[int, int]:
    """Where the code of shmlog's native core is mapped."""
    from shmlog import _native

    name = str(_native.__file__)
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, rights, *_, path = line.split(maxsplit=5)
        if path == name and "x" in rights:
            begin, end = (int(bound, 16) for bound in bounds.split("-"))
            return begin, end
    raise AssertionError(f"{name} is not mapped")
