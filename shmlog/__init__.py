"""shmlog: a durable append-only log that many processes write at once.

The public names, loaded at first use: the flusher process imports this package
too and needs neither the reader nor NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmlog._native import Reservation
    from shmlog.disk.recovery import Recovery
    from shmlog.errors import (
        AttachError,
        ClosedError,
        CorruptionError,
        FencedError,
        FormatError,
        LogFailedError,
        LogFullError,
        NetworkFileSystemWarning,
        RecordTooLargeError,
        RestartUnclearError,
        ShmlogError,
        SourceDivergedError,
        TrimmedError,
    )
    from shmlog.format.retention import Retention
    from shmlog.handle.cursor import Cursor, CursorInfo, Lag
    from shmlog.handle.log import Log, open
    from shmlog.handle.readonly import ReadonlyLog, open_readonly
    from shmlog.handle.watch import Watch
    from shmlog.integrations.archived import open_archive, splits
    from shmlog.memory.metrics import Metric, Sample
    from shmlog.memory.statistics import Blocker, CursorPlace, Statistics, WriterRate
    from shmlog.records.batch import Record, RecordBatch
    from shmlog.records.chunk import ChunkInfo, chunk_info, decode_chunk, encode_chunk, join_frames
    from shmlog.records.scan import ArrowScan, Scan
    from shmlog.records.sealed import SealedSegment, decode_segment
    from shmlog.tools.assemble import Assembled, assemble
    from shmlog.tools.backup import BackupReport, backup
    from shmlog.tools.configure import configure
    from shmlog.tools.recover import recover
    from shmlog.tools.repair import RepairReport, repair
    from shmlog.tools.verify import VerifyReport, verify

__version__ = "0.1.0"

_HOMES = {
    "handle.cursor": "Cursor CursorInfo Lag",
    "errors": (
        "AttachError ClosedError CorruptionError FencedError FormatError LogFailedError LogFullError"
        " NetworkFileSystemWarning RecordTooLargeError RestartUnclearError ShmlogError SourceDivergedError"
        " TrimmedError"
    ),
    "handle.log": "Log open",
    "handle.readonly": "ReadonlyLog open_readonly",
    "handle.watch": "Watch",
    "integrations.archived": "open_archive splits",
    "records.sealed": "SealedSegment decode_segment",
    "tools.assemble": "Assembled assemble",
    "tools.backup": "BackupReport backup",
    "tools.configure": "configure",
    "tools.recover": "recover",
    "tools.repair": "RepairReport repair",
    "format.retention": "Retention",
    "memory.metrics": "Metric Sample",
    "memory.statistics": "Blocker CursorPlace Statistics WriterRate",
    "records.batch": "Record RecordBatch",
    "records.chunk": "ChunkInfo chunk_info decode_chunk encode_chunk join_frames",
    "records.scan": "ArrowScan Scan",
    "disk.recovery": "Recovery",
    "tools.verify": "VerifyReport verify",
    "_native": "Reservation",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ArrowScan",
    "Assembled",
    "AttachError",
    "BackupReport",
    "Blocker",
    "ChunkInfo",
    "ClosedError",
    "CorruptionError",
    "Cursor",
    "CursorInfo",
    "CursorPlace",
    "FencedError",
    "FormatError",
    "Lag",
    "Log",
    "LogFailedError",
    "LogFullError",
    "Metric",
    "NetworkFileSystemWarning",
    "ReadonlyLog",
    "Record",
    "RecordBatch",
    "RecordTooLargeError",
    "Recovery",
    "RepairReport",
    "Reservation",
    "RestartUnclearError",
    "Retention",
    "Sample",
    "Scan",
    "SealedSegment",
    "ShmlogError",
    "SourceDivergedError",
    "Statistics",
    "TrimmedError",
    "VerifyReport",
    "Watch",
    "WriterRate",
    "assemble",
    "backup",
    "chunk_info",
    "configure",
    "decode_chunk",
    "decode_segment",
    "encode_chunk",
    "join_frames",
    "open",
    "open_archive",
    "open_readonly",
    "recover",
    "repair",
    "splits",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if name == "_native":
        _check_core()
    if home is None:
        raise AttributeError(f"module 'shmlog' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"shmlog.{home}"), name)
    globals()[name] = value
    return value


def _check_core() -> None:
    """ImportError that says what to do where the core is not compiled, as in a fresh clone."""
    import importlib.util
    import sys

    if importlib.util.find_spec("shmlog._native") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ImportError(
            f"shmlog's compiled core is not in {__path__[0]} for Python {version}: in a clone, `make native`"
            " or `pip install -e .` compiles it; otherwise install shmlog with pip",
            name="shmlog._native",
        )


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
