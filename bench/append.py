"""Appending, acknowledged from the page cache: records per second by size and number of writers.

One by one and in batches, by 1 to 8 processes that start together; the floor is
one `os.write` to an O_APPEND file for each record, without frame or checksum.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench.kit.floors import MappedFile
from bench.kit.harness import Goal, Heat, Options, chosen, main
from bench.kit.peer import Peer, job_of
from bench.kit.subject import ArrayWriter, ReserveWriter, Shmlog
from bench.peers import others
from bench.peers.files import OsWrite

SIZES = (16, 128, 1024, 65536, 1 << 20)
PROCESSES = (1, 2, 4, 8)
BATCH = 128
BATCH_SIZES = (16, 128, 1024)
BATCH_PROCESSES = (1, 4)
COLUMNS = ("records_per_s", "mb_per_s", "ns_per_record")
FLOOR = OsWrite()
MEMCPY = MappedFile("memcpy into a map")


def heats(options: Options) -> Iterator[Heat]:
    sizes = (128,) if options.toy else SIZES
    processes = (1,) if options.toy else PROCESSES
    for record_bytes in chosen(sizes, options.sizes):
        for count in chosen(processes, options.processes):
            yield one_by_one(options, record_bytes, count)
    yield from against_memcpy(options)
    for record_bytes in chosen((128,) if options.toy else BATCH_SIZES, options.sizes):
        for count in chosen((1,) if options.toy else BATCH_PROCESSES, options.processes):
            yield in_batches(options, record_bytes, count)


def one_by_one(options: Options, record_bytes: int, processes: int) -> Heat:
    job = job_of(options, record_bytes, processes)
    entered: list[Peer] = [FLOOR, Shmlog(), Shmlog("shmlog reserve", ReserveWriter)]
    entered += others(options, but=[OsWrite])
    goal = (Goal("shmlog", at_least=3.5),) if (record_bytes, processes) == (128, 1) else ()
    return Heat(
        title=f"append {record_bytes} B, {processes} writers",
        contenders=[peer.contender("append", job) for peer in entered],
        columns=COLUMNS,
        compare="records_per_s",
        parameters={"record_bytes": record_bytes, "processes": processes},
        goals=goal,
    )


def against_memcpy(options: Options) -> Iterator[Heat]:
    for record_bytes in chosen((65536,), options.sizes):
        job = job_of(options, record_bytes)
        yield Heat(
            title=f"append {record_bytes} B against memcpy, 1 writer",
            contenders=[peer.contender("append", job) for peer in (MEMCPY, Shmlog())],
            columns=COLUMNS,
            compare="records_per_s",
            parameters={"record_bytes": record_bytes, "processes": 1},
            goals=(Goal("shmlog", at_least=0.5),),
        )


def in_batches(options: Options, record_bytes: int, processes: int) -> Heat:
    job = job_of(options, record_bytes, processes, batch=BATCH)
    single = job_of(options, record_bytes, processes)
    entered: list[Peer] = [Shmlog("shmlog append_many"), Shmlog("shmlog append_array", ArrayWriter)]
    entered += others(options, but=[OsWrite])
    is_goal = (record_bytes, processes) == (128, 1)
    return Heat(
        title=f"append {record_bytes} B in batches of {BATCH}, {processes} writers",
        contenders=[
            FLOOR.contender("append", single),
            FLOOR.contender("append_batch", job, name="os.writev"),
            *(peer.contender("append_batch", job) for peer in entered),
        ],
        columns=COLUMNS,
        compare="records_per_s",
        parameters={"record_bytes": record_bytes, "processes": processes, "batch": BATCH},
        goals=[Goal(peer.name, at_least=8) for peer in entered[:2]] if is_goal else (),
    )


if __name__ == "__main__":
    sys.exit(main("append", heats))
