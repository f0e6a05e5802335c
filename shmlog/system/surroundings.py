"""Surroundings: the file systems that a log lives on, and the room in them.

This module knows mounts.  It may not know logs.
"""

from __future__ import annotations

import os
import warnings
from typing import Final, NamedTuple

from shmlog.errors import NetworkFileSystemWarning

SHARED_MEMORY: Final = "/dev/shm"
PIECE_BYTES: Final = 8 << 20
"""About as much is prepared at a time."""
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"}
    | {"gfs2", "ocfs2", "orangefs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs"}
)
VOLATILE: Final = frozenset({"tmpfs", "ramfs"})


class Room(NamedTuple):
    """What a file system has left for this user."""

    free_bytes: int
    free_files: int | None
    """None if it does not count them"""


def room(path: str) -> Room:
    found = os.statvfs(path)
    free = found.f_bavail if os.geteuid() else found.f_bfree
    return Room(free * found.f_frsize, found.f_favail if found.f_files else None)


def warn_of_network(path: str, stacklevel: int) -> None:
    """NetworkFileSystemWarning if what is about to be written to is on such a file system."""
    kind = file_system(path)
    if kind in NETWORK:
        warnings.warn(
            f"{path} is on {kind}, a network file system: locks and mappings need not be coherent there, so"
            " that two machines, or two processes after a lapse of the connection, may write the log at"
            " once and ruin it; use a local disk",
            NetworkFileSystemWarning,
            stacklevel=stacklevel + 1,
        )


def file_system(path: str) -> str:
    """What kind of file system a path is on, or nothing if that is not told."""
    path = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:  # later mounts lie over earlier ones
                words, _, source = line.partition(" - ")
                point = words.split()[4].encode(errors="surrogateescape").decode("unicode_escape")
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, source.split()[0]
    except (OSError, ValueError, IndexError):
        return ""
    return kind
