"""Recover: do to a log that nobody uses what the next open would, or only look.

This module knows who may use a log, and handles.  It may not know what recovery does.
"""

from __future__ import annotations

import os

from shmlog.disk import directory, recovery
from shmlog.disk.cases import Case
from shmlog.disk.recovery import Recovery
from shmlog.errors import AttachError
from shmlog.handle import log
from shmlog.session.attachment import somebody_lives
from shmlog.session.look import view_of
from shmlog.system import files
from shmlog.system.deadlines import check_timeout, deadline_after
from shmlog.system.locks import LockFile, take_setup


def recover(
    path: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    timeout: float = 30.0,
    restarted: bool | None = None,
) -> Recovery:
    """Recover a log that nobody uses, as the next open() would; returns what was found.

    A control block that survived is joined, not thrown away: then this opens and closes
    the log. dry_run=True only looks. restarted: whether the machine restarted since the log
    was last written, where that is not clear (RestartUnclearError): True drops what lies above
    a hole, False keeps it and fills the hole. Raises AttachError if somebody uses the log,
    CorruptionError, RestartUnclearError, FormatError.
    """
    deadline = deadline_after(check_timeout(timeout))
    where, boot_id = directory.load(os.fsdecode(path), to_look=dry_run), files.boot_id()
    if dry_run:
        return recovery.inspect(where, boot_id, restarted=restarted, whole=True)
    found = None
    lock = LockFile(where.lock_path)
    try:
        take_setup(lock, deadline)
        if somebody_lives(lock):
            raise AttachError(f"{where.path} is in use")
        if restarted is not None and view_of(where, boot_id) is None:
            found = recovery.recover(where, boot_id, restarted=restarted)
    finally:
        lock.close()
    with log.open(where.path, timeout=timeout) as handle:
        if found is not None:
            return found
        if handle.recovery is not None:
            return handle.recovery
        handle.wait_durable()
        end = handle.durable_lsn
        return Recovery(Case.INTACT, end, handle.trimmed_lsn, end, 0)
