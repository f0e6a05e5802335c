"""Identity: what never changes in the life of a log, and how it is written down.

This module knows the JSON object of shmlog.json.  It may not know where that lies.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from crc32c import crc32c

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
    try:
        body = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if not isinstance(body, dict) or body.get("format") != "shmlog":
        raise FormatError(f"{path} does not describe a shmlog log")
    if body.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {body.get('version')!r}; this is version {FORMAT_VERSION}"
        )
    try:
        geometry = Geometry(body["segment_bytes"], body["window_bytes"])
        return Identity(uuid.UUID(body["log_id"]).bytes, geometry, int(body["created_ns"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error
