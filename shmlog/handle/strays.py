"""Strays: the open reservations that an exception has left behind.

The core keeps no list of a handle's reservations, which would cost every reserve().  They
are looked for only when an exception has left them open: in the local variables of the
frames that it came through, and in the containers, behind the views and the arrays that
these are.  Attributes are not followed: objects are what threads share, and a
reservation that another thread is about to publish must be let be.

This module knows frames and objects.  It may not know which log a reservation is of.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from traceback import walk_tb
from types import TracebackType
from typing import Any

from shmlog import _native
from shmlog.memory.participants import Claim

OBJECTS_MAX = 20_000
"""So many are looked at, the nearest first: a frame may refer to all of a program's data."""


def give_up(trace: TracebackType | None, own: Callable[[], list[Claim]], others: list[Claim]) -> None:
    """Abort what the frames of a traceback have left open within the handle's own claims.  A
    reservation does not say whose it is: one that lies in another handle's claim too is let be."""
    for each in _reservations_under(trace):
        if _within(each.lsn, own()) and not _within(each.lsn, others):
            each.abort()


def _within(lsn: int, claims: list[Claim]) -> bool:
    return any(claim.begin <= lsn < claim.end for claim in claims)


def _reservations_under(trace: TracebackType | None) -> Iterator[_native.Reservation]:
    """The reservations, open or not, that the frames of a traceback refer to."""
    queue: deque[Any] = deque(frame.f_locals for frame, _ in walk_tb(trace))
    seen: set[int] = set()
    while queue and len(seen) < OBJECTS_MAX:
        each = queue.popleft()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if type(each) is _native.Reservation:
            yield each
        else:
            queue.extend(_parts(each)[:OBJECTS_MAX])


def _parts(each: Any) -> list[Any]:
    """What a container holds, or what a view or an array is of; runs no code of the object's own."""
    kind = type(each)
    if issubclass(kind, dict):
        return list(dict.values(each))
    if issubclass(kind, list | tuple | set | frozenset | deque):
        base: Any = next(known for known in (list, tuple, set, frozenset, deque) if issubclass(kind, known))
        return list(base.__iter__(each))
    if kind is memoryview:
        try:
            return [each.obj]
        except ValueError:  # released
            return []
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return [each.base]
    return []
