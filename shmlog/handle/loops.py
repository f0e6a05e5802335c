"""Loops: what the tasks of one event loop wait for at one handle.

    1,000 tasks   await log.adurable(lsn)
    one loop      a heap of LSNs for each watermark, one watch readable in its selector
    one thread    of the core, for all loops and logs of the process (native/core/watch.h)

A loop's waits are its own, and only its thread comes here: no lock is needed.

Invariants
  Q2  One run of the loop wakes at most so many tasks of a watermark, whatever asks for it: the
      watch, the timer, or those that are left from the run before.

This module knows asyncio and watermarks.  It may not know handles, or what is done then.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable

from shmlog import _native
from shmlog.handle.watch import Watch, Watched

LOOK_S = 0.05
"""While somebody waits, the handle and its flusher are looked at so often."""

SERVED_MAX = 16
"""Tasks woken at once: others run in between, however many a sync has made durable."""

GIVEN_UP_MIN = 64
"""Waits that ran out or were cancelled are swept out once they are so many, and half of all."""

_numbers = itertools.count()


def _run_out(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


class Waits:
    """What the tasks of one loop wait for at one handle."""

    def __init__(self, watch: Watch, watermark: Callable[[Watched], int], look: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.generation = _native.fork_generation()
        self._watch = watch
        self._watermark = watermark
        self._look = look
        self._heaps: dict[Watched, list[tuple[int, int, asyncio.Future[bool]]]] = {
            "committed": [],
            "durable": [],
        }
        self._armed: dict[Watched, int] = {}
        self._given_up: dict[Watched, int] = {"committed": 0, "durable": 0}
        self._serves_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._fd = watch.fileno()
        self.loop.add_reader(self._fd, self._ready)

    async def until(self, kind: Watched, lsn: int, seconds: float | None) -> bool:
        """Wait until the watermark is at least lsn; False after so many seconds."""
        if self._watermark(kind) >= lsn:
            return True
        future: asyncio.Future[bool] = self.loop.create_future()
        heapq.heappush(self._heaps[kind], (lsn, next(_numbers), future))
        if self._armed.get(kind, lsn + 1) > lsn:
            self._arm(kind)
        if self._timer is None:
            self._timer = self.loop.call_later(LOOK_S, self._on_timer)
        limit = None if seconds is None else self.loop.call_later(seconds, _run_out, future)
        reached = False
        try:
            reached = await future
        finally:
            if limit is not None:
                limit.cancel()
            if not reached:  # run out, cancelled or failed
                self._sweep(kind)
        return reached or self._watermark(kind) >= lsn

    def _sweep(self, kind: Watched) -> None:
        """One more was given up: those that an earlier LSN keeps in the heap must not grow for ever."""
        heap = self._heaps[kind]
        self._given_up[kind] += 1
        if self._given_up[kind] > max(GIVEN_UP_MIN, len(heap) // 2):
            heap[:] = [entry for entry in heap if not entry[2].done()]
            heapq.heapify(heap)
            self._given_up[kind] = 0

    def end(self) -> None:
        """From any thread: the handle has been closed, so look at once, and no more after that."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self.loop.call_soon_threadsafe(self._end)
            return
        self.abandon()

    def abandon(self) -> None:
        """The loop has been closed: nobody waits any more."""
        self._watch.close()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._look()
        except Exception as error:
            self._fail(error)
        self.loop.remove_reader(self._fd)
        self._watch.close()

    def _arm(self, kind: Watched) -> None:
        """For the lowest LSN that is still waited for."""
        heap = self._heaps[kind]
        while heap and heap[0][2].done():
            heapq.heappop(heap)
        self._armed.pop(kind, None)
        if heap:
            self._armed[kind] = heap[0][0]
            if self._watch.arm(kind, heap[0][0]):
                self._serve_soon()

    def _ready(self) -> None:
        self._watch.clear()
        self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._serves_soon:  # Q2
            self._serves_soon = True
            self.loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Wake the tasks whose LSN has been reached; all of them, if none ever will be."""
        self._serves_soon = False
        try:
            for kind, heap in self._heaps.items():
                if not heap:
                    continue
                has, served = self._watermark(kind), 0
                while heap and served < SERVED_MAX and (heap[0][0] <= has or heap[0][2].done()):
                    future = heapq.heappop(heap)[2]
                    if not future.done():
                        future.set_result(True)
                        served += 1
                self._arm(kind)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        for heap in self._heaps.values():
            for _, _, future in heap:
                if not future.done():
                    future.set_exception(error)
            heap.clear()
        self._armed.clear()

    def _on_timer(self) -> None:
        self._timer = None
        if not any(self._heaps.values()):
            return
        self._timer = self.loop.call_later(LOOK_S, self._on_timer)
        try:
            self._look()
        except Exception as error:
            self._fail(error)
        else:
            self._serve_soon()
