/* Commit: the flusher's step from published bits to the watermarks.
 *
 *   cleared_lsn     committed_lsn          reserved_lsn          limit_lsn
 *        |  clear        |  scan: published    |                     |
 *        |-- first, what |-- commit, then ---->|                     |
 *        |   a dead      |   clear what was    |                     |
 *        |   flusher     |   committed         |                     |
 *        |   left        |                     |                     |
 *        '--------------------------- at most a window --------------'
 *
 * In this order (B2, B3), and who waits for a watermark is woken when it was stored.
 * Only the holder of the flusher lease commits, one thread at a time.
 *
 * This file knows the control block's watermarks and its bitmap.  It may not know claims,
 * records or files.
 */
#ifndef SHMLOG_COMMIT_H
#define SHMLOG_COMMIT_H

#include "atomics.h"
#include "bitmap.h"
#include "layout.h"
#include "wait.h"

/* Where the watermarks stand; a step that goes through them keeps it up to date. */
typedef struct {
    uint64_t committed, reserved, cleared, limit;
} commit_t;

/* Clear the bits of everything committed.  More than a window cannot be, unless the block is
 * damaged, and is cleared once round: its watermarks are no bound for a loop. */
static inline int commit_clear(uint8_t *control, const bitmap_t *bitmap, commit_t *c) {
    uint64_t first = c->cleared >> GRANULE_SHIFT, end = c->committed >> GRANULE_SHIFT;
    if (end > first && end - first > bitmap->granules)
        first = end - bitmap->granules;
    if (bitmap_clear(bitmap, first, end))
        return OUTCOME_DIED;
    SHMLOG_STEP("cleared");
    c->cleared = c->committed;
    atomic_store_explicit(word_at(control, CB_CLEARED_LSN), c->cleared, memory_order_release);
    return OUTCOME_DONE;
}

/* Commit what is published without a gap, then clear its bits. */
static inline int commit_advance(uint8_t *control, const bitmap_t *bitmap, uint64_t window_bytes,
                                 commit_t *c) {
    uint64_t bound = c->reserved;
    if (bound > c->cleared + window_bytes) /* cannot be, unless the block is damaged */
        bound = c->cleared + window_bytes;
    if (bound > c->committed && bound - c->committed > window_bytes) /* nor can this */
        bound = c->committed;
    uint64_t g = bitmap_scan(bitmap, c->committed >> GRANULE_SHIFT, bound >> GRANULE_SHIFT, 0);
    uint64_t before = c->committed, next = g << GRANULE_SHIFT;
    if (next <= before)
        return OUTCOME_DONE;
    SHMLOG_STEP("commit");
    c->committed = next;
    atomic_store(word_at(control, CB_COMMITTED_LSN), c->committed); /* COMMIT */
    wake_if_wanted(control, CB_COMMITTED_LSN, CB_WANTED_COMMITTED, before);
    return commit_clear(control, bitmap, c);
}

/* Raise the limit to what is cleared and prepared; or lower it to 0 if the log has failed,
 * which sends every append to the slow path. */
static inline int commit_limit(uint8_t *control, uint64_t window_bytes, commit_t *c) {
    shared_u64 *limit_word = word_at(control, CB_LIMIT_LSN), *state = word_at(control, CB_STATE);
    uint64_t limit = c->cleared + window_bytes;
    uint64_t prepared = atomic_load_explicit(word_at(control, CB_PREPARED_LSN), memory_order_acquire);
    if (limit > prepared)
        limit = prepared;
    c->limit = atomic_load_explicit(limit_word, memory_order_relaxed);
    int running = atomic_load(state) == STATE_RUNNING;
    if (running ? limit <= c->limit : c->limit == 0)
        return OUTCOME_DONE;
    uint64_t woken_above = running ? c->limit : 0;
    SHMLOG_STEP("limit");
    c->limit = running ? limit : 0;
    atomic_store(limit_word, c->limit); /* LIMIT (release) */
    /* Who fails the log stores the state, then limit 0.  Seeing it still running here
     * means that its 0 comes after our limit. */
    if (atomic_load(state) != STATE_RUNNING)
        atomic_store(limit_word, c->limit = 0);
    wake_if_wanted(control, CB_LIMIT_LSN, CB_WANTED_LIMIT, woken_above);
    return OUTCOME_DONE;
}

/* One step: finish what a dead flusher left uncleared, scan, commit, clear, raise the
 * limit, and say in *out where that led. */
static inline int commit_step(uint8_t *control, const bitmap_t *bitmap, uint64_t window_bytes,
                              commit_t *out) {
    commit_t c = {0};
    c.committed = atomic_load_explicit(word_at(control, CB_COMMITTED_LSN), memory_order_relaxed);
    c.cleared = atomic_load_explicit(word_at(control, CB_CLEARED_LSN), memory_order_relaxed);
    c.reserved = atomic_load(word_at(control, CB_RESERVED_LSN));
    int outcome = c.cleared < c.committed ? commit_clear(control, bitmap, &c) : OUTCOME_DONE;
    if (outcome == OUTCOME_DONE)
        outcome = commit_advance(control, bitmap, window_bytes, &c);
    if (outcome == OUTCOME_DONE)
        outcome = commit_limit(control, window_bytes, &c);
    *out = c;
    return outcome;
}

#endif
