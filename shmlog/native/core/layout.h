/* Layout: where every shared and every stored byte lives.
 *
 * The one declaration of the control block and of the frame header.  Python
 * reads these numbers from the extension at import and never
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
#define SEGMENT_HEADER_BYTES 8192u

/* Frame kinds. */
enum { KIND_NONE = 0, KIND_DATA = 1, KIND_PAD = 2, KIND_FILL = 3 };
/* Frame flags. */
enum { FLAG_BATCH_GOES_ON = 1 };

/* "No LSN": idle claims, and the intent between syncs. */
#define NO_LSN UINT64_MAX
/* A claim word is the LSN (a multiple of 32) plus this bit once it is owned. */
#define CLAIM_HELD 1u

/* Each list below is the one place where its words are named.  The enum comes from it, and
 * so do the tables that Python sees (LAYOUT, CB, PT, CL).  The last entry is the size. */

/* CB: the control block header; one line a writer. */
#define CB_LAYOUT(X)                                                                                    \
    X(CB, MAGIC, 0)                /* identity: written once, before the block is announced */          \
    X(CB, SIGNATURE, 8)                                                                                 \
    X(CB, LOG_ID, 16)              /* 16 bytes */                                                       \
    X(CB, BOOT_ID, 32)             /* 16 bytes */                                                       \
    X(CB, SEGMENT_BYTES, 48)                                                                            \
    X(CB, WINDOW_BYTES, 56)                                                                             \
    X(CB, PARTICIPANT_COUNT, 64)                                                                        \
    X(CB, CONTROL_BYTES, 72)                                                                            \
    X(CB, EPOCH, 80)                                                                                    \
    X(CB, CREATED_NS, 88)                                                                               \
    X(CB, PLACE_DEVICE, 96)        /* of the LOCK file: a copied directory has the same log id */       \
    X(CB, PLACE_INODE, 104)                                                                             \
    X(CB, RESERVED_LSN, 256)       /* writers, by compare-and-swap */                                   \
    X(CB, LIMIT_LSN, 384)          /* the flusher */                                                    \
    X(CB, COMMITTED_LSN, 512)      /* the flusher's commit step */                                      \
    X(CB, CLEARED_LSN, 520)                                                                             \
    X(CB, PREPARED_LSN, 528)                                                                            \
    X(CB, DURABLE_LSN, 640)        /* the flusher's sync step */                                        \
    X(CB, INTENT_LSN, 648)                                                                              \
    X(CB, TRIMMED_LSN, 768)        /* the flusher: nobody begins to read below it */                    \
    X(CB, REMOVED_LSN, 776)        /* the flusher: the files below it are gone */                       \
    X(CB, TRIMMING_LSN, 784)       /* the flusher: retention may be about to trim so far */             \
    X(CB, STATE, 896)              /* whoever finds the failure, once */                                \
    X(CB, FAILED_ERRNO, 904)                                                                            \
    X(CB, FAILED_LSN, 912)                                                                              \
    X(CB, FULL_ERRNO, 920)         /* the flusher: why it cannot prepare more, or 0 */                  \
    X(CB, PREPARE_TRIES, 928)                                                                           \
    X(CB, COMMIT_SLEEP, 1024)      /* SLEEP_*, the flusher's commit loop */                             \
    X(CB, SYNC_SLEEP, 1152)        /* SLEEP_*, the flusher's sync loop */                               \
    X(CB, WANTED_LIMIT, 1280)      /* waiters, as maxima: how far each is waited for */                 \
    X(CB, WANTED_COMMITTED, 1288)                                                                       \
    X(CB, WANTED_DURABLE, 1296)                                                                         \
    X(CB, WANTED_TRIMMED, 1304)                                                                         \
    X(CB, STARTING_NS, 1312)       /* when a flusher without a lease was last started, or 0 */          \
    X(CB, STARTS, 1320)            /* flushers started since one came to serve */                       \
    X(CB, PARTICIPANT_HIGH, 1408)  /* one more than the highest slot ever taken */                      \
    X(CB, GENERATION, 1536)        /* flusher's own: how many there have been, what they did */         \
    X(CB, FLUSHER_PID, 1544)                                                                            \
    X(CB, COMMITS, 1552)                                                                                \
    X(CB, SYNCS, 1560)                                                                                  \
    X(CB, SYNC_NS, 1568)                                                                                \
    X(CB, FILL_COUNT, 1576)                                                                             \
    X(CB, FILL_BYTES, 1584)                                                                             \
    X(CB, RETIRED_RECORDS, 1592)   /* counters of participants that have gone */                        \
    X(CB, RETIRED_BYTES, 1600)                                                                          \
    X(CB, RETIRED_WAITS, 1608)                                                                          \
    X(CB, ROLLS, 1616)                                                                                  \
    X(CB, BLOCKED_LSN, 1624)       /* where the scan was last seen to stand, NO_LSN at first, and */    \
    X(CB, BLOCKED_NS, 1632)        /* since when */                                                     \
    X(CB, BUDGET_BYTES, 1640)      /* what retention keeps the files within, or 0 */                    \
    X(CB, BUDGET_HELD, 1648)       /* whether room waits for a trim that something holds back */        \
    X(CB, SYNC_LATENCY, 1664)      /* SYNC_BUCKETS counters: of syncs that took less than 2^i us */     \
    X(CB, HEADER_BYTES, 4096)

enum { STATE_RUNNING = 1, STATE_FAILED = 2 };

/* The last one counts every slower sync too. */
#define SYNC_BUCKETS 24u

/* What a sleeping flusher loop wants to be woken for. */
enum { SLEEP_AWAKE = 0, SLEEP_PACING = 1, SLEEP_IDLE = 2 };

/* PT: one slot of the participant table. */
#define PT_LAYOUT(X)                                                                                    \
    X(PT, STATE, 0)                                                                                     \
    X(PT, PID, 8)                                                                                       \
    X(PT, STARTED_NS, 16)                                                                               \
    X(PT, ROLE, 24)                                                                                     \
    X(PT, NAME, 32)                /* 32 bytes, for people only */                                      \
    X(PT, WAITS, 64)                                                                                    \
    X(PT, CLAIMS, 128)             /* CLAIM_COUNT claims */                                             \
    X(PT, BYTES, 512)

enum { SLOT_FREE = 0, SLOT_USED = 1 };
/* A FLUSHER leaves with the last handle, a SIDECAR stays until it is told to end. */
enum { ROLE_HANDLE = 1, ROLE_FLUSHER = 2, ROLE_SIDECAR = 3 };

/* CL: one claim.  Its counters sit beside it because whoever holds the claim
 * may update them without a read-modify-write. */
#define CL_LAYOUT(X)                                                                                    \
    X(CL, BEGIN, 0) X(CL, END, 8) X(CL, RECORDS, 16) X(CL, PAYLOAD, 24) X(CL, BYTES, 32)

#define CLAIM_COUNT 8u

/* FR: the frame header; it ends with its flags. */
#define FR_LAYOUT(X)                                                                                    \
    X(FR, PAYLOAD_BYTES, 0) X(FR, CRC32C, 4) X(FR, LSN, 8) X(FR, TIME_NS, 16)                           \
    X(FR, TAG, 24) X(FR, WRITER, 28) X(FR, KIND, 30) X(FR, FLAGS, 31)

#define SHMLOG_OFFSET(table, name, offset) table##_##name = (offset),
enum { CB_LAYOUT(SHMLOG_OFFSET) PT_LAYOUT(SHMLOG_OFFSET) CL_LAYOUT(SHMLOG_OFFSET) FR_LAYOUT(SHMLOG_OFFSET) };
#undef SHMLOG_OFFSET

#define SHMLOG_WORD(table, name, offset) _Static_assert((offset) % 8 == 0, #table "_" #name " is a word");
CB_LAYOUT(SHMLOG_WORD) PT_LAYOUT(SHMLOG_WORD) CL_LAYOUT(SHMLOG_WORD)
#undef SHMLOG_WORD
_Static_assert(PT_CLAIMS + CLAIM_COUNT * CL_BYTES <= PT_BYTES, "claims fit the slot");
_Static_assert(CB_SYNC_LATENCY + SYNC_BUCKETS * 8 <= CB_HEADER_BYTES, "words fit the header");
_Static_assert(FR_FLAGS + 1 == FRAME_HEADER_BYTES, "the frame header is full");
_Static_assert((1u << GRANULE_SHIFT) == GRANULE_BYTES, "granule");

/* Every other number that Python reads. */
#define LAYOUT_NUMBERS(X)                                                                               \
    X(GRANULE_BYTES) X(FRAME_HEADER_BYTES) X(SEGMENT_HEADER_BYTES)                                      \
    X(KIND_NONE) X(KIND_DATA) X(KIND_PAD) X(KIND_FILL) X(FLAG_BATCH_GOES_ON)                            \
    X(CLAIM_HELD) X(CLAIM_COUNT) X(STATE_RUNNING) X(STATE_FAILED) X(SYNC_BUCKETS)                       \
    X(SLEEP_AWAKE) X(SLEEP_PACING) X(SLEEP_IDLE)                                                        \
    X(SLOT_FREE) X(SLOT_USED) X(ROLE_HANDLE) X(ROLE_FLUSHER) X(ROLE_SIDECAR)

#endif
