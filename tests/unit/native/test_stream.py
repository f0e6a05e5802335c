"""The Arrow export and take of the core, called wrongly: an exception, and nothing out of bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import arrow

from shmlog import _native
from shmlog.format.layout import SEGMENT_HEADER_BYTES

SEGMENT_BYTES = 64 << 10
DATA = ("data", "vz", 0, _native.NODE_DATA, 0, 0, 1)
COPY = ("part", "l", 0, _native.NODE_COPY, 0, 8, 1)


def form(*columns: Any) -> tuple[Any, ...]:
    return (("", "+s", len(columns), _native.NODE_STRUCT, 0, 0, 1), *columns)


@pytest.fixture
def mapping(tmp_path: Path) -> Iterator[_native.Mapping]:
    path = tmp_path / "segment"
    path.write_bytes(bytes(SEGMENT_HEADER_BYTES + SEGMENT_BYTES))
    fd = os.open(path, os.O_RDONLY)
    yield _native.Mapping(fd, SEGMENT_HEADER_BYTES + SEGMENT_BYTES, False)
    os.close(fd)


def stream(columns: Any, payload_bytes: int = -1, **other: Any) -> object:
    values = {
        "directory": b"/nowhere",
        "header": bytes(32),
        "copy_at": 4096,
        "segment_bytes": SEGMENT_BYTES,
        "owner": os.geteuid(),
        "begin": 0,
        "stop": 64,
        "end": 64,
        "holes": b"",
        "seed": 7,
        "verify": True,
        "tags": None,
        "records": 9,
        "bytes": 9,
        "requested": None,
    } | other
    return _native.arrow_stream(columns, payload_bytes, *values.values())


@pytest.mark.parametrize(
    ("columns", "payload_bytes"),
    [
        ((), -1),
        ((DATA,), -1),
        (form(DATA)[:1], -1),
        ((*form(DATA), DATA), -1),
        (form(("list", "+w:2", 2, _native.NODE_LIST, 0, 0, 1), DATA, DATA), -1),
        (form(("child", "vz", 1, _native.NODE_DATA, 0, 0, 1), DATA), -1),
        (form(("kind", "l", 0, 99, 0, 0, 1)), -1),
        (form(("kind", "l", 0, -1, 0, 0, 1)), -1),
        (form(COPY), -1),
        (form(COPY), 7),
        (form(("part", "l", 0, _native.NODE_COPY, 1, 8, 1)), 8),
        (form(("part", "l", 0, _native.NODE_COPY, 0, 8, 2**60)), 8),
        (form(("part", "l", 0, _native.NODE_COPY, 2**62, 8, 1)), 8),
        (form(("part", "l", 0, _native.NODE_COPY, 0, -8, 1)), 8),
        (form(7), -1),
        (form(("short", "l")), -1),
    ],
)
def test_columns_that_are_no_tree_or_reach_beyond_the_payload_are_refused(
    columns: Any, payload_bytes: int
) -> None:
    with pytest.raises((ValueError, TypeError)):
        stream(columns, payload_bytes)


def test_a_form_as_deep_as_the_stack_is_refused() -> None:
    deep = [("", "+s", 1, _native.NODE_STRUCT, 0, 0, 1)] * 10_000
    with pytest.raises(ValueError, match="no tree"):
        stream((*deep, DATA))


@pytest.mark.parametrize(
    "other",
    [
        {"header": bytes(31)},
        {"copy_at": SEGMENT_HEADER_BYTES - 31},
        {"segment_bytes": 0},
        {"segment_bytes": 33},
        {"segment_bytes": 1 << 32},
        {"begin": 1},
        {"end": 2**64 - SEGMENT_BYTES},
        {"tags": (1, 2, 0)},
        {"tags": "x"},
        {"requested": object()},
    ],
)
def test_a_stream_of_no_segments_is_refused(other: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        stream(form(DATA), **other)


def test_a_path_longer_than_paths_are_is_the_streams_error() -> None:
    consumer = arrow.Consumer(stream(form(DATA), directory=b"/" + b"d" * 5000))
    with pytest.raises(arrow.StreamError, match="too long"):
        consumer.next()
    consumer.close()


def test_payloads_beyond_the_mapping_are_not_exported(mapping: _native.Mapping) -> None:
    columns = tuple(np.zeros(1, kind) for kind in ("u8", "i8", "u4", "u2", "u4"))
    end = SEGMENT_HEADER_BYTES + SEGMENT_BYTES
    for place, size in ((end, 1), (end - 4, 5), (-1, 0), (0, 2**32 - 1), (2**62, 1)):
        columns[4][0] = size
        with pytest.raises(OverflowError):
            _native.arrow_array(form(DATA), mapping, columns, np.array([place], np.int64), None)
    columns[4][0] = 4
    assert _native.arrow_array(form(DATA), mapping, columns, np.array([end - 4], np.int64), None)
    with pytest.raises(ValueError, match="shorter"):
        _native.arrow_array(form(DATA), mapping, columns, np.zeros(2, np.int64), None)
    with pytest.raises(ValueError):
        _native.arrow_array(form(DATA), mapping, None, np.zeros(1, np.int64), None)  # type: ignore[arg-type]


def test_a_take_checks_its_source_and_its_room(mapping: _native.Mapping) -> None:
    lsns, number = np.zeros(2, np.uint64), np.zeros(1, np.uint64)
    good = (number, (mapping,), SEGMENT_BYTES, 64, 7)
    assert _native.take_rows(good, lsns, 4, bytearray(8)) == (0, _native.FRAME_NEVER_WRITTEN)
    assert _native.take_rows(good, lsns + np.uint64(32 * 4), 4, bytearray(8)) == (0, _native.TAKE_NO_RECORD)
    away = (number + np.uint64(5), (mapping,), SEGMENT_BYTES, 64, 7)
    assert _native.take_rows(away, lsns, 4, bytearray(8)) == (0, _native.TAKE_NO_SEGMENT)
    assert (
        _native.take_rows((lsns[:0], (), SEGMENT_BYTES, 64, 7), lsns, 4, bytearray(8))[1]
        == _native.TAKE_NO_SEGMENT
    )
    for source, room in (
        (good, bytearray(7)),
        ((lsns, (mapping,), SEGMENT_BYTES, 64, 7), bytearray(8)),
        ((number, (mapping,), 2 * SEGMENT_BYTES, 64, 7), bytearray(8)),
        ((number, (mapping,), 0, 64, 7), bytearray(8)),
        ((number, (7,), SEGMENT_BYTES, 64, 7), bytearray(8)),
        ((number, (mapping,), SEGMENT_BYTES, 2**64 - SEGMENT_BYTES, 7), bytearray(8)),
    ):
        with pytest.raises(ValueError):
            _native.take_rows(source, lsns, 4, room)
    columns = tuple(np.zeros(1, kind) for kind in ("u8", "i8", "u4", "u2", "u4"))
    with pytest.raises(ValueError, match="shorter"):
        _native.take_records(good, lsns, columns, np.zeros(2, np.int64))
