"""Awaiting: a handle's waits and its tail, for asyncio.

What tasks wait for is kept by their loop (loops); a forked child or another loop begins
with nothing.

Invariants
  Q1  Nothing here blocks the loop: what would have to wait for room is appended by a thread
      of the loop's executor.

This module knows a handle's words.  It may not know how a loop waits: asyncio is imported
by whoever uses it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from shmlog import _native
from shmlog.errors import ClosedError, LogFailedError, LogFullError
from shmlog.handle.reading import Reading
from shmlog.handle.watch import Watch, Watched
from shmlog.records.batch import Record, RecordBatch
from shmlog.records.reader import BATCH_RECORDS, CoreTags, Tags, core_tags
from shmlog.system.deadlines import check_timeout

if TYPE_CHECKING:
    import asyncio

    from shmlog.handle.loops import Waits

PART_BYTES = 1 << 20
"""About so much is read and checked before other tasks run."""
PART_RECORDS_MIN = 16


class Awaiting(Reading):
    """The async methods of a handle."""

    path: str
    _closed: bool
    _timeout: float
    _waits: dict[asyncio.AbstractEventLoop, Waits] | None = None

    def watch(self) -> Watch:
        """A descriptor that becomes readable with a watermark, for event loops of any kind."""
        raise NotImplementedError

    def _watermark(self, kind: Watched) -> int:
        """What it is now; ClosedError, LogFailedError."""
        raise NotImplementedError

    def _look_after(self) -> None:
        """See to whoever moves the watermarks; ClosedError."""

    def _waits_here(self) -> Waits:
        """The running loop's, in this process."""
        import asyncio

        from shmlog.handle.loops import Waits

        if self._waits is None:
            self._waits = {}
        loop = asyncio.get_running_loop()
        waits = self._waits.get(loop)
        if waits is None or waits.generation != _native.fork_generation():
            for other in [known for known in list(self._waits) if known.is_closed()]:
                if past := self._waits.pop(other, None):
                    past.abandon()
            waits = self._waits[loop] = Waits(self.watch(), self._watermark, self._look_after)
        return waits

    def _close_waits(self) -> None:
        """The handle has been closed: what tasks wait for ends with ClosedError."""
        waiting, self._waits = self._waits, None
        for waits in list((waiting or {}).values()):
            if waits.generation == _native.fork_generation():
                waits.end()

    def atail_batches(
        self,
        start: int | None = None,
        *,
        tags: Tags = None,
        timeout: float | None = None,
        max_delay: float = 0.0,
    ) -> AsyncIterator[RecordBatch]:
        """tail_batches() for asyncio: arguments and errors as there.  Other tasks run between
        the batches, which hold about a MiB each."""
        wanted = core_tags(tags)
        seconds = None if timeout is None else check_timeout(timeout)
        delay = check_timeout(max_delay, "max_delay")
        begin, _ = self._range(self._bounds()[1] if start is None else start, None)
        return self._follow(begin, start is not None, wanted, seconds, delay)

    async def _follow(
        self, begin: int, named: bool, wanted: CoreTags, seconds: float | None, delay: float
    ) -> AsyncIterator[RecordBatch]:
        import asyncio

        records, quiet_since = 256, time.monotonic()
        waits = self._waits_here()
        while True:
            _, committed = self._bounds()
            if committed <= begin:
                left = None if seconds is None else quiet_since + seconds - time.monotonic()
                if not await waits.until("committed", begin + 1, left) and seconds is not None:
                    raise TimeoutError(
                        f"no record was committed at LSN {begin} for {seconds:g} s{self._held_back()}"
                    )
                if delay:
                    await asyncio.sleep(delay)
                continue
            for batch in self._reader.batches(begin, committed, committed, wanted, True, records, named):
                yield batch
                bytes_each = (batch.next_lsn - int(batch.lsn[0])) // len(batch)
                records = min(BATCH_RECORDS, max(PART_RECORDS_MIN, PART_BYTES // max(1, bytes_each)))
                await asyncio.sleep(0)
            begin, named, quiet_since = committed, False, time.monotonic()

    def atail(
        self, start: int | None = None, timeout: float | None = None, *, tags: Tags = None
    ) -> AsyncIterator[Record]:
        """tail() for asyncio: arguments and errors as there."""
        batches = self.atail_batches(start, tags=tags, timeout=timeout)

        async def follow() -> AsyncIterator[Record]:
            async for batch in batches:
                for record in batch:
                    yield record

        return follow()


class AwaitingWriter(Awaiting):
    """The async methods of a handle that appends."""

    def append(self, data: Any, tag: int = 0, *, durable: bool = False, timeout: float | None = None) -> int:
        raise NotImplementedError

    def _target(self, lsn: int | None) -> int:
        """What a watermark must reach for the record at lsn."""
        raise NotImplementedError

    async def adurable(self, lsn: int | None = None, timeout: float | None = None) -> None:
        """wait_durable() for asyncio: arguments and errors as there.  Any number of tasks share
        the flusher's syncs, and no thread is taken from the executor."""
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        target = self._target(lsn)
        if not await self._waits_here().until("durable", target, seconds):
            has = self._watermark("durable")
            raise TimeoutError(
                f"LSN {target} is not durable after {seconds:g} s: durable up to {has}{self._held_back()}"
            )

    async def aappend(
        self, data: Any, tag: int = 0, *, durable: bool = False, timeout: float | None = None
    ) -> int:
        """append() for asyncio: arguments, errors and result as there.

        Appends at once, in the loop's thread; only when there is no room, a thread of the
        loop's executor waits for it (cancelled then, it may be appended all the same)."""
        import asyncio

        seconds = self._timeout if timeout is None else check_timeout(timeout)
        until = time.monotonic() + seconds
        try:
            lsn = self.append(data, tag, timeout=0)
        except (LogFullError, TimeoutError):  # Q1
            wait = functools.partial(self.append, data, tag, timeout=seconds)
            lsn = await asyncio.get_running_loop().run_in_executor(None, wait)
        if durable:
            try:
                await self.adurable(lsn, max(0.0, until - time.monotonic()))
            except (TimeoutError, ClosedError, LogFailedError) as error:
                known: Any = error
                known.appended = 1
                raise
        return lsn
