"""Tasks: waits of one event loop, beside as many threads.

Every caller appends a record and waits until it is durable, again and again. The
baseline are threads that block; tasks share one thread of the core. `stall_ms` is the
longest that the loop was away from a task that only wants to be woken every millisecond.
What had been imported is frozen first, as a service does that cares for its loop: a full
collection walks through all of it, and that alone is a stall of ten milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.kit.harness import Heat, Options, alone
from bench.kit.subject import on_log, open_log

CALLERS = (1, 64, 1000)
RECORD = bytes(128)
SECONDS = 3.0
SECONDS_TOY = 0.2
TICK_S = 0.001


def heats(options: Options) -> Iterator[Heat]:
    seconds = SECONDS_TOY if options.toy else SECONDS
    for callers in (8,) if options.is_small else CALLERS:
        yield Heat(
            title=f"durable appends by {callers} callers of one process",
            contenders=[
                on_log("threads", alone(_threads, callers, seconds)),
                on_log("tasks", alone(_tasks, callers, seconds), "adurable, one loop"),
            ],
            columns=("records_per_s", "stall_ms"),
            compare="records_per_s",
        )


def _threads(path: Path, callers: int, seconds: float) -> dict[str, float]:
    with open_log(path, create=True) as log:
        log.append(RECORD, durable=True)
        gc.freeze()
        counts = [0] * callers
        began = time.monotonic()

        def call(number: int) -> None:
            while time.monotonic() < began + seconds:
                log.append(RECORD, durable=True, timeout=60)
                counts[number] += 1

        running = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return {"records_per_s": sum(counts) / (time.monotonic() - began)}


def _tasks(path: Path, callers: int, seconds: float) -> dict[str, float]:
    with open_log(path, create=True) as log:
        log.append(RECORD, durable=True)
        gc.freeze()
        count, stall_s, running = 0, 0.0, True
        began = time.monotonic()

        async def call() -> None:
            nonlocal count
            while time.monotonic() < began + seconds:
                await log.aappend(RECORD, durable=True, timeout=60)
                count += 1

        async def tick() -> None:
            nonlocal stall_s
            while running:
                before = time.monotonic()
                await asyncio.sleep(TICK_S)
                if before > began + seconds / 4:  # at first every task is there at once
                    stall_s = max(stall_s, time.monotonic() - before - TICK_S)

        async def everybody() -> None:
            nonlocal running
            ticking = asyncio.create_task(tick())
            await asyncio.gather(*(call() for _ in range(callers)))
            running = False
            await ticking

        asyncio.run(everybody())
        return {"records_per_s": count / (time.monotonic() - began), "stall_ms": stall_s * 1e3}
