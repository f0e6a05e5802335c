"""The layouts that the code declares and the ones the reference documents are the same."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from shmlog.disk.cursors import CURSOR_FILE_BYTES, CURSOR_SLOTS
from shmlog.format.layout import LAYOUT, Problem
from shmlog.format.marks import HEADER_OFFSETS, MARK_SLOTS, SEGMENT_HEADER
from shmlog.format.slots import CHECKSUM

FORMAT = Path(__file__).resolve().parents[3] / "docs" / "reference" / "format.md"
CODES = {"I": "u32", "H": "u16", "B": "u8", "Q": "u64", "q": "i64"}

Fields = list[tuple[int, str]]
"""(offset, type) of each field, ascending; bytes are "8 bytes"."""


def of_struct(form: struct.Struct) -> Fields:
    fields, at = [], 0
    for count, code in re.findall(r"(\d*)([sIHBQq])", form.format):
        for _ in range(1 if code == "s" else int(count or 1)):
            size = int(count) if code == "s" else struct.calcsize(f"<{code}")
            fields.append((at, f"{size} bytes" if code == "s" else CODES[code]))
            at += size
    return fields


def documented(heading: str) -> list[tuple[int, str, str]]:
    """(offset, field, type) of the table under a heading of the reference."""
    if not FORMAT.exists():
        pytest.skip("docs/reference/format.md is not there")
    text = FORMAT.read_text()
    assert re.search(rf"^#+ {heading}\s*$", text, re.M), f"no heading {heading!r}"
    section = re.split(rf"^#+ {heading}\s*$", text, maxsplit=1, flags=re.M)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.M)[0]
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.lstrip().startswith("|") and len(cells) >= 3 and cells[0].isdigit():
            name = re.match(r"`([^`]*)`", cells[1])
            rows.append((int(cells[0]), name[1] if name else cells[1], cells[2].replace("`", "")))
    assert rows, f"no table under {heading!r}"
    return rows


def test_the_frame_header_is_as_documented() -> None:
    offsets = {name[3:].lower(): at for name, at in LAYOUT.items() if name.startswith("FR_")}
    types = dict(zip(offsets, ("u32", "u32", "u64", "i64", "u32", "u16", "u8", "u8"), strict=True))
    declared = [(at, name, types[name]) for name, at in sorted(offsets.items(), key=lambda item: item[1])]
    assert documented("Frame header") == declared


@pytest.mark.parametrize(
    ("heading", "form"),
    [("Segment header", SEGMENT_HEADER), ("Vouched mark", MARK_SLOTS.body), ("Cursor", CURSOR_SLOTS.body)],
)
def test_a_structure_is_as_documented(heading: str, form: struct.Struct) -> None:
    declared = [*of_struct(form), (form.size, "u32")]
    assert [(at, kind) for at, _, kind in documented(heading)] == declared


def test_no_two_words_of_the_control_block_overlap() -> None:
    sizes = {"CB_LOG_ID": 16, "CB_BOOT_ID": 16}
    words = sorted(
        (at, name) for name, at in LAYOUT.items() if name.startswith("CB_") and name != "CB_HEADER_BYTES"
    )
    end = 0
    for at, name in words:
        assert at >= end, f"{name} begins inside the word before it"
        assert at % 8 == 0, name
        end = at + sizes.get(name, 8)
    assert end <= LAYOUT["CB_HEADER_BYTES"]


@pytest.mark.parametrize(
    "alone", ["CB_RESERVED_LSN", "CB_LIMIT_LSN", "CB_COMMITTED_LSN", "CB_DURABLE_LSN", "CB_PARTICIPANT_HIGH"]
)
def test_words_that_different_parties_write_do_not_share_a_line(alone: str) -> None:
    owners = {  # who else stores into the same 128 bytes
        "CB_COMMITTED_LSN": {"CB_CLEARED_LSN", "CB_PREPARED_LSN"},
        "CB_DURABLE_LSN": {"CB_INTENT_LSN"},
    }
    line = LAYOUT[alone] // 128
    beside = {
        name for name, at in LAYOUT.items() if name.startswith("CB_") and at // 128 == line and at < 4096
    }
    assert beside - {alone} == owners.get(alone, set())


def test_each_4096_byte_sector_before_the_frames_holds_one_header_and_one_mark() -> None:
    header_bytes = SEGMENT_HEADER.size + CHECKSUM.size
    begins = sorted([*HEADER_OFFSETS, *MARK_SLOTS.offsets])
    ends = [begins[0] + header_bytes, begins[1] + MARK_SLOTS.copy_bytes]
    ends += [begins[2] + header_bytes, begins[3] + MARK_SLOTS.copy_bytes]
    assert [begin // 4096 for begin in begins] == [(end - 1) // 4096 for end in ends] == [0, 0, 1, 1]
    assert len({at // 512 for at in begins}) == 4, "nor does a header share a small sector with a mark"
    assert LAYOUT["SEGMENT_HEADER_BYTES"] == 2 * 4096


def test_the_copies_of_a_cursor_fit_its_file() -> None:
    assert max(CURSOR_SLOTS.offsets) + CURSOR_SLOTS.copy_bytes <= CURSOR_FILE_BYTES


def test_every_finding_of_the_frame_check_has_a_name() -> None:
    header = (FORMAT.parents[2] / "shmlog" / "native" / "core" / "frame.h").read_text()
    assert len(Problem) == len(re.findall(r"X\(FRAME_[A-Z_]+, \d", header))
