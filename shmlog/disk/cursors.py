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

from shmlog.disk.directory import Directory
from shmlog.errors import AttachError, FormatError
from shmlog.format.layout import FORMAT_VERSION
from shmlog.format.slots import Slots
from shmlog.system import files
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


def furthest_lsn(directory: Directory) -> int:
    """The highest LSN that a cursor of this log remembers; 0 if there is none."""
    found, seed = [0], directory.identity.seed
    with contextlib.suppress(FileNotFoundError):
        for name in filter(_NAME.fullmatch, os.listdir(directory.cursors_path)):
            data = files.read_small(os.path.join(directory.cursors_path, name))
            found += [
                lsn
                for magic, version, _, lsn in CURSOR_SLOTS.copies(data, seed)
                if magic == CURSOR_MAGIC and version == FORMAT_VERSION
            ]
    return max(found)


class CursorFile:
    """One cursor's file, locked.  AttachError if it is open elsewhere."""

    def __init__(self, directory: Directory, name: str, mode: int, begin: Callable[[], int]) -> None:
        self.path = os.path.join(directory.cursors_path, check_name(name))
        self._seed = directory.identity.seed
        with contextlib.suppress(FileExistsError):
            files.make_directory(directory.cursors_path, files.directory_mode(mode))
        self._lock = LockFile(self.path, mode)
        try:
            if not self._lock.try_lock(0):
                raise AttachError(f"the cursor {name!r} of {directory.path} is open elsewhere")
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
            files.write_all(fd, self._encode(sequence, lsn), CURSOR_SLOTS.offset(sequence))
            os.fsync(fd)
        self._sequence, self.lsn = sequence, lsn

    def close(self) -> None:
        self._lock.close()

    def _encode(self, sequence: int, lsn: int) -> bytes:
        return CURSOR_SLOTS.encode(self._seed, CURSOR_MAGIC, FORMAT_VERSION, sequence, lsn)

    def _load_or_begin(self, begin: Callable[[], int]) -> tuple[int, int]:
        """(sequence, lsn); under the lock.  A file of zeros has just been made."""
        data = files.read_small(self.path)
        if not any(data):
            lsn = begin()
            with files.descriptor(files.open_file(self.path, writable=True)) as fd:
                files.write_all(fd, self._encode(0, lsn).ljust(CURSOR_FILE_BYTES, b"\0"), 0)
                os.fsync(fd)
            return 0, lsn
        found = [
            (sequence, lsn)
            for magic, version, sequence, lsn in CURSOR_SLOTS.copies(data, self._seed)
            if magic == CURSOR_MAGIC and version == FORMAT_VERSION
        ]
        if not found:
            raise FormatError(f"{self.path} holds no valid copy of a cursor of this log")
        return max(found)
