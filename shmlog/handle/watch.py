"""Watch: a descriptor that becomes readable when a watermark reaches an LSN.

For event loops: many waits, one descriptor, no thread of their own (native/core/watch.h).

    watch.arm("durable", lsn)     False: not yet; True: it has been reached
    ... the loop finds watch readable ...
    watch.clear()                 look at the watermark, and arm again

This module knows handles' words.  It may not know event loops.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Literal, NamedTuple

from shmlog import _native
from shmlog.errors import ClosedError
from shmlog.format.geometry import LSN_MAX
from shmlog.system.bells import Bell

Watched = Literal["committed", "durable"]

_KINDS = {"committed": _native.WATCH_COMMITTED, "durable": _native.WATCH_DURABLE}


class Source(NamedTuple):
    """What a watch looks at."""

    memory: _native.Control | _native.Mapping | None
    """the control block; None: there is none, and the files must be looked at"""
    within_s: float
    """after so long it becomes readable in any case; 0: never"""
    bells: tuple[Bell, Bell] | None
    """of the loops that commit and that sync"""


class Watch:
    """A watch over one handle.  Made by Log.watch(); a context manager.

    Belongs to the process that made it. It may become readable for nothing, and does when
    the log has failed: whoever looks finds out.
    """

    def __init__(self, source: Callable[[], Source], watermark: Callable[[Watched], int]) -> None:
        """watermark: what it is now, or why it will never be more."""
        self._source = source
        self._watermark = watermark
        self._closed = False
        self._over = source().memory
        self._native = _native.Watch(self._over)

    def fileno(self) -> int:
        """The descriptor to poll for reading; the same as long as the watch is open."""
        self._check()
        return self._native.fileno()

    def arm(self, kind: Watched, lsn: int) -> bool:
        """Become readable once every record below lsn is committed, or durable; whether they
        are now, and then nothing is armed.

        One LSN for each kind: a later call replaces an earlier one. Once readable, nothing is
        armed any more. Does not block. Raises ClosedError, LogFailedError.
        """
        number = _KINDS.get(kind)
        if number is None:
            raise ValueError(f"kind must be 'committed' or 'durable', not {kind!r}")
        target = operator.index(lsn)
        if not 0 <= target <= LSN_MAX:
            raise ValueError(f"{target} is no LSN")
        self._check()
        if self._watermark(kind) >= target:
            return True
        source = self._source()
        if source.memory is not self._over:  # another session of the log
            self._native.look_at(source.memory)
            self._over = source.memory
        end = self._native.arm(number, target, int(source.within_s * 1e9))
        if end == _native.WATCH_FOREIGN:
            raise ClosedError("the watch belongs to the parent process")
        if end == _native.WATCH_RING and source.bells is not None:
            source.bells[number].ring()
        return end == _native.WATCH_REACHED

    def clear(self) -> None:
        """Make the descriptor unreadable until the next time."""
        self._check()
        self._native.clear()

    def close(self) -> None:
        """Watch no more.  Idempotent."""
        self._closed = True
        self._native.close()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("the watch has been closed")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
