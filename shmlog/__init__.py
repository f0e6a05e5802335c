"""shmlog: a durable append-only log that many processes write at once.

The public names, loaded at first use: the flusher process imports this package
too and needs neither the reader nor NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmlog._native import Reservation
    from shmlog.cursor import Cursor
    from shmlog.errors import (
        AttachError,
        ClosedError,
        CorruptionError,
        FormatError,
        LogFailedError,
        LogFullError,
        RecordTooLargeError,
        ShmlogError,
        TrimmedError,
    )
    from shmlog.log import Log, open
    from shmlog.operations import recover, verify
    from shmlog.reader import Record, RecordBatch
    from shmlog.readonly import ReadonlyLog, open_readonly
    from shmlog.recovery import Recovery
    from shmlog.statistics import Statistics
    from shmlog.verification import VerifyReport

__version__ = "0.1.0"

_HOMES = {
    "cursor": "Cursor",
    "errors": (
        "AttachError ClosedError CorruptionError FormatError LogFailedError LogFullError RecordTooLargeError"
        " ShmlogError TrimmedError"
    ),
    "log": "Log open",
    "readonly": "ReadonlyLog open_readonly",
    "operations": "recover verify",
    "statistics": "Statistics",
    "reader": "Record RecordBatch",
    "recovery": "Recovery",
    "verification": "VerifyReport",
    "_native": "Reservation",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AttachError",
    "ClosedError",
    "CorruptionError",
    "Cursor",
    "FormatError",
    "Log",
    "LogFailedError",
    "LogFullError",
    "ReadonlyLog",
    "Record",
    "RecordBatch",
    "RecordTooLargeError",
    "Recovery",
    "Reservation",
    "ShmlogError",
    "Statistics",
    "TrimmedError",
    "VerifyReport",
    "open",
    "open_readonly",
    "recover",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'shmlog' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"shmlog.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
