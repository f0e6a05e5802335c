"""Sidecar: the flusher as a process.

Started on demand it is detached (its own session, no terminal, no child of the
process that started it), writes to flusher.log in the log's directory, and
leaves when the last participant has gone and all is durable.  Started by hand it
stays until it is told to end: SIGTERM and SIGINT settle and exit.

This module knows processes and signals.  It may not know the protocol.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path

from shmlog import _native
from shmlog.disk import directory
from shmlog.disk.directory import Directory
from shmlog.errors import AttachError
from shmlog.flusher.flusher import Flusher
from shmlog.format.layout import CB, ROLE_FLUSHER, ROLE_SIDECAR
from shmlog.session import attachment
from shmlog.session.attachment import Attachment, attach
from shmlog.system import files
from shmlog.system.files import LEASE_BYTE, SETUP_BYTE, LockFile

LOG_BYTES_MAX = 1 << 20
LEASE_PATIENCE_S = 0.5
_ENDING = signal.SIGTERM, signal.SIGINT

log = logging.getLogger("shmlog.flusher")


def start(where: Directory, mode: int, sync_interval: float) -> None:
    """Start a flusher process for the log and return at once.  If one runs already,
    the new one finds the lease taken and ends.  It is no child of this process.
    OSError if no process can be made."""
    python = os.environ.get("SHMLOG_PYTHON") or sys.executable
    if not python:
        raise OSError(errno.ENOENT, "no Python interpreter to run the flusher with; set SHMLOG_PYTHON")
    package_parent = str(Path(__file__).absolute().parents[2])
    environment = dict(os.environb)
    paths = filter(None, (os.fsencode(package_parent), environment.get(b"PYTHONPATH")))
    environment[b"PYTHONPATH"] = os.fsencode(os.pathsep).join(paths)
    # -P: the current directory may hold modules of the same names as ours and Python's
    arguments = [python, "-P", "-m", "shmlog", "flush", where.path, "--detach"]
    arguments += ["--sync-interval", repr(sync_interval), "--mode", f"{mode:o}"]
    _native.spawn_detached(
        tuple(os.fsencode(argument) for argument in arguments),
        tuple(key + b"=" + value for key, value in environment.items()),
    )


def run(path: str, sync_interval: float, mode: int, detach: bool) -> int:
    """Be the log's flusher; the exit status.  0 also when another one runs already and
    this one was started on demand."""
    told: list[int] = []
    for number in _ENDING:  # from the first moment on: told to end, it leaves in order
        signal.signal(number, lambda number, _: told.append(number))
    where = directory.load(path)
    _set_up_logging(where, mode, detach)
    lock = LockFile(where.lock_path, mode)
    if not _take_lease(lock):
        if detach:
            return 0
        raise AttachError(f"{where.path} has a flusher already")
    sys.setswitchinterval(0.0005)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a window may span many segments
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _serve(where, lock, mode, sync_interval, not detach, told)
    except BaseException:
        log.exception("the flusher ends")
        raise
    finally:
        lock.close()


def _take_lease(lock: LockFile) -> bool:
    """The holder may be about to leave, so one look is not enough."""
    deadline = time.monotonic() + LEASE_PATIENCE_S
    while not lock.try_lock(LEASE_BYTE):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def _serve(
    where: Directory, lock: LockFile, mode: int, sync_interval: float, linger: bool, told: list[int]
) -> int:
    try:
        role = ROLE_SIDECAR if linger else ROLE_FLUSHER
        joined = attach(where, mode, role, time.monotonic() + 30.0, lock, make=linger)
    except FileNotFoundError:
        if linger:
            raise
        return 0  # whoever started this one has gone, and another flusher finished the log
    native = joined.control.native
    generation = native.add(CB.GENERATION, 1) + 1
    native.store(CB.FLUSHER_PID, os.getpid())
    native.store(CB.STARTING_NS, 0)  # should this one die, the next may start at once
    flusher = Flusher(
        where, joined.control, joined.participants, joined.number, joined.boot_id, mode, sync_interval, linger
    )
    for number in _ENDING:
        signal.signal(number, lambda *_: flusher.stop())
    if told:
        flusher.stop()
    log.info("flusher %d of %s begins (pid %d)", generation, where.path, os.getpid())
    try:
        while not flusher.run() or not _leave(flusher, joined, lock):
            if flusher.stopped:
                flusher.settle()
                joined.detach()
                log.info("told to end; participants remain")
                break
    finally:
        flusher.close()
    return 0


def _leave(flusher: Flusher, joined: Attachment, lock: LockFile) -> bool:
    """Under the set-up byte nobody can join: if still nobody is there, finish the log
    and take the block down."""
    attachment.take_setup(lock, time.monotonic() + 30.0)
    try:
        if joined.participants.anybody():
            return False
        flusher.finish()
        log.info("the last participant has gone; all is durable up to LSN %d", joined.control.durable_lsn)
        # Before the set-up byte: who joins next must not believe in us.  Before the block
        # goes: close() returns when it has gone, and `shmlog flush` may be started then.
        lock.unlock(LEASE_BYTE)
        attachment.take_down(joined)
        return True
    finally:
        lock.unlock(SETUP_BYTE)


def _set_up_logging(where: Directory, mode: int, detached: bool) -> None:
    handlers: list[logging.Handler] = []
    if not detached:
        handlers.append(logging.StreamHandler())
    with contextlib.suppress(OSError):
        if os.path.getsize(where.flusher_log_path) > LOG_BYTES_MAX:
            os.replace(where.flusher_log_path, where.flusher_log_path + ".old")
    try:
        with contextlib.suppress(FileExistsError):
            os.close(files.create_file(where.flusher_log_path, mode))
        handlers.append(logging.FileHandler(where.flusher_log_path))
    except OSError:
        if detached:
            handlers.append(logging.NullHandler())  # a full disk must not stop the flusher
    if detached:
        with contextlib.suppress(OSError):
            fd = os.open(where.flusher_log_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.dup2(fd, 2)
            os.close(fd)
        faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO,
        handlers=handlers,
        format="%(asctime)s %(process)d %(levelname)s %(message)s",
        force=True,
    )
    logging.raiseExceptions = False
