"""Plain files: what a program does that has no log library."""

from __future__ import annotations

import fcntl
import os
import platform
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.kit.drivers import StorePeer
from bench.kit.peer import Job, Writer

READ_BYTES = 1 << 20


class OsWrite(StorePeer):
    """One `os.write` to an O_APPEND file: no framing, no checksum. The floor of appending.

    The kernel serialises appends to one file, so several processes may write.
    """

    name = "os.write"
    durability = "page cache; no frame, no checksum"
    durable_by = "fdatasync by each caller"

    def version(self) -> str:
        return f"Linux {platform.release()}"

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _AppendingFile(job.directory / "log")

    def records(self, job: Job) -> Iterator[bytes]:
        with (job.directory / "log").open("rb") as file:
            while data := file.read(job.record_bytes):
                yield data


class _AppendingFile(Writer):
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, data: bytes) -> None:
        os.write(self.fd, data)

    def append_batch(self, records: Sequence[bytes]) -> None:
        os.writev(self.fd, records)

    def append_durable(self, data: bytes) -> None:
        os.write(self.fd, data)
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


class LockedFile(OsWrite):
    """flock, length and CRC-32, write, unlock: what many programs have grown for themselves."""

    name = "flock + frame + os.write"
    durability = "page cache"
    durable_by = "fdatasync by each caller"

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _LockedFile(job.directory / "log")

    def records(self, job: Job) -> Iterator[bytes]:
        with (job.directory / "log").open("rb", READ_BYTES) as file:
            while header := file.read(_FRAME.size):
                payload_bytes, checksum = _FRAME.unpack(header)
                data = file.read(payload_bytes)
                if zlib.crc32(data) != checksum:
                    raise ValueError(f"checksum mismatch before {file.tell()}")
                yield data


_FRAME = struct.Struct("<II")


class _LockedFile(_AppendingFile):
    def append(self, data: bytes) -> None:
        frame = _FRAME.pack(len(data), zlib.crc32(data))
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            os.writev(self.fd, (frame, data))
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def append_batch(self, records: Sequence[bytes]) -> None:
        parts = [part for data in records for part in (_FRAME.pack(len(data), zlib.crc32(data)), data)]
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            for begin in range(0, len(parts), _IOV_MAX):
                os.writev(self.fd, parts[begin : begin + _IOV_MAX])
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def append_durable(self, data: bytes) -> None:
        self.append(data)
        os.fdatasync(self.fd)


_IOV_MAX = os.sysconf("SC_IOV_MAX")
