"""Leftovers: what logs that nobody uses have left in /dev/shm, and its removal.

    shmlog-0123456789abcdef                a control block
    sem.shmlog-0123456789abcdef-c, -s      its doorbells

Which directory a block belongs to it does not say, and that a directory is not found
proves nothing: it may be in another container.  So the proof is the kernel's.  Whoever
uses a block has it open or mapped, from whatever container, and a write lease (fcntl(2),
F_SETLEASE) is granted only to who has the only open file of it.

    lease refused         somebody uses it
    granted               nobody does, and whoever opens it meanwhile waits for us
    names removed, lease given back: whoever waited finds a block without a name, which
                          counts as none (memory/block): it recovers from the files

Semaphores whose block is gone are removed under a block that is made for the purpose: who
would make one finds that, or has been first, and then nothing is removed.

Invariants
  Y8  Nothing is removed without a lease on every name of its log.
  Y9  What a block knows that the files may not (records that are not durable, a failure)
      goes only if it was asked for by its name.  No record is lost even then: the files
      hold all that was appended.

This module knows names and leases.  It may not know who uses a log, or for what.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from shmlog.format.layout import CB, CONTROL_MAGIC, STATE_RUNNING
from shmlog.system import files

SHARED_MEMORY = "/dev/shm"
_NAME = re.compile(r"(sem\.)?(shmlog-[0-9a-f]{16})(?(1)-[cs])")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What one log has in /dev/shm."""

    name: str
    """of its control block"""
    state: str
    """used: somebody has it open.  unused: nobody, and the files hold all that it knows.
    unsettled: nobody, but it knows of records that are not durable, or of a failure.
    unknown: this cannot be told, `why` says why."""
    why: str
    owner: int
    memory_bytes: int
    names: tuple[str, ...]
    """all of them, the block's the last"""
    removed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def leftovers(only: Collection[str] = (), remove: bool = False) -> list[Leftover]:
    """What every log has in /dev/shm, or those named; remove: what nobody uses is removed, and
    what is unsettled if it is named (Y9).  Names are those of control blocks."""
    found = []
    for name, names in sorted(_names().items()):
        if only and name not in only:
            continue
        with contextlib.suppress(FileNotFoundError):  # it went meanwhile
            found.append(_judge(name, names, name in only, remove))
    return found


def _names() -> dict[str, list[str]]:
    """By the block's name: what there is, semaphores first."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(SHARED_MEMORY)):
            if match := _NAME.fullmatch(name):
                found.setdefault(match[2], []).append(name)
    return {block: sorted(names, key=lambda name: (name == block, name)) for block, names in found.items()}


def _judge(block: str, names: list[str], named: bool, remove: bool) -> Leftover:
    stats = [os.lstat(_path(name)) for name in names]
    facts = (stats[-1].st_uid, sum(found.st_blocks * 512 for found in stats), tuple(names))
    with contextlib.ExitStack() as held:
        try:
            if remove and names[-1] != block:
                held.enter_context(_placeholder(block))
            fds = [held.enter_context(_lease(name)) for name in names]
        except OSError as error:
            state, why = _refused(error)
            return Leftover(block, state, why, *facts)
        why = _unsettled(fds[-1]) if names[-1] == block else ""
        gone = remove and (named or not why)
        if gone:
            for name in names:
                os.unlink(_path(name))
        return Leftover(block, "unsettled" if why else "unused", why, *facts, removed=gone)


def _path(name: str) -> str:
    return os.path.join(SHARED_MEMORY, name)


@contextlib.contextmanager
def _lease(name: str) -> Iterator[int]:
    """Be the only one who has it open, and have others wait who would open it."""
    with _leased(os.open(_path(name), os.O_RDWR | files.OPEN_FLAGS)) as fd:
        yield fd


@contextlib.contextmanager
def _leased(fd: int) -> Iterator[int]:
    with files.descriptor(fd):
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.EINVAL, "it is not a file with one name")
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # not SIGIO, which kills who does not expect it
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield fd  # the lease goes with the descriptor


@contextlib.contextmanager
def _placeholder(block: str) -> Iterator[None]:
    """A block without a size, with a lease, while its semaphores go; FileExistsError if somebody
    has made one."""
    with _leased(files.create_file(_path(block), 0o600)):
        try:
            yield
        finally:
            os.unlink(_path(block))


def _refused(error: OSError) -> tuple[str, str]:
    """(state, why) of what could not be leased."""
    if error.errno in (errno.EAGAIN, errno.EEXIST):
        return "used", "somebody has it open"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "unknown", "it belongs to another user"
    return "unknown", error.strerror or str(error)


def _unsettled(fd: int) -> str:
    """What a block knows that the files may not, or nothing."""
    page = os.pread(fd, CB.HEADER_BYTES, 0)

    def load(word: int) -> int:
        return int.from_bytes(page[word : word + 8], "little")

    if len(page) < CB.HEADER_BYTES or load(CB.MAGIC) != CONTROL_MAGIC:
        return ""  # never finished, or of another build: nobody can join it
    if load(CB.STATE) != STATE_RUNNING:
        return "it says that the log has failed"
    durable, reserved = load(CB.DURABLE_LSN), load(CB.RESERVED_LSN)
    return f"durable up to {durable} of {reserved}" if durable < reserved else ""
