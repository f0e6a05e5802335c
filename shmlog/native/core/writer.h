/* Writer: what one handle appends with: its claims, its mapped segments, its limits.
 *
 *   segments, direct-mapped by number       7 % 4 = 3
 *        | 4 | 5 | 6 | 3 |                  7 will replace 3, a whole table lower
 *
 * A thread takes one of the participant's claims for as long as it appends; which are
 * free is known to this process alone, what they say is shared.
 *
 * Invariants
 *   A2  The claim is NO_LSN whenever its owner waits: a refused try that left its
 *       claim behind would block the repair of the very hole it waits for.
 *   A4  A mapped segment is dropped only once committed_lsn has passed its end.
 *       Then no range of it is reserved and unpublished, so nobody copies into it;
 *       who read its address before and still holds it loses the CAS.
 *   A6  Nothing is reserved below where the tail has been: a lower one is damage, and what
 *       lies above it may be durable.
 *
 * This file knows one participant's claims and the addresses of segments.  It may not
 * know how a record is laid out, or Python.
 */
#ifndef SHMLOG_WRITER_H
#define SHMLOG_WRITER_H

#include "atomics.h"
#include "bitmap.h"
#include "guard.h"
#include "large.h"
#include "layout.h"

typedef struct {
    _Atomic uint64_t key; /* segment number + 1; 0: empty */
    uint8_t *_Atomic frames; /* the segment's first frame */
    guard_range_t *_Atomic range;
    const file_t *_Atomic file; /* for large payloads; NULL: none */
} segment_entry_t;

typedef struct {
    uint8_t *control;
    guard_range_t *control_range;
    bitmap_t bitmap;
    uint8_t *slot;   /* this participant's, in the block */
    uint8_t *claims; /* in the slot */
    segment_entry_t *segments; /* direct-mapped by segment number */
    uint64_t segment_mask;
    uint64_t segment_bytes;
    unsigned segment_shift;
    uint32_t seed; /* CRC of the log id */
    uint16_t number;
    uint64_t record_bytes_max;
    uint64_t batch_bytes_max;
    _Atomic uint32_t free_claims; /* private to this process: which claims no thread uses */
    _Atomic uint32_t lost_claims; /* held for good: a mapping faulted under their copy */
    _Atomic uint64_t floor;       /* reserved_lsn was at least this at some time (A6) */
    _Atomic uint64_t ticket;      /* equals process_ticket while this handle is good; 0: closed */
} writer_t;

/* A claim taken, and the reservation made with it. */
typedef struct {
    uint8_t *claim; /* a CL_* record in shared memory */
    unsigned claim_no;
    uint64_t begin, end; /* the reservation */
    uint64_t want;       /* ROOM: how far; MAP: which LSN; DISK: the errno */
} ticketed_t;

/* How many entries the table needs so that a window's segments never meet in one. */
static inline uint64_t segment_entries(uint64_t segment_bytes, uint64_t window_bytes) {
    uint64_t entries = 4;
    while (entries < window_bytes / segment_bytes + 3)
        entries *= 2;
    return entries;
}

/* Set what never changes; `segments` has segment_entries() zeroed entries. */
static inline void writer_initialize(writer_t *w, segment_entry_t *segments, uint32_t seed,
                                     uint64_t segment_bytes, uint64_t window_bytes) {
    w->segments = segments;
    w->segment_mask = segment_entries(segment_bytes, window_bytes) - 1;
    w->segment_bytes = segment_bytes;
    w->segment_shift = (unsigned)__builtin_ctzll(segment_bytes);
    w->seed = seed;
    /* A straddling reservation is the record and less than as much PAD: both must
     * fit the window, or the wait for room would never end. */
    uint64_t most = window_bytes / 2 < segment_bytes ? window_bytes / 2 : segment_bytes;
    w->record_bytes_max = most - FRAME_HEADER_BYTES;
    w->batch_bytes_max = most;
}

/* Become participant `number`.  Only while no thread is inside: before the first
 * use, or in a forked child, which has one thread. */
static inline void writer_attach(writer_t *w, uint8_t *control, guard_range_t *range, bitmap_t bitmap,
                                 uint16_t number) {
    w->control = control;
    w->control_range = range;
    w->bitmap = bitmap;
    w->slot = control + CB_HEADER_BYTES + (uint64_t)number * PT_BYTES;
    w->claims = w->slot + PT_CLAIMS;
    w->number = number;
    atomic_store(&w->free_claims, (1u << CLAIM_COUNT) - 1);
    atomic_store(&w->lost_claims, 0);
    atomic_store(&w->floor, atomic_load(word_at(control, CB_COMMITTED_LSN)));
    atomic_store(&w->ticket, atomic_load(&process_ticket));
}

/* Refuse every append from now on; how many claims are still in use. */
static inline unsigned writer_seal(writer_t *w) {
    atomic_store(&w->ticket, 0);
    uint32_t idle = atomic_load(&w->free_claims) | atomic_load(&w->lost_claims);
    return CLAIM_COUNT - (unsigned)__builtin_popcount(idle);
}

static inline void writer_renew(writer_t *w) { atomic_store(&w->ticket, atomic_load(&process_ticket)); }

static inline int claim_take(writer_t *w, ticketed_t *t) {
    uint32_t mask = atomic_load_explicit(&w->free_claims, memory_order_relaxed);
    do {
        if (!mask)
            return OUTCOME_CLAIMS;
        t->claim_no = (unsigned)__builtin_ctz(mask);
    } while (!atomic_compare_exchange_weak(&w->free_claims, &mask, mask & (mask - 1)));
    t->claim = w->claims + t->claim_no * CL_BYTES;
    /* seq_cst against close(): it stores ticket = 0 and then waits for every claim */
    if (atomic_load(&w->ticket) != atomic_load_explicit(&process_ticket, memory_order_relaxed)) {
        atomic_fetch_or(&w->free_claims, 1u << t->claim_no);
        return OUTCOME_STALE;
    }
    return OUTCOME_DONE;
}

/* A2: the shared word first, then the private bit. */
static inline void claim_give(writer_t *w, ticketed_t *t) {
    atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release);
    atomic_fetch_or_explicit(&w->free_claims, 1u << t->claim_no, memory_order_seq_cst);
}

/* A mapping faulted under the copy: the claim stays held for good. */
static inline void claim_lose(writer_t *w, const ticketed_t *t) {
    atomic_fetch_or(&w->lost_claims, 1u << t->claim_no);
}

static inline uint64_t segment_index(const writer_t *w, uint64_t number) { return number & w->segment_mask; }

/* Make way in the entry of a segment; 0 if it is that one's already, or a higher one's: the
 * caller came late, and another thread may be copying through it by now.  A4: the entry
 * that makes way belongs to a segment a whole table lower, hence below committed_lsn.
 * Between this and segment_map the caller lets go of what kept the old one mapped.
 * Callers take turns. */
static inline int segment_make_way(writer_t *w, uint64_t number) {
    segment_entry_t *entry = &w->segments[segment_index(w, number)];
    if (atomic_load(&entry->key) > number)
        return 0;
    atomic_store(&entry->key, 0);
    return 1;
}

/* Use a segment whose first frame is at `frames`; `range` and `file` may be NULL. */
static inline void segment_map(writer_t *w, uint64_t number, uint8_t *frames, guard_range_t *range,
                               const file_t *file) {
    segment_entry_t *entry = &w->segments[segment_index(w, number)];
    atomic_store(&entry->frames, frames);
    atomic_store(&entry->range, range);
    atomic_store(&entry->file, file);
    atomic_store_explicit(&entry->key, number + 1, memory_order_release);
}

/* Empty an entry if its segment ends at or below lsn (A4); whether it did. */
static inline int segment_drop_below(writer_t *w, uint64_t index, uint64_t lsn) {
    uint64_t key = atomic_load(&w->segments[index].key);
    if (!key || key << w->segment_shift > lsn)
        return 0;
    atomic_store(&w->segments[index].key, 0);
    return 1;
}

static inline uint8_t *segment_frames(const writer_t *w, uint64_t lsn, guard_range_t **range) {
    uint64_t number = lsn >> w->segment_shift;
    segment_entry_t *entry = &w->segments[number & w->segment_mask];
    if (atomic_load_explicit(&entry->key, memory_order_acquire) != number + 1)
        return NULL;
    if (range)
        *range = atomic_load_explicit(&entry->range, memory_order_relaxed);
    return atomic_load_explicit(&entry->frames, memory_order_relaxed);
}

/* Of a segment that is mapped. */
static inline const file_t *segment_file(const writer_t *w, uint64_t lsn) {
    segment_entry_t *entry = &w->segments[lsn >> w->segment_shift & w->segment_mask];
    return atomic_load_explicit(&entry->file, memory_order_relaxed);
}

static inline uint64_t segment_end_of(const writer_t *w, uint64_t lsn) {
    return (lsn | (w->segment_bytes - 1)) + 1;
}

#endif
