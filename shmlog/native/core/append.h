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
 *   A3  Everything that can fail (memory, mapping, room, types) has been done
 *       before the CAS.  After it there are only stores.
 *   A5  A checksum is of the bytes that are in the log.  Only of an immutable object, or of a
 *       reservation's own memory that nobody has a view of, it may be taken before the copy: another thread, or a process that shares the
 *       caller's buffer, may change anything else in between.
 *
 * A2 (no claim while waiting) and A4 (mapped segments) are the writer's, in writer.h.
 *
 * This file knows records, one writer and the control block's bounds.  It may not know
 * who commits them, or Python.
 */
#ifndef SHMLOG_APPEND_H
#define SHMLOG_APPEND_H

#include <time.h>

#include "atomics.h"
#include "bitmap.h"
#include "frame.h"
#include "guard.h"
#include "layout.h"
#include "writer.h"

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

/* Plan as many of the pieces as one reservation may hold, and at least one. */
static inline plan_t plan_pieces(const writer_t *w, const piece_t *pieces, uint64_t count) {
    plan_t plan = {.pieces = pieces};
    for (; plan.count < count; plan.count++) {
        uint64_t payload = pieces[plan.count].bytes, bytes = frame_bytes(payload);
        if (plan.count && plan.frame_bytes + bytes > w->batch_bytes_max)
            break;
        plan.frame_bytes += bytes;
        plan.payload_bytes += payload;
    }
    return plan;
}

/* As plan_pieces, for equal rows. */
static inline plan_t plan_rows(const writer_t *w, const uint8_t *rows, uint64_t row_bytes, uint64_t count) {
    uint64_t row_frame = frame_bytes(row_bytes), most = w->batch_bytes_max / row_frame;
    uint64_t now = count < most ? count : most;
    return (plan_t){.rows = rows,
                    .row_bytes = row_bytes,
                    .count = now,
                    .frame_bytes = now * row_frame,
                    .payload_bytes = now * row_bytes};
}

static inline uint64_t plan_payload(const plan_t *plan, uint64_t i) {
    return plan->pieces ? plan->pieces[i].bytes : plan->row_bytes;
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
    /* Whose end it was stored it after its compare-and-swap (release); so pos is at least that. */
    uint64_t floor = atomic_load_explicit(&w->floor, memory_order_acquire);
    uint64_t pos = atomic_load_explicit(reserved, memory_order_relaxed);
    for (;;) {
        uint64_t end = plan_end(w, plan, pos);
        /* No append left such a tail: the block is damaged.  There is no room, and never will be. */
        int damaged = end < pos || pos < floor || (pos & (GRANULE_BYTES - 1)); /* A6 */
        /* LIMIT (acquire): the bits below limit_lsn have been cleared for this lap */
        if (damaged || end > atomic_load_explicit(limit, memory_order_acquire)) {
            SHMLOG_STEP("refused");
            atomic_store_explicit(word_at(t->claim, CL_BEGIN), NO_LSN, memory_order_release); /* A2 */
            t->want = damaged ? NO_LSN : end;
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
            atomic_store_explicit(&w->floor, end, memory_order_release);
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

/* Write a large payload at `at` and then its header, by pwrite.  DONE, DISK (t->want), or MAP: the
 * same is to be done by stores.  A5: unless it was summed, it is summed where it lies now, in the log. */
static inline int put_large(const writer_t *w, const uint8_t *from, uint8_t *at, frame_t f, const uint32_t *crc,
                            uint64_t *error) {
    const file_t *file = segment_file(w, f.lsn);
    if (!file_usable(file))
        return OUTCOME_MAP;
    uint64_t offset = SEGMENT_HEADER_BYTES + (f.lsn & (w->segment_bytes - 1));
    uint64_t padding = frame_bytes(f.payload_bytes) - FRAME_HEADER_BYTES - f.payload_bytes;
    int end = large_write(file, from, f.payload_bytes, padding, offset + FRAME_HEADER_BYTES);
    if (end == LARGE_WRITTEN) {
        SHMLOG_STEP("header");
        f.crc32c = frame_crc(crc ? *crc : crc32c(w->seed, at + FRAME_HEADER_BYTES, f.payload_bytes), &f);
        end = large_write(file, &f, sizeof f, 0, offset);
    }
    *error = (uint64_t)end;
    return end == LARGE_WRITTEN ? OUTCOME_DONE : end == LARGE_UNUSABLE ? OUTCOME_MAP : OUTCOME_DISK;
}

/* Write a payload at `at`, which is mapped, and then its header. */
static inline int put(const writer_t *w, const uint8_t *from, uint8_t *at, frame_t f, const uint32_t *crc,
                      ticketed_t *t) {
    SHMLOG_STEP("copy");
    if (f.payload_bytes >= LARGE_BYTES) {
        int outcome = put_large(w, from, at, f, crc, &t->want);
        if (outcome != OUTCOME_MAP)
            return outcome;
    }
    if (f.payload_bytes)
        memcpy(at + FRAME_HEADER_BYTES, from, f.payload_bytes);
    SHMLOG_STEP("header");
    /* A5 */
    frame_seal(at, f, crc ? *crc : crc32c(w->seed, at + FRAME_HEADER_BYTES, f.payload_bytes));
    return OUTCOME_DONE;
}

/* Copy the plan into its reservation.  lsns[i] is set to each frame's LSN. */
static inline int fill(writer_t *w, const plan_t *plan, ticketed_t *t, uint64_t *lsns) {
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
        int summed = plan->pieces && plan->pieces[i].summed;
        int outcome = put(w, from, at, f, summed ? &plan->pieces[i].crc : NULL, t);
        if (outcome != OUTCOME_DONE)
            return guard_faulted(range) ? OUTCOME_FAULT : outcome;
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

/* Give a whole reservation back: FILL over each segment's part, published. */
static inline int give_back(writer_t *w, ticketed_t *t) {
    int64_t now = wall_clock_ns();
    for (uint64_t lsn = t->begin, end; lsn < t->end; lsn = end) {
        end = segment_end_of(w, lsn) < t->end ? segment_end_of(w, lsn) : t->end;
        guard_range_t *range = NULL;
        uint8_t *at = segment_frames(w, lsn, &range) + (lsn & (w->segment_bytes - 1));
        frame_seal_filler(at, KIND_FILL, lsn, end - lsn, now, w->number, 0, w->seed);
        if (guard_faulted(range))
            return OUTCOME_FAULT;
    }
    return publish(w, t, 0, 0);
}

/* The whole append under a claim already taken.  On DONE and DISK the claim is free again;
 * on ROOM and MAP it is still taken and nothing is reserved. */
static inline int append_plan(writer_t *w, const plan_t *plan, ticketed_t *t, uint64_t *lsns) {
    int outcome = reserve(w, plan, t);
    if (outcome == OUTCOME_DONE)
        outcome = fill(w, plan, t, lsns);
    if (outcome == OUTCOME_DONE)
        outcome = publish(w, t, plan->count, plan->payload_bytes);
    if (outcome != OUTCOME_DISK)
        return outcome;
    int given = give_back(w, t);
    return given == OUTCOME_DONE ? OUTCOME_DISK : given;
}

/* A record whose place is reserved and whose payload its owner writes there, or, if it is large,
 * into memory of its own, from where it is put there. */
typedef struct {
    ticketed_t t;
    uint64_t start; /* the frame's LSN; t.begin is lower when a PAD goes first */
    uint64_t payload_bytes;
    uint8_t *at;          /* the frame's address */
    uint8_t *payload;     /* where its owner writes */
    guard_range_t *range; /* of the mapping that holds the frame */
    uint32_t tag;
} place_t;

/* Reserve the place of one record under a claim already taken; `memory` is the owner's if it is
 * large, or NULL.  Outcomes as reserve(). */
static inline int place_reserve(writer_t *w, uint64_t payload_bytes, uint32_t tag, uint8_t *memory,
                                place_t *place) {
    piece_t piece = {.bytes = payload_bytes};
    plan_t plan = {.pieces = &piece, .count = 1, .frame_bytes = frame_bytes(payload_bytes)};
    int outcome = reserve(w, &plan, &place->t);
    if (outcome != OUTCOME_DONE)
        return outcome;
    place->start = place->t.end - plan.frame_bytes;
    uint8_t *frames = segment_frames(w, place->start, &place->range);
    place->at = frames + (place->start & (w->segment_bytes - 1));
    place->payload = memory ? memory : place->at + FRAME_HEADER_BYTES;
    place->payload_bytes = payload_bytes;
    place->tag = tag;
    return OUTCOME_DONE;
}

/* The PAD in front of a place, if there is one.  FAULT if its mapping failed. */
static inline int place_pad(const writer_t *w, const place_t *place, int64_t now) {
    uint64_t begin = place->t.begin;
    if (place->start == begin)
        return OUTCOME_DONE;
    guard_range_t *range = NULL;
    uint8_t *at = segment_frames(w, begin, &range) + (begin & (w->segment_bytes - 1));
    frame_seal_filler(at, KIND_PAD, begin, place->start - begin, now, w->number, 0, w->seed);
    return guard_faulted(range) ? OUTCOME_FAULT : OUTCOME_DONE;
}

/* Put the payload there as it is now, sum it and write the headers; publish() comes next, or
 * after DISK place_abandon().  `settled`: nobody can change the owner's memory any more (A5). */
static inline int place_seal(const writer_t *w, place_t *place, int settled) {
    int64_t now = wall_clock_ns();
    int outcome = place_pad(w, place, now);
    frame_t f = {.payload_bytes = (uint32_t)place->payload_bytes,
                 .lsn = place->start,
                 .time_ns = now,
                 .tag = place->tag,
                 .writer = w->number,
                 .kind = KIND_DATA};
    uint8_t *there = place->at + FRAME_HEADER_BYTES;
    if (place->payload == there)
        frame_seal(place->at, f, crc32c(w->seed, there, place->payload_bytes));
    else if (outcome == OUTCOME_DONE) {
        uint32_t crc = settled ? crc32c(w->seed, place->payload, place->payload_bytes) : 0;
        outcome = put(w, place->payload, place->at, f, settled ? &crc : NULL, &place->t);
    }
    return guard_faulted(place->range) ? OUTCOME_FAULT : outcome;
}

/* Give a place back: PAD as it was, FILL over the rest, published. */
static inline int place_abandon(writer_t *w, place_t *place) {
    int64_t now = wall_clock_ns();
    uint64_t bytes = place->t.end - place->start;
    int outcome = place_pad(w, place, now);
    if (outcome != OUTCOME_DONE)
        return outcome;
    frame_seal_filler(place->at, KIND_FILL, place->start, bytes, now, w->number, 0,
                      w->seed);
    return guard_faulted(place->range) ? OUTCOME_FAULT : publish(w, &place->t, 0, 0);
}

/* SLEEP: the bits (or the CAS) were seq_cst stores, this is a seq_cst load; the
 * flusher stores its sleep word first and then looks at bits and tail.  So one of
 * the two sees the other. */
static inline int flusher_sleeps(const writer_t *w) {
    return atomic_load(word_at(w->control, CB_COMMIT_SLEEP)) == SLEEP_IDLE;
}

#endif
