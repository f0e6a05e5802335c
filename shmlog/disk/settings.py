"""Settings: what of a log may be changed later, in a file of its own.

    retention.json    how much is kept; there is none as long as nothing was said

Replaced as a whole, so whoever reads it finds the old one or the new one; its stamp tells
a flusher that it changed.

This module knows the file.  It may not know who follows it.
"""

from __future__ import annotations

import os

from shmlog.disk.directory import Directory
from shmlog.errors import FormatError
from shmlog.format.retention import Retention, decode_retention, encode_retention
from shmlog.system import files

Stamp = tuple[int, int, int]


def retention_path(directory: Directory) -> str:
    return os.path.join(directory.path, "retention.json")


def stamp(directory: Directory) -> Stamp | None:
    """Differs after every change; None as long as there is no file."""
    try:
        found = os.lstat(retention_path(directory))
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def load_retention(directory: Directory) -> Retention | None:
    """What was said, or None; FormatError if the file is not to be believed."""
    path = retention_path(directory)
    try:
        data = files.read_small(path, 4096, directory.owner)
    except FileNotFoundError:
        return None
    found = decode_retention(data, path)
    try:
        return found.check(directory.identity.geometry)
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


def store_retention(directory: Directory, retention: Retention, mode: int) -> None:
    """Say it durably; ValueError if a log of these sizes cannot be kept within it."""
    retention.check(directory.identity.geometry)
    files.write_atomically(retention_path(directory), encode_retention(retention), mode)
