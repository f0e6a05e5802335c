"""Walks over bytes that may be anybody's: what is found, and what finding it may cost."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmlog import _native
from shmlog.disk import directory, segment
from shmlog.disk.directory import Directory
from shmlog.disk.segments import segment_path
from shmlog.disk.walk import Walker
from shmlog.errors import FormatError
from shmlog.format import marks, sums
from shmlog.format.geometry import Geometry, frame_bytes
from shmlog.format.layout import SEGMENT_HEADER_BYTES, Problem

FRAME = struct.Struct("<IIQqIHBB")
SEGMENT_BYTES = 64 << 10
DATA, FILL = 1, 3


def make(path: Path, segment_bytes: int, frames: bytes = b"") -> Directory:
    """A log of one segment that begins with these bytes and goes on with a hole."""
    where = directory.create(str(path), Geometry(segment_bytes, 64 << 10), 0o600)
    header = marks.Header(where.identity.log_id, 0, segment_bytes, 1, 0)
    with_mark = marks.Mark(1, 0, 0)
    fd = segment.create(segment_path(where, 0), header, with_mark, where.identity.geometry, 0o600)
    os.pwrite(fd, frames, SEGMENT_HEADER_BYTES)
    os.close(fd)
    return where


def frame(seed: int, lsn: int, payload: bytes, kind: int = DATA, flags: int = 0, wrong: int = 0) -> bytes:
    """A frame; wrong: what is xored into its checksum."""
    header = FRAME.pack(len(payload), 0, lsn, 1, 2, 3, kind, flags)
    crc = crc32c(header[:4] + header[8:], crc32c(payload, seed) if kind == DATA else seed) ^ wrong
    whole = header[:4] + struct.pack("<I", crc) + header[8:] + payload
    return whole.ljust(frame_bytes(len(payload)), b"\0")


def baits(count: int, segment_bytes: int) -> bytes:
    """At each granule a header that claims all up to the segment's end."""
    return b"".join(
        FRAME.pack(segment_bytes - 32 * n - 32, 1, 32 * n, 1, 2, 3, DATA, 0) for n in range(count)
    )


@given(st.binary(max_size=300), st.binary(max_size=5000), st.integers(0, 2**32 - 1))
def test_a_parts_sum_is_the_one_computed_directly(head: bytes, part: bytes, seed: int) -> None:
    before = sums.state_after(head, 0)
    until = sums.state_after(part, before)
    assert sums.crc_of_part(seed, before, until, len(part)) == crc32c(part, seed)


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (1 << 24) - 31])
def test_a_long_parts_sum_is_the_one_computed_directly(size: int) -> None:
    part = os.urandom(1 << 10) + bytes(size - (1 << 10))
    before = sums.state_after(b"before", 0)
    assert sums.crc_of_part(7, before, sums.state_after(part, before), size) == crc32c(part, 7)


PIECE = st.tuples(
    st.sampled_from(["valid", "batch", "fill", "bad sum", "bait", "zeros", "noise", "nested"]),
    st.one_of(st.integers(0, 200), st.integers(0, 12_000)),
)


def _piece(seed: int, lsn: int, kind: str, size: int) -> bytes:
    payload = (b"%d %d " % (lsn, size) * (size // 4 + 1))[:size]
    if kind == "zeros":
        return bytes(frame_bytes(size))
    if kind == "noise":
        return bytes(b | 4 for b in payload).ljust(frame_bytes(size), b"\xff")
    if kind == "bait":  # one that reaches over whatever follows
        return FRAME.pack(min(size * 5, SEGMENT_BYTES - lsn - 32), 9, lsn, 1, 2, 3, DATA, 0)
    if kind == "nested":  # a frame that is valid within one that is not
        inner = frame(seed, lsn + 32, payload)
        return frame(seed, lsn, inner, wrong=1)
    wrong, flags = int(kind == "bad sum"), int(kind == "batch")
    return frame(seed, lsn, payload, FILL if kind == "fill" else DATA, flags, wrong)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECE, max_size=40), st.integers(0, 40))
def test_a_walk_and_a_search_find_what_a_look_at_all_bytes_finds(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int]], first_granule: int
) -> None:
    where = make(tmp_path_factory.mktemp("walk") / "log", SEGMENT_BYTES)
    seed, data = where.identity.seed, b""
    for kind, size in pieces:
        piece = _piece(seed, len(data), kind, size)
        if len(data) + len(piece) > SEGMENT_BYTES:
            break
        data += piece
    with open(segment_path(where, 0), "r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES)
        file.write(data)
    data = data.ljust(SEGMENT_BYTES, b"\0")

    def walked(at: int) -> tuple[int, int, int, int]:
        return _native.walk(data, 0, at, SEGMENT_BYTES, seed, True, -1, False, None)

    expected = [at for at in range(0, SEGMENT_BYTES, 32) if walked(at)[1] > at]
    with Walker(where) as walker:
        at, found = 0, []
        while (lsn := walker.find(at, SEGMENT_BYTES)) is not None:
            found.append(lsn)
            at = lsn + 32
        assert found == expected
        at = 32 * first_granule
        later = [lsn for lsn in expected if lsn >= at]
        assert walker.find(at, SEGMENT_BYTES) == (later[0] if later else None)
        for begin in [0, *expected]:
            count, bad, whole, problem = walked(begin)
            walk = walker.walk(begin, SEGMENT_BYTES)
            assert (walk.records, walk.bad_lsn, walk.end_lsn, walk.problem) == (count, bad, whole, problem)


@pytest.mark.parametrize("goes_on", [0, 1])
@pytest.mark.parametrize("payload_bytes", [(1 << 20) - 31, 1 << 20, (3 << 20) + 5])
def test_a_frame_that_is_larger_than_a_chunk_is_checked_whole(
    tmp_path: Path, payload_bytes: int, goes_on: int
) -> None:
    where = make(tmp_path / "log", 4 << 20)
    seed, payload = where.identity.seed, os.urandom(payload_bytes)
    first = frame(seed, 0, b"first")
    whole = bytearray(first + frame(seed, len(first), payload, flags=goes_on))
    end = len(whole)
    whole += frame(seed, end, b"last")
    for damaged in (False, True):
        if damaged:
            whole[end - 64] ^= 1
        with open(segment_path(where, 0), "r+b") as file:
            file.seek(SEGMENT_HEADER_BYTES)
            file.write(whole)
        with Walker(where) as walker:
            walk = walker.walk(0, 4 << 20)
            assert walker.find(32, 4 << 20) == (end if damaged else len(first))
        if damaged:
            assert (walk.end_lsn, walk.problem, walk.records) == (len(first), Problem.BAD_CHECKSUM, 1)
        else:
            assert (walk.end_lsn, walk.problem, walk.records) == (len(whole), Problem.NEVER_WRITTEN, 3)


@pytest.mark.holds("X1")
def test_a_frame_that_claims_a_whole_sparse_segment_takes_no_memory(tmp_path: Path) -> None:
    size = 256 << 20
    where = make(tmp_path / "log", size, FRAME.pack(size - 32, 1, 0, 1, 2, 3, DATA, 0))
    tracemalloc.start()
    try:
        with Walker(where) as walker:
            assert walker.walk(0, size).problem is Problem.BAD_CHECKSUM
            assert walker.find(0, size) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20, f"{peak / 2**20:.0f} MiB"


def _search_seconds(path: Path, bytes_: int, every: int) -> float:
    """CPU time to look through baits, with a valid frame at each so many granules; as
    recovery looks: search, walk from what was found, search on from where that ended."""
    where = make(path, bytes_)
    data = bytearray(baits(bytes_ // 32, bytes_))
    for lsn in range(32 * every, bytes_, 32 * every) if every else ():
        data[lsn : lsn + 32] = frame(where.identity.seed, lsn, b"")
    with open(segment_path(where, 0), "r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES)
        file.write(data)
    began, at, count = time.process_time(), 0, 0
    with Walker(where) as walker:
        while (lsn := walker.find(at, bytes_)) is not None:
            count += 1
            at = walker.walk(lsn, bytes_).bad_lsn + 32
    assert count == (len(range(32 * every, bytes_, 32 * every)) if every else 0)
    return time.process_time() - began


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.holds("X1", "X2")
def test_a_search_through_baits_takes_time_linear_in_their_bytes(tmp_path: Path, every: int) -> None:
    """Every payload summed in full, four times the bytes took sixteen times as long."""
    few, many = (_search_seconds(tmp_path / str(bytes_), bytes_, every) for bytes_ in (1 << 20, 4 << 20))
    assert many < 8 * few, f"{few:.2f} s, then {many:.2f} s"


def test_a_segment_that_is_cut_while_it_is_walked_is_a_format_error(tmp_path: Path) -> None:
    where = make(tmp_path / "log", 4 << 20)
    with Walker(where) as walker:
        walker.walk(0, 4 << 20)
        os.truncate(segment_path(where, 0), SEGMENT_HEADER_BYTES)
        with pytest.raises(FormatError, match=r"\.seg ends at byte 8192"):
            walker.walk(0, 4 << 20)
