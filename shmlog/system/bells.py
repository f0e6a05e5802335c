"""Semaphores: named doorbells between processes.

Two bells wake the flusher, one for each of its loops that sleep.  A ring is
remembered: who rings before the other sleeps has rung.  Spurious wakes are
possible; every waiter looks again at what it waits for.

A name may have been taken by another user, who could then ring, or keep it from
ringing: whose it is is looked at after it was opened.

This module knows names and time-outs.  It may not know what is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

import posix_ipc

from shmlog.errors import AttachError

SEMAPHORE_VALUE = posix_ipc.SEMAPHORE_VALUE_SUPPORTED


class Bell:
    """One named semaphore, created if absent; PermissionError if it is not ours to use,
    AttachError if it is, but another user's."""

    def __init__(self, name: str, mode: int = 0o600) -> None:
        self.name = name
        with _permitted(name):
            self._semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREAT, mode=mode, initial_value=0)
        try:
            _check_owner(name)
        except BaseException:
            self._semaphore.close()
            raise

    def ring(self) -> None:
        with contextlib.suppress(posix_ipc.Error, OverflowError):  # a full semaphore has been rung
            self._semaphore.release()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until rung, at most timeout_s seconds; whether it was rung.  Forgets
        further rings.  Raises KeyboardInterrupt as Python signals do."""
        if not posix_ipc.SEMAPHORE_TIMEOUT_SUPPORTED:
            return self._poll(timeout_s)
        try:
            self._semaphore.acquire(max(0.0, timeout_s))
        except posix_ipc.BusyError:
            return False
        except posix_ipc.SignalError:
            return True
        self.forget()
        return True

    def forget(self) -> None:
        """Take back all rings."""
        with contextlib.suppress(posix_ipc.BusyError, posix_ipc.SignalError):
            while not SEMAPHORE_VALUE or self._semaphore.value > 0:  # cheaper than an exception
                self._semaphore.acquire(0)

    def _poll(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._semaphore.acquire(0)
            except posix_ipc.BusyError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.0005)
            else:
                return True

    def close(self) -> None:
        self._semaphore.close()


def unlink(name: str) -> None:
    with _permitted(name), contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(name)


@contextlib.contextmanager
def _permitted(name: str) -> Iterator[None]:
    """The library's PermissionsError is no OSError."""
    try:
        yield
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), f"/dev/shm/sem.{name[1:]}") from None


def _check_owner(name: str) -> None:
    """AttachError if another user made the semaphore, where a file shows whose it is."""
    path = f"/dev/shm/sem.{name[1:]}"
    with contextlib.suppress(FileNotFoundError):
        owner = os.stat(path).st_uid
        if owner != os.geteuid():
            raise AttachError(f"{path} belongs to user {owner}, not to {os.geteuid()}")
