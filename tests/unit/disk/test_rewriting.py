"""Rewriting: what is said to be on the disk is there, to the byte, and nothing else was touched."""

from __future__ import annotations

import errno
import itertools
import os
import random
from pathlib import Path

import pytest

from shmlog.disk import rewriting
from shmlog.system import files

PAGES = 40
RANGES = [(0, 4096), (5000, 5001), (4096, 12288), (4095, 16385), (106_500, 163_840)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(PAGES * 4096))
    return path


@pytest.mark.holds("Z3")
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("past_the_cache", [True, False])
def test_every_page_of_a_range_is_written_once_and_keeps_its_bytes(
    file: Path, monkeypatch: pytest.MonkeyPatch, alone: bool, past_the_cache: bool
) -> None:
    """Where the page cache can be passed, and on a file system where it cannot."""
    before, writes = file.read_bytes(), []
    write_all = files.write_all

    def write(fd: int, data: bytes, offset: int) -> None:
        writes.append((offset, offset + len(data)))
        write_all(fd, data, offset)

    monkeypatch.setattr(files, "write_all", write)
    monkeypatch.setattr(rewriting, "CHUNK_BYTES", 16384)
    if not past_the_cache:
        monkeypatch.setattr(rewriting, "_O_DIRECT", 0)
    with files.descriptor(files.open_file(str(file), writable=True)) as fd:
        for begin, end in RANGES:
            writes.clear()
            rewriting.write_anew(fd, begin, end, alone=alone)
            low, high = begin // 4096 * 4096, -(-end // 4096) * 4096 if alone else end
            assert (writes[0][0], writes[-1][1]) == (low, high)
            assert all(
                stop == start and stop % 16384 == 0 for (_, stop), (start, _) in itertools.pairwise(writes)
            )
        rewriting.write_anew(fd, 8192, 8192, alone=alone)
    assert file.read_bytes() == before


def test_bytes_above_the_end_that_others_store_meanwhile_stay(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = files.write_all
    with files.descriptor(files.open_file(str(file), writable=True)) as fd:

        def write(fd: int, data: bytes, offset: int) -> None:
            os.pwrite(fd, b"a live writer's", 6000)  # after it was read, before it is written
            write_all(fd, data, offset)

        monkeypatch.setattr(files, "write_all", write)
        rewriting.write_anew(fd, 4096, 6000, alone=False)
    assert file.read_bytes()[6000:6015] == b"a live writer's"


@pytest.mark.parametrize("past_the_cache", [True, False])
def test_a_disk_that_has_other_bytes_than_memory_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, past_the_cache: bool
) -> None:
    read = rewriting._read
    reads = []

    def read_other(fd: int, into: memoryview, begin: int) -> None:
        read(fd, into, begin)
        reads.append(begin)
        if len(reads) == 2:
            into[100] ^= 1

    monkeypatch.setattr(rewriting, "_read", read_other)
    if not past_the_cache:
        monkeypatch.setattr(rewriting, "_O_DIRECT", 0)
    with (
        files.descriptor(files.open_file(str(file), writable=True)) as fd,
        pytest.raises(OSError, match="not on the disk as written") as raised,
    ):
        rewriting.write_anew(fd, 0, 8192, alone=True)
    assert raised.value.errno == errno.EIO


def test_a_descriptor_passes_the_page_cache_no_longer_than_it_is_read_back(file: Path) -> None:
    with files.descriptor(files.open_file(str(file), writable=True)) as fd:
        rewriting.write_anew(fd, 0, 4096, alone=True)
        assert os.pwrite(fd, b"not aligned", 3) == 11
