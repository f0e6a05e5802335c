"""An asyncio service: requests wait for their sync together, a consumer follows the log.

It prints

    1000 requests answered, their records durable
    the consumer saw 1000 of them
    fewer syncs than requests: True
"""

import asyncio

import shmlog

REQUESTS = 1000


async def handle(log: shmlog.Log, number: int) -> int:
    return await log.aappend(b"request %d" % number, durable=True)


async def consume(log: shmlog.Log, start: int) -> int:
    """Every record from start on, in batches of what came within 5 ms."""
    seen = 0
    async for batch in log.atail_batches(start, timeout=30, max_delay=0.005):
        seen += len(batch)
        if seen >= REQUESTS:
            break
    return seen


async def main() -> None:
    with shmlog.open("service-log", create=True) as log:
        syncs = log.statistics().syncs
        consumer = asyncio.create_task(consume(log, log.reserved_lsn))
        lsns = await asyncio.gather(*(handle(log, number) for number in range(REQUESTS)))
        assert max(lsns) < log.durable_lsn
        print(f"{len(lsns)} requests answered, their records durable")
        print(f"the consumer saw {await consumer} of them")
        print("fewer syncs than requests:", log.statistics().syncs - syncs < REQUESTS)


asyncio.run(main())
