"""Sidecar: the flusher as a process.

Started on demand it is detached (its own session, no terminal, no child of the
process that started it), writes to flusher.log in the log's directory, and
leaves when the last participant has gone and all is durable.  Started by hand it
stays until it is told to end: SIGTERM and SIGINT settle and exit.

This module knows processes and signals.  It may not know the protocol.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import signal
import sys

from shmlog.disk import directory
from shmlog.disk.directory import Directory
from shmlog.errors import AttachError, FormatError
from shmlog.flusher.flusher import Flusher
from shmlog.format.layout import CB, ROLE_FLUSHER, ROLE_SIDECAR
from shmlog.session.attachment import Attachment, attach
from shmlog.session.departure import leave, leave_unserved
from shmlog.system import files
from shmlog.system.deadlines import deadline_after, poll
from shmlog.system.locks import LEASE_BYTE, LockFile
from shmlog.system.notify import Manager

LOG_BYTES_MAX = 1 << 20
LEASE_PATIENCE_S = 0.5
JOINING_S = 30.0
STANDS_S = 5.0
"""A loop that comes round more rarely makes no progress; at rest each does every second."""
_ENDING = signal.SIGTERM, signal.SIGINT

log = logging.getLogger("shmlog.flusher")


def close_inherited() -> None:
    """Close every descriptor but the standard ones.  For a process that was started to be a
    flusher, before it opens any: it outlives the one that started it, whose sockets and pipes
    would stay open with it, and their peers wait for an end that does not come."""
    try:
        held = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # nothing is mounted there
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        return
    for fd in held:
        if fd > 2:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)


def run(path: str, sync_interval: float, mode: int | None, detach: bool, session: int | None = None) -> int:
    """Be the log's flusher; the exit status.  0 also when another one runs already and
    this one was started on demand, or when the control block is not the one of `session`.
    mode: None: the log's own."""
    told: list[int] = []
    for number in _ENDING:  # from the first moment on: told to end, it leaves in order
        signal.signal(number, lambda number, _: told.append(number))
    where = directory.load(path)
    mode = where.mode() if mode is None else files.check_mode(mode)
    _set_up_logging(where, mode, detach)
    lock = LockFile(where.lock_path)
    if not _take_lease(lock):
        if detach:
            return 0
        raise AttachError(f"{where.path} has a flusher already")
    sys.setswitchinterval(0.0005)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a window may span many segments
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _serve(where, lock, mode, sync_interval, not detach, told, session)
    except BaseException:
        log.exception("the flusher ends")
        raise
    finally:
        lock.close()


def _take_lease(lock: LockFile) -> bool:
    """The holder may be about to leave, so one look is not enough."""
    return poll(lambda: lock.try_lock(LEASE_BYTE), deadline_after(LEASE_PATIENCE_S))


def _serve(
    where: Directory,
    lock: LockFile,
    mode: int,
    sync_interval: float,
    linger: bool,
    told: list[int],
    session: int | None,
) -> int:
    try:
        role = ROLE_SIDECAR if linger else ROLE_FLUSHER
        joined = attach(where, mode, role, deadline_after(JOINING_S), lock, make=linger)
    except FileNotFoundError:
        if linger:
            raise
        return 0  # whoever started this one has gone, and another flusher finished the log
    native = joined.control.native
    if session is not None and native.load(CB.CREATED_NS) != session:
        leave_unserved(joined)  # it may be one that this process has just made
        return 0  # as if there were no block
    generation = native.add(CB.GENERATION, 1) + 1
    native.store(CB.FLUSHER_PID, os.getpid())
    manager = Manager(f"flusher {generation} of {where.path}", lambda: _trouble(flusher, joined))
    beside = (manager.loop,) if linger else ()  # who starts one on demand may be a service itself
    flusher = Flusher(
        *(where, joined.control, joined.participants, joined.number, joined.boot_id, mode, sync_interval),
        linger,
        beside,
    )

    def end(*_: object) -> None:
        flusher.stop()
        if linger:
            manager.stopping()

    for number in _ENDING:
        signal.signal(number, end)
    if told:
        end()
    log.info("flusher %d of %s begins (pid %d)", generation, where.path, os.getpid())
    try:
        while not flusher.run() or not leave(flusher, joined, lock):
            if flusher.stopped:
                flusher.settle()
                joined.detach()
                log.info("told to end; participants remain")
                break
    finally:
        flusher.close()
    return 0


def _trouble(flusher: Flusher, joined: Attachment) -> str | None:
    """What a service manager should restart it for, as Manager asks it."""
    if joined.control.failed:
        return str(joined.control.failure())
    stands_s = flusher.stands_s()
    if stands_s is not None and stands_s > STANDS_S:
        return "a loop stands still: is the disk stuck?"
    return None if stands_s is None else ""


def _set_up_logging(where: Directory, mode: int, detached: bool) -> None:
    handlers: list[logging.Handler] = []
    path, unwritten = where.flusher_log_path, None
    if not detached:
        handlers.append(logging.StreamHandler())
    with contextlib.suppress(OSError):
        if os.lstat(path).st_size > LOG_BYTES_MAX:
            os.replace(path, path + ".old")
    try:
        fd = files.open_to_append(path, mode)
    except (OSError, FormatError) as error:  # a full disk, or a link, must not stop the flusher
        unwritten = error
        if detached:
            handlers.append(logging.NullHandler())
    else:
        own = logging.FileHandler(path, delay=True)  # by its path it would follow a link
        own.setStream(os.fdopen(fd, "a", encoding="utf-8"))
        handlers.append(own)
        if detached:
            os.dup2(fd, 2)
    if detached:
        faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO,
        handlers=handlers,
        format="%(asctime)s %(process)d %(levelname)s %(message)s",
        force=True,
    )
    logging.raiseExceptions = False
    if unwritten is not None:
        log.warning("%s is not written to: %s", path, unwritten)
