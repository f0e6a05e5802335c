/* What the fuzzer and its oracle share: an input, and where it claims to lie. */
#ifndef FUZZ_FRAMES_H
#define FUZZ_FRAMES_H

#include <stdint.h>

#include "../../shmlog/native/core/frame.h"

enum { BYTES_MAX = 1024, CAPACITY_MAX = BYTES_MAX / 32 };

typedef struct {
    uint64_t base_lsn, begin_lsn, end_lsn;
    int64_t tag;
    uint32_t seed, capacity;
    uint8_t verify, stop_at_gap;
    uint16_t stop_before; /* a frame that begins in the last so many bytes is not wanted */
    uint8_t unused[12];
} place_t;

typedef struct {
    place_t place;
    uint8_t bytes[BYTES_MAX];
} input_t;

/* What walk_bounds of the module lets through, and no more than the input holds. */
static inline void place_bound(place_t *p) {
    const uint64_t top = UINT64_MAX - 4 * (uint64_t)BYTES_MAX;
    p->base_lsn = (p->base_lsn > top ? top : p->base_lsn) & ~UINT64_C(31);
    if (p->end_lsn < p->base_lsn || p->end_lsn - p->base_lsn > BYTES_MAX)
        p->end_lsn = p->base_lsn + BYTES_MAX;
    if (p->begin_lsn < p->base_lsn || p->begin_lsn > p->end_lsn)
        p->begin_lsn = p->base_lsn;
    p->begin_lsn &= ~UINT64_C(31);
    if (p->stop_before > p->end_lsn - p->base_lsn)
        p->stop_before = 0;
    p->verify = p->verify != 0;
    p->stop_at_gap = p->stop_at_gap != 0;
    if (p->tag < -1 || p->tag > UINT32_MAX)
        p->tag = -1;
    if (p->capacity > CAPACITY_MAX)
        p->capacity = CAPACITY_MAX;
}

static inline uint64_t place_stop_lsn(const place_t *p) { return p->end_lsn - p->stop_before; }

uint32_t oracle_crc(uint32_t crc, const uint8_t *data, uint64_t count);
walk_t oracle_walk(const uint8_t *base, const place_t *p, columns_t *to);
uint64_t oracle_find(const uint8_t *base, const place_t *p);

#endif
