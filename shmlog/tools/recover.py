"""Operations: what is done to a whole log by its path.

This module puts recovery and verification behind public names.  It may not
contain either.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from shmlog.disk import directory, recovery
from shmlog.disk.recovery import Case, Recovery
from shmlog.errors import AttachError, CorruptionError, FormatError
from shmlog.handle import log
from shmlog.handle.readonly import ReadonlyLog
from shmlog.memory.waiting import check_timeout, deadline_after
from shmlog.session.attachment import somebody_lives, take_setup
from shmlog.system import files
from shmlog.system.files import LockFile
from shmlog.tools import verify as verification
from shmlog.tools.verify import VerifyReport


def recover(path: str | os.PathLike[str], *, dry_run: bool = False, timeout: float = 30.0) -> Recovery:
    """Recover a log that nobody uses, as the next open() would; returns what was found.

    A control block that survived is joined, not thrown away: then this opens and closes
    the log. dry_run=True only looks. Raises AttachError if somebody uses the log,
    CorruptionError, FormatError.
    """
    deadline = deadline_after(check_timeout(timeout))
    where = directory.load(os.fsdecode(path))
    if dry_run:
        return recovery.inspect(where, files.boot_id())
    lock = LockFile(where.lock_path)
    try:
        take_setup(lock, deadline)
        if somebody_lives(lock):
            raise AttachError(f"{where.path} is in use")
    finally:
        lock.close()
    with log.open(where.path, timeout=timeout) as handle:
        if handle.recovery is not None:
            return handle.recovery
        handle.wait_durable()
        end = handle.durable_lsn
        return Recovery(Case.INTACT, end, handle.trimmed_lsn, end, 0)


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check every frame of a live or dead log; changes nothing.

    The report says ok, how many records, and where the first problem is: a bad frame, or a
    segment file that is missing, cut, or not this log's. progress, if given, is called
    with (bytes done, bytes in all). Raises FileNotFoundError and FormatError when the
    directory is no log.
    """
    where = directory.load(os.fsdecode(path))

    def corrupt(lsn: int | None, problem: str) -> VerifyReport:
        return VerifyReport(where.path, False, 0, 0, 0, 0, lsn, problem, "corrupt")

    try:
        with ReadonlyLog(where) as handle:
            while True:
                begin, end = handle._bounds()
                found = handle.recovery
                state, holes = (found.case.value, found.holes) if found else ("live", ())
                report = verification.check_frames(where, begin, end, state, progress, holes)
                if report.problem_lsn is None or report.problem_lsn >= handle.trimmed_lsn:
                    return report  # else it was trimmed meanwhile
    except CorruptionError as error:
        return corrupt(error.lsn, f"{error.path}: {error.reason}")
    except FormatError as error:
        return corrupt(_first_bad_segment(where), str(error))


def _first_bad_segment(where: directory.Directory) -> int | None:
    try:
        return verification.first_bad_segment(where)
    except FormatError:  # a name that is no segment's
        return None
