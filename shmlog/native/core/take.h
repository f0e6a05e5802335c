/* Take: records by their LSNs, gathered.
 *
 *   lsns    9632   64   4096 ...
 *             |     |     |          each header is fetched ahead of its turn: the records lie
 *             v     v     v          anywhere, and what costs is waiting for memory
 *   out     | row | row | row |
 *
 * A checksum is of the copy that the caller gets: a record that is changed under the
 * copying is found out.
 *
 * This file knows frames at given LSNs of given maps.  It may not know which of them may
 * be read.
 */
#ifndef SHMLOG_TAKE_H
#define SHMLOG_TAKE_H

#include "frame.h"
#include "map.h"

#define TAKE_AHEAD 12u

typedef struct {
    const uint64_t *numbers; /* of the segments, ascending */
    map_t *const *maps;      /* of each */
    size_t count;
    uint64_t segment_bytes;
    uint64_t end_lsn; /* no frame reaches beyond */
    uint32_t seed;
} take_source_t;

/* Why a record could not be taken; below these, an enum frame_problem. */
enum { TAKE_NO_RECORD = 100, TAKE_OTHER_SIZE = 101, TAKE_NO_SEGMENT = 102 };

/* The first byte of the frame at lsn, or NULL if none of the maps has it. */
static inline const uint8_t *take_at(const take_source_t *from, uint64_t lsn) {
    uint64_t number = lsn / from->segment_bytes;
    size_t low = 0, high = from->count;
    if (!high)
        return NULL;
    if (number - from->numbers[0] < from->count && from->numbers[number - from->numbers[0]] == number) {
        low = (size_t)(number - from->numbers[0]); /* no segment is left out: the usual case */
    } else {
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (from->numbers[middle] < number)
                low = middle + 1;
            else
                high = middle;
        }
        if (low == from->count || from->numbers[low] != number)
            return NULL;
    }
    return from->maps[low]->base + SEGMENT_HEADER_BYTES + lsn % from->segment_bytes;
}

/* Begin to fetch what taking the record will need. */
static inline void take_fetch(const take_source_t *from, uint64_t lsn) {
    const uint8_t *at = lsn % GRANULE_BYTES ? NULL : take_at(from, lsn);
    if (!at)
        return;
    __builtin_prefetch(at);
    __builtin_prefetch(at + 64);
    __builtin_prefetch(at + 128);
}

/* Check the header of a record at lsn: 0 or why not. */
static inline int take_header(const take_source_t *from, uint64_t lsn, frame_t *f) {
    if (lsn % GRANULE_BYTES || lsn >= from->end_lsn)
        return TAKE_NO_RECORD;
    const uint8_t *at = take_at(from, lsn);
    if (!at)
        return TAKE_NO_SEGMENT;
    uint64_t end = lsn - lsn % from->segment_bytes + from->segment_bytes;
    if (end > from->end_lsn)
        end = from->end_lsn;
    int problem = (int)frame_header_check(at, lsn, end - lsn, f);
    return problem ? problem : f->kind == KIND_DATA ? 0 : TAKE_NO_RECORD;
}

/* Copy the payload of a record whose header passed, and check the copy. */
static inline int take_payload(const take_source_t *from, const frame_t *f, uint8_t *to) {
    memcpy(to, take_at(from, f->lsn) + FRAME_HEADER_BYTES, f->payload_bytes);
    return frame_crc(crc32c(from->seed, to, f->payload_bytes), f) == f->crc32c ? 0 : FRAME_BAD_CHECKSUM;
}

/* Copy records of one size into rows; *taken is the number that were. */
static inline int take_rows(const take_source_t *from, const uint64_t *lsns, uint64_t count,
                            uint64_t row_bytes, uint8_t *rows, uint64_t *taken) {
    for (uint64_t i = 0; i < count && i < TAKE_AHEAD; i++)
        take_fetch(from, lsns[i]);
    for (*taken = 0; *taken < count; (*taken)++) {
        uint64_t i = *taken;
        if (i + TAKE_AHEAD < count)
            take_fetch(from, lsns[i + TAKE_AHEAD]);
        frame_t f;
        int problem = take_header(from, lsns[i], &f);
        if (!problem && f.payload_bytes != row_bytes)
            problem = TAKE_OTHER_SIZE;
        if (!problem)
            problem = take_payload(from, &f, rows + i * row_bytes);
        if (problem)
            return problem;
    }
    return 0;
}

/* The headers of records of any size. */
static inline int take_headers(const take_source_t *from, const uint64_t *lsns, uint64_t count,
                               frame_t *headers, uint64_t *taken) {
    for (uint64_t i = 0; i < count && i < TAKE_AHEAD; i++)
        take_fetch(from, lsns[i]);
    for (*taken = 0; *taken < count; (*taken)++) {
        uint64_t i = *taken;
        if (i + TAKE_AHEAD < count)
            take_fetch(from, lsns[i + TAKE_AHEAD]);
        int problem = take_header(from, lsns[i], &headers[i]);
        if (problem)
            return problem;
    }
    return 0;
}

#endif
