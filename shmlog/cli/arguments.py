"""Arguments: what a word of the command line must look like.

This module knows words.  It may not know verbs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from functools import partial

from shmlog.tools.create import parse_mode

TAGS_MAX = 1 << 20
PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""Seconds, by the letter behind a number."""


def size(text: str) -> int:
    """A size in bytes: 67108864, 64M, 64MiB."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    stem = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = stem[-1:] if stem[-1:] in units else ""
    try:
        return int(stem.removesuffix(unit)) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 67108864 or 64MiB") from None


def mode(text: str) -> int:
    """The modes that a log can be made with."""
    try:
        return parse_mode(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text}")
    return min(seconds, 1e9)


def number(low: int, high: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {number}")
    return number


def tags(text: str) -> set[int]:
    """Tags of which any is wanted: 3, 3,5 or 10-19."""
    wanted: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        first = tag(low)
        last = tag(high) if dash else first
        if last - first >= TAGS_MAX:
            raise argparse.ArgumentTypeError(f"{part} are more than {TAGS_MAX} tags")
        wanted.update(range(first, last + 1))
    return wanted


def moment(text: str) -> int:
    """A time in ns: ISO 8601 (local without an offset), or how long ago: 90s, 10m, 2h, 3d."""
    try:
        if text[-1:] in PERIODS:
            return time.time_ns() - int(float(text[:-1]) * PERIODS[text[-1]] * 1e9)
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; write 2026-01-31T12:00:00, or 10m for ten minutes ago"
        ) from None


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, [::1]:PORT, or :PORT of this machine alone."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; write 127.0.0.1:9464, or :9464")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def level(text: str) -> int:
    """A level of logging's, by name or number."""
    import logging

    found = logging.getLevelNamesMapping().get(text.upper())
    return tag(text) if found is None and text.isdigit() else _known(text, found)


def _known(text: str, found: int | None) -> int:
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no level; write WARNING, or a number")
    return found


def budget(text: str) -> int:
    """A size, or none: -1."""
    return -1 if text == "none" else size(text)


def age(text: str) -> float:
    """Seconds: 90s, 10m, 2h, 7d; or none: -1."""
    if text == "none":
        return -1.0
    return seconds(text[:-1]) * PERIODS[text[-1]] if text[-1:] in PERIODS else seconds(text)


def dtype(text: str) -> object:
    """A NumPy dtype."""
    from shmlog.tools.export import parse_dtype

    try:
        return parse_dtype(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


tag = partial(number, 0, 2**32 - 1)
count = partial(number, 0, 2**63 - 1)


def check_place(path: str, remedy: str = "`shmlog create` makes one") -> None:
    """FileNotFoundError when there is nothing, in a shell user's words."""
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no log here: {os.path.abspath(path)}; {remedy}")
