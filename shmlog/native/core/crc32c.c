/* CRC-32C: the tables, the two paths and the choice between them (crc32c.h says why so).
 *
 * The tables are made at start and never written again.  They, and the choice, exist once
 * in a process, however many files include the header.
 *
 * This file knows bytes and processors.  It may not know frames.
 */
#include "crc32c.h"

#include <pthread.h>
#include <string.h>

#define CRC32C_POLYNOMIAL UINT32_C(0x82F63B78) /* reflected */

#define CRC_LONG_LANE 2048u
#define CRC_SHORT_LANE 128u

static uint32_t crc_slice[8][256];
static uint32_t crc_skip_long[4][256];  /* multiply by x^(8 * CRC_LONG_LANE) */
static uint32_t crc_skip_short[4][256]; /* multiply by x^(8 * CRC_SHORT_LANE) */

static void crc_make_skip(uint32_t table[4][256], size_t lane_bytes) {
    uint32_t power[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = UINT32_C(1) << bit;
        for (size_t i = 0; i < lane_bytes; i++)
            crc = crc_slice[0][crc & 0xFF] ^ (crc >> 8);
        power[bit] = crc;
    }
    for (unsigned byte = 0; byte < 4; byte++)
        for (unsigned value = 0; value < 256; value++) {
            uint32_t crc = 0;
            for (unsigned bit = 0; bit < 8; bit++)
                if (value >> bit & 1)
                    crc ^= power[8 * byte + bit];
            table[byte][value] = crc;
        }
}

static void crc_make_tables(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ CRC32C_POLYNOMIAL : crc >> 1;
        crc_slice[0][value] = crc;
    }
    for (uint32_t value = 0; value < 256; value++)
        for (int slice = 1; slice < 8; slice++) {
            uint32_t crc = crc_slice[slice - 1][value];
            crc_slice[slice][value] = crc_slice[0][crc & 0xFF] ^ (crc >> 8);
        }
    crc_make_skip(crc_skip_long, CRC_LONG_LANE);
    crc_make_skip(crc_skip_short, CRC_SHORT_LANE);
}

static inline uint64_t load_u64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

uint32_t crc_raw_table(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t v = load_u64(p) ^ crc;
        crc = 0;
        for (int slice = 0; slice < 8; slice++)
            crc ^= crc_slice[7 - slice][v >> (8 * slice) & 0xFF];
    }
    for (; n; p++, n--)
        crc = crc_slice[0][(crc ^ *p) & 0xFF] ^ (crc >> 8);
    return crc;
}

static inline uint32_t crc_skip(uint32_t table[4][256], uint32_t crc) {
    return table[0][crc & 0xFF] ^ table[1][crc >> 8 & 0xFF] ^ table[2][crc >> 16 & 0xFF] ^
           table[3][crc >> 24];
}

#if defined(__x86_64__)
#include <immintrin.h>
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_STEP64(crc, v) _mm_crc32_u64((crc), (v))
#define CRC_STEP8(crc, v) _mm_crc32_u8((uint32_t)(crc), (v))
typedef uint64_t crc_lane_t;
static int crc_hardware(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
static int crc_hardware(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#else
static int crc_hardware(void) { return 1; } /* every Apple processor has it */
#endif
#if defined(__clang__)
#define CRC_TARGET __attribute__((target("crc")))
#else
#define CRC_TARGET __attribute__((target("+crc")))
#endif
#define CRC_STEP64(crc, v) __crc32cd((crc), (v))
#define CRC_STEP8(crc, v) __crc32cb((crc), (v))
typedef uint32_t crc_lane_t;
#else
#define CRC_NO_HARDWARE 1
static int crc_hardware(void) { return 0; }
#endif

#ifndef CRC_NO_HARDWARE
#define CRC_THREE_LANES(lane, table)                                             \
    while (n >= 3 * (lane)) {                                                    \
        crc_lane_t b = 0, c = 0;                                                 \
        const uint8_t *end = p + (lane);                                         \
        for (; p < end; p += 8) {                                                \
            a = CRC_STEP64(a, load_u64(p));                                      \
            b = CRC_STEP64(b, load_u64(p + (lane)));                             \
            c = CRC_STEP64(c, load_u64(p + 2 * (lane)));                         \
        }                                                                        \
        a = crc_skip(table, (uint32_t)a) ^ (uint32_t)b;                          \
        a = crc_skip(table, (uint32_t)a) ^ (uint32_t)c;                          \
        p += 2 * (lane);                                                         \
        n -= 3 * (lane);                                                         \
    }

CRC_TARGET static uint32_t crc_raw_hardware(uint32_t crc, const uint8_t *p, size_t n) {
    crc_lane_t a = crc;
    CRC_THREE_LANES((size_t)CRC_LONG_LANE, crc_skip_long)
    CRC_THREE_LANES((size_t)CRC_SHORT_LANE, crc_skip_short)
    for (; n >= 8; p += 8, n -= 8)
        a = CRC_STEP64(a, load_u64(p));
    for (; n; p++, n--)
        a = CRC_STEP8(a, *p);
    return (uint32_t)a;
}
#endif

#if defined(__x86_64__)
#define CRC_FOLD_BYTES 256u /* four registers of 64 bytes */
#define CRC_FOLD_LEAST 1024u
#define CRC_FOLD_TARGET __attribute__((target("avx512f,vpclmulqdq")))

static uint64_t crc_fold_low, crc_fold_high; /* x^(8 * CRC_FOLD_BYTES +- 32), reflected, times x */

static uint64_t crc_power(unsigned exponent) {
    uint32_t power = UINT32_C(1) << 31; /* 1, reflected */
    while (exponent--)
        power = power & 1 ? (power >> 1) ^ CRC32C_POLYNOMIAL : power >> 1;
    return (uint64_t)power << 1;
}

CRC_FOLD_TARGET static inline __m512i crc_fold(__m512i sum, __m512i by, const uint8_t *next) {
    __m512i low = _mm512_clmulepi64_epi128(sum, by, 0x00), high = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(next), 0x96); /* all three, by xor */
}

/* Four registers hold 256 bytes that leave the same remainder as all that went before. */
CRC_FOLD_TARGET static uint32_t crc_raw_folding(uint32_t crc, const uint8_t *p, size_t n) {
    if (n < CRC_FOLD_LEAST)
        return crc_raw_hardware(crc, p, n);
    const __m512i by = _mm512_set_epi64((long long)crc_fold_high, (long long)crc_fold_low,
                                        (long long)crc_fold_high, (long long)crc_fold_low,
                                        (long long)crc_fold_high, (long long)crc_fold_low,
                                        (long long)crc_fold_high, (long long)crc_fold_low);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    __m512i b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
    for (p += CRC_FOLD_BYTES, n -= CRC_FOLD_BYTES; n >= CRC_FOLD_BYTES; p += CRC_FOLD_BYTES, n -= CRC_FOLD_BYTES) {
        a = crc_fold(a, by, p);
        b = crc_fold(b, by, p + 64);
        c = crc_fold(c, by, p + 128);
        d = crc_fold(d, by, p + 192);
    }
    uint8_t rest[CRC_FOLD_BYTES];
    _mm512_storeu_si512(rest, a);
    _mm512_storeu_si512(rest + 64, b);
    _mm512_storeu_si512(rest + 128, c);
    _mm512_storeu_si512(rest + 192, d);
    return crc_raw_hardware(crc_raw_hardware(0, rest, sizeof rest), p, n);
}

static int crc_folds(void) {
    crc_fold_low = crc_power(8 * CRC_FOLD_BYTES + 32);
    crc_fold_high = crc_power(8 * CRC_FOLD_BYTES - 32);
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
}
#endif

uint32_t (*crc_raw)(uint32_t crc, const uint8_t *data, size_t n) = crc_raw_table;

static void crc_make(void) {
    crc_make_tables();
#ifndef CRC_NO_HARDWARE
    if (crc_hardware())
        crc_raw = crc_raw_hardware;
#endif
#if defined(__x86_64__)
    if (crc_raw != crc_raw_table && crc_folds())
        crc_raw = crc_raw_folding;
#endif
}

void crc_initialize(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, crc_make);
}
