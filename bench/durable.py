"""Durable appends: many callers, each waiting for every record to be on stable storage.

The floor of one caller is a store into a preallocated map and `fdatasync`, in a
bare loop. With many callers the point is how many of them share one sync: the
baseline is then shmlog's own single caller, in the same run.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.kit.floors import MappedFile
from bench.kit.harness import Heat, Options
from bench.kit.peer import job_of
from bench.kit.subject import Shmlog
from bench.peers import others

SIZES = (128, 4096)
# (callers, processes)
CALLERS = ((1, 1), (4, 4), (16, 4), (64, 1), (64, 8), (256, 8))
CALLERS_TOY = ((1, 1), (4, 2))


def heats(options: Options) -> Iterator[Heat]:
    for record_bytes in options.sizes_of(SIZES):
        for callers, processes in CALLERS_TOY if options.is_small else CALLERS:
            if not options.processes or processes in options.processes:
                yield waiting(options, record_bytes, callers, processes)


def waiting(options: Options, record_bytes: int, callers: int, processes: int) -> Heat:
    alone = callers == 1
    floor = MappedFile("store + fdatasync") if alone else Shmlog("shmlog, 1 caller")
    single = job_of(options, record_bytes)
    job = job_of(options, record_bytes, processes, threads=callers // processes)
    return Heat(
        title=f"durable append {record_bytes} B, "
        + ("1 caller" if alone else f"{callers} callers in {processes} processes"),
        contenders=[
            floor.contender("durable", single),
            *(peer.contender("durable", job) for peer in (Shmlog(), *others(options))),
        ],
        columns=("records_per_s", "p50_us", "p99_us", "max_us"),
        compare="p50_us" if alone else "records_per_s",
    )
