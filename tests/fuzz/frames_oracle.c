/* The second reading: the format page's rules for frames, one after the other, byte by byte.
 * Shares the result's type with the core, and no code. */
#include "frames.h"

static uint32_t table[256];

/* The reflected Castagnoli polynomial, a byte at a time. */
uint32_t oracle_crc(uint32_t crc, const uint8_t *data, uint64_t count) {
    if (!table[1])
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t rest = byte;
            for (int bit = 0; bit < 8; bit++)
                rest = rest & 1 ? rest >> 1 ^ 0x82F63B78u : rest >> 1;
            table[byte] = rest;
        }
    crc = ~crc;
    for (uint64_t n = 0; n < count; n++)
        crc = table[(crc ^ data[n]) & 255] ^ crc >> 8;
    return ~crc;
}

static uint64_t number(const uint8_t *at, int count) {
    uint64_t value = 0;
    while (count--)
        value = value << 8 | at[count];
    return value;
}

/* Why there is no frame at `at`, in the order of the rules; *stored is what it takes. */
static enum frame_problem problem_at(const uint8_t *at, uint64_t lsn, uint64_t room, uint32_t seed, int verify,
                                     uint64_t *stored) {
    if (room < 32)
        return FRAME_OUT_OF_BOUNDS;
    uint64_t size = number(at, 4);
    if (at[30] == 0)
        return FRAME_NEVER_WRITTEN;
    if (at[30] > 3 || at[31] > 1)
        return FRAME_BAD_KIND;
    if (number(at + 8, 8) != lsn)
        return FRAME_BAD_LSN;
    *stored = 32 + size;
    while (*stored % 32)
        *stored += 1;
    if (*stored > room)
        return FRAME_BAD_LENGTH;
    if (verify) {
        uint32_t crc = at[30] == 1 ? oracle_crc(seed, at + 32, size) : seed;
        crc = oracle_crc(oracle_crc(crc, at, 4), at + 8, 24);
        if (crc != number(at + 4, 4))
            return FRAME_BAD_CHECKSUM;
    }
    return FRAME_VALID;
}

walk_t oracle_walk(const uint8_t *base, const place_t *p, columns_t *to) {
    walk_t w = {.next_lsn = p->begin_lsn, .whole_lsn = p->begin_lsn, .problem = FRAME_VALID};
    while (w.next_lsn < place_stop_lsn(p)) {
        const uint8_t *at = base + (w.next_lsn - p->base_lsn);
        uint64_t stored = 0;
        w.problem = problem_at(at, w.next_lsn, p->end_lsn - w.next_lsn, p->seed, p->verify, &stored);
        if (w.problem != FRAME_VALID)
            return w;
        uint32_t tag = (uint32_t)number(at + 24, 4);
        int wanted = at[30] == 1 && (p->tag == -1 || p->tag == (int64_t)tag);
        if (wanted && w.count == p->capacity)
            return w;
        if (at[30] != 1 && p->stop_at_gap && w.count)
            return w;
        if (wanted) {
            to->lsn[w.count] = w.next_lsn;
            to->time_ns[w.count] = (int64_t)number(at + 16, 8);
            to->tag[w.count] = tag;
            to->writer[w.count] = (uint16_t)number(at + 28, 2);
            to->payload_bytes[w.count] = (uint32_t)number(at, 4);
            w.count++;
        }
        w.next_lsn += stored;
        if (at[31] == 0)
            w.whole_lsn = w.next_lsn;
    }
    return w;
}

uint64_t oracle_find(const uint8_t *base, const place_t *p) {
    for (uint64_t offset = p->begin_lsn - p->base_lsn; p->base_lsn + offset < p->end_lsn; offset += 32) {
        uint64_t stored;
        uint64_t lsn = p->base_lsn + offset;
        enum frame_problem problem = problem_at(base + offset, lsn, p->end_lsn - lsn, p->seed, 1, &stored);
        if (problem == FRAME_VALID || problem == FRAME_BAD_LENGTH)
            return lsn;
    }
    return NO_LSN;
}
