"""Create: make a log without opening it.

This module knows the rules for a new log's sizes, mode and retention.  It may not know what is
in the directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shmlog.disk import directory
from shmlog.format.geometry import Geometry
from shmlog.format.retention import Retention
from shmlog.system import files, surroundings
from shmlog.tools.configure import configure, configured


def parse_mode(text: str) -> int:
    """The files' mode that an octal number says; ValueError for one that no log may have."""
    try:
        mode = int(text, 8)
    except ValueError:
        raise ValueError(f"{text!r} is no octal mode") from None
    return files.check_mode(mode)


def create(
    path: str | os.PathLike[str],
    segment_bytes: int | None,
    window_bytes: int | None,
    mode: int,
    exist_ok: bool = False,
    retention: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the log; what it is, as plain values.  If there is one: FileExistsError, or with
    exist_ok ValueError unless it has the sizes that are given.

    retention: fields of a Retention; an existing log's others stay as they are."""
    where = os.fsdecode(path)
    surroundings.warn_of_network(where, stacklevel=2)
    there = directory.exists(where)
    if there and not exist_ok:
        raise FileExistsError(errno.EEXIST, "there is a log already", where)
    geometry = Geometry.of(segment_bytes, window_bytes)
    files.check_mode(mode)
    changes = dict(retention or {})
    replace(Retention(), **changes).check(geometry)  # before anything is made
    made = directory.load(where) if there else directory.create(where, geometry, mode)
    if there:
        geometry = made.identity.geometry
        given = {"segment_bytes": segment_bytes, "window_bytes": window_bytes}
        for name, value in given.items():
            if value not in (None, getattr(geometry, name)):
                raise ValueError(f"{name}={value}, but the log {made.path} has {getattr(geometry, name)}")
    kept = configured(where)
    if changes and kept != (wanted := replace(kept, **changes)):
        configure(where, retention=wanted)
        kept = wanted
    return {
        "created": not there,
        "path": made.path,
        "log_id": made.identity.log_id.hex(),
        "segment_bytes": geometry.segment_bytes,
        "window_bytes": geometry.window_bytes,
        "retention": kept.to_dict(),
    }
