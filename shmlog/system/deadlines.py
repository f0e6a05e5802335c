"""Deadlines: how long anything may take, and looking again until then.

This module knows the clock.  It may not know what is waited for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any


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


def check_timeout(seconds: object, name: str = "timeout") -> float:
    """A time in seconds, or TypeError / ValueError."""
    kind = type(seconds)
    if kind is bool or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise TypeError(f"{name} must be a number of seconds, not {kind.__name__}")
    number: Any = seconds
    try:
        value = float(number)
    except OverflowError:
        value = math.inf if number > 0 else -math.inf
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must not be negative: {seconds}")
    return min(value, 1e9)
