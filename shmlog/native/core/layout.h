/* Layout: where every shared and every stored byte lives.
 *
 * The one declaration of the control block and of the frame header.  Python
 * reads these numbers from the extension at import (shmlog/layout.py) and never
 * repeats them; docs/reference/format.md is checked against them by a test.
 *
 *   control block     0 ........ 4096 ............ 4096 + n * 512 ........ end
 *                     | header   | participants (n) | completion bitmap    |
 *
 * Words that different parties write live on different 128-byte lines (two
 * cache lines: the adjacent-line prefetcher would otherwise couple them).
 *
 * This file knows offsets.  It may not know what is done with them.
 */
#ifndef SHMLOG_LAYOUT_H
#define SHMLOG_LAYOUT_H

#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the formats are little-endian and so must be the machine"
#endif

#define GRANULE_BYTES 32u
#define GRANULE_SHIFT 5
#define FRAME_HEADER_BYTES 32u
#define SEGMENT_HEADER_BYTES 4096u

/* Frame kinds. */
enum { KIND_NONE = 0, KIND_DATA = 1, KIND_PAD = 2, KIND_FILL = 3 };
/* Frame flags. */
enum { FLAG_BATCH_GOES_ON = 1 };

/* "No LSN": idle claims, and the intent between syncs. */
#define NO_LSN UINT64_MAX
/* A claim word is the LSN (a multiple of 32) plus this bit once it is owned. */
#define CLAIM_HELD 1u

/* CB: the control block header; one line a writer. */
enum {
    CB_MAGIC = 0,               /* identity: written once, before the block is announced */
    CB_SIGNATURE = 8,
    CB_LOG_ID = 16,             /* 16 bytes */
    CB_BOOT_ID = 32,            /* 16 bytes */
    CB_SEGMENT_BYTES = 48,
    CB_WINDOW_BYTES = 56,
    CB_PARTICIPANT_COUNT = 64,
    CB_CONTROL_BYTES = 72,
    CB_EPOCH = 80,
    CB_CREATED_NS = 88,
    CB_PLACE_DEVICE = 96, /* of the LOCK file: a copied directory has the same log id */
    CB_PLACE_INODE = 104,
    CB_RESERVED_LSN = 256,      /* writers, by compare-and-swap */
    CB_LIMIT_LSN = 384,         /* the flusher */
    CB_COMMITTED_LSN = 512,     /* the flusher's commit step */
    CB_CLEARED_LSN = 520,
    CB_PREPARED_LSN = 528,
    CB_DURABLE_LSN = 640,       /* the flusher's sync step */
    CB_INTENT_LSN = 648,
    CB_TRIMMED_LSN = 768,       /* the flusher: nobody begins to read below it */
    CB_REMOVED_LSN = 776,       /* the flusher: the files below it are gone */
    CB_STATE = 896,             /* whoever finds the failure, once */
    CB_FAILED_ERRNO = 904,
    CB_FAILED_LSN = 912,
    CB_FULL_ERRNO = 920,        /* the flusher: why it cannot prepare more, or 0 */
    CB_PREPARE_TRIES = 928,
    CB_COMMIT_SLEEP = 1024,     /* SLEEP_*, the flusher's commit loop */
    CB_SYNC_SLEEP = 1152,       /* SLEEP_*, the flusher's sync loop */
    CB_WANTED_LIMIT = 1280,     /* waiters, as maxima: how far each watermark is waited for */
    CB_WANTED_COMMITTED = 1288,
    CB_WANTED_DURABLE = 1296,
    CB_WANTED_TRIMMED = 1304,
    CB_STARTING_NS = 1312,      /* when somebody last started a flusher that has no lease yet, or 0 */
    CB_PARTICIPANT_HIGH = 1408, /* one more than the highest slot ever taken */
    CB_GENERATION = 1536,       /* flusher's own: how many there have been, and what they did */
    CB_FLUSHER_PID = 1544,
    CB_COMMITS = 1552,
    CB_SYNCS = 1560,
    CB_SYNC_NS = 1568,
    CB_FILL_COUNT = 1576,
    CB_FILL_BYTES = 1584,
    CB_RETIRED_RECORDS = 1592,  /* counters of participants that have gone */
    CB_RETIRED_BYTES = 1600,
    CB_RETIRED_WAITS = 1608,
    CB_ROLLS = 1616,
    CB_HEADER_BYTES = 4096
};

enum { STATE_RUNNING = 1, STATE_FAILED = 2 };

/* What a sleeping flusher loop wants to be woken for. */
enum { SLEEP_AWAKE = 0, SLEEP_PACING = 1, SLEEP_IDLE = 2 };

/* PT: one slot of the participant table. */
enum {
    PT_STATE = 0,
    PT_PID = 8,
    PT_STARTED_NS = 16,
    PT_ROLE = 24,
    PT_NAME = 32, /* 32 bytes, for people only */
    PT_WAITS = 64,
    PT_CLAIMS = 128, /* CLAIM_COUNT claims */
    PT_BYTES = 512
};

enum { SLOT_FREE = 0, SLOT_USED = 1 };
/* A FLUSHER leaves with the last handle, a SIDECAR stays until it is told to end. */
enum { ROLE_HANDLE = 1, ROLE_FLUSHER = 2, ROLE_SIDECAR = 3 };

/* CL: one claim.  Its counters sit beside it because whoever holds the claim
 * may update them without a read-modify-write. */
enum { CL_BEGIN = 0, CL_END = 8, CL_RECORDS = 16, CL_PAYLOAD = 24, CL_BYTES = 32 };
#define CLAIM_COUNT 8u

/* FR: the frame header. */
enum {
    FR_PAYLOAD_BYTES = 0,
    FR_CRC32C = 4,
    FR_LSN = 8,
    FR_TIME_NS = 16,
    FR_TAG = 24,
    FR_WRITER = 28,
    FR_KIND = 30,
    FR_FLAGS = 31
};

_Static_assert(PT_CLAIMS + CLAIM_COUNT * CL_BYTES <= PT_BYTES, "claims fit the slot");
_Static_assert(CB_ROLLS + 8 <= CB_HEADER_BYTES, "words fit the header");
_Static_assert(FR_FLAGS + 1 == FRAME_HEADER_BYTES, "the frame header is full");
_Static_assert((1u << GRANULE_SHIFT) == GRANULE_BYTES, "granule");

#define LAYOUT_NAMES(X)                                                                      \
    X(GRANULE_BYTES) X(FRAME_HEADER_BYTES) X(SEGMENT_HEADER_BYTES)                           \
    X(KIND_NONE) X(KIND_DATA) X(KIND_PAD) X(KIND_FILL) X(FLAG_BATCH_GOES_ON)                 \
    X(CLAIM_HELD) X(CLAIM_COUNT)                                                             \
    X(CB_MAGIC) X(CB_SIGNATURE) X(CB_LOG_ID) X(CB_BOOT_ID) X(CB_SEGMENT_BYTES)               \
    X(CB_WINDOW_BYTES) X(CB_PARTICIPANT_COUNT) X(CB_CONTROL_BYTES) X(CB_EPOCH)               \
    X(CB_CREATED_NS) X(CB_PLACE_DEVICE) X(CB_PLACE_INODE) X(CB_RESERVED_LSN) X(CB_LIMIT_LSN) X(CB_COMMITTED_LSN)                  \
    X(CB_CLEARED_LSN) X(CB_PREPARED_LSN) X(CB_DURABLE_LSN) X(CB_INTENT_LSN)                  \
    X(CB_TRIMMED_LSN) X(CB_REMOVED_LSN) X(CB_STATE) X(CB_FAILED_ERRNO) X(CB_FAILED_LSN) X(CB_FULL_ERRNO)       \
    X(CB_PREPARE_TRIES) X(CB_COMMIT_SLEEP) X(CB_SYNC_SLEEP) X(CB_WANTED_LIMIT) X(CB_WANTED_COMMITTED) X(CB_WANTED_DURABLE) X(CB_WANTED_TRIMMED) X(CB_STARTING_NS)                 \
    X(CB_PARTICIPANT_HIGH) X(CB_GENERATION) X(CB_FLUSHER_PID) X(CB_COMMITS) X(CB_SYNCS)      \
    X(CB_SYNC_NS) X(CB_FILL_COUNT) X(CB_FILL_BYTES) X(CB_RETIRED_RECORDS)                    \
    X(CB_RETIRED_BYTES) X(CB_RETIRED_WAITS) X(CB_ROLLS) X(CB_HEADER_BYTES)                   \
    X(STATE_RUNNING) X(STATE_FAILED) X(SLEEP_AWAKE) X(SLEEP_PACING) X(SLEEP_IDLE)            \
    X(PT_STATE) X(PT_PID) X(PT_STARTED_NS) X(PT_ROLE) X(PT_NAME) X(PT_WAITS)                 \
    X(PT_CLAIMS) X(PT_BYTES)                 \
    X(SLOT_FREE) X(SLOT_USED) X(ROLE_HANDLE) X(ROLE_FLUSHER) X(ROLE_SIDECAR)                                 \
    X(CL_BEGIN) X(CL_END) X(CL_RECORDS) X(CL_PAYLOAD) X(CL_BYTES)                            \
    X(FR_PAYLOAD_BYTES) X(FR_CRC32C) X(FR_LSN) X(FR_TIME_NS) X(FR_TAG) X(FR_WRITER)          \
    X(FR_KIND) X(FR_FLAGS)

#endif
