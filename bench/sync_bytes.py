"""What one small sync costs, by the way in which the file was preallocated.

A file filled with large writes sits in the page cache in large folios, and one
dirty byte then writes the whole folio. Each contender prepares the same file in
its own way, maps it, and repeats: store a record, fdatasync. `kib_per_sync` is
what the block device of the directory counted as written meanwhile (other
processes' writes too), `dirtied_kib_per_sync` what the process itself dirtied.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.kit.floors import MADV_POPULATE_WRITE
from bench.kit.harness import Contender, Heat, Options, alone, latency
from bench.kit.records import payload

FILE_BYTES = 64 << 20
FILE_TOY_BYTES = 1 << 20
RECORD_BYTES = 128
SYNCS_MAX = 2000
SECTOR_BYTES = 512
COLUMNS = ("p50_us", "p99_us", "kib_per_sync", "dirtied_kib_per_sync")


def heats(options: Options) -> Iterator[Heat]:
    file_bytes = FILE_TOY_BYTES if options.toy else FILE_BYTES

    ways = {
        "fallocate, populate": _fallocate_and_populate,
        "1 MiB writes": _write_large,
        "4 KiB writes": _write_small,
        "1 MiB writes, drop cache": _write_and_drop,
        "fallocate only": _fallocate,
    }
    yield Heat(
        title=f"{RECORD_BYTES} B store and fdatasync by preallocation",
        contenders=[
            Contender(name, alone(_sync_repeatedly, way, file_bytes, options)) for name, way in ways.items()
        ],
        columns=COLUMNS,
        compare="p50_us",
    )


def _fallocate(fd: int, file_bytes: int) -> None:
    os.posix_fallocate(fd, 0, file_bytes)


def _fallocate_and_populate(fd: int, file_bytes: int) -> None:
    os.posix_fallocate(fd, 0, file_bytes)
    with mmap.mmap(fd, file_bytes) as mapped:
        mapped.madvise(MADV_POPULATE_WRITE)


def _write_large(fd: int, file_bytes: int) -> None:
    _write_in_pieces(fd, file_bytes, 1 << 20)


def _write_small(fd: int, file_bytes: int) -> None:
    _write_in_pieces(fd, file_bytes, 1 << 12)


def _write_and_drop(fd: int, file_bytes: int) -> None:
    _write_large(fd, file_bytes)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, file_bytes, os.POSIX_FADV_DONTNEED)


def _write_in_pieces(fd: int, file_bytes: int, piece_bytes: int) -> None:
    piece = bytes(piece_bytes)
    for _ in range(file_bytes // piece_bytes):
        os.write(fd, piece)


def _sync_repeatedly(
    directory: Path, prepare: Callable[[int, int], None], file_bytes: int, options: Options
) -> dict[str, float]:
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT, 0o600)
    prepare(fd, file_bytes)
    os.fsync(fd)
    data = payload(0, 0, RECORD_BYTES)
    samples: list[int] = []
    with mmap.mmap(fd, file_bytes) as mapped:
        written, dirtied = _device_bytes(fd), _dirtied_bytes()
        begin_ns = now_ns = time.monotonic_ns()
        while len(samples) < SYNCS_MAX and now_ns - begin_ns < options.seconds * 1e9:
            at = len(samples) * RECORD_BYTES % file_bytes
            mapped[at : at + RECORD_BYTES] = data
            os.fdatasync(fd)
            before_ns, now_ns = now_ns, time.monotonic_ns()
            samples.append(now_ns - before_ns)
        written, dirtied = _device_bytes(fd) - written, _dirtied_bytes() - dirtied
    os.close(fd)
    return latency(samples) | {
        "kib_per_sync": written / len(samples) / 1024,
        "dirtied_kib_per_sync": dirtied / len(samples) / 1024,
    }


def _device_bytes(fd: int) -> int:
    device = os.fstat(fd).st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(path.read_text().split()[6]) * SECTOR_BYTES if path.exists() else 0


def _dirtied_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
