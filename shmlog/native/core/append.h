/* Append: claim, reserve with one compare-and-swap, copy, publish.
 *
 *   loop:  pos = reserved_lsn
 *          lay the record (or batch) out from pos: PAD to the segment end first
 *          if it would straddle
 *          end > limit_lsn?            nothing was reserved: give the claim up, slow path
 *          claim.end = end; claim.begin = pos            tentative
 *          CAS reserved_lsn: pos -> end, else again
 *   claim.begin = pos | HELD
 *   copy, write headers; publish [pos, end); claim.begin = NO_LSN
 *
 * Invariants
 *   A1  claim.begin names the start of a range before the range can be owned
 *       (RESERVE), and says HELD before any of its bits is set (HELD).
 *   A2  The claim is NO_LSN whenever its owner waits: a refused try that left its
 *       claim behind would block the repair of the very hole it waits for.
 *   A3  Everything that can fail (memory, mapping, room, types) has been done
 *       before the CAS.  After it there are only stores.
 *   A4  A mapped segment is dropped only once committed_lsn has passed its end.
 *       Then no range of it is reserved and unpublished, so nobody copies into it;
 *       who read its address before and still holds it loses the CAS.
 *   A5  A checksum is of the bytes that are in the log.  Only of an immutable object it
 *       may be taken before the copy: another thread, or a process that shares the
 *       caller's buffer, may change anything else in between.
 *
 * This file knows the control block, one participant's claims and the table of
 * mapped segments.  It may not know Python.
 */
#ifndef SHMLOG_APPEND_H
#define SHMLOG_APPEND_H

#include <time.h>

#include "atomics.h"
#include "bitmap.h"
#include "frame.h"
#include "guard.h"
#include "layout.h"
#include "wait.h"

typedef struct {
    _Atomic uint64_t key; /* segment number + 1; 0: empty */
    uint8_t *_Atomic frames; /* the segment's first frame */
    guard_range_t *_Atomic range;
} segment_entry_t;

typedef struct {
    uint8_t *control;
    guard_range_t *control_range;
    bitmap_t bitmap;
    uint8_t *claims;
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
    _Atomic uint64_t ticket;      /* equals process_ticket while this handle is good; 0: closed */
} writer_t;

/* One payload.  `summed`: crc is of `data`, which nobody can change. */
typedef struct {
    const uint8_t *data;
    uint64_t bytes;
    uint32_t crc;
    int summed;
} piece_t;

/* What to append: `pieces`, or `count` equal rows from `rows`. */
typedef struct {
    const piece_t *pieces;
    const uint8_t *rows;
    uint64_t row_bytes;
    uint64_t count;
    uint64_t frame_bytes; /* of all together, without PAD */
    uint64_t payload_bytes;
    uint32_t tag;
    uint8_t batch_flag;
} plan_t;

typedef struct {
    uint8_t *claim; /* a CL_* record in shared memory */
    unsigned claim_no;
    uint64_t begin, end; /* the reservation */
    uint64_t want;       /* ROOM: how far; MAP: which LSN */
} ticketed_t;

static inline uint64_t plan_payload(const plan_t *plan, uint64_t i) {
    return plan->pieces ? plan->pieces[i].bytes : plan->row_bytes;
}

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

static inline uint8_t *segment_frames(const writer_t *w, uint64_t lsn, guard_range_t **range) {
    uint64_t number = lsn >> w->segment_shift;
    segment_entry_t *entry = &w->segments[number & w->segment_mask];
    if (atomic_load_explicit(&entry->key, memory_order_acquire) != number + 1)
        return NULL;
    if (range)
        *range = atomic_load_explicit(&entry->range, memory_order_relaxed);
    return atomic_load_explicit(&entry->frames, memory_order_relaxed);
}

static inline uint64_t segment_end_of(const writer_t *w, uint64_t lsn) {
    return (lsn | (w->segment_bytes - 1)) + 1;
}

/* Where does the plan end if it starts at pos? */
static inline uint64_t plan_end(const writer_t *w, const plan_t *plan, uint64_t pos) {
    uint64_t segment_end = segment_end_of(w, pos);
    if (plan->frame_bytes <= segment_end - pos)
        return pos + plan->frame_bytes;
    for (uint64_t i = 0; i < plan->count; i++) {
        uint64_t bytes = frame_bytes(plan_payload(plan, i));
        if (bytes > segment_end - pos) {
            pos = segment_end;
            segment_end += w->segment_bytes;
        }
        pos += bytes;
    }
    return pos;
}

static inline int reserve(writer_t *w, const plan_t *plan, ticketed_t *t) {
    shared_u64 *reserved = word_at(w->control, CB_RESERVED_LSN);
    shared_u64 *limit = word_at(w->control, CB_LIMIT_LSN);
    uint64_t pos = atomic_load_explicit(reserved, memory_order_relaxed);
    for (;;) {
        uint64_t end = plan_end(w, plan, pos);
        /* LIMIT (acquire): the bits below limit_lsn have been cleared for this lap */
        if (end > atomic_load_explicit(limit, memory_order_acquire)) {
            SHMLOG_STEP("refused");
            atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release); /* A2 */
            t->want = end;
            return OUTCOME_ROOM;
        }
        for (uint64_t lsn = pos; lsn < end; lsn = segment_end_of(w, lsn))
            if (!segment_frames(w, lsn, NULL)) {
                atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release); /* A2 */
                t->want = lsn;
                return OUTCOME_MAP;
            }
        SHMLOG_STEP("claim end");
        atomic_store_explicit(word_at(t->claim, CL_END), end, memory_order_relaxed);
        SHMLOG_STEP("claim begin");
        atomic_store_explicit(word_at(t->claim, CL_BEGIN), pos, memory_order_release);
        SHMLOG_STEP("reserve");
        /* RESERVE: whoever reads this value of reserved_lsn sees the claim, or a later one */
        if (atomic_compare_exchange_strong_explicit(reserved, &pos, end, memory_order_seq_cst,
                                                    memory_order_relaxed)) {
            t->begin = pos;
            t->end = end;
            break;
        }
    }
    SHMLOG_STEP("hold");
    /* HELD (release): before any bit is set (PUBLISH is a later release) */
    atomic_store_explicit(word_at(t->claim, CL_BEGIN), t->begin | CLAIM_HELD, memory_order_release);
    return OUTCOME_DONE;
}

static inline int64_t wall_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Copy the plan into its reservation.  lsns[i] is set to each frame's LSN. */
static inline int fill(writer_t *w, const plan_t *plan, const ticketed_t *t, uint64_t *lsns) {
    int64_t now = wall_clock_ns();
    uint64_t pos = t->begin, segment_end = segment_end_of(w, pos);
    guard_range_t *range = NULL;
    uint8_t *frames = segment_frames(w, pos, &range);
    uint64_t mask = w->segment_bytes - 1;
    for (uint64_t i = 0; i < plan->count; i++) {
        uint64_t payload = plan_payload(plan, i), bytes = frame_bytes(payload);
        if (bytes > segment_end - pos) {
            if (pos < segment_end) {
                SHMLOG_STEP("pad");
                frame_seal_filler(frames + (pos & mask), KIND_PAD, pos, segment_end - pos, now, w->number,
                                  i ? plan->batch_flag : 0, w->seed);
            }
            if (guard_faulted(range))
                return OUTCOME_FAULT;
            pos = segment_end;
            segment_end += w->segment_bytes;
            frames = segment_frames(w, pos, &range);
        }
        uint8_t *at = frames + (pos & mask);
        frame_t f = {.payload_bytes = (uint32_t)payload,
                     .lsn = pos,
                     .time_ns = now,
                     .tag = plan->tag,
                     .writer = w->number,
                     .kind = KIND_DATA,
                     .flags = i + 1 < plan->count ? plan->batch_flag : 0};
        const uint8_t *from = plan->pieces ? plan->pieces[i].data : plan->rows + i * payload;
        SHMLOG_STEP("copy");
        if (payload)
            memcpy(at + FRAME_HEADER_BYTES, from, payload);
        SHMLOG_STEP("header");
        /* A5 */
        uint32_t crc = plan->pieces && plan->pieces[i].summed ? plan->pieces[i].crc
                                                              : crc32c(w->seed, at + FRAME_HEADER_BYTES, payload);
        frame_seal(at, f, crc);
        lsns[i] = pos;
        pos += bytes;
    }
    return guard_faulted(range) ? OUTCOME_FAULT : OUTCOME_DONE;
}

static inline void add_relaxed(shared_u64 *word, uint64_t n) {
    atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + n, memory_order_relaxed);
}

/* Publish the reservation and give the claim up. */
static inline int publish(writer_t *w, ticketed_t *t, uint64_t records, uint64_t payload_bytes) {
    int outcome = bitmap_publish(&w->bitmap, t->begin >> GRANULE_SHIFT, t->end >> GRANULE_SHIFT);
    if (outcome != OUTCOME_DONE)
        return outcome;
    add_relaxed(word_at(t->claim, CL_RECORDS), records);
    add_relaxed(word_at(t->claim, CL_PAYLOAD), payload_bytes);
    SHMLOG_STEP("unclaim");
    claim_give(w, t);
    return OUTCOME_DONE;
}

/* The whole append under a claim already taken.  On DONE the claim is free again;
 * on ROOM and MAP it is still taken and nothing is reserved. */
static inline int append_plan(writer_t *w, const plan_t *plan, ticketed_t *t, uint64_t *lsns) {
    int outcome = reserve(w, plan, t);
    if (outcome == OUTCOME_DONE)
        outcome = fill(w, plan, t, lsns);
    if (outcome == OUTCOME_DONE)
        outcome = publish(w, t, plan->count, plan->payload_bytes);
    return outcome;
}

/* Give a reservation back: PAD as it was, FILL over the rest, published. */
static inline int abandon(writer_t *w, ticketed_t *t, uint64_t start) {
    int64_t now = wall_clock_ns();
    uint64_t mask = w->segment_bytes - 1;
    guard_range_t *range = NULL;
    if (start > t->begin)
        frame_seal_filler(segment_frames(w, t->begin, &range) + (t->begin & mask), KIND_PAD, t->begin,
                          start - t->begin, now, w->number, 0, w->seed);
    if (guard_faulted(range))
        return OUTCOME_FAULT;
    frame_seal_filler(segment_frames(w, start, &range) + (start & mask), KIND_FILL, start, t->end - start, now,
                      w->number, 0, w->seed);
    if (guard_faulted(range))
        return OUTCOME_FAULT;
    return publish(w, t, 0, 0);
}

/* SLEEP: the bits (or the CAS) were seq_cst stores, this is a seq_cst load; the
 * flusher stores its sleep word first and then looks at bits and tail.  So one of
 * the two sees the other. */
static inline int flusher_sleeps(const writer_t *w) {
    return atomic_load(word_at(w->control, CB_COMMIT_SLEEP)) == SLEEP_IDLE;
}

/* ---- the flusher's side: commit ---- */

typedef struct {
    uint64_t committed, reserved, cleared, limit;
} commit_t;

/* Finish what a dead flusher left uncleared, scan, commit, clear, raise the limit:
 * in this order (B2, B3), and wake who waits for what was stored.  Only the holder of the flusher lease calls it, one
 * thread at a time. */
static inline int commit_step(uint8_t *control, const bitmap_t *bitmap, uint64_t window_bytes, commit_t *out) {
    shared_u64 *committed_word = word_at(control, CB_COMMITTED_LSN);
    shared_u64 *cleared_word = word_at(control, CB_CLEARED_LSN);
    shared_u64 *limit_word = word_at(control, CB_LIMIT_LSN);
    uint64_t committed = atomic_load_explicit(committed_word, memory_order_relaxed);
    uint64_t cleared = atomic_load_explicit(cleared_word, memory_order_relaxed);
    uint64_t reserved = atomic_load(word_at(control, CB_RESERVED_LSN));
    if (cleared < committed) {
        if (bitmap_clear(bitmap, cleared >> GRANULE_SHIFT, committed >> GRANULE_SHIFT))
            return OUTCOME_DIED;
        SHMLOG_STEP("cleared");
        atomic_store_explicit(cleared_word, cleared = committed, memory_order_release);
    }
    uint64_t bound = reserved;
    if (bound > cleared + window_bytes) /* cannot be, unless the block is damaged */
        bound = cleared + window_bytes;
    uint64_t next = bitmap_scan(bitmap, committed >> GRANULE_SHIFT, bound >> GRANULE_SHIFT, 0) << GRANULE_SHIFT;
    if (next > committed) {
        SHMLOG_STEP("commit");
        atomic_store(committed_word, next); /* COMMIT */
        wake_if_wanted(control, CB_COMMITTED_LSN, CB_WANTED_COMMITTED, committed);
        if (bitmap_clear(bitmap, committed >> GRANULE_SHIFT, next >> GRANULE_SHIFT))
            return OUTCOME_DIED;
        SHMLOG_STEP("cleared");
        atomic_store_explicit(cleared_word, cleared = next, memory_order_release);
        committed = next;
    }
    uint64_t limit = cleared + window_bytes;
    uint64_t prepared = atomic_load_explicit(word_at(control, CB_PREPARED_LSN), memory_order_acquire);
    if (limit > prepared)
        limit = prepared;
    uint64_t old_limit = atomic_load_explicit(limit_word, memory_order_relaxed);
    /* A failed log has limit 0, which sends every append to the slow path. */
    int running = atomic_load(word_at(control, CB_STATE)) == STATE_RUNNING;
    if (running ? limit > old_limit : old_limit != 0) {
        uint64_t woken_above = running ? old_limit : 0;
        SHMLOG_STEP("limit");
        old_limit = running ? limit : 0;
        atomic_store(limit_word, old_limit); /* LIMIT (release) */
        /* Who fails the log stores the state, then limit 0.  Seeing it still running here
         * means that its 0 comes after our limit. */
        if (atomic_load(word_at(control, CB_STATE)) != STATE_RUNNING)
            atomic_store(limit_word, old_limit = 0);
        wake_if_wanted(control, CB_LIMIT_LSN, CB_WANTED_LIMIT, woken_above);
    }
    *out = (commit_t){.committed = committed, .reserved = reserved, .cleared = cleared, .limit = old_limit};
    return OUTCOME_DONE;
}

#endif
