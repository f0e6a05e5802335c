"""The C frame walker over hostile bytes: three readings agree, and no byte beside the bounds is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzz import frame_fuzzer
from fuzz.frame_fuzzer import CORPUS
from support.pyreader import DATA, FRAME, BadFrame, Frame, PyLog

from shmlog import _native

PLACE = struct.Struct("<QQQqIIBBH12x")
EXECUTIONS = 40_000


@pytest.fixture(scope="module")
def program() -> Path:
    why = frame_fuzzer.missing()
    if why:
        pytest.skip(why)
    return frame_fuzzer.build()


def test_mutated_frames_are_read_as_the_format_page_says(program: Path, tmp_path: Path) -> None:
    found = frame_fuzzer.fuzz(program, present=tmp_path / "input", count=EXECUTIONS, seed=20260101)
    assert not found.violation, found.violation
    assert found.executions == EXECUTIONS
    assert found.corpus > 20, "the fuzzer sees no branches"


def test_inputs_that_were_kept_are_read_as_the_format_page_says(program: Path) -> None:
    kept = sorted((CORPUS / "frames").iterdir())
    assert len(kept) > 20
    found = frame_fuzzer.replay(program, kept)
    assert not found.violation, found.violation
    assert found.executions == len(kept)


def test_a_length_that_changes_while_it_is_read_is_read_once(program: Path) -> None:
    found = frame_fuzzer.race(program, 1_000_000)
    assert not found.violation, found.violation
    assert found.executions >= 1_000_000


class Lenient(PyLog):
    """The second reader over one run of frames in memory; padding may hold anything, as in the core."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def run(self, image: bytes, at: int, base: int) -> Iterator[Frame]:
        while at < len(image):
            yield (frame := self._frame(self._without_padding(image, at), at, base + at))
            at = frame.end_lsn - base

    @staticmethod
    def _without_padding(image: bytes, at: int) -> bytes:
        if len(image) - at < FRAME.size:
            return image
        size = FRAME.unpack_from(image, at)[0]
        low, high = at + FRAME.size + size, at + (FRAME.size + size + 31) // 32 * 32
        return image if high > len(image) else image[:low] + bytes(high - low) + image[high:]


def test_the_kept_inputs_mean_the_same_to_the_module_and_to_the_second_reader() -> None:
    """The module as Python calls it: what the program cannot see are its bounds and columns."""
    whole = 0
    for path in sorted((CORPUS / "frames").iterdir()):
        data = path.read_bytes()
        base, begin, end, _, seed, *_ = PLACE.unpack_from(data)
        if end >= 1 << 63:
            continue
        image = data[PLACE.size :][: end - base]
        expected, next_lsn = [], begin
        try:
            for frame in Lenient(seed).run(image, begin - base, base):
                next_lsn = frame.end_lsn
                if frame.kind == DATA:
                    expected.append((frame.lsn, frame.time_ns, frame.tag, frame.writer, len(frame.payload)))
        except BadFrame:
            pass
        columns = tuple(np.zeros(64, dtype) for dtype in ("<u8", "<i8", "<u4", "<u2", "<u4"))
        count, stopped, _, problem = _native.walk(image, base, begin, end, seed, True, -1, False, columns)
        found = list(zip(*(column[:count].tolist() for column in columns), strict=True))
        assert (found, stopped) == (expected, next_lsn), path.name
        whole += problem == 0
    assert whole > 5


@pytest.mark.parametrize(("base", "count"), [(0, 4096), (1 << 62, 4096), (2**64 - 4096, 4064)])
def test_a_search_that_finds_nothing_says_so(base: int, count: int) -> None:
    assert _native.find_frame(bytes(count), base, base, base + count, 0) is None


@pytest.mark.parametrize("base", [2**64 - 4096, 2**64 - 64, 2**64 - 32])
def test_a_range_up_to_the_last_lsn_there_is_is_refused(base: int) -> None:
    """A search would go on from 2^64 at 0, before the buffer: once a segmentation fault."""
    count = 2**64 - 1 - base
    with pytest.raises(ValueError, match="is not inside"):
        _native.find_frame(bytes(count), base, base, base + count, 0)
    with pytest.raises(ValueError, match="is not inside"):
        _native.walk(bytes(count), base, base, base + count, 0, True, -1, False, None)
