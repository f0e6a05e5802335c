"""Reports: what a shipper says of itself, for those who look at the log.

    shipping/NAME.json     by the shipper whose cursor is NAME; replaced as it goes on

A report is news, not state: nothing depends on it, it is not synced, and one that cannot be read is none.
It says when it was made; a shipper that was killed does not take it back.

This module knows the file.  It may not know how anything is shipped.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Final

from shmlog.disk.directory import Directory
from shmlog.errors import FormatError
from shmlog.system import files

FIELDS: Final[dict[str, type]] = {
    "time_ns": int,
    "pid": int,
    "position_lsn": int,
    "lag_bytes": int,
    "lag_records": int,
    "lag_seconds": float,
    "retries": int,
    "resyncs": int,
    "failing": bool,
    "last_error": str,
}
TEXT_MAX: Final = 500


def look(directory: Directory, name: str) -> dict[str, Any] | None:
    """What the shipper with this cursor said last, field by field of the type above; None: nothing."""
    path = os.path.join(directory.path, "shipping", f"{name}.json")
    with contextlib.suppress(OSError, FormatError, ValueError, RecursionError):
        found = json.loads(files.read_small(path, owner=directory.owner))
        if isinstance(found, dict) and all(type(found.get(field)) is kind for field, kind in FIELDS.items()):
            report = {field: found[field] for field in FIELDS}
            text = "".join(c if c.isprintable() else " " for c in report["last_error"])
            return report | {"last_error": text[:TEXT_MAX]}
    return None
