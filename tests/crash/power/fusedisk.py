"""FUSE disk: a disk of our own, which writes down every block and every flush.

    with Disk(scratch, image) as disk:      # disk.file: the disk, as one file
        ... attached(disk.file, direct=True) ..., note(...)
        blocks = disk.stop()

A process serves one file by FUSE's own protocol (linux/fuse.h; no library).  What a loop
device with direct I/O writes into it is logged in order: the writes, the flushes (the
loop device turns one into an fsync) and between them what note() tells, by the same
process, so a promise comes after the blocks that keep it.

This module knows a file and its blocks.  It may not know file systems or a log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import pickle
import select
import signal
import socket
import stat
import struct
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.power.mounts import unmount

_IN, _OUT = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
_INIT, _ENTRY = struct.Struct("=IIIIHHIIHHI28x"), struct.Struct("=QQQQII")
_ATTR, _IO = struct.Struct("=6Q10I"), struct.Struct("=QQIIQII")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT_CALL, _INTERRUPT, _DESTROY, _BATCH_FORGET = (
    *(17, 18, 20, 25),
    *(26, 36, 38, 42),
)
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_WRITE_BYTES = 1 << 20
_ROOT, _DISK = 1, 2
_NO_ANSWER = _FORGET, _INTERRUPT, _BATCH_FORGET


@dataclass(frozen=True)
class Block:
    """A write."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Barrier:
    """A flush: what was written before is durable."""


@dataclass(frozen=True)
class Told:
    """What note() told."""

    value: dict[str, Any]


Logged = Block | Barrier | Told


class Disk:
    """One disk, served by a child process until stop()."""

    def __init__(self, scratch: Path, image: Path) -> None:
        self._mount_point = scratch / "fuse"
        self._mount_point.mkdir(exist_ok=True)
        self.file = self._mount_point / "disk"
        self.socket = str(scratch / "disk-notes")
        self._log = scratch / "disk-log"
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind(self.socket)
        self._door.listen(64)
        fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"shmlog-disk", bytes(self._mount_point), b"fuse", 0, options.encode()) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), "/dev/fuse")
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _Server(fd, self._door, image).serve(self._log)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        os.close(fd)
        self._door.close()

    def forget(self) -> None:
        """Log from here on only."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wire:
            wire.connect(self.socket)
            wire.send(b"forget")
            wire.recv(32)

    def stop(self) -> list[Logged]:
        """What was logged; the disk is gone then.  Nobody may use it any more."""
        unmount(self._mount_point)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            raise RuntimeError(f"the disk's process ended with {os.waitstatus_to_exitcode(status)}")
        log: list[Logged] = pickle.loads(self._log.read_bytes())
        return log

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            with contextlib.suppress(OSError):
                unmount(self._mount_point)
        os.unlink(self.socket)


class _Server:
    def __init__(self, fd: int, door: socket.socket, image: Path) -> None:
        self._fd, self._door = fd, door
        file = os.open(image, os.O_RDWR)
        self._bytes = os.fstat(file).st_size
        self._image = mmap.mmap(file, self._bytes)
        os.close(file)
        self._log: list[Logged] = []

    def serve(self, log: Path) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._door, select.POLLIN)
        wires: dict[int, socket.socket] = {}
        while True:
            for ready, _ in poller.poll():
                if ready == self._door.fileno():
                    wire, _ = self._door.accept()
                    wires[wire.fileno()] = wire
                    poller.register(wire, select.POLLIN)  # it may be stopped before it says anything
                elif ready in wires:
                    poller.unregister(ready)
                    self._hear(wires.pop(ready))
                elif not self._answer():
                    log.write_bytes(pickle.dumps(self._log))
                    return

    def _hear(self, wire: socket.socket) -> None:
        with wire, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            kind, _, rest = wire.recv(1 << 16).partition(b" ")
            if kind == b"forget":
                self._log.clear()
            elif kind == b"n":
                self._log.append(Told(json.loads(rest)))
            wire.send(b"0")

    def _answer(self) -> bool:
        """Answer one request; False once the file system has been unmounted."""
        try:
            request = os.read(self._fd, _WRITE_BYTES + (64 << 10))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return True
            raise
        _, call, unique, node, *_ = _IN.unpack_from(request)
        if call in _NO_ANSWER:
            return True
        try:
            error, answer = 0, self._do(call, node, memoryview(request)[_IN.size :])
        except OSError as problem:
            error, answer = problem.errno or errno.EIO, b""
        with contextlib.suppress(FileNotFoundError):  # it was interrupted
            os.write(self._fd, _OUT.pack(_OUT.size + len(answer), -error, unique) + answer)
        return True

    def _do(self, call: int, node: int, body: memoryview) -> bytes:
        if call == _INIT_CALL:
            return _INIT.pack(7, 31, 1 << 17, _BIG_WRITES | _MAX_PAGES, 16, 12, _WRITE_BYTES, 1, 256, 0, 0)
        if call == _LOOKUP:
            if bytes(body).rstrip(b"\0") != b"disk":
                raise OSError(errno.ENOENT, "")
            return _ENTRY.pack(_DISK, 0, 3600, 3600, 0, 0) + self._attributes(_DISK)
        if call in (_GETATTR, _SETATTR):
            return struct.pack("=QII", 3600, 0, 0) + self._attributes(node)
        if call == _OPEN:
            return struct.pack("=QII", 0, 0, 0)
        if call == _READ:
            _, offset, size, *_ = _IO.unpack_from(body)
            return self._image[offset : offset + size]
        if call == _WRITE:
            _, offset, size, *_ = _IO.unpack_from(body)
            data = bytes(body[_IO.size : _IO.size + size])
            self._image[offset : offset + size] = data
            self._log.append(Block(offset, data))
            return struct.pack("=II", size, 0)
        if call == _FSYNC:
            self._log.append(Barrier())
            return b""
        if call in (_FLUSH, _RELEASE, _DESTROY):
            return b""
        if call == _STATFS:
            return struct.pack("=5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 2, 0, 4096, 255, 4096, 0)
        raise OSError(errno.ENOSYS, "")

    def _attributes(self, node: int) -> bytes:
        directory = node == _ROOT
        size, mode = (0, stat.S_IFDIR | 0o700) if directory else (self._bytes, stat.S_IFREG | 0o600)
        return _ATTR.pack(node, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
