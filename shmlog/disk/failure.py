"""Failure: the note that a log has failed, for whoever opens it next.

    FAILED    {"errno": 5, "lsn": 4096, "time_ns": ...}

The control block that latched the failure goes with the last of the log's users; the
note stays until recovery has made everything durable.  The disk that could not be
written may not take the note either: then it is in the page cache only, or nowhere.

This module knows the note.  It may not know what failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass

from shmlog.disk.directory import Directory
from shmlog.system import files


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a log failed."""

    errno: int
    """what the sync said; 0 if the note does not tell any more"""
    lsn: int
    """durable_lsn at that moment"""

    def __str__(self) -> str:
        why = os.strerror(self.errno) if self.errno else "the note does not tell why"
        return f"{why}; nothing from LSN {self.lsn} on was known to be durable"


def _path(directory: Directory) -> str:
    return os.path.join(directory.path, "FAILED")


def note(directory: Directory, failure: Failure, mode: int) -> None:
    """Leave the note, as durably as the disk allows; the first one stays."""
    path = _path(directory)
    facts = {"errno": failure.errno, "lsn": failure.lsn, "time_ns": time.time_ns()}
    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    with contextlib.suppress(OSError):
        if os.path.lexists(path):
            return
        fd = files.create_file(temporary, mode)
        with files.descriptor(fd), contextlib.suppress(OSError):  # full or failing: the name says enough
            files.write_all(fd, json.dumps(facts).encode() + b"\n", 0)
            os.fsync(fd)
        os.rename(temporary, path)
        files.sync_directory(directory.path)
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def find(directory: Directory) -> Failure | None:
    """What the note says, or None if there is none.  That it is there counts: the disk that
    failed may not have kept what was in it."""
    try:
        data = files.read_small(_path(directory), owner=directory.owner)
    except FileNotFoundError:
        return None
    try:
        facts = json.loads(data)
        return Failure(int(facts["errno"]), int(facts["lsn"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Failure(0, 0)


def forget(directory: Directory) -> None:
    """Remove the note: everything is durable again."""
    os.unlink(_path(directory))
    files.sync_directory(directory.path)
