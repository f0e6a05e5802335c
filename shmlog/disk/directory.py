"""Directory: a log's place on disk.

    events/
      shmlog.json      who it is: format version, log id, geometry; written once
      LOCK             never read or written; byte ranges are locked
      segments/        00000000000000000000.seg ...
      cursors/NAME     one named cursor
      flusher.log      what the flusher had to say
      retention.json   how much is kept (settings)
      backup.json      only of a backup: of which log (descent)
      FAILED           that it could not make something durable (failure)

This module knows names.  It may not know what segments hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid

from shmlog.errors import FormatError
from shmlog.format.geometry import Geometry
from shmlog.format.identity import Identity, decode_identity
from shmlog.format.origin import Origin
from shmlog.system import files, machine
from shmlog.system.deadlines import deadline_after
from shmlog.system.locks import LockFile, take_setup

MAKING_S = 30.0


class Directory:
    """The paths of one log, and its identity."""

    def __init__(self, path: str, identity: Identity, owner: int | None = None) -> None:
        self.path = path
        self.identity = identity
        self.owner = os.geteuid() if owner is None else owner
        """whose the files are: our own, but for one that is only looked at"""
        self.segments_path = os.path.join(path, "segments")
        self.cursors_path = os.path.join(path, "cursors")
        self.lock_path = os.path.join(path, "LOCK")
        self.flusher_log_path = os.path.join(path, "flusher.log")

    def origin(self, boot_id: bytes) -> Origin:
        """Where and when this process looks at the log."""
        clocks = (0, 0) if machine.clocks_are_shifted() else machine.clocks()
        return Origin(boot_id, machine.has_kernels_boot_id(), *clocks, *machine.place(self.lock_path))

    def place(self) -> tuple[int, int] | None:
        """(device, inode) of LOCK, by which a control block knows its place; None without one."""
        try:
            found = os.stat(self.lock_path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def mode(self) -> int:
        """The mode of the log's files: that of shmlog.json, as its maker wanted it."""
        return os.stat(identity_path(self.path)).st_mode & 0o664 | 0o600

    def sync_names(self) -> None:
        """Make durable that the log is there: whoever made it may have been killed before it did."""
        for path in (self.segments_path, self.path):
            files.sync_directory(path)
        with contextlib.suppress(PermissionError):  # not every user of a log may read what it lies in
            files.sync_directory(os.path.dirname(self.path))


def identity_path(path: str) -> str:
    return os.path.join(path, "shmlog.json")


def exists(path: str) -> bool:
    """OSError if that cannot be told: a log that the disk does not show is no log to be made anew."""
    try:
        os.lstat(identity_path(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_kind(path: str) -> None:
    """FileNotFoundError if nothing has this name, FormatError if it is no directory, nor leads to one."""
    os.lstat(path)
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:  # a link to nowhere
        is_directory = False
    if not is_directory:
        raise FormatError(f"{path} is a file, and a log is a directory")


def load(path: str, *, to_look: bool = False) -> Directory:
    """An existing log's directory; FileNotFoundError or FormatError if there is none.

    to_look: another user's will do, if this is root or of a group that may look into it; every
    file must then be that user's."""
    path = os.path.abspath(path)
    try:
        _check_kind(path)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is no log here; create=True makes one", path) from None
    owner = files.owner_to_read(path) if to_look else None
    try:
        os.lstat(identity_path(path))
    except FileNotFoundError:
        raise FormatError(f"{path} is not a log: it has no shmlog.json") from None
    files.check_directory(path, owner)
    identity = decode_identity(files.read_small(identity_path(path), owner=owner), identity_path(path))
    where = Directory(path, identity, owner)
    files.check_part(where.segments_path, owner)
    files.check_part(where.cursors_path, owner)
    return where


def create(path: str, geometry: Geometry, mode: int) -> Directory:
    """Make a log's directory, or finish one whose making was interrupted; if another
    process makes it at the same time, its log is returned."""
    path = os.path.abspath(path)
    directory_mode = files.directory_mode(mode)
    with contextlib.suppress(FileNotFoundError):
        _check_kind(path)
    with contextlib.suppress(FileExistsError):
        files.make_directory(path, directory_mode)
    files.check_directory(path)
    lock = LockFile(os.path.join(path, "LOCK"))
    try:
        take_setup(lock, deadline_after(MAKING_S))
        if not exists(path):
            strangers = set(os.listdir(path)) - {"LOCK", "segments"}
            strangers = {name for name in strangers if not name.endswith(".tmp")}
            if strangers:
                raise FormatError(f"{path} is neither empty nor a log: it holds {sorted(strangers)[0]!r}")
            try:
                files.make_directory(os.path.join(path, "segments"), directory_mode)
            except FileExistsError:  # its maker may have been killed before the name was durable
                files.sync_directory(path)
            identity = Identity(uuid.uuid4().bytes, geometry, time.time_ns())
            files.write_atomically(identity_path(path), identity.encode(), mode)
    finally:
        lock.close()
    return load(path)
