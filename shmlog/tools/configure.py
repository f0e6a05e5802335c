"""Configure: change what of a log may be changed after it was made.

This module knows which settings there are.  It may not know who follows them.
"""

from __future__ import annotations

import os

from shmlog.disk import directory, settings
from shmlog.format.retention import Retention


def configure(path: str | os.PathLike[str], *, retention: Retention | None) -> None:
    """Say durably how much of a log is kept, live or dead; None: everything.

    A flusher that runs follows within a second, the next one from its start. ValueError if
    the budget is smaller than four of the log's segments. Also FileNotFoundError, FormatError,
    OSError.
    """
    if retention is not None and not isinstance(retention, Retention):
        raise TypeError(f"retention must be a shmlog.Retention, not {type(retention).__name__}")
    where = directory.load(os.fsdecode(path))
    settings.store_retention(where, retention or Retention(), where.mode())


def configured(path: str | os.PathLike[str]) -> Retention:
    """How much of a log is kept."""
    return settings.load_retention(directory.load(os.fsdecode(path))) or Retention()
