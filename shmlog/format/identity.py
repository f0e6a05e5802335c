"""Identity: what never changes in the life of a log, and how it is written down.

This module knows the JSON object of shmlog.json.  It may not know where that lies.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from shmlog._native import crc32c
from shmlog.errors import FormatError
from shmlog.format.geometry import Geometry
from shmlog.format.layout import FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a log is."""

    log_id: bytes
    geometry: Geometry
    created_ns: int

    @property
    def seed(self) -> int:
        """What every checksum of the log starts from."""
        return crc32c(self.log_id)

    def encode(self) -> bytes:
        body = {
            "format": "shmlog",
            "version": FORMAT_VERSION,
            "log_id": str(uuid.UUID(bytes=self.log_id)),
            "segment_bytes": self.geometry.segment_bytes,
            "window_bytes": self.geometry.window_bytes,
            "created_ns": self.created_ns,
        }
        return json.dumps(body, indent=2).encode() + b"\n"


def decode_identity(data: bytes, path: str) -> Identity:
    """The identity that a file holds; FormatError, naming the path, says what is wrong."""
    body = parse_object(data, path)
    if body.get("format") != "shmlog":
        raise FormatError(f"{path} does not describe a shmlog log")
    version = body.get("version")
    if type(version) is not int or version != FORMAT_VERSION:  # True == 1 == 1.0
        raise FormatError(f"{path} has format version {version!r}; this is version {FORMAT_VERSION}")
    try:
        geometry = Geometry(body["segment_bytes"], body["window_bytes"])
        log_id, created_ns = body["log_id"], body["created_ns"]
        if type(log_id) is not str:
            raise TypeError(f"log_id must be a str, not {type(log_id).__name__}")
        if type(created_ns) is not int:
            raise TypeError(f"created_ns must be an int, not {type(created_ns).__name__}")
        if not -(1 << 63) <= created_ns < 1 << 63:
            raise ValueError("created_ns is no 64-bit number")
        return Identity(uuid.UUID(log_id).bytes, geometry, created_ns)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error


def parse_object(data: bytes, path: str) -> dict[str, Any]:
    """The JSON object that a file holds; FormatError if it does not, or says a thing twice."""
    try:
        body = json.loads(data, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if not isinstance(body, dict):
        raise FormatError(f"{path} does not describe a shmlog log")
    return body


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """ValueError if a name is there twice: two readers might believe different ones."""
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a name is there twice")
    return body


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
