"""Deadlines: how long anything may take, and looking again until then.

This module knows the clock.  It may not know what is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shmlog._native import check_timeout

__all__ = ["check_timeout", "deadline_after", "poll"]


def deadline_after(timeout_s: float) -> float:
    """The moment, by time.monotonic(), that is so many seconds away."""
    return time.monotonic() + timeout_s


def poll(
    look: Callable[[], bool], deadline: float, pause_s: float = 0.0005, pause_max_s: float = 0.02
) -> bool:
    """Look, less and less often, until look() is true or the deadline has come; whether it was."""
    while not look():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, pause_max_s)
    return True
