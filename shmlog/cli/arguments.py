"""Arguments: what a word of the command line must look like.

This module knows words.  It may not know verbs.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

from shmlog.tools.create import parse_mode


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


tag = partial(number, 0, 2**32 - 1)
count = partial(number, 0, 2**63 - 1)


def check_place(path: str, remedy: str = "`shmlog create` makes one") -> None:
    """FileNotFoundError when there is nothing, in a shell user's words."""
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no log here: {os.path.abspath(path)}; {remedy}")
