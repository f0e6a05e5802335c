"""shmlog.json: whatever it holds, it is a log's identity or a FormatError that names it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shmlog.errors import FormatError
from shmlog.format.geometry import Geometry
from shmlog.format.identity import Identity, decode_identity

IDENTITY = Identity(bytes(range(16)), Geometry(64 << 10, 128 << 10), 1_700_000_000_000_000_000)
BODY = json.loads(IDENTITY.encode())


def test_an_identity_decodes_to_what_was_encoded() -> None:
    assert decode_identity(IDENTITY.encode(), "x.json") == IDENTITY


@pytest.mark.parametrize(
    "data",
    [b"[" * 60_000, b'{"a":' * 10_000, b"", b"\xff\xfe\xfd", b"[]", b"1" * 5000, b"null"],
    ids=["nested arrays", "nested objects", "empty", "no text", "an array", "a huge number", "null"],
)
def test_what_is_no_identity_at_all_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^x\.json "):
        decode_identity(data, "x.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, text) for name in BODY for text in ("true", "null", "[]", "{}", "1.5", "-1e999")],
        *[(name, "1" * 4000) for name in ("version", "segment_bytes", "window_bytes", "created_ns")],
        *[("created_ns", text) for text in ("NaN", "Infinity", "1e999", '"1"', "1e3", str(1 << 63))],
        *[("version", text) for text in ("1", "2.0", '"2"', "3")],
        *[("segment_bytes", text) for text in ("65536.0", '"65536"', "65537", "0", "-65536")],
        *[("log_id", text) for text in ('""', "5", '"00010203-0405-0607-0809-0a0b0c0d0e0"')],
    ],
)
def test_a_value_that_is_wrong_is_a_format_error(name: str, text: str) -> None:
    others = [f'"{key}": {json.dumps(value)}' for key, value in BODY.items() if key != name]
    with pytest.raises(FormatError, match=r"^x\.json "):
        decode_identity(("{" + ", ".join([*others, f'"{name}": {text}']) + "}").encode(), "x.json")


@pytest.mark.parametrize("name", BODY)
def test_a_name_that_is_missing_is_a_format_error(name: str) -> None:
    body: dict[str, Any] = {key: value for key, value in BODY.items() if key != name}
    with pytest.raises(FormatError, match=r"^x\.json "):
        decode_identity(json.dumps(body).encode(), "x.json")


@pytest.mark.parametrize("name", BODY)
def test_a_name_that_is_there_twice_is_a_format_error(name: str) -> None:
    twice = IDENTITY.encode().replace(b"{", f'{{"{name}": {json.dumps(BODY[name])},'.encode())
    with pytest.raises(FormatError, match=r"^x\.json .*twice"):
        decode_identity(twice, "x.json")
