"""Frames: the native check and walk on frames that this file encodes, whole and damaged."""

from __future__ import annotations

import mmap
import os
import pathlib
import struct

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from shmlog import _native
from shmlog.format.layout import CB, SEGMENT_HEADER_BYTES, Problem

SEED = 0x1234
BASE = 1 << 20
FRAME = struct.Struct("<IIQqIHBB")
DATA, PAD, FILL = 1, 2, 3


def frame(
    lsn: int, payload: bytes, kind: int = DATA, flags: int = 0, tag: int = 7, size: int | None = None
) -> bytes:
    """One stored frame; size: what the length field says (PAD and FILL have no payload)."""
    said = len(payload) if size is None else size
    rest = struct.pack("<IQqIHBB", said, lsn, 99, tag, 3, kind, flags)
    checksum = crc32c(rest, crc32c(payload if kind == DATA else b"", SEED))
    head = FRAME.pack(said, checksum, lsn, 99, tag, 3, kind, flags)
    stored = head + (payload if kind == DATA else bytes(said))
    return stored + bytes(-len(stored) % 32)


def run(*frames: tuple[bytes, int, int]) -> bytes:
    """(payload, kind, flags) one after another from BASE."""
    data = b""
    for payload, kind, flags in frames:
        data += frame(BASE + len(data), payload, kind, flags)
    return data


def walk(
    data: bytes, begin: int = BASE, end: int | None = None, **options: object
) -> tuple[int, int, int, int]:
    settings = {"verify": True, "tag": -1, "stop_at_gap": False, "columns": None} | options
    stop = BASE + len(data) if end is None else end
    return _native.walk(
        data,
        BASE,
        begin,
        stop,
        SEED,
        settings["verify"],  # type: ignore[arg-type]
        settings["tag"],  # type: ignore[arg-type]
        settings["stop_at_gap"],  # type: ignore[arg-type]
        settings["columns"],  # type: ignore[arg-type]
    )


THREE = run((b"first", DATA, 0), (b"", DATA, 0), (b"x" * 100, DATA, 0))


def columns(n: int) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(n, kind) for kind in (np.uint64, np.int64, np.uint32, np.uint16, np.uint32))


def test_whole_frames_are_walked_to_the_end_and_indexed() -> None:
    to = columns(8)
    assert walk(THREE, columns=to) == (3, BASE + len(THREE), BASE + len(THREE), Problem.VALID)
    assert to[0][:3].tolist() == [BASE, BASE + 64, BASE + 96]
    assert to[1][:3].tolist() == [99] * 3
    assert to[2][:3].tolist() == [7] * 3
    assert to[3][:3].tolist() == [3] * 3
    assert to[4][:3].tolist() == [5, 0, 100]


def test_a_walk_stops_when_its_columns_are_full() -> None:
    assert walk(THREE, columns=columns(2)) == (2, BASE + 96, BASE + 96, Problem.VALID)


def test_a_walk_of_one_tag_passes_over_the_others() -> None:
    other = frame(BASE + len(THREE), b"other", tag=8)
    to = columns(8)
    assert walk(THREE + other, tag=8, columns=to)[0] == 1
    assert to[0][0] == BASE + len(THREE)


@pytest.mark.parametrize("kind", [PAD, FILL])
def test_a_filler_is_passed_over_or_stopped_at_as_asked(kind: int) -> None:
    filler = frame(BASE + 64, b"", kind, size=96)
    data = frame(BASE, b"a") + filler + frame(BASE + 192, b"b")
    assert walk(data) == (2, BASE + 256, BASE + 256, Problem.VALID)
    assert walk(data, stop_at_gap=True)[:2] == (1, BASE + 64)
    assert walk(data, begin=BASE + 64, stop_at_gap=True)[:2] == (1, BASE + 256)


def test_a_batch_that_is_not_complete_is_not_whole() -> None:
    data = run((b"a", DATA, 0), (b"b", DATA, 1), (b"c", DATA, 1))
    assert walk(data) == (3, BASE + 192, BASE + 64, Problem.VALID)
    assert walk(data + frame(BASE + 192, b"d")) == (4, BASE + 256, BASE + 256, Problem.VALID)


def test_the_checksum_is_looked_at_only_when_asked() -> None:
    data = bytearray(THREE)
    data[33] ^= 1
    assert walk(bytes(data)) == (0, BASE, BASE, Problem.BAD_CHECKSUM)
    assert walk(bytes(data), verify=False)[3] == Problem.VALID


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data.__setitem__(slice(64, 96), bytes(32)), Problem.NEVER_WRITTEN),
        (lambda data: data.__setitem__(64 + 30, 4), Problem.BAD_KIND),
        (lambda data: data.__setitem__(64 + 30, 255), Problem.BAD_KIND),
        (lambda data: data.__setitem__(64 + 31, 2), Problem.BAD_KIND),
        (lambda data: struct.pack_into("<Q", data, 64 + 8, BASE + 96), Problem.BAD_LSN),
        (lambda data: struct.pack_into("<Q", data, 64 + 8, 2**64 - 1), Problem.BAD_LSN),
        (lambda data: struct.pack_into("<I", data, 64, 1000), Problem.BAD_LENGTH),
        (lambda data: struct.pack_into("<I", data, 64, 2**32 - 1), Problem.BAD_LENGTH),
        (lambda data: struct.pack_into("<I", data, 64, 32), Problem.BAD_CHECKSUM),
        (lambda data: data.__setitem__(64 + 4, data[64 + 4] ^ 1), Problem.BAD_CHECKSUM),
        (lambda data: data.__setitem__(64 + 24, 0), Problem.BAD_CHECKSUM),
        (lambda data: data.__setitem__(64 + 31, 1), Problem.BAD_CHECKSUM),
        (lambda data: data.__setitem__(64 + 30, PAD), Problem.BAD_CHECKSUM),
    ],
)
def test_damage_stops_the_walk_at_its_frame_and_is_named(damage, problem: int) -> None:  # type: ignore[no-untyped-def]
    data = bytearray(THREE)
    data[64:96] = frame(BASE + 64, b"")
    damage(data)
    assert walk(bytes(data)) == (1, BASE + 64, BASE + 64, problem)


@given(st.integers(0, len(THREE) - 1), st.integers(1, 255))
def test_no_changed_byte_of_header_or_payload_goes_unseen(at: int, change: int) -> None:
    padding = set(range(37, 64)) | set(range(228, 256))
    data = bytearray(THREE)
    data[at] ^= change
    assert (walk(bytes(data))[3] == Problem.VALID) == (at in padding)


def test_a_frame_of_another_log_does_not_validate() -> None:
    assert (
        _native.walk(THREE, BASE, BASE, BASE + 64, SEED + 1, True, -1, False, None)[3] == Problem.BAD_CHECKSUM
    )


def test_a_frame_that_goes_past_the_bound_is_refused() -> None:
    assert walk(THREE, end=BASE + len(THREE) - 32)[1:] == (BASE + 96, BASE + 96, Problem.BAD_LENGTH)


def test_a_header_that_does_not_fit_is_refused() -> None:
    assert walk(THREE, end=BASE + 64 + 16)[3] == Problem.OUT_OF_BOUNDS


@pytest.mark.parametrize(
    ("begin", "end"), [(BASE - 32, BASE), (BASE + 32, BASE), (BASE, BASE + 4096), (BASE + 1, BASE + 64)]
)
def test_bounds_outside_of_the_buffer_are_refused(begin: int, end: int) -> None:
    with pytest.raises(ValueError, match="is not inside"):
        walk(THREE, begin, end)
    with pytest.raises(ValueError, match="is not inside"):
        _native.find_frame(THREE, BASE, begin, end, SEED)


@given(st.binary(max_size=400))
@pytest.mark.holds("V2")
def test_no_bytes_whatever_make_the_walk_leave_its_bounds(data: bytes) -> None:
    count, at, whole, problem = walk(data)
    assert 0 <= count <= len(data) // 32
    assert BASE <= whole <= at <= BASE + len(data)
    assert 0 <= problem < len(Problem)


def test_the_next_frame_is_found_behind_damage() -> None:
    data = bytearray(THREE)
    data[0:96] = bytes(96)
    assert _native.find_frame(bytes(data), BASE, BASE, BASE + len(data), SEED) == BASE + 96
    assert _native.find_frame(bytes(data), BASE, BASE + 128, BASE + len(data), SEED) is None


def test_a_copy_of_a_frame_elsewhere_is_not_found() -> None:
    data = bytes(32) + frame(BASE, b"moved")
    assert _native.find_frame(data, BASE, BASE, BASE + len(data), SEED) is None


def test_an_append_over_old_bytes_zeroes_the_padding() -> None:
    fd = os.memfd_create("segment")
    os.ftruncate(fd, SEGMENT_HEADER_BYTES + 65536)
    mapping = _native.Mapping(fd, SEGMENT_HEADER_BYTES + 65536, True)
    os.close(fd)
    memory = memoryview(mapping)
    memory[:] = b"\xff" * len(memory)
    control = _native.Control(mmap.mmap(-1, 4096 + 512 + 4096), 65536, 1)
    control.store(CB.LIMIT_LSN, 65536)
    writer = _native.Writer(SEED, 65536, 65536)
    writer._attach(control, 0)
    writer._map(0, mapping)
    assert writer.append(b"x" * 33) == 0
    assert (
        bytes(memory[SEGMENT_HEADER_BYTES + 32 : SEGMENT_HEADER_BYTES + 128])
        == b"x" * 33 + bytes(31) + b"\xff" * 32
    )


@pytest.mark.parametrize("kind", [PAD, FILL])
def test_a_filler_header_covers_its_range(kind: int) -> None:
    header = _native.filler(kind, BASE, 160, 99, 3, SEED)
    assert header == frame(BASE, b"", kind, tag=0, size=128)[:32]
    assert walk(header + bytes(128)) == (0, BASE + 160, BASE + 160, Problem.VALID)


@pytest.mark.parametrize(
    ("kind", "size", "writer"), [(DATA, 64, 0), (0, 64, 0), (PAD, 0, 0), (PAD, 33, 0), (PAD, 64, 65536)]
)
def test_a_filler_that_cannot_be_is_refused(kind: int, size: int, writer: int) -> None:
    with pytest.raises(ValueError, match="filler"):
        _native.filler(kind, BASE, size, 0, writer, SEED)


def test_records_of_a_mapping_refuse_what_they_cannot_make(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(SEGMENT_HEADER_BYTES) + THREE + bytes(4096))
    with path.open("rb") as file:
        mapping = _native.Mapping(file.fileno(), path.stat().st_size, False)
    end = BASE + len(THREE)
    made, at, problem = _native.records(mapping, BASE, BASE, end, end, SEED, True, 9)
    assert (at, problem) == (end, Problem.VALID)
    assert [record[:4] for record in made] == [(BASE + at, 99, 7, 3) for at in (0, 64, 96)]
    assert [len(record[4]) for record in made] == [5, 0, 100]
    assert _native.records(mapping, BASE, BASE, BASE + 1, end, SEED, True, 9)[1] == BASE + 64
    assert _native.records(mapping, BASE, BASE, end, end, SEED, True, 2)[1] == BASE + 96
    assert _native.records(mapping, BASE, BASE, end, end, SEED + 1, True, 9) == (
        [],
        BASE,
        Problem.BAD_CHECKSUM,
    )
    for begin, bound in ((BASE - 32, end), (end, BASE), (BASE, end + 8192), (BASE + 1, end)):
        with pytest.raises(ValueError, match="is not inside"):
            _native.records(mapping, BASE, begin, bound, bound, SEED, True, 9)
