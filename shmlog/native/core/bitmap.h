/* Completion bitmap: publish, scan and clear runs of granule bits in a ring.
 *
 *   granule   0   1   2   3   4   5   6   7   8   9
 *   bit       1   1   1   0   0   1   1   0   .   .
 *             |----A----| |--B--| |--C--| |D|
 *             ^           ^                 ^
 *             committed   the scan stops    reserved
 *
 * A and C are published, B is still being copied, D has just been reserved.
 * The scan stops at B, so C waits for B although C is complete: readers see a
 * prefix of the log, never an island.
 *
 * Invariants
 *   B1  A bit is set by the writer that reserved its granule, or by the flusher
 *       filling a hole.  Nobody else sets it.
 *   B2  committed_lsn is stored before the bits below it are cleared.  The other
 *       order, and a flusher that dies in between, would turn records into a hole.
 *   B3  Nothing is reserved at or above limit_lsn, and limit_lsn never exceeds
 *       cleared_lsn + window.  Hence no two live granules share a bit.
 *
 * This file knows bits and granules.  It may not know LSNs, files or processes.
 */
#ifndef SHMLOG_BITMAP_H
#define SHMLOG_BITMAP_H

#include "atomics.h"

typedef struct {
    shared_u64 *words;
    uint64_t granules; /* a power of two, at least 64 */
} bitmap_t;

/* Publish [first, end) of a run that does not wrap.
 *
 *   PUBLISH (release, here)  pairs with  SCAN (acquire, bitmap_scan)
 *
 * Why downward: the scan walks upward and stops at the first zero, so the word
 * that holds the first granule must be the last one to change.  Set upward, the
 * scan could stop between two of our words and commit half a record.
 *
 * Edge words are shared with neighbours: fetch_or.  Whole words are ours alone
 * (B1, B3): a store will do.  The first word is seq_cst because it is also the
 * writer's half of SLEEP.
 */
static inline int publish_run(shared_u64 *words, uint64_t first, uint64_t end) {
    uint64_t low = first >> 6, high = (end - 1) >> 6;
    uint64_t low_mask = ~UINT64_C(0) << (first & 63);
    uint64_t high_mask = ~UINT64_C(0) >> (63 - ((end - 1) & 63));
    if (low == high) {
        SHMLOG_STEP("publish");
        atomic_fetch_or_explicit(&words[low], low_mask & high_mask, memory_order_seq_cst);
        return OUTCOME_DONE;
    }
    SHMLOG_STEP("publish high");
    atomic_fetch_or_explicit(&words[high], high_mask, memory_order_release);
    for (uint64_t i = high - 1; i > low; i--) {
        SHMLOG_STEP("publish whole");
        atomic_store_explicit(&words[i], ~UINT64_C(0), memory_order_release);
    }
    SHMLOG_STEP("publish low");
    atomic_fetch_or_explicit(&words[low], low_mask, memory_order_seq_cst);
    return OUTCOME_DONE;
}

/* Publish granules [first, end) of the endless sequence; the wrapped part, being
 * the higher one, goes first. */
static inline int bitmap_publish(const bitmap_t *b, uint64_t first, uint64_t end) {
    uint64_t at = first & (b->granules - 1);
    uint64_t count = end - first;
    if (at + count > b->granules) {
        int outcome = publish_run(b->words, 0, at + count - b->granules);
        if (outcome != OUTCOME_DONE)
            return outcome;
        count = b->granules - at;
    }
    return publish_run(b->words, at, at + count);
}

/* The first granule of [first, end) whose bit is set (`set` 1) or clear (`set` 0), or
 * end.  SCAN (acquire). */
static inline uint64_t bitmap_scan(const bitmap_t *b, uint64_t first, uint64_t end, int set) {
    uint64_t g = first, flip = set ? 0 : ~UINT64_C(0);
    while (g < end) {
        uint64_t at = g & (b->granules - 1);
        uint64_t word = atomic_load_explicit(&b->words[at >> 6], memory_order_acquire);
        uint64_t stop = (word ^ flip) >> (at & 63);
        if (stop) {
            g += (uint64_t)__builtin_ctzll(stop);
            return g < end ? g : end;
        }
        g += 64 - (at & 63);
    }
    return end;
}

/* Clear granules [first, end).  CLEAR: release, so that no other process can see a
 * bit gone before the committed_lsn that covers it (B2). */
static inline int bitmap_clear(const bitmap_t *b, uint64_t first, uint64_t end) {
    uint64_t g = first;
    while (g < end) {
        uint64_t at = g & (b->granules - 1);
        uint64_t bit = at & 63, count = 64 - bit;
        if (count > end - g)
            count = end - g;
        SHMLOG_STEP("clear");
        if (count == 64)
            atomic_store_explicit(&b->words[at >> 6], 0, memory_order_release);
        else
            atomic_fetch_and_explicit(&b->words[at >> 6], ~(((UINT64_C(1) << count) - 1) << bit),
                                      memory_order_release);
        g += count;
    }
    return OUTCOME_DONE;
}

#endif
