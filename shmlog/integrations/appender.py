"""Appender: a log that a library's records go into, opened at the first one, and never waited for in vain.

No call takes longer than the timeout, the opening included. What shmlog itself reports during
a call does not come back as another record of the same thread. A forked child waits for no
lock that another thread of its parent held, and writes on.

This module knows shmlog's public names.  It may not know what the records are.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any

import shmlog


class Appender:
    """Appends to the log at a path, made if absent.  options: those of shmlog.open()."""

    def __init__(self, path: str | os.PathLike[str], timeout: float, options: Any) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self._options = options
        self._lock = threading.Lock()
        self._busy = threading.local()
        self._closed = False
        self._log: shmlog.Log | None = None
        _appenders.add(self)

    def append(self, data: bytes, tag: int, durable: bool) -> None:
        """Append it, within the timeout; errors as Log.append() and shmlog.open()."""
        if getattr(self._busy, "here", False):  # what shmlog itself has to say of this very call
            return
        deadline = time.monotonic() + self.timeout
        self._busy.here = True
        try:
            log = self._log or self._opened(deadline)
            left_s = max(0.0, deadline - time.monotonic())
            log.append(data, tag, durable=durable, timeout=left_s)
        finally:
            self._busy.here = False

    def wait_durable(self, timeout: float) -> None:
        """Until all is durable that was appended to the log so far, by whom ever; errors as Log's."""
        if self._log is not None:
            self._log.wait_durable(timeout=timeout)

    def _opened(self, deadline: float) -> shmlog.Log:
        if not self._lock.acquire(timeout=self.timeout):
            raise TimeoutError(f"{self.path} is being opened by another thread")
        try:
            if self._closed:
                raise shmlog.ClosedError(f"the sink of {self.path} has been closed")
            if self._log is None:
                left_s = max(0.0, deadline - time.monotonic())
                self._log = shmlog.open(self.path, create=True, **{"timeout": left_s, **self._options})
            return self._log
        finally:
            self._lock.release()

    def after_fork(self) -> None:
        """In the child: what another thread of the parent may have held."""
        self._lock = threading.Lock()
        self._busy = threading.local()

    def close(self) -> None:
        """Close the log; what is appended afterwards is a ClosedError.  Idempotent."""
        self._closed = True
        log, self._log = self._log, None
        if log is not None:
            log.close()


_appenders: weakref.WeakSet[Appender] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for appender in list(_appenders):
        appender.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
