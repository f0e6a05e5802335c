"""Layout: the numbers of the control block and of the frame header, as the core declares them.

They are declared once, in native/core/layout.h, and arrive here through the extension.

This module knows numbers.  It may not know what is done with them.
"""

from __future__ import annotations

import enum
from typing import Final

from shmlog import _native
from shmlog._native import LAYOUT, crc32c

FORMAT_VERSION: Final = 2
NO_LSN: Final = 2**64 - 1

GRANULE_BYTES: Final = LAYOUT["GRANULE_BYTES"]
FRAME_HEADER_BYTES: Final = LAYOUT["FRAME_HEADER_BYTES"]
SEGMENT_HEADER_BYTES: Final = LAYOUT["SEGMENT_HEADER_BYTES"]
KIND_FILL: Final = LAYOUT["KIND_FILL"]
CLAIM_HELD: Final = LAYOUT["CLAIM_HELD"]
CLAIM_COUNT: Final = LAYOUT["CLAIM_COUNT"]

SYNC_BUCKETS: Final = LAYOUT["SYNC_BUCKETS"]
STATE_RUNNING: Final = LAYOUT["STATE_RUNNING"]
STATE_FAILED: Final = LAYOUT["STATE_FAILED"]
SLEEP_AWAKE: Final = LAYOUT["SLEEP_AWAKE"]
SLEEP_PACING: Final = LAYOUT["SLEEP_PACING"]
SLEEP_IDLE: Final = LAYOUT["SLEEP_IDLE"]
SLOT_FREE: Final = LAYOUT["SLOT_FREE"]
SLOT_USED: Final = LAYOUT["SLOT_USED"]
ROLE_HANDLE: Final = LAYOUT["ROLE_HANDLE"]
ROLE_FLUSHER: Final = LAYOUT["ROLE_FLUSHER"]
ROLE_SIDECAR: Final = LAYOUT["ROLE_SIDECAR"]


CB: Final = _native.CB
"""Where the words of the control block's header are: CB.COMMITTED_LSN ..."""
PT: Final = _native.PT
"""... those of a participant's slot, from its beginning ..."""
CL: Final = _native.CL
"""... and those of a claim."""
PARTICIPANT_NAME_BYTES: Final = 32

CONTROL_MAGIC: Final = int.from_bytes(b"shmlogCB", "little")

_declared = repr(sorted(LAYOUT.items())).encode()
SIGNATURE: Final = crc32c(_declared) << 32 | FORMAT_VERSION
"""Two builds may share a control block only if this is equal in both."""


class Problem(enum.IntEnum):
    """What the native frame check finds; only VALID is false."""

    VALID = _native.FRAME_VALID
    NEVER_WRITTEN = _native.FRAME_NEVER_WRITTEN
    BAD_KIND = _native.FRAME_BAD_KIND
    BAD_LSN = _native.FRAME_BAD_LSN
    BAD_LENGTH = _native.FRAME_BAD_LENGTH
    BAD_CHECKSUM = _native.FRAME_BAD_CHECKSUM
    OUT_OF_BOUNDS = _native.FRAME_OUT_OF_BOUNDS

    @property
    def text(self) -> str:
        return _native.FRAME_TEXTS[self]
