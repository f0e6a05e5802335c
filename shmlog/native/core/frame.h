/* Frames: encode one header, check one header, walk a run of frames.
 *
 *        0        4        8               16              24      28   30 31 32
 *        | bytes  | crc32c | lsn           | time_ns       | tag   |writ|k |f | payload ... 0 0 |
 *
 * The checksum covers the payload, then the 28 header bytes other than itself,
 * and starts from the CRC of the log id.  Payload first, so that it is known
 * before the LSN is.  The frame's own LSN is inside: bytes of another place, of
 * another log or of an earlier life of the file can never validate.
 *
 * A frame is valid at LSN x, bounded by `end`, if and only if
 *   (1) x is a multiple of 32 and the header fits below end;
 *   (2) kind is DATA, PAD or FILL and no unknown flag is set;
 *   (3) its lsn field is x;
 *   (4) the padded payload ends at or below end and within the segment;
 *   (5) the checksum matches (PAD and FILL: over the header alone).
 *
 * Readers treat the bytes as hostile: a header is copied once, checked, and only
 * the copy is used.
 *
 * This file knows frames.  It may not know files, watermarks or processes.
 */
#ifndef SHMLOG_FRAME_H
#define SHMLOG_FRAME_H

#include <stddef.h>
#include <string.h>

#include "crc32c.h"
#include "layout.h"

typedef struct {
    uint32_t payload_bytes;
    uint32_t crc32c;
    uint64_t lsn;
    int64_t time_ns;
    uint32_t tag;
    uint16_t writer;
    uint8_t kind;
    uint8_t flags;
} frame_t;

_Static_assert(sizeof(frame_t) == FRAME_HEADER_BYTES, "a frame header has no holes");
_Static_assert(offsetof(frame_t, tag) == FR_TAG && offsetof(frame_t, flags) == FR_FLAGS, "frame layout");

/* What a check finds, and how it is said. */
#define FRAME_PROBLEMS(X)                                                                               \
    X(FRAME_VALID, 0, "valid")                                                                          \
    X(FRAME_NEVER_WRITTEN, 1, "never written")                                                          \
    X(FRAME_BAD_KIND, 2, "unknown kind or flags")                                                       \
    X(FRAME_BAD_LSN, 3, "the frame names another LSN")                                                  \
    X(FRAME_BAD_LENGTH, 4, "the length goes past the end")                                              \
    X(FRAME_BAD_CHECKSUM, 5, "the checksum does not match")                                             \
    X(FRAME_OUT_OF_BOUNDS, 6, "the header does not fit")

#define SHMLOG_PROBLEM(name, number, text) name = (number),
enum frame_problem { FRAME_PROBLEMS(SHMLOG_PROBLEM) };
#undef SHMLOG_PROBLEM

static inline uint64_t frame_bytes(uint64_t payload_bytes) {
    return (FRAME_HEADER_BYTES + payload_bytes + GRANULE_BYTES - 1) & ~(uint64_t)(GRANULE_BYTES - 1);
}

static inline uint32_t frame_crc(uint32_t payload_crc, const frame_t *f) {
    uint8_t rest[28];
    memcpy(rest, &f->payload_bytes, 4);
    memcpy(rest + 4, &f->lsn, 24);
    return crc32c(payload_crc, rest, sizeof rest);
}

/* Write the header of a frame whose payload is in place, and zero its padding. */
static inline void frame_seal(uint8_t *at, frame_t f, uint32_t payload_crc) {
    f.crc32c = frame_crc(payload_crc, &f);
    if (f.kind == KIND_DATA) {
        uint64_t used = FRAME_HEADER_BYTES + (uint64_t)f.payload_bytes;
        memset(at + used, 0, frame_bytes(f.payload_bytes) - used);
    }
    memcpy(at, &f, sizeof f);
}

/* Write a frame without payload over [lsn, lsn + bytes). */
static inline void frame_seal_filler(uint8_t *at, uint8_t kind, uint64_t lsn, uint64_t bytes, int64_t time_ns,
                                     uint16_t writer, uint8_t flags, uint32_t seed) {
    frame_t f = {.payload_bytes = (uint32_t)(bytes - FRAME_HEADER_BYTES),
                 .lsn = lsn,
                 .time_ns = time_ns,
                 .writer = writer,
                 .kind = kind,
                 .flags = flags};
    frame_seal(at, f, seed);
}

/* Rules (1) to (4) for a frame at `lsn`.  `at` is its address, `room` the bytes from
 * there to the bound.  On success *out is the checked copy. */
static inline enum frame_problem frame_header_check(const uint8_t *at, uint64_t lsn, uint64_t room,
                                                    frame_t *out) {
    if (room < FRAME_HEADER_BYTES)
        return FRAME_OUT_OF_BOUNDS;
    frame_t f;
    memcpy(&f, at, sizeof f);
    __asm__ volatile("" : "+m"(f)); /* one read: the compiler may not go back to shared memory */
    *out = f;
    if (f.kind == KIND_NONE)
        return FRAME_NEVER_WRITTEN;
    if (f.kind > KIND_FILL || f.flags > FLAG_BATCH_GOES_ON)
        return FRAME_BAD_KIND;
    if (f.lsn != lsn)
        return FRAME_BAD_LSN;
    return frame_bytes(f.payload_bytes) > room ? FRAME_BAD_LENGTH : FRAME_VALID;
}

/* Rule (5), of a frame whose header passed. */
static inline enum frame_problem frame_sum_check(const uint8_t *at, const frame_t *f, uint32_t seed) {
    uint32_t crc = seed;
    if (f->kind == KIND_DATA)
        crc = crc32c(crc, at + FRAME_HEADER_BYTES, f->payload_bytes);
    return frame_crc(crc, f) != f->crc32c ? FRAME_BAD_CHECKSUM : FRAME_VALID;
}

/* Is there a valid frame at `lsn`?  As frame_header_check, and with `verify` rule (5). */
static inline enum frame_problem frame_check(const uint8_t *at, uint64_t lsn, uint64_t room, uint32_t seed,
                                             int verify, frame_t *out) {
    enum frame_problem problem = frame_header_check(at, lsn, room, out);
    return problem == FRAME_VALID && verify ? frame_sum_check(at, out, seed) : problem;
}

/* Which tags a reader wants: all, those of a range (low, low + step ... up to high), or a set. */
typedef struct {
    enum { TAGS_ALL = 0, TAGS_RANGE, TAGS_SET } kind;
    uint32_t low, high, step;
    const uint32_t *set; /* ascending */
    size_t set_count;
} tags_t;

static inline int tags_have(const tags_t *tags, uint32_t tag) {
    if (tags->kind == TAGS_ALL)
        return 1;
    if (tags->kind == TAGS_RANGE)
        return tag >= tags->low && tag <= tags->high && (tag - tags->low) % tags->step == 0;
    size_t low = 0, high = tags->set_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (tags->set[middle] < tag)
            low = middle + 1;
        else
            high = middle;
    }
    return low < tags->set_count && tags->set[low] == tag;
}

/* Where the caller wants the columns of an index; without an lsn column, none is wanted. */
typedef struct {
    uint64_t *lsn;
    int64_t *time_ns;
    uint32_t *tag;
    uint16_t *writer;
    uint32_t *payload_bytes;
    uint64_t capacity;
} columns_t;

typedef struct {
    uint64_t count;          /* DATA frames indexed */
    uint64_t next_lsn;       /* where the walk stopped */
    uint64_t whole_lsn;      /* the end of the last complete batch (or single record) */
    enum frame_problem problem; /* why it stopped, FRAME_VALID at the bound or when full */
} walk_t;

/* Index the DATA frames of one segment, whose byte at `base_lsn` is at `base`, that begin in
 * [begin, stop) and end by `end`, which is no less than stop.  Stops there, at the capacity, at
 * the first frame that is not valid and, with stop_at_gap, at a PAD or FILL once something was
 * indexed: then all that was indexed is contiguous. */
static inline walk_t frame_walk(const uint8_t *base, uint64_t base_lsn, uint64_t begin, uint64_t stop,
                                uint64_t end, uint32_t seed, int verify, const tags_t *tags,
                                int stop_at_gap, const columns_t *to) {
    walk_t w = {.next_lsn = begin, .whole_lsn = begin, .problem = FRAME_VALID};
    uint64_t lsn = begin, count = 0;
    while (lsn < stop) {
        frame_t f;
        enum frame_problem problem = frame_check(base + (lsn - base_lsn), lsn, end - lsn, seed, verify, &f);
        if (problem != FRAME_VALID) {
            w.problem = problem;
            break;
        }
        if (f.kind == KIND_DATA) {
            if (tags_have(tags, f.tag)) {
                if (count == to->capacity)
                    break;
                if (to->lsn) {
                    to->lsn[count] = lsn;
                    to->time_ns[count] = f.time_ns;
                    to->tag[count] = f.tag;
                    to->writer[count] = f.writer;
                    to->payload_bytes[count] = f.payload_bytes;
                }
                count++;
            }
        } else if (stop_at_gap && count) {
            break;
        }
        uint64_t bytes = frame_bytes(f.payload_bytes);
        lsn += bytes;
        /* Where the sixth from here begins if they are alike: without the payloads between the
         * headers nothing else makes the processor look ahead.  A prefetch cannot fault. */
        uintptr_t ahead = (uintptr_t)base + (lsn - base_lsn) + 5 * bytes;
        __builtin_prefetch((const void *)ahead);
        __builtin_prefetch((const void *)(ahead + FRAME_HEADER_BYTES)); /* what views copy of a payload */
        if (!(f.flags & FLAG_BATCH_GOES_ON))
            w.whole_lsn = lsn;
    }
    w.count = count;
    w.next_lsn = lsn;
    return w;
}

/* Check each frame of [begin, end) with `seed` and seal it anew with `new_seed`, up to the first
 * that is not valid; the DATA frames are counted. */
static inline walk_t frame_reseal(uint8_t *base, uint64_t base_lsn, uint64_t begin, uint64_t end,
                                  uint32_t seed, uint32_t new_seed) {
    walk_t w = {.next_lsn = begin, .problem = FRAME_VALID};
    while (w.next_lsn < end) {
        frame_t f;
        uint8_t *at = base + (w.next_lsn - base_lsn);
        w.problem = frame_check(at, w.next_lsn, end - w.next_lsn, seed, 1, &f);
        if (w.problem != FRAME_VALID)
            break;
        if (seed != new_seed) {
            uint32_t crc = new_seed;
            if (f.kind == KIND_DATA)
                crc = crc32c(crc, at + FRAME_HEADER_BYTES, f.payload_bytes);
            f.crc32c = frame_crc(crc, &f);
            memcpy(at, &f, sizeof f);
        }
        w.count += f.kind == KIND_DATA;
        w.next_lsn += frame_bytes(f.payload_bytes);
    }
    return w;
}

/* The LSN of the first frame of [begin, end) that is valid, or would be but for reaching
 * past end; or NO_LSN. */
static inline uint64_t frame_find(const uint8_t *base, uint64_t base_lsn, uint64_t begin, uint64_t end,
                                  uint32_t seed) {
    frame_t f;
    for (uint64_t lsn = begin; lsn < end; lsn += GRANULE_BYTES) {
        enum frame_problem problem = frame_check(base + (lsn - base_lsn), lsn, end - lsn, seed, 1, &f);
        if (problem == FRAME_VALID || problem == FRAME_BAD_LENGTH)
            return lsn;
    }
    return NO_LSN;
}

#endif
