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
from typing import Final

from crc32c import crc32c

from shmlog._native import LAYOUT

FORMAT_VERSION: Final = 1
NO_LSN: Final = 2**64 - 1

GRANULE_BYTES: Final = LAYOUT["GRANULE_BYTES"]
FRAME_HEADER_BYTES: Final = LAYOUT["FRAME_HEADER_BYTES"]
SEGMENT_HEADER_BYTES: Final = LAYOUT["SEGMENT_HEADER_BYTES"]
KIND_PAD: Final = LAYOUT["KIND_PAD"]
KIND_FILL: Final = LAYOUT["KIND_FILL"]
CLAIM_HELD: Final = LAYOUT["CLAIM_HELD"]
CLAIM_COUNT: Final = LAYOUT["CLAIM_COUNT"]

CB_MAGIC: Final = LAYOUT["CB_MAGIC"]
CB_SIGNATURE: Final = LAYOUT["CB_SIGNATURE"]
CB_LOG_ID: Final = LAYOUT["CB_LOG_ID"]
CB_BOOT_ID: Final = LAYOUT["CB_BOOT_ID"]
CB_SEGMENT_BYTES: Final = LAYOUT["CB_SEGMENT_BYTES"]
CB_WINDOW_BYTES: Final = LAYOUT["CB_WINDOW_BYTES"]
CB_PARTICIPANT_COUNT: Final = LAYOUT["CB_PARTICIPANT_COUNT"]
CB_CONTROL_BYTES: Final = LAYOUT["CB_CONTROL_BYTES"]
CB_EPOCH: Final = LAYOUT["CB_EPOCH"]
CB_CREATED_NS: Final = LAYOUT["CB_CREATED_NS"]
CB_PLACE_DEVICE: Final = LAYOUT["CB_PLACE_DEVICE"]
CB_PLACE_INODE: Final = LAYOUT["CB_PLACE_INODE"]
CB_RESERVED_LSN: Final = LAYOUT["CB_RESERVED_LSN"]
CB_LIMIT_LSN: Final = LAYOUT["CB_LIMIT_LSN"]
CB_COMMITTED_LSN: Final = LAYOUT["CB_COMMITTED_LSN"]
CB_CLEARED_LSN: Final = LAYOUT["CB_CLEARED_LSN"]
CB_PREPARED_LSN: Final = LAYOUT["CB_PREPARED_LSN"]
CB_DURABLE_LSN: Final = LAYOUT["CB_DURABLE_LSN"]
CB_INTENT_LSN: Final = LAYOUT["CB_INTENT_LSN"]
CB_TRIMMED_LSN: Final = LAYOUT["CB_TRIMMED_LSN"]
CB_REMOVED_LSN: Final = LAYOUT["CB_REMOVED_LSN"]
CB_STATE: Final = LAYOUT["CB_STATE"]
CB_FAILED_ERRNO: Final = LAYOUT["CB_FAILED_ERRNO"]
CB_FAILED_LSN: Final = LAYOUT["CB_FAILED_LSN"]
CB_FULL_ERRNO: Final = LAYOUT["CB_FULL_ERRNO"]
CB_PREPARE_TRIES: Final = LAYOUT["CB_PREPARE_TRIES"]
CB_COMMIT_SLEEP: Final = LAYOUT["CB_COMMIT_SLEEP"]
CB_SYNC_SLEEP: Final = LAYOUT["CB_SYNC_SLEEP"]
CB_WANTED_LIMIT: Final = LAYOUT["CB_WANTED_LIMIT"]
CB_WANTED_COMMITTED: Final = LAYOUT["CB_WANTED_COMMITTED"]
CB_WANTED_DURABLE: Final = LAYOUT["CB_WANTED_DURABLE"]
CB_WANTED_TRIMMED: Final = LAYOUT["CB_WANTED_TRIMMED"]
CB_STARTING_NS: Final = LAYOUT["CB_STARTING_NS"]
CB_PARTICIPANT_HIGH: Final = LAYOUT["CB_PARTICIPANT_HIGH"]
CB_GENERATION: Final = LAYOUT["CB_GENERATION"]
CB_FLUSHER_PID: Final = LAYOUT["CB_FLUSHER_PID"]
CB_COMMITS: Final = LAYOUT["CB_COMMITS"]
CB_SYNCS: Final = LAYOUT["CB_SYNCS"]
CB_SYNC_NS: Final = LAYOUT["CB_SYNC_NS"]
CB_FILL_COUNT: Final = LAYOUT["CB_FILL_COUNT"]
CB_FILL_BYTES: Final = LAYOUT["CB_FILL_BYTES"]
CB_RETIRED_RECORDS: Final = LAYOUT["CB_RETIRED_RECORDS"]
CB_RETIRED_BYTES: Final = LAYOUT["CB_RETIRED_BYTES"]
CB_RETIRED_WAITS: Final = LAYOUT["CB_RETIRED_WAITS"]
CB_ROLLS: Final = LAYOUT["CB_ROLLS"]
CB_HEADER_BYTES: Final = LAYOUT["CB_HEADER_BYTES"]
STATE_RUNNING: Final = LAYOUT["STATE_RUNNING"]
STATE_FAILED: Final = LAYOUT["STATE_FAILED"]
SLEEP_AWAKE: Final = LAYOUT["SLEEP_AWAKE"]
SLEEP_PACING: Final = LAYOUT["SLEEP_PACING"]
SLEEP_IDLE: Final = LAYOUT["SLEEP_IDLE"]

PT_STATE: Final = LAYOUT["PT_STATE"]
PT_PID: Final = LAYOUT["PT_PID"]
PT_STARTED_NS: Final = LAYOUT["PT_STARTED_NS"]
PT_ROLE: Final = LAYOUT["PT_ROLE"]
PT_NAME: Final = LAYOUT["PT_NAME"]
PT_NAME_BYTES: Final = 32
PT_WAITS: Final = LAYOUT["PT_WAITS"]
PT_CLAIMS: Final = LAYOUT["PT_CLAIMS"]
PT_BYTES: Final = LAYOUT["PT_BYTES"]
SLOT_FREE: Final = LAYOUT["SLOT_FREE"]
SLOT_USED: Final = LAYOUT["SLOT_USED"]
ROLE_HANDLE: Final = LAYOUT["ROLE_HANDLE"]
ROLE_FLUSHER: Final = LAYOUT["ROLE_FLUSHER"]
ROLE_SIDECAR: Final = LAYOUT["ROLE_SIDECAR"]
CL_BEGIN: Final = LAYOUT["CL_BEGIN"]
CL_END: Final = LAYOUT["CL_END"]
CL_RECORDS: Final = LAYOUT["CL_RECORDS"]
CL_PAYLOAD: Final = LAYOUT["CL_PAYLOAD"]
CL_BYTES: Final = LAYOUT["CL_BYTES"]

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
