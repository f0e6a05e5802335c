"""Appending, acknowledged from the page cache: records per second by size and number of writers.

One by one and in batches, by 1 to 8 processes that start together; the floor is one
`os.write` to an O_APPEND file for each record, without frame or checksum. What an
empty C call costs in the same loop stands beside it: no append from Python can cost less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.kit.floors import EmptyCall, MappedFile
from bench.kit.harness import Contender, Heat, Options
from bench.kit.peer import Peer, job_of
from bench.kit.subject import ArrayWriter, FilledWriter, ReserveWriter, Shmlog
from bench.peers import others
from bench.peers.files import OsWrite

SIZES = (16, 128, 1024, 65536, 1 << 20)
PROCESSES = (1, 2, 4, 8)
BATCH = 128
BATCH_SIZES = (16, 128, 1024)
BATCH_PROCESSES = (1, 4)
FLOOR = OsWrite()


def heats(options: Options) -> Iterator[Heat]:
    for record_bytes in options.sizes_of(SIZES):
        for count in options.processes_of(PROCESSES):
            job = job_of(options, record_bytes, count)
            entered: list[Peer] = [FLOOR, Shmlog(), EmptyCall()]
            entered += [Shmlog("shmlog append of a filled buffer", FilledWriter)]
            entered += [Shmlog("shmlog reserve", ReserveWriter)]
            entered += others(options, but=[OsWrite])
            title = f"append {record_bytes} B, {count} writers"
            yield _heat(title, [peer.contender("append", job) for peer in entered])
    for record_bytes in options.sizes_of((65536,), toy=65536):
        job = job_of(options, record_bytes)
        both = [peer.contender("append", job) for peer in (MappedFile("memcpy into a map"), Shmlog())]
        yield _heat(f"append {record_bytes} B against memcpy, 1 writer", both)
    for record_bytes in options.sizes_of(BATCH_SIZES):
        for count in options.processes_of(BATCH_PROCESSES):
            yield in_batches(options, record_bytes, count)


def in_batches(options: Options, record_bytes: int, processes: int) -> Heat:
    job = job_of(options, record_bytes, processes, batch=BATCH)
    entered: list[Peer] = [Shmlog("shmlog append_many"), Shmlog("shmlog append_array", ArrayWriter)]
    entered += others(options, but=[OsWrite])
    contenders = [
        FLOOR.contender("append", job_of(options, record_bytes, processes)),
        FLOOR.contender("append_batch", job, name="os.writev"),
        *(peer.contender("append_batch", job) for peer in entered),
    ]
    title = f"append {record_bytes} B in batches of {BATCH}, {processes} writers"
    return _heat(title, contenders)


def _heat(title: str, contenders: Sequence[Contender]) -> Heat:
    return Heat(
        title=title,
        contenders=contenders,
        columns=("records_per_s", "mb_per_s", "ns_per_record"),
        compare="records_per_s",
    )
