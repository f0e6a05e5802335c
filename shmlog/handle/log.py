"""Log: the handle that users hold.

A handle is one participant of one log in one process.  Threads may share it.  In a
forked child it attaches anew at its next use, with a slot of its own; pickled, it
is opened again by its path.

This module puts the parts together.  It may not know how any of them works.
"""

from __future__ import annotations

import operator
import os
import weakref
from types import TracebackType
from typing import Any, Literal

from shmlog import _native
from shmlog.disk import cursors, directory, settings
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import Recovery
from shmlog.errors import AttachError, ClosedError
from shmlog.format.geometry import Geometry
from shmlog.format.layout import ROLE_HANDLE
from shmlog.format.retention import Retention
from shmlog.handle.appending import Appending
from shmlog.handle.cursor import Cursor
from shmlog.handle.turns import Turns
from shmlog.handle.watermarks import Watermarks
from shmlog.memory.statistics import Statistics, gather
from shmlog.memory.waiting import DURABLE, REMOVED, Waiting
from shmlog.records.reader import Reader
from shmlog.session import flushers
from shmlog.session.attachment import Attachment, attach
from shmlog.session.departure import leave_unserved, see_off
from shmlog.system import files, surroundings
from shmlog.system.deadlines import check_timeout, deadline_after

FlusherMode = Literal["auto", "external"]


class Log(Appending, Watermarks):
    """A log, open for appending and reading.  Made by shmlog.open()."""

    def __init__(
        self, where: Directory, flusher: FlusherMode, sync_interval: float, mode: int, timeout: float
    ) -> None:
        super().__init__(where, timeout, self._on_stale_handle)
        self.path = where.path
        self._flusher_mode = flusher
        self._sync_interval = sync_interval
        self._mode = mode
        self._closed = False
        self._make_locks()
        self._reader = Reader(where)
        self.recovery: Recovery | None = None
        """what recovery found, if this handle was the one to recover the log"""
        self._join()
        _logs.add(self)

    # ------------------------------------------------------------ life cycle

    def _make_locks(self) -> None:
        self._closing = Turns(f"closing {self.path}", self._timeout)
        self._joining = Turns(f"joining {self.path}", self._timeout)

    def _join(self) -> None:
        deadline = deadline_after(self._timeout)
        joined = attach(
            self._directory,
            self._mode,
            ROLE_HANDLE,
            deadline,
            when_full=self._start_flusher,
            prepare=self._flusher_mode == "auto",
        )
        self._joined: Attachment = joined
        self.recovery = joined.recovery
        waiting = Waiting(joined.control, joined.number, self._ensure_flusher)
        self._bind(joined.control, joined.participants, joined.number, waiting)
        if joined.first is not None:
            self._use_first(joined.first, joined.control.reserved_lsn)
            joined.first = None
        self._generation = _native.fork_generation()  # last: whoever interrupts this finds it not done
        try:
            self._ensure_flusher()
        except BaseException:
            self._seal()
            self._generation = 0  # not joined: the next use tries again
            leave_unserved(joined)
            joined.lock.close()
            raise

    def _on_stale_handle(self) -> None:
        """The core found the handle closed, forked or faulted."""
        if self._closed:
            raise ClosedError(f"the log {self.path} has been closed")
        if self._generation != _native.fork_generation():
            self._rejoin()
            return
        if self._joined.control.native.faulted:
            raise self._joined.control.failure()
        with self._joining.turn():
            if self._closed:  # meanwhile: the slot is another's, or soon will be
                raise ClosedError(f"the log {self.path} has been closed")
            self._renew()

    def _rejoin(self) -> None:
        """In a forked child: become a participant of its own.  AttachError for a signal handler or a
        finalizer that interrupts this: what it needs is what it keeps from being done."""
        with self._joining.turn() as nested:
            if self._generation == _native.fork_generation():
                return
            if nested:
                raise AttachError(f"{self.path} is being joined by the thread that was interrupted")
            self._join()

    def _after_fork(self) -> None:
        """In the child: locks that another thread of the parent may have held."""
        self._make_locks()
        self._reader = Reader(self._directory)

    def _attached(self) -> Attachment:
        """This process's attachment; ClosedError if there is none."""
        if self._closed:
            raise ClosedError(f"the log {self.path} has been closed")
        if self._generation != _native.fork_generation():
            self._rejoin()
        return self._joined

    def _ensure_flusher(self) -> None:
        """Start a flusher unless one runs, or this handle is told to leave that to others."""
        if self._flusher_mode == "auto":
            flushers.ensure(self._joined, self._mode, self._sync_interval)

    def _start_flusher(self) -> None:
        if self._flusher_mode == "auto":
            flushers.start(self._directory, self._mode, self._sync_interval)

    def close(self) -> None:
        """Close the handle; views stay valid.  Idempotent.

        Waits for this handle's appends in flight (TimeoutError if a reservation stays open;
        the handle is still open then). The last handle of a log also waits until
        everything is durable and, unless its flusher is one that stays, the control block
        is gone. If the handle's timeout runs out before everything is durable: TimeoutError
        that says from which LSN on, and the handle is closed all the same. Does not wait
        where nothing can be made durable: of a failed log, and with flusher="external" if
        no flusher runs, which is logged as a warning.
        """
        if self._generation != _native.fork_generation():
            self._closed = True  # the parent's participant is not ours to close
            self._seal()
            return
        with self._closing.turn() as nested:
            if not (nested or self._closed):  # by the close() that we interrupt, or one before us
                self._close()

    def _close(self) -> None:
        deadline = deadline_after(self._timeout)
        with self._joining.turn():
            self._closed = True  # first: whoever finds the handle sealed must not renew it
        self._waiting.close()
        try:
            self._seal_until(deadline)
        except BaseException:
            self._closed = False
            self._waiting.reopen()
            self._renew()
            raise
        joined = self._joined
        self._close_reading()
        self._close_waits()
        joined.detach()
        try:
            see_off(joined, deadline, self._ensure_flusher if self._flusher_mode == "auto" else None)
        finally:
            joined.lock.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """close(); an exception first gives up the reservations that this thread has left open,
        and what close() then raises is a note on it."""
        if error is None:
            self.close()
            return
        if not self._closed and self._generation == _native.fork_generation():
            self._abandon_own()
        try:
            self.close()
        except Exception as second:
            error.add_note(f"and closing {self.path}: {type(second).__name__}: {second}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._flusher_mode, self._sync_interval, self._mode, self._timeout)

    def __repr__(self) -> str:
        if self._closed:
            return f"<shmlog.Log {self.path!r}, closed>"
        return f"<shmlog.Log {self.path!r}, participant {self.writer_number}>"

    # -------------------------------------------------------------- retention

    def trim(self, before_lsn: int, timeout: float | None = None) -> int:
        """Give up the records below before_lsn, by whole segments; the new trimmed_lsn.

        Only what is durable is given up, and never the segment that holds before_lsn or the
        log's last record. Files are unlinked: arrays and views of them stay valid as long
        as they are referred to. Blocks until it is done, at most timeout seconds
        (TimeoutError).
        """
        joined = self._attached()
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        number = operator.index(before_lsn)
        if not 0 <= number <= joined.control.committed_lsn:
            raise ValueError(f"LSN {number} is not committed: the log ends at {joined.control.committed_lsn}")
        deadline = deadline_after(seconds)
        if number > joined.control.durable_lsn:
            self._waiting.until(DURABLE, number, deadline)
        last = max(0, joined.control.durable_lsn - 1)
        target = self._directory.identity.geometry.segment_begin(min(number, last))
        if not self._waiting.until(REMOVED, target, deadline):
            raise TimeoutError(f"LSN {target} is not trimmed after {seconds:g} s{self._held_back()}")
        return joined.control.trimmed_lsn

    def cursor(self, name: str) -> Cursor:
        """The durable, named cursor `name` of this log, made if absent.

        Each cursor can be open once; AttachError if it is open elsewhere. ValueError for a
        name that is not 1 to 64 letters, digits, dots, dashes or underscores.
        """
        self._attached()
        return Cursor(self._directory, name, self._mode, self)

    def remove_cursor(self, name: str) -> None:
        """Forget a cursor.  FileNotFoundError if there is none; AttachError if it is open."""
        self._attached()
        cursors.remove(self._directory, name)

    # ----------------------------------------------------------- information

    @property
    def segment_bytes(self) -> int:
        """What each segment file holds, without its header; fixed when the log was made."""
        return self._directory.identity.geometry.segment_bytes

    @property
    def window_bytes(self) -> int:
        """How much may be reserved and not yet committed; fixed when the log was made."""
        return self._directory.identity.geometry.window_bytes

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def statistics(self) -> Statistics:
        """Watermarks, counters, participants, cursors, and who holds committed_lsn back, now."""
        joined = self._attached()
        return gather(
            joined.control.load, joined.participants, joined.flusher_runs(), self._retention(), self._places
        )


_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for log in list(_logs):
        log._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _reopen(path: str, flusher: FlusherMode, sync_interval: float, mode: int, timeout: float) -> Log:
    return Log(directory.load(path), flusher, sync_interval, mode, timeout)


def open(
    path: str | os.PathLike[str],
    create: bool = False,
    *,
    segment_bytes: int | None = None,
    window_bytes: int | None = None,
    retention: Retention | None = None,
    flusher: FlusherMode = "auto",
    sync_interval: float = 0.01,
    mode: int | None = None,
    timeout: float = 30.0,
) -> Log:
    """Open a log for appending and reading.

    path: the log's directory. create=False: it must exist (FileNotFoundError);
    create=True: make it if absent, with segment_bytes and window_bytes (powers of two,
    64 MiB each by default; ValueError if given and different from an existing log's).
    retention: how much is kept from now on, as configure() says it; None: as it was.
    flusher: "auto" starts a flusher process when none runs; "external" never does.
    sync_interval: seconds between syncs while nobody waits. mode: the files'; None: the log's
    own, or 0o600 when it creates.
    timeout: seconds that anything of this handle may block unless told otherwise.

    Recovers the log if its control block is gone: CorruptionError when what was vouched
    for is damaged, RestartUnclearError when only you know. Also raises FormatError, AttachError,
    TimeoutError, OSError. NetworkFileSystemWarning where locks need not hold.
    """
    if flusher not in ("auto", "external"):
        raise ValueError(f'flusher must be "auto" or "external", not {flusher!r}')
    made_with = files.check_mode(0o600 if mode is None else mode)
    seconds = check_timeout(timeout)
    interval = check_timeout(sync_interval, "sync_interval")
    where = os.fsdecode(path)
    if retention is not None and not isinstance(retention, Retention):
        raise TypeError(f"retention must be a shmlog.Retention, not {type(retention).__name__}")
    surroundings.warn_of_network(where, stacklevel=2)
    if create and not directory.exists(where):
        found = directory.create(where, Geometry.of(segment_bytes, window_bytes), made_with)
    else:
        found = directory.load(where)
    wanted = found.mode() if mode is None else mode
    has = found.identity.geometry
    for name, given, own in (
        ("segment_bytes", segment_bytes, has.segment_bytes),
        ("window_bytes", window_bytes, has.window_bytes),
    ):
        if given is not None and given != own:
            raise ValueError(f"{name}={given}, but the log {found.path} has {own}")
    if retention is not None and retention != settings.load_retention(found):
        settings.store_retention(found, retention, wanted)
    return Log(found, flusher, interval, wanted, seconds)
