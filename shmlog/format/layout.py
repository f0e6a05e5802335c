"""Layout: the numbers that the native core declares, and the formats of what only
Python reads and writes.

The control block and the frame header are declared once, in native/layout.h, and
arrive here through the extension.  The headers of segment files are declared
once, here.

    segment file   0 ......... 512 ........ 1024 ....... 4096 ............ 4096 + segment_bytes
                   | header    | mark, even | mark, odd  | frames ...

The two copies of the mark lie in different 512-byte sectors and are written in
turn, so that a torn write can spoil one of them only.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Final

from crc32c import crc32c

from shmlog._native import LAYOUT

FORMAT_VERSION: Final = 1
NO_LSN: Final = 2**64 - 1

GRANULE_BYTES: Final = LAYOUT["GRANULE_BYTES"]
FRAME_HEADER_BYTES: Final = LAYOUT["FRAME_HEADER_BYTES"]
SEGMENT_HEADER_BYTES: Final = LAYOUT["SEGMENT_HEADER_BYTES"]
KIND_FILL: Final = LAYOUT["KIND_FILL"]
CLAIM_HELD: Final = LAYOUT["CLAIM_HELD"]
CLAIM_COUNT: Final = LAYOUT["CLAIM_COUNT"]

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


class Words(SimpleNamespace):
    """Offsets by name."""

    def __getattr__(self, name: str) -> int:
        raise AttributeError(name)


def _words(prefix: str) -> Words:
    return Words(**{name[3:]: at for name, at in LAYOUT.items() if name.startswith(prefix)})


CB: Final = _words("CB_")
"""Where the words of the control block's header are: CB.COMMITTED_LSN ..."""
PT: Final = _words("PT_")
"""... those of a participant's slot, from its beginning ..."""
CL: Final = _words("CL_")
"""... and those of a claim."""
PARTICIPANT_NAME_BYTES: Final = 32

CONTROL_MAGIC: Final = int.from_bytes(b"shmlogCB", "little")

_declared = repr(sorted(LAYOUT.items())).encode()
SIGNATURE: Final = crc32c(_declared) << 32 | FORMAT_VERSION
"""Two builds may share a control block only if this is equal in both."""

SEGMENT_MAGIC: Final = b"SHMLOGSG"
SEGMENT_HEADER: Final = struct.Struct("<8sII16sQQQq")
"""magic, format version, header bytes, log id, first LSN, segment bytes, epoch, created
(ns); a crc32c over them follows."""

MARK_MAGIC: Final = b"MARK"
MARK: Final = struct.Struct("<4sIQQQQ16s")
"""magic, flags, sequence, durable LSN, trimmed LSN, epoch, boot id; a crc32c over them,
started from the crc32c of the log id, follows."""
MARK_OFFSETS: Final = (512, 1024)
MARK_CLEAN: Final = 1

CHECKSUM: Final = struct.Struct("<I")

PROBLEMS: Final = (
    "valid",
    "never written",
    "unknown kind or flags",
    "the frame names another LSN",
    "the length goes past the end",
    "the checksum does not match",
    "the header does not fit",
)
"""What the native frame check calls its findings, by number."""

CURSOR_MAGIC: Final = b"CURS"
CURSOR: Final = struct.Struct("<4sIQQ")
"""magic, format version, sequence, LSN; a crc32c over them, started from the crc32c of
the log id, follows."""
CURSOR_OFFSETS: Final = (0, 512)
CURSOR_FILE_BYTES: Final = 1024
