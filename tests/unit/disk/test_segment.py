"""Segment files: header and marks, whole, damaged and foreign."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from shmlog.disk import segment
from shmlog.errors import FormatError
from shmlog.format import marks
from shmlog.format.geometry import Geometry
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import MARK_SLOTS, SEGMENT_HEADER
from shmlog.format.origin import Origin
from shmlog.format.slots import CHECKSUM
from shmlog.system import files

LOG_ID = bytes(range(16))
GEOMETRY = Geometry(64 << 10, 64 << 10)
HEADER = marks.Header(LOG_ID, 3 << 16, 64 << 10, 7, 1_700_000_000_000_000_000)
MARK_ = marks.Mark(epoch=7, durable_lsn=4096, sequence=5, trimmed_lsn=64, clean=True)
U64 = st.integers(0, 2**64 - 1)
U62 = st.integers(0, 2**62)
ORIGINS = st.builds(Origin, st.binary(min_size=16, max_size=16), st.booleans(), *[U64] * 5)
HEADER_BYTES = SEGMENT_HEADER.size + CHECKSUM.size
MARK_BYTES = MARK_SLOTS.copy_bytes


@given(st.binary(min_size=16, max_size=16), U64, U64, U64, st.integers(-(2**63), 2**63 - 1))
def test_a_header_decodes_to_what_was_encoded(
    log_id: bytes, first: int, size: int, epoch: int, created: int
) -> None:
    header = marks.Header(log_id, first, size, epoch, created)
    assert marks.decode_header(header.encode(), "x.seg") == header


@pytest.mark.parametrize("byte", range(HEADER_BYTES))
def test_a_header_with_any_byte_changed_is_refused(byte: int) -> None:
    data = bytearray(HEADER.encode())
    data[byte] ^= 0x01
    with pytest.raises(FormatError, match=r"x\.seg"):
        marks.decode_header(bytes(data), "x.seg")


def test_a_header_that_is_cut_short_is_refused() -> None:
    with pytest.raises(FormatError, match="too short for a segment: 67 bytes"):
        marks.decode_header(HEADER.encode()[:-1], "x.seg")


def test_a_header_of_another_version_says_which() -> None:
    body = bytearray(HEADER.encode()[: SEGMENT_HEADER.size])
    struct.pack_into("<I", body, 8, 9)
    with pytest.raises(FormatError, match="format version 9; this is version 2"):
        marks.decode_header(bytes(body) + CHECKSUM.pack(crc32c(body)), "x.seg")


@given(U62, U62, U62, U62, st.booleans(), ORIGINS)
def test_a_mark_decodes_to_what_was_encoded(
    epoch: int, durable: int, sequence: int, trimmed: int, clean: bool, origin: Origin
) -> None:
    durable = durable // 32 * 32
    trimmed = min(trimmed, durable) // 32 * 32
    mark = marks.Mark(epoch, durable, sequence, trimmed, clean, origin)
    assert marks.decode_mark(mark.encode(LOG_ID), LOG_ID) == mark


@pytest.mark.parametrize(
    "changes",
    [
        {"trimmed_lsn": 128, "durable_lsn": 64},
        {"trimmed_lsn": 33, "durable_lsn": 64},
        {"trimmed_lsn": 0, "durable_lsn": 65},
        {"trimmed_lsn": 0, "durable_lsn": (1 << 62) + 32},
        {"sequence": 2**64 - 1},
        {"epoch": 2**64 - 1},
    ],
)
def test_a_mark_that_no_flusher_writes_does_not_count(changes: dict[str, int]) -> None:
    forged = replace(MARK_, **changes)  # type: ignore[arg-type]
    assert marks.decode_mark(forged.encode(LOG_ID), LOG_ID) is None


@pytest.mark.parametrize("byte", range(MARK_BYTES))
def test_a_mark_with_any_byte_changed_does_not_count(byte: int) -> None:
    data = bytearray(MARK_.encode(LOG_ID))
    data[byte] ^= 0x80
    assert marks.decode_mark(bytes(data), LOG_ID) is None


def test_a_mark_of_another_log_does_not_count() -> None:
    assert marks.decode_mark(MARK_.encode(LOG_ID), bytes(16)) is None


def test_a_mark_that_is_cut_short_or_was_never_written_does_not_count() -> None:
    assert marks.decode_mark(MARK_.encode(LOG_ID)[:-1], LOG_ID) is None
    assert marks.decode_mark(bytes(4096), LOG_ID) is None


def test_marks_are_ordered_by_epoch_then_durable_lsn_then_sequence() -> None:
    assert replace(MARK_, epoch=8, durable_lsn=0, sequence=0) > MARK_
    assert replace(MARK_, durable_lsn=8192, sequence=0) > MARK_
    assert MARK_.next(clean=False) > MARK_


def _page(*marks: marks.Mark) -> bytes:
    page = bytearray(SEGMENT_HEADER_BYTES)
    for mark in marks:
        at = MARK_SLOTS.offsets[mark.sequence % 2]
        page[at : at + MARK_BYTES] = mark.encode(LOG_ID)
    return bytes(page)


def test_the_newer_of_two_marks_counts() -> None:
    newer = MARK_.next(durable_lsn=8192)
    assert marks.newest_mark(_page(MARK_, newer), LOG_ID) == newer


def test_the_older_mark_counts_when_the_newer_is_torn() -> None:
    newer = MARK_.next(durable_lsn=8192)
    page = bytearray(_page(MARK_, newer))
    page[MARK_SLOTS.offsets[newer.sequence % 2] + 20] ^= 0xFF
    assert marks.newest_mark(bytes(page), LOG_ID) == MARK_


def test_no_mark_counts_when_both_are_torn() -> None:
    assert marks.newest_mark(bytes(SEGMENT_HEADER_BYTES), LOG_ID) is None


def test_a_mark_and_the_header_survive_the_loss_of_any_4096_bytes(path: str) -> None:
    newer = MARK_.next(durable_lsn=8192)
    with files.descriptor(files.open_file(path, writable=True)) as fd:
        segment.write_mark(fd, newer, LOG_ID)
    whole = Path(path).read_bytes()
    kept = []
    for at in range(0, SEGMENT_HEADER_BYTES, 4096):
        for rubbish in (bytes(4096), os.urandom(4096), b"SHMLOGSG" + b"\xff" * 4088):
            Path(path).write_bytes(whole[:at] + rubbish + whole[at + 4096 :])
            assert marks.decode_header(_check(path), path) == HEADER
        kept.append(marks.newest_mark(_check(path), LOG_ID))
        with files.descriptor(files.open_file(path, writable=True)) as fd:
            segment.write_header(fd, HEADER)
        assert marks.decode_header(Path(path).read_bytes()[at:], path) == HEADER, "made whole again"
    assert kept == ([newer, MARK_] if newer.sequence % 2 else [MARK_, newer])


def test_a_header_of_which_both_copies_are_lost_is_refused(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(SEGMENT_HEADER_BYTES))
    with pytest.raises(FormatError, match="is not a segment"):
        _check(path)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("00000000000000065536.seg", 65536),
        ("00000000000000065536.seg.tmp", None),
        ("65536.seg", None),
        ("0000000000000006553x.seg", None),
        ("0000000000000006553².seg", None),
        ("-0000000000000000001.seg", None),
        ("00000000000000065536", None),
    ],
)
def test_only_a_segments_own_name_is_taken_for_one(name: str, first: int | None) -> None:
    assert segment.parse_name(name) == first


def test_a_name_says_the_first_lsn() -> None:
    assert segment.parse_name(segment.file_name(2**62)) == 2**62


@pytest.fixture
def path(tmp_path: Path) -> str:
    os.close(segment.create(str(tmp_path / "x.seg"), HEADER, MARK_, GEOMETRY, 0o600))
    return str(tmp_path / "x.seg")


def _check(path: str, log_id: bytes = LOG_ID, first: int = HEADER.first_lsn) -> bytes:
    with files.descriptor(files.open_file(path, writable=False)) as fd:
        return segment.check(fd, path, log_id, first, GEOMETRY)


def test_a_new_segment_is_whole_and_passes_its_own_check(path: str) -> None:
    assert marks.newest_mark(_check(path), LOG_ID) == MARK_
    assert os.stat(path).st_size == GEOMETRY.file_bytes
    assert os.listdir(os.path.dirname(path)) == ["x.seg"]


def test_a_new_segment_keeps_its_mark_whichever_copy_the_next_write_loses(path: str) -> None:
    whole = Path(path).read_bytes()
    for offset in MARK_SLOTS.offsets:
        Path(path).write_bytes(whole[:offset] + bytes(MARK_BYTES) + whole[offset + MARK_BYTES :])
        found = marks.newest_mark(_check(path), LOG_ID)
        assert found is not None and replace(found, sequence=MARK_.sequence) == MARK_


def test_the_making_of_a_segment_reads_none_of_its_frames_ahead(path: str) -> None:
    """Pages that were read ahead come in large folios: of these a sync writes all."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), GEOMETRY.file_bytes) as mapped:
        pages = GEOMETRY.file_bytes // mmap.PAGESIZE
        inside, view = (ctypes.c_ubyte * pages)(), ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.byref(view), ctypes.c_size_t(GEOMETRY.file_bytes), inside) == 0
        del view
    heads = SEGMENT_HEADER_BYTES // mmap.PAGESIZE
    assert not any(page & 1 for page in inside[heads:])


def test_a_temporary_file_left_by_a_dead_creator_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "y.seg.tmp").write_bytes(b"half")
    os.close(segment.create(str(tmp_path / "y.seg"), HEADER, MARK_, GEOMETRY, 0o600))
    assert os.listdir(tmp_path) == ["y.seg"]


def test_a_segment_of_another_log_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match="belongs to another log"):
        _check(path, log_id=bytes(16))


def test_a_segment_under_another_name_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match="says it begins at LSN 196608"):
        _check(path, first=0)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_segment_of_another_size_is_refused(path: str, by: int) -> None:
    os.truncate(path, GEOMETRY.file_bytes + by)
    with pytest.raises(FormatError, match=f"has {GEOMETRY.file_bytes + by} bytes"):
        _check(path)


def test_marks_are_written_in_turn_and_touch_nothing_else(path: str) -> None:
    before = Path(path).read_bytes()
    newer = MARK_.next(durable_lsn=8192)
    with files.descriptor(files.open_file(path, writable=True)) as fd:
        segment.write_mark(fd, newer, LOG_ID)
    after = bytearray(Path(path).read_bytes())
    assert marks.newest_mark(bytes(after[:SEGMENT_HEADER_BYTES]), LOG_ID) == newer
    at = MARK_SLOTS.offsets[newer.sequence % 2]
    assert after[at : at + MARK_BYTES] == newer.encode(LOG_ID)
    assert marks.decode_mark(bytes(after[MARK_SLOTS.offset(MARK_.sequence) :]), LOG_ID) == MARK_
    after[at : at + MARK_BYTES] = before[at : at + MARK_BYTES]
    assert bytes(after) == before
