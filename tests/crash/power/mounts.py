"""Mounts: file systems on loop devices, for a process that has a mount namespace of its own.

    with attached(image) as device, mounted(device, path, "ext4", "commit=1"): ...

Everything goes with the process, however it ends: the namespace takes the mounts, and a
loop device lets go of its file when nobody has it open (LO_FLAGS_AUTOCLEAR).

This module knows system calls.  It may not know a log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
FILE_SYSTEMS = {
    "ext4": "mkfs.ext4 -q -F -b 4096 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard",
    "xfs": "mkfs.xfs -q -f -K",
}
IMAGE_BYTES = {"ext4": 48 << 20, "xfs": 320 << 20}
TOOLS = "unshare", "fallocate", "mkfs.ext4", "mkfs.xfs"
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_CONFIG = struct.Struct("=II 52xI 176x 64x")
"""struct loop_config: fd, block size, and within struct loop_info64 the flags"""
_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN"""
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """Why no file system of one's own can be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to mount a disk of its own"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices"
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    return None if done.returncode == 0 else "needs unshare -m"


def in_namespace(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the tests with mounts of its own."""
    return ["unshare", "-m", "--propagation", "private", sys.executable, "-m", module, *arguments]


def make_file_system(image: Path, kind: str) -> None:
    """An empty file system in a new file with holes."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES[kind])
    subprocess.run(
        [*FILE_SYSTEMS[kind].split(), str(image)], check=True, stdout=subprocess.DEVNULL, timeout=60
    )
    subprocess.run(["fallocate", "--dig-holes", str(image)], check=True, timeout=60)  # a journal of zeros


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file of which little is data."""
    with source.open("rb") as old, target.open("wb") as new:
        size, at = os.fstat(old.fileno()).st_size, 0
        new.truncate(size)
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += os.pwrite(new.fileno(), os.pread(old.fileno(), min(end - at, 1 << 20), at), at)


@contextlib.contextmanager
def attached(image: Path, direct: bool = False) -> Iterator[str]:
    """A loop device of the file.  direct: past the page cache, so that what the file system
    writes is what the file gets; OSError if that cannot be."""
    file = os.open(image, os.O_RDWR | (os.O_DIRECT if direct else 0))
    device = -1
    try:
        name, device = _free_device(file, _AUTOCLEAR | (_DIRECT_IO if direct else 0))
        if direct and Path(f"/sys/block/{name[5:]}/loop/dio").read_text().strip() != "1":
            raise OSError(errno.EOPNOTSUPP, "the loop device does no direct I/O: it would hide faults", name)
        yield name
    finally:
        if device >= 0:
            os.close(device)
        os.close(file)


def _free_device(file: int, flags: int) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        while True:
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytearray(_CONFIG.pack(file, 512, flags)))
                return name, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
    finally:
        os.close(control)


@contextlib.contextmanager
def mounted(device: str, path: Path, kind: str, options: str = "") -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    mount(device, path, kind, options)
    try:
        yield path
    finally:
        unmount(path)


def mount(device: str, path: Path, kind: str, options: str = "") -> None:
    if _libc.mount(device.encode(), bytes(path), kind.encode(), 0, options.encode()) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount -t {kind} -o {options!r}: {os.strerror(error)}", str(path))


def unmount(path: Path, patience_s: float = 10.0) -> None:
    """Unmount, also if who used it is just ending."""
    deadline = time.monotonic() + patience_s
    while _libc.umount2(bytes(path), 0) != 0:
        error = ctypes.get_errno()
        if error == errno.EINVAL:  # not mounted
            return
        if error != errno.EBUSY or time.monotonic() > deadline:
            _libc.umount2(bytes(path), 2)  # MNT_DETACH: it goes with its last user
            raise OSError(error, os.strerror(error), str(path))
        time.sleep(0.002)


def shut_down(path: Path, flush_journal: bool) -> None:
    """The file system stops as if the power were cut: with what its journal holds written out
    first, or without."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("=I", 1 if flush_journal else 2))
    finally:
        os.close(fd)
