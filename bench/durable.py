"""Durable appends: many callers, each waiting for every record to be on stable storage.

The floor of one caller is a store into a preallocated map and `fdatasync`, in a
bare loop. With many callers the point is how many of them share one sync: the
baseline is then shmlog's own single caller, in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench.kit.floors import MappedFile
from bench.kit.harness import Goal, Heat, Options, chosen, main
from bench.kit.peer import Peer, job_of
from bench.kit.subject import Shmlog
from bench.peers import others

SIZES = (128, 4096)
# (callers, processes)
CALLERS = ((4, 4), (16, 4), (64, 1), (64, 8), (256, 8))
COLUMNS = ("records_per_s", "p50_us", "p99_us", "max_us")
FLOOR = MappedFile("store + fdatasync")
ONE_CALLER = Shmlog("shmlog, 1 caller")


def heats(options: Options) -> Iterator[Heat]:
    for record_bytes in chosen((128,) if options.toy else SIZES, options.sizes):
        if not options.processes or 1 in options.processes:
            yield one_caller(options, record_bytes)
        for callers, processes in ((4, 2),) if options.toy else CALLERS:
            if not options.processes or processes in options.processes:
                yield many_callers(options, record_bytes, callers, processes)


def one_caller(options: Options, record_bytes: int) -> Heat:
    job = job_of(options, record_bytes)
    entered: list[Peer] = [FLOOR, Shmlog(), *others(options)]
    return Heat(
        title=f"durable append {record_bytes} B, 1 caller",
        contenders=[peer.contender("durable", job) for peer in entered],
        columns=COLUMNS,
        compare="p50_us",
        parameters={"record_bytes": record_bytes, "callers": 1, "processes": 1},
        goals=(Goal("shmlog", at_most=1.3),) if record_bytes == SIZES[0] else (),
    )


def many_callers(options: Options, record_bytes: int, callers: int, processes: int) -> Heat:
    single = job_of(options, record_bytes)
    job = job_of(options, record_bytes, processes, threads=callers // processes)
    entered: list[Peer] = [Shmlog(), *others(options)]
    is_goal = (record_bytes, callers, processes) == (SIZES[0], 64, 8)
    return Heat(
        title=f"durable append {record_bytes} B, {callers} callers in {processes} processes",
        contenders=[
            ONE_CALLER.contender("durable", single),
            *(peer.contender("durable", job) for peer in entered),
        ],
        columns=COLUMNS,
        compare="records_per_s",
        parameters={"record_bytes": record_bytes, "callers": callers, "processes": processes},
        goals=(Goal("shmlog", at_least=20),) if is_goal else (),
    )


if __name__ == "__main__":
    sys.exit(main("durable", heats))
