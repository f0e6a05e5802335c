"""A disk that refuses to write a marker: one file of a file system in user space.

    with PoisonedDisk(path, bytes) as disk:     path becomes the disk, for a loop device
        disk.poison(b"...")                      writes that hold it get EIO, nothing else does
        disk.heal()

Any write that holds the marker is refused as a whole, as the kernel cut it: its other
pages too.  Needs root and /dev/fuse, and a mount namespace of the caller's own.  The
protocol is that of include/uapi/linux/fuse.h, a dozen requests of it.

A loop device over it must use direct I/O, or the page cache between the two swallows
the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
from pathlib import Path

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QII6Q10I")
_MARKER_AT = 16
_WRITE_MAX = 128 << 10
_NO_REPLY = 2, 36, 42
"""FORGET, INTERRUPT, BATCH_FORGET"""


class PoisonedDisk:
    """A context manager; the server is a forked child of its own."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._shared = mmap.mmap(-1, 4096)  # refused u64, marker_bytes u64, marker

    def __enter__(self) -> PoisonedDisk:
        self.path.touch()
        fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"poisoned", os.fsencode(self.path), b"fuse", 6, options) != 0:
            raise OSError(ctypes.get_errno(), "mounting the disk")
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._serve(fuse)
            finally:
                os._exit(1)
        os.close(fuse)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        ctypes.CDLL(None).umount2(os.fsencode(self.path), 2)

    @property
    def refused(self) -> int:
        """Writes that got an error so far."""
        return int.from_bytes(self._shared[:8], "little")

    def poison(self, marker: bytes) -> None:
        self._shared[_MARKER_AT : _MARKER_AT + len(marker)] = marker
        self._shared[8:16] = len(marker).to_bytes(8, "little")

    def heal(self) -> None:
        self._shared[8:16] = bytes(8)

    def _marker(self) -> bytes:
        size = int.from_bytes(self._shared[8:16], "little")
        return self._shared[_MARKER_AT : _MARKER_AT + size]

    # ---------------------------------------------------------------- the server

    def _serve(self, fuse: int) -> None:
        image = mmap.mmap(-1, self._size)
        while True:
            try:
                request = os.read(fuse, _WRITE_MAX + (64 << 10))
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return  # unmounted
            _, opcode, unique, *_ = _IN.unpack_from(request)
            if opcode in _NO_REPLY:
                continue
            answer = self._answer(opcode, request[_IN.size :], image)
            code, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
            with contextlib.suppress(FileNotFoundError):  # whoever asked has gone
                os.write(fuse, _OUT.pack(_OUT.size + len(data), code, unique) + data)

    def _answer(self, opcode: int, body: bytes, image: mmap.mmap) -> bytes | int:
        """The reply's bytes, or an errno."""
        if opcode == 26:  # INIT
            _, minor, readahead, flags = struct.unpack_from("<4I", body)
            wanted = flags & (1 << 5 | 1 << 0 | 1 << 15)  # big writes, asynchronous reads and direct I/O
            return struct.pack(
                "<4I2H2I2H8I", 7, min(minor, 31), readahead, wanted, 16, 12, _WRITE_MAX, 1, 32, 0, *[0] * 8
            )
        if opcode in (3, 4):  # GETATTR, SETATTR
            mode = stat.S_IFREG | 0o600
            times = (0,) * 3
            return _ATTRIBUTES.pack(
                1, 0, 0, 1, self._size, self._size // 512, *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
            )
        if opcode == 14:  # OPEN
            return bytes(16)
        if opcode == 15:  # READ
            _, offset, size = struct.unpack_from("<QQI", body)
            return image[offset : offset + size]
        if opcode == 16:  # WRITE
            _, offset, size = struct.unpack_from("<QQI", body)
            data = body[40 : 40 + size]
            marker = self._marker()
            if marker and marker in data:
                self._shared[:8] = (self.refused + 1).to_bytes(8, "little")
                return errno.EIO
            image[offset : offset + size] = data
            return struct.pack("<II", size, 0)
        if opcode in (18, 20, 25):  # RELEASE, FSYNC, FLUSH
            return b""
        return errno.ENOSYS
