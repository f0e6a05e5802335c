"""Turns: one thread at a time, and a thread that interrupts itself is told so.

A finalizer or a signal handler can run anywhere in a thread, also while that holds a
lock, and may want the same lock.  It can never be made to wait for its own thread.

This module knows locks and deadlines.  It may not know what they are for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """A re-entrant lock that nobody waits for longer than timeout_s."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._taken = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether this is inside of another turn of this very thread.  TimeoutError: what runs in
        another thread's turn, a handler perhaps, may wait for us."""
        if not self._lock.acquire(timeout=self._timeout_s):
            raise TimeoutError(f"another thread has been {self._what} for too long")
        try:
            nested, self._taken = self._taken, True
            try:
                yield nested
            finally:
                self._taken = nested
        finally:
            self._lock.release()
