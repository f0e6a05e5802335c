"""Retention: how much of a log is kept, and how that is written down.

    {"format": "shmlog retention", "version": 1, "bytes": 1073741824, "age_s": 604800.0,
     "cursors": "protect", "when_full": "wait"}

This module knows the JSON object of retention.json.  It may not know where that lies, or
what is trimmed by it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from shmlog.errors import FormatError
from shmlog.format.geometry import LSN_MAX, Geometry
from shmlog.format.identity import parse_object

CursorRule = Literal["protect", "ignore"]
FullRule = Literal["wait", "trim"]

VERSION: Final = 1
AGE_S_MAX: Final = 1e10
BUDGET_SEGMENTS_MIN: Final = 4
"""What is being written, what is made ahead of it, and something to read."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a log is kept.  Whole segments are given up, oldest first.

    bytes: the segment files take no more on disk, what is made ahead included (None: no budget;
    at least four segments). age: seconds after which what is durable may go (None: never).
    cursors: "protect" keeps what a named cursor has not passed, "ignore" does not. when_full:
    what happens when the budget is used up and a cursor holds it back: "wait" lets writers wait
    for it, "trim" goes on and the cursor's reader gets TrimmedError.
    """

    bytes: int | None = None
    age: float | None = None
    cursors: CursorRule = "protect"
    when_full: FullRule = "wait"

    def __post_init__(self) -> None:
        _check_number("bytes", self.bytes, (int,), 1, LSN_MAX)
        _check_number("age", self.age, (int, float), 0, AGE_S_MAX)
        for name, value, known in (
            ("cursors", self.cursors, get_args(CursorRule)),
            ("when_full", self.when_full, get_args(FullRule)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")

    @property
    def limits(self) -> bool:
        """Whether anything is ever given up."""
        return self.bytes is not None or self.age is not None

    def segments_max(self, geometry: Geometry) -> int | None:
        """How many files the budget pays for."""
        return None if self.bytes is None else self.bytes // geometry.file_bytes

    def check(self, geometry: Geometry) -> Retention:
        """ValueError if a log of these sizes cannot be kept within it."""
        least = BUDGET_SEGMENTS_MIN * geometry.file_bytes
        if self.bytes is not None and self.bytes < least:
            raise ValueError(
                f"bytes={self.bytes} is too small a budget: {BUDGET_SEGMENTS_MIN} segments of this log"
                f" take {least}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"bytes": self.bytes, "age_s": self.age, "cursors": self.cursors, "when_full": self.when_full}


def encode_retention(retention: Retention) -> bytes:
    body = {"format": "shmlog retention", "version": VERSION, **retention.to_dict()}
    return json.dumps(body, indent=2).encode() + b"\n"


def decode_retention(data: bytes, path: str) -> Retention:
    """What a file says; FormatError, naming the path, says what is wrong."""
    body = parse_object(data, path)
    if body.get("format") != "shmlog retention" or type(body.get("version")) is not int:
        raise FormatError(f"{path} does not describe a retention")
    if body["version"] != VERSION:
        raise FormatError(f"{path} has format version {body['version']!r}; this is version {VERSION}")
    try:
        return Retention(body["bytes"], body["age_s"], body["cursors"], body["when_full"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error


def _check_number(name: str, value: object, types: tuple[type, ...], low: int, high: float) -> None:
    if value is None:
        return
    if type(value) not in types:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not (low <= value <= high and math.isfinite(value)):  # type: ignore[operator, arg-type]
        raise ValueError(f"{name} must be from {low} to {high:g}, not {value}")
