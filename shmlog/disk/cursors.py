"""Cursors: the file of one named cursor, which remembers an LSN.

    cursors/NAME   0 ........... 512 .......... 1024
                   | copy, even  | copy, odd   |

Byte 0 of the file is locked by whoever has the cursor open.

This module knows one cursor's file.  It may not know what its LSN is a place in.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from shmlog.disk.directory import Directory
from shmlog.errors import AttachError, FormatError
from shmlog.format.layout import FORMAT_VERSION
from shmlog.format.slots import Slots
from shmlog.system import files, processes
from shmlog.system.locks import LockFile

CURSOR_MAGIC = b"CURS"
CURSOR_SLOTS = Slots(struct.Struct("<4sIQQ"), (0, 512))
"""magic, format version, sequence, LSN."""
CURSOR_FILE_BYTES = 1024

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def check_name(name: object) -> str:
    """A cursor's name, or TypeError / ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a cursor's name is a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no cursor's name: use 1 to 64 letters, digits, dots, dashes, underscores"
        )
    return name


class Place(NamedTuple):
    """What a cursor's file remembers.  Compares by age."""

    sequence: int
    lsn: int


def paths(directory: Directory) -> list[tuple[str, str]]:
    """(name, path) of each cursor that there is, by name."""
    with contextlib.suppress(FileNotFoundError):
        names = sorted(filter(_NAME.fullmatch, os.listdir(directory.cursors_path)))
        return [(name, os.path.join(directory.cursors_path, name)) for name in names]
    return []


def look(path: str, seed: int, owner: int | None = None) -> Place | None:
    """A cursor's place, or None if its file has just been made; FormatError: it is damaged."""
    data = files.read_small(path, owner=owner)
    if not any(data):
        return None
    found = [
        Place(sequence, lsn)
        for magic, version, sequence, lsn in CURSOR_SLOTS.copies(data, seed)
        if magic == CURSOR_MAGIC and version == FORMAT_VERSION
    ]
    if not found:
        raise FormatError(f"{path} holds no valid copy of a cursor of this log")
    return max(found)


def remove(directory: Directory, name: str) -> None:
    """Remove a cursor; FileNotFoundError if there is none, AttachError if it is open."""
    os.stat(path_of(directory, name))  # a lock file is made if it is missing
    lock = _locked(directory, name, 0o600)
    try:
        os.unlink(lock.path)
    finally:
        lock.close()
    files.sync_directory(directory.cursors_path)


def path_of(directory: Directory, name: str) -> str:
    """Where the cursor's file is, or would be; errors as check_name()."""
    return os.path.join(directory.cursors_path, check_name(name))


def _locked(directory: Directory, name: str, mode: int) -> LockFile:
    """The cursor's file, made if absent and locked; AttachError if it is open elsewhere."""
    path = path_of(directory, name)
    while True:
        lock = LockFile(path, mode)
        try:
            if not lock.try_lock(0):
                raise AttachError(f"the cursor {name!r} of {directory.path} is open elsewhere")
            if lock.is_at(path):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()  # it was removed before it was locked


def holders(path: str) -> list[int]:
    """The processes that have the cursor open, as far as they can be seen."""
    return processes.lock_holders(path, 0)


def encode(seed: int, sequence: int, lsn: int) -> tuple[int, bytes]:
    """(offset, bytes) of the copy that says so."""
    copy = CURSOR_SLOTS.encode(seed, CURSOR_MAGIC, FORMAT_VERSION, sequence, lsn)
    return CURSOR_SLOTS.offset(sequence), copy


def places(directory: Directory) -> list[tuple[str, int]]:
    """(name, LSN) of each cursor that has a place; FormatError if one is damaged."""
    found = []
    for name, path in paths(directory):
        with contextlib.suppress(FileNotFoundError):  # just removed
            place = look(path, directory.identity.seed)
            if place is not None:
                found.append((name, place.lsn))
    return found


def put(directory: Directory, name: str, lsn: int, mode: int) -> None:
    """Make a cursor's place what it is elsewhere, durably; nobody has the log open."""
    path, seed = path_of(directory, name), directory.identity.seed
    with contextlib.suppress(FileExistsError), files.descriptor(files.create_file(path, mode)) as fd:
        os.ftruncate(fd, CURSOR_FILE_BYTES)
    with contextlib.suppress(FormatError):
        place = look(path, seed)
        sequence = place.sequence + 1 if place else 0
        with files.descriptor(files.open_file(path, writable=True)) as fd:
            offset, data = encode(seed, sequence, lsn)
            files.write_all(fd, data, offset)
            os.fsync(fd)


def furthest_lsn(directory: Directory) -> int:
    """The highest LSN that a cursor of this log remembers; 0 if there is none."""
    found = [0]
    for _, path in paths(directory):
        with contextlib.suppress(FormatError):
            place = look(path, directory.identity.seed, directory.owner)
            found += [place.lsn] if place else []
    return max(found)


class CursorFile:
    """One cursor's file, locked.  AttachError if it is open elsewhere."""

    def __init__(self, directory: Directory, name: str, mode: int, begin: Callable[[], int]) -> None:
        self.path = path_of(directory, name)
        self._seed = directory.identity.seed
        with contextlib.suppress(FileExistsError):
            files.make_directory(directory.cursors_path, files.directory_mode(mode))
        self._lock = _locked(directory, name, mode)
        try:
            self._sequence, self.lsn = self._load_or_begin(begin)
            # its names too: whoever made it may have been killed before that
            files.sync_directory(directory.cursors_path)
            files.sync_directory(directory.path)
        except BaseException:
            self._lock.close()
            raise

    def write(self, lsn: int) -> None:
        """Make lsn the cursor's place, durably; OSError: it is the old one or the new one."""
        sequence = self._sequence + 1
        with files.descriptor(files.open_file(self.path, writable=True)) as fd:
            offset, data = encode(self._seed, sequence, lsn)
            files.write_all(fd, data, offset)
            os.fsync(fd)
        self._sequence, self.lsn = sequence, lsn

    def close(self) -> None:
        self._lock.close()

    def _load_or_begin(self, begin: Callable[[], int]) -> tuple[int, int]:
        """(sequence, lsn); under the lock.  A file of zeros has just been made."""
        place = look(self.path, self._seed)
        if place is not None:
            return place
        place = Place(0, begin())
        with files.descriptor(files.open_file(self.path, writable=True)) as fd:
            while True:
                files.write_all(fd, encode(self._seed, *place)[1].ljust(CURSOR_FILE_BYTES, b"\0"), 0)
                if (now := begin()) <= place.lsn:
                    break
                place = Place(0, now)  # a trim was about to begin, and may not have seen the place
            os.fsync(fd)
        return place
