"""Directory: a log's place on disk and its identity.

    events/
      shmlog.json      who it is: format version, log id, geometry; written once
      LOCK             never read or written; byte ranges are locked
      segments/        00000000000000000000.seg ...
      cursors/NAME     one named cursor
      flusher.log      what the flusher had to say

This module knows names and the identity.  It may not know what segments hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from dataclasses import dataclass

from crc32c import crc32c

from shmlog.errors import FormatError
from shmlog.format.geometry import Geometry
from shmlog.format.layout import FORMAT_VERSION
from shmlog.system import files


@dataclass(frozen=True, slots=True)
class Identity:
    """What never changes in the life of a log."""

    log_id: bytes
    geometry: Geometry
    created_ns: int

    @property
    def seed(self) -> int:
        """What every frame's checksum starts from."""
        return crc32c(self.log_id)

    def encode(self) -> bytes:
        body = {
            "format": "shmlog",
            "version": FORMAT_VERSION,
            "log_id": str(uuid.UUID(bytes=self.log_id)),
            "segment_bytes": self.geometry.segment_bytes,
            "window_bytes": self.geometry.window_bytes,
            "created_ns": self.created_ns,
        }
        return json.dumps(body, indent=2).encode() + b"\n"


def decode_identity(data: bytes, path: str) -> Identity:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if not isinstance(body, dict) or body.get("format") != "shmlog":
        raise FormatError(f"{path} does not describe a shmlog log")
    if body.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {body.get('version')!r}; this is version {FORMAT_VERSION}"
        )
    try:
        geometry = Geometry(body["segment_bytes"], body["window_bytes"])
        return Identity(uuid.UUID(body["log_id"]).bytes, geometry, int(body["created_ns"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error


class Directory:
    """The paths of one log, and its identity."""

    def __init__(self, path: str, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self.segments_path = os.path.join(path, "segments")
        self.cursors_path = os.path.join(path, "cursors")
        self.lock_path = os.path.join(path, "LOCK")
        self.flusher_log_path = os.path.join(path, "flusher.log")


def _identity_path(path: str) -> str:
    return os.path.join(path, "shmlog.json")


def exists(path: str) -> bool:
    return os.path.lexists(_identity_path(path))


def load(path: str) -> Directory:
    """An existing log's directory; FileNotFoundError or FormatError if there is none."""
    path = os.path.abspath(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(2, "there is no log here; create=True makes one", path)
    if not os.path.isdir(path):
        raise FormatError(f"{path} is a file, and a log is a directory")
    files.check_directory(path)
    if not exists(path):
        raise FormatError(f"{path} is not a log: it has no shmlog.json")
    identity = decode_identity(files.read_small(_identity_path(path)), _identity_path(path))
    return Directory(path, identity)


def create(path: str, geometry: Geometry, mode: int) -> Directory:
    """Make a log's directory, or finish one whose making was interrupted; if another
    process makes it at the same time, its log is returned."""
    path = os.path.abspath(path)
    directory_mode = mode | (mode & 0o444) >> 2
    if os.path.lexists(path) and not os.path.isdir(path):
        raise FormatError(f"{path} is a file, and a log is a directory")
    with contextlib.suppress(FileExistsError):
        files.make_directory(path, directory_mode)
    files.check_directory(path)
    lock = files.LockFile(os.path.join(path, "LOCK"), mode)
    try:
        deadline = time.monotonic() + 30.0
        while not lock.try_lock(files.SETUP_BYTE):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: another process has been setting the log up for 30 s")
            time.sleep(0.005)
        if not exists(path):
            strangers = set(os.listdir(path)) - {"LOCK", "segments"}
            strangers = {name for name in strangers if not name.endswith(".tmp")}
            if strangers:
                raise FormatError(f"{path} is neither empty nor a log: it holds {sorted(strangers)[0]!r}")
            with contextlib.suppress(FileExistsError):
                files.make_directory(os.path.join(path, "segments"), directory_mode)
            identity = Identity(uuid.uuid4().bytes, geometry, time.time_ns())
            files.write_atomically(_identity_path(path), identity.encode(), mode)
    finally:
        lock.close()
    return load(path)
