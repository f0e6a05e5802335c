"""Errors: what can go wrong, whose fault it was, and the values that disagree.

A caller's fault is a ValueError or TypeError, the machine's is the OSError it
raised, a wait that ran out is a TimeoutError; the log's own conditions derive
from ShmlogError.  Every error here survives pickling, so that it crosses a
worker pool intact.
"""

from __future__ import annotations

import os


def errno_text(number: int) -> str:
    """What the system calls an errno; it may come from memory that anybody wrote to."""
    try:
        return os.strerror(number)
    except OverflowError:
        return f"Unknown error {number}"


class ShmlogError(Exception):
    """Base of the log's own errors."""


class CorruptionError(ShmlogError):
    """Bytes that were vouched for are not what was written.

    Attributes: path (the file), lsn (where the first bad frame should be), reason.
    """

    def __init__(self, path: str, lsn: int, reason: str) -> None:
        super().__init__(path, lsn, reason)
        self.path, self.lsn, self.reason = path, lsn, reason

    def __str__(self) -> str:
        return f"{self.path}: damaged at LSN {self.lsn}: {self.reason}"


class RestartUnclearError(ShmlogError):
    """Records lie above a hole, and whether the machine restarted since is not known: they
    must be kept if it did not, and may have to go if it did.  Nothing was touched.

    Attributes: path (the file), lsn (where the hole begins).
    """

    def __init__(self, path: str, lsn: int) -> None:
        super().__init__(path, lsn)
        self.path, self.lsn = path, lsn

    def __str__(self) -> str:
        return (
            f"{self.path}: records lie above a hole at LSN {self.lsn}, and it is unclear whether the machine"
            " restarted since they were written: `shmlog recover --restarted` or `--not-restarted` says"
        )


class NetworkFileSystemWarning(UserWarning):
    """A log is opened for writing, or made, where neither locks nor mappings are sure to be coherent.

    An error if you say so: warnings.simplefilter("error", shmlog.NetworkFileSystemWarning)."""


class FormatError(ShmlogError):
    """A directory or file is not a log, or is one of another version."""


class LogFullError(ShmlogError):
    """There is no room (window or disk) and none came in time.

    Nothing was appended, but for an attribute `appended`: so many records of a batch that
    takes several reservations."""


class LogFailedError(ShmlogError):
    """A sync failed, or a file was changed under the log; final for this log's life.

    Attributes: errno (0 if unknown), lsn: nothing at or above it is known to be durable.
    """

    def __init__(self, errno: int, lsn: int, what: str = "a sync failed") -> None:
        super().__init__(errno, lsn, what)
        self.errno, self.lsn, self.what = errno, lsn, what

    def __str__(self) -> str:
        why = f" ({errno_text(self.errno)})" if self.errno else ""
        return f"the log has failed: {self.what}{why}; nothing from LSN {self.lsn} on is known to be durable"


class TrimmedError(ShmlogError):
    """What was asked for has been trimmed.  Attributes: lsn, trimmed_lsn."""

    def __init__(self, lsn: int, trimmed_lsn: int) -> None:
        super().__init__(lsn, trimmed_lsn)
        self.lsn, self.trimmed_lsn = lsn, trimmed_lsn

    def __str__(self) -> str:
        return f"LSN {self.lsn} has been trimmed: the log begins at {self.trimmed_lsn}"


class ClosedError(ShmlogError):
    """The handle has been closed."""


class AttachError(ShmlogError):
    """The log's control block cannot be joined: foreign, of another version, or full."""


class RecordTooLargeError(ValueError):
    """The record, or the atomic batch, cannot fit.  The message says the limit."""


class SourceDivergedError(ShmlogError):
    """A log is not the one that was shipped: what the engine holds is not in it.

    Attributes: lsn (up to where the engine holds records), reason.
    """

    def __init__(self, lsn: int, reason: str) -> None:
        super().__init__(lsn, reason)
        self.lsn, self.reason = lsn, reason

    def __str__(self) -> str:
        return f"the log is not the one that was shipped up to LSN {self.lsn}: {self.reason}"


class FencedError(ShmlogError):
    """Another shipper has taken over.  Attributes: lsn (up to where it shipped), shipper (its id)."""

    def __init__(self, lsn: int, shipper: str) -> None:
        super().__init__(lsn, shipper)
        self.lsn, self.shipper = lsn, shipper

    def __str__(self) -> str:
        return f"fenced: the shipper {self.shipper} has taken over, and shipped up to LSN {self.lsn}"
