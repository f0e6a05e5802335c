/* CRC-32C (Castagnoli): by the processor's own instruction where it has one.
 *
 * Three independent lanes hide the instruction's latency (three cycles, one
 * issued each cycle); the lanes are joined by multiplying a lane's remainder by
 * x^(8 * lane bytes) modulo the polynomial, from tables built at start.  The
 * scheme is the one of Gopal et al., "Fast CRC Computation for iSCSI Polynomial
 * Using CRC32 Instruction" (Intel, 2011).  Where 512 bits are multiplied without carry at
 * once, longer runs are folded instead (Gopal et al., "Fast CRC Computation for Generic
 * Polynomials Using PCLMULQDQ Instruction", Intel, 2009): three times as fast.  The portable path is slicing by eight
 * (Kounavis and Berry, 2005).
 *
 * crc32c(seed, ...) continues from seed: the seed is a finished CRC, as zlib
 * and the crc32c package do it, so calls can be chained.
 *
 * This file knows bytes.  It may not know frames.
 */
#ifndef SHMLOG_CRC32C_H
#define SHMLOG_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Build the tables and choose the path, once in a process, before anything is summed. */
void crc_initialize(void);

/* The path that crc_initialize chose, and the portable one.  Both take and return the
 * register as it runs, which is the complement of a finished CRC. */
extern uint32_t (*crc_raw)(uint32_t crc, const uint8_t *data, size_t n);
uint32_t crc_raw_table(uint32_t crc, const uint8_t *data, size_t n);

static inline uint32_t crc32c(uint32_t seed, const void *data, size_t n) {
    return ~crc_raw(~seed, data, n);
}

#endif
