"""Descent: what a backup says of the log that it is a copy of.

    backup.json   source_id, end_lsn, mark, pending: how far the copy goes, and the (epoch, durable
                  LSN, sequence) of its newest mark, and of the one that is about to be written

A copy whose newest mark is neither has been written to: it has become a log of its own.

This module knows the file.  It may not know how a copy is made.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import Final

from shmlog.errors import FormatError
from shmlog.format.identity import parse_object
from shmlog.format.marks import Mark
from shmlog.system import files

VERSION: Final = 1
TEMPORARY: Final = re.compile(r"(backup|shmlog)\.json\.[0-9a-f]{16}\.tmp")
"""What a backup that was killed may leave."""

Key = tuple[int, int, int]


def key(mark: Mark) -> Key:
    """What tells a copy's newest mark from every later one."""
    return mark.epoch, mark.durable_lsn, mark.sequence


@dataclass(frozen=True, slots=True)
class Descent:
    """What backup.json says."""

    source_id: str
    end_lsn: int
    mark: Key | None
    """None: the first backup is under way"""
    pending: Key | None = None

    def encode(self) -> bytes:
        body = {"format": "shmlog backup", "version": VERSION, **asdict(self)}
        return json.dumps(body, indent=2).encode() + b"\n"


def _path(place: str) -> str:
    return os.path.join(place, "backup.json")


def load(place: str) -> Descent | None:
    """None if the directory is not a backup; FormatError if the file is damaged."""
    path = _path(place)
    try:
        body = parse_object(files.read_small(path), path)
    except FileNotFoundError:
        return None
    if body.get("format") != "shmlog backup" or body.get("version") != VERSION:
        raise FormatError(f"{path} does not describe a backup of version {VERSION}")
    try:
        return Descent(
            str(body["source_id"]), int(body["end_lsn"]), _key(body["mark"]), _key(body["pending"])
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error


def _key(value: object) -> Key | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise TypeError("a mark is three whole numbers")
    epoch, durable_lsn, sequence = value
    return epoch, durable_lsn, sequence


def store(place: str, descent: Descent, mode: int) -> None:
    files.write_atomically(_path(place), descent.encode(), mode)


def check_strangers(place: str) -> None:
    """FormatError unless the directory is empty, or what a backup made."""
    strangers = {name for name in os.listdir(place) if name != "LOCK" and not TEMPORARY.fullmatch(name)}
    if strangers and not os.path.lexists(_path(place)):
        raise FormatError(f"{place} is neither empty nor a backup: it holds {sorted(strangers)[0]!r}")
