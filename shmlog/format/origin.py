"""Origin: where a mark was written and in which run of the machine, and what two of them tell.

Whoever finds a mark asks: are the pages that I read the ones that the writers stored into?
They are if this is the same place and the machine has not restarted since.

    boot ids            the same                       another
    --------            --------                       -------
    both the kernel's   same boot                      restarted
    one a container's   BOOTS, by the clocks           BOOTS, by the clocks

A container may have a boot id of its own (systemd-nspawn and LXC mount a random one over
the kernel's): a new one does not mean that the machine restarted.  The second witness
are two clocks: the time since the machine started, which cannot go back before it
restarts, and the instant at which that was, which changes only if the clock is set.
Where they contradict each other nobody knows, and nothing may be decided by a guess.

The place is the LOCK file: its inode and the moment that was born, which nothing copies.
An inode number alone comes again when a directory is removed and restored.  The file
system counts as well, for a snapshot of it has the same files; but not after a restart:
some file systems are named by the number of their device, which may change then.

This module knows numbers.  It may not know where they come from.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

TOLERANCE_NS: Final = 10_000_000
"""Between two readings of one instant: what passes between the readings of two clocks."""


class Since(enum.Enum):
    """What happened since a mark was written."""

    SAME_BOOT = "same boot"
    RESTARTED = "restarted"
    UNCLEAR = "unclear"
    COPIED = "another place"


class Clocks(enum.Enum):
    """What the clocks say of two moments."""

    SAME = "the machine started at the same instant, and is up for longer"
    BACK = "the machine is up for less long than it was"
    OTHER = "it started at another instant: restarted, or the clock was set"
    UNKNOWN = "a clock that was never set, or one of a time namespace"


BOOTS: Final = {
    (True, Clocks.SAME): Since.SAME_BOOT,
    (True, Clocks.BACK): Since.RESTARTED,
    (True, Clocks.OTHER): Since.UNCLEAR,
    (True, Clocks.UNKNOWN): Since.SAME_BOOT,
    (False, Clocks.SAME): Since.SAME_BOOT,
    (False, Clocks.BACK): Since.RESTARTED,
    (False, Clocks.OTHER): Since.UNCLEAR,
    (False, Clocks.UNKNOWN): Since.UNCLEAR,
}
"""(whether the boot ids are the same, the clocks), where one boot id is a container's."""


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where and when somebody is; 0 for what is not known."""

    boot_id: bytes = bytes(16)
    kernels: bool = False
    """the boot id is the kernel's own, not a container's"""
    started_ns: int = 0
    """when the machine started, ns since 1970, by the wall clock of now"""
    up_ns: int = 0
    """how long ago that is"""
    file_system: int = 0
    inode: int = 0
    born_ns: int = 0

    def at(self, started_ns: int, up_ns: int) -> Origin:
        """The same at another moment."""
        return replace(self, started_ns=started_ns, up_ns=up_ns)

    def beside(self, other: Origin) -> bool:
        """Whether both are of one boot id and one place, whatever the clocks say."""
        return replace(self, started_ns=0, up_ns=0) == replace(other, started_ns=0, up_ns=0)


NOWHERE: Final = Origin()


def compare_clocks(then: Origin, now: Origin) -> Clocks:
    """What the clocks say of the time between two moments."""
    if not then.up_ns or not now.up_ns:
        return Clocks.UNKNOWN
    if now.up_ns < then.up_ns:
        return Clocks.BACK
    if not then.started_ns or not now.started_ns:
        return Clocks.UNKNOWN
    return Clocks.SAME if abs(now.started_ns - then.started_ns) <= TOLERANCE_NS else Clocks.OTHER


def since(then: Origin, now: Origin, restarted: bool | None = None) -> Since:
    """What happened between two moments; `restarted` is the answer of somebody who knows."""
    same_id = then.boot_id == now.boot_id
    if restarted is not None:
        found = Since.RESTARTED if restarted else Since.SAME_BOOT
    elif then.kernels and now.kernels:
        found = Since.SAME_BOOT if same_id else Since.RESTARTED
    else:
        found = BOOTS[same_id, compare_clocks(then, now)]
    here = then.inode != 0 and (then.inode, then.born_ns) == (now.inode, now.born_ns)
    if found is not Since.RESTARTED:
        here = here and then.file_system == now.file_system
    return found if here else Since.COPIED
