/* A fuzzer of the frame walker, of its own: any C compiler runs it.
 *
 *     frames fuzz SECONDS COUNT SEED INPUT [SAVE]   mutate for so long, or so often (0: no bound)
 *     frames replay FILE...                         judge inputs that were kept
 *     frames race COUNT                             walk a frame whose length changes meanwhile
 *
 *     input   | place, 56 bytes: where in the log, which bounds, what is wanted | frames |
 *
 * Mutations know what a frame is: most are followed by a repair that gives frames their own
 * LSN and checksum again, so that the fuzzer gets past both.  An input that takes a branch
 * nobody took before joins the corpus.  Each is judged by frames_oracle.c, a second reading
 * that shares no line with the core; whatever differs is a violation, and so is a byte read
 * beside the bounds (what lies there cannot be read), an allocation, or a second without an
 * end.  INPUT is a file that always holds the present input, whatever becomes of the process.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "../../shmlog/native/core/frame.h"
#include "frames.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void *, size_t),
                                              void (*)(const volatile void *)); /* gcc lacks its header */
#endif

#define UNTRACED __attribute__((no_sanitize_coverage))

/* ------------------------------------------------------------ what was seen */

enum { EDGES = 1 << 14, CORPUS_MAX = 4096, SAVED_MAX = 64 };
static uint8_t hits[EDGES], seen[EDGES];
static uintptr_t edge_before;
static int tracing;

UNTRACED void __sanitizer_cov_trace_pc(void);
UNTRACED void __sanitizer_cov_trace_pc(void) {
    if (!tracing)
        return;
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    size_t edge = (here ^ edge_before << 7 ^ here >> 11) % EDGES;
    if (hits[edge] < 255)
        hits[edge]++;
    edge_before = here;
}

/* How often counts by powers of two: once, twice, up to 4, 8 ... */
UNTRACED static int something_new(void) {
    int found = 0;
    for (size_t at = 0; at < EDGES; at += 8) {
        uint64_t eight;
        memcpy(&eight, hits + at, 8);
        for (size_t edge = at; eight && edge < at + 8; edge++) {
            if (!hits[edge])
                continue;
            uint8_t bucket = (uint8_t)(1u << (31 - __builtin_clz(hits[edge])));
            found |= bucket & ~seen[edge];
            seen[edge] |= bucket;
        }
    }
    return found;
}

/* ------------------------------------------------------------------- dying */

static input_t *present; /* in a shared file: it outlives us */
static volatile uint64_t executions, executions_before;
static uint64_t allocations;

UNTRACED static void violation(const char *what, uint64_t core, uint64_t oracle) {
    fprintf(stderr, "VIOLATION %s: the core says %llu, the oracle %llu\n", what, (unsigned long long)core,
            (unsigned long long)oracle);
    _exit(3);
}

UNTRACED static void tick(int number) {
    (void)number;
    static const char text[] = "VIOLATION an input takes a second\n";
    if (executions == executions_before && write(2, text, sizeof text - 1) > 0)
        _exit(3);
    executions_before = executions;
}

#if defined(__SANITIZE_ADDRESS__)
UNTRACED static void count_allocation(const volatile void *at, size_t size) {
    (void)at;
    (void)size;
    allocations++;
}
UNTRACED static void count_nothing(const volatile void *at) { (void)at; }
#endif

/* ----------------------------------------------------------------- judging */

static uint8_t *arena_end; /* an unreadable page begins here */
static columns_t core_columns, oracle_columns;
static uint8_t columns_memory[2][CAPACITY_MAX * 26 + 64];

UNTRACED static columns_t columns_in(uint8_t *memory) {
    columns_t c = {.capacity = CAPACITY_MAX};
    c.lsn = (uint64_t *)(void *)memory;
    c.time_ns = (int64_t *)(void *)(memory + 8 * CAPACITY_MAX);
    c.tag = (uint32_t *)(void *)(memory + 16 * CAPACITY_MAX);
    c.payload_bytes = (uint32_t *)(void *)(memory + 20 * CAPACITY_MAX);
    c.writer = (uint16_t *)(void *)(memory + 24 * CAPACITY_MAX);
    return c;
}

UNTRACED static void same(const char *what, uint64_t core, uint64_t oracle) {
    if (core != oracle)
        violation(what, core, oracle);
}

UNTRACED static void compare_columns(uint64_t count) {
    for (uint64_t n = 0; n < count; n++) {
        same("an LSN", core_columns.lsn[n], oracle_columns.lsn[n]);
        same("a time", (uint64_t)core_columns.time_ns[n], (uint64_t)oracle_columns.time_ns[n]);
        same("a tag", core_columns.tag[n], oracle_columns.tag[n]);
        same("a writer", core_columns.writer[n], oracle_columns.writer[n]);
        same("a length", core_columns.payload_bytes[n], oracle_columns.payload_bytes[n]);
    }
}

/* What the core writes, the oracle accepts, and the processor's checksum is the table's. */
UNTRACED static void judge_sealing(const uint8_t *bytes, const place_t *p) {
    static uint8_t sealed[2 * BYTES_MAX];
    uint64_t at = (p->end_lsn ^ p->begin_lsn) % 512, size = (p->end_lsn ^ p->seed) % 512;
    uint32_t crc = crc32c(p->seed, bytes + at, size);
    same("a checksum", crc, oracle_crc(p->seed, bytes + at, size));
    same("the table's checksum", ~crc_raw_table(~p->seed, bytes + at, size), crc);
    memset(sealed, 0xEE, sizeof sealed);
    memcpy(sealed + FRAME_HEADER_BYTES, bytes + at, size);
    frame_t f = {.payload_bytes = (uint32_t)size, .lsn = p->base_lsn, .kind = KIND_DATA};
    memcpy(&f.time_ns, bytes, 8);
    frame_seal(sealed, f, crc);
    place_t whole = {.base_lsn = f.lsn, .begin_lsn = f.lsn, .end_lsn = f.lsn + frame_bytes(size), .tag = -1};
    whole.seed = p->seed;
    whole.verify = 1;
    whole.capacity = 1;
    walk_t o = oracle_walk(sealed, &whole, &oracle_columns);
    same("a sealed frame", o.next_lsn - f.lsn, frame_bytes(size));
    for (uint64_t n = FRAME_HEADER_BYTES + size; n < frame_bytes(size); n++)
        same("a byte of the padding", sealed[n], 0);
    frame_seal_filler(sealed, KIND_FILL, f.lsn, frame_bytes(size), f.time_ns, 7, 0, p->seed);
    o = oracle_walk(sealed, &whole, &oracle_columns);
    same("a sealed filler", o.next_lsn - f.lsn, frame_bytes(size));
}

UNTRACED static void judge(const input_t *in) {
    place_t p = in->place;
    place_bound(&p);
    uint64_t used = p.end_lsn - p.base_lsn;
    uint8_t *base = arena_end - used; /* the last byte before the bound is the last that can be read */
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(base, used);
    ASAN_POISON_MEMORY_REGION(arena_end - BYTES_MAX - 64, BYTES_MAX + 64 - used);
#endif
    memcpy(base, in->bytes, used);
    memset(hits, 0, sizeof hits);
    core_columns.capacity = oracle_columns.capacity = p.capacity;
    uint64_t allocations_before = allocations;
    edge_before = 0;
    tracing = 1;
    tags_t tags = {.kind = p.tag == -1 ? TAGS_ALL : TAGS_RANGE, .step = 1};
    tags.low = tags.high = (uint32_t)p.tag;
    walk_t w = frame_walk(base, p.base_lsn, p.begin_lsn, place_stop_lsn(&p), p.end_lsn, p.seed, p.verify, &tags,
                          p.stop_at_gap, &core_columns);
    uint64_t found = frame_find(base, p.base_lsn, p.begin_lsn, p.end_lsn, p.seed);
    tracing = 0;
    same("allocations", allocations, allocations_before);
    walk_t o = oracle_walk(base, &p, &oracle_columns);
    same("how many records", w.count, o.count);
    same("where the walk stops", w.next_lsn, o.next_lsn);
    same("where the last whole batch ends", w.whole_lsn, o.whole_lsn);
    same("why the walk stops", w.problem, o.problem);
    compare_columns(w.count);
    same("the next frame", found, oracle_find(base, &p));
    if (w.problem == FRAME_VALID)
        judge_sealing(in->bytes, &p);
    executions++;
}

/* ---------------------------------------------------------------- mutating */

static uint64_t dice;
UNTRACED static uint64_t roll(uint64_t sides) { /* splitmix64 */
    uint64_t z = dice += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return (z ^ z >> 31) % sides;
}

static const uint64_t BASES[] = {0, 65536, UINT64_C(1) << 32, (UINT64_C(1) << 62) - 65536, UINT64_C(1) << 63};
static const uint32_t LENGTHS[] = {0,          1,          31,         32,         33,        64,
                                   0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFE0, 0xFFFFFFC0, 0xFFFFFFDF};

UNTRACED static void seal(input_t *in, uint64_t at, uint64_t room) {
    uint8_t *frame = in->bytes + at;
    uint64_t lsn = in->place.base_lsn + at;
    memcpy(frame + 8, &lsn, 8);
    uint32_t size, crc = in->place.seed;
    memcpy(&size, frame, 4);
    if (frame[30] == 1 && size <= room - 32)
        crc = oracle_crc(crc, frame + 32, size);
    crc = oracle_crc(oracle_crc(crc, frame, 4), frame + 8, 24);
    memcpy(frame + 4, &crc, 4);
}

/* Give every frame its own LSN and checksum, but for one in a hundred. */
UNTRACED static void repair(input_t *in) {
    uint64_t used = in->place.end_lsn - in->place.base_lsn, at = in->place.begin_lsn - in->place.base_lsn;
    while (at + 32 <= used) {
        uint32_t size;
        memcpy(&size, in->bytes + at, 4);
        if (roll(100))
            seal(in, at, used - at);
        at += ((uint64_t)size + 63) / 32 * 32;
    }
}

UNTRACED static void lay_out(input_t *in) {
    place_t *p = &in->place;
    *p = (place_t){.base_lsn = BASES[roll(5)], .seed = (uint32_t)roll(3) * 0x5EED, .verify = 1, .tag = -1};
    uint64_t used = 32 * (1 + roll(BYTES_MAX / 32)), at = 0;
    p->begin_lsn = p->base_lsn;
    p->end_lsn = p->base_lsn + used;
    p->capacity = (uint32_t)CAPACITY_MAX;
    memset(in->bytes, 0, sizeof in->bytes);
    while (at + 32 <= used && roll(20)) {
        uint64_t room = used - at - 32;
        uint32_t size = (uint32_t)(roll(8) ? roll(1 + (room < 96 ? room : 96)) : room - roll(1 + (room < 33 ? room : 33)));
        uint8_t *frame = in->bytes + at;
        for (uint64_t n = 16; n < 32 + (uint64_t)size; n++)
            frame[n] = (uint8_t)roll(256);
        memcpy(frame, &size, 4);
        frame[30] = (uint8_t)(roll(6) ? 1 : 2 + roll(2));
        frame[31] = roll(4) == 0;
        at += ((uint64_t)size + 63) / 32 * 32;
    }
    repair(in);
}

UNTRACED static void change_place(input_t *in) {
    place_t *p = &in->place;
    uint64_t used = p->end_lsn - p->base_lsn, begin = p->begin_lsn - p->base_lsn;
    switch (roll(9)) {
    case 0: p->base_lsn = BASES[roll(5)]; break;
    case 1: used = roll(BYTES_MAX + 1); break;
    case 2: begin = 32 * roll(used / 32 + 1); break;
    case 3: p->verify ^= 1; break;
    case 4: p->stop_at_gap ^= 1; break;
    case 5: p->capacity = (uint32_t)roll(CAPACITY_MAX + 1); break;
    case 6: p->tag = (int64_t)roll(4) - 1; break;
    case 7: p->stop_before = (uint16_t)roll(used + 1); break;
    default: p->seed = (uint32_t)roll(UINT64_C(1) << 32); break;
    }
    p->begin_lsn = p->base_lsn + begin;
    p->end_lsn = p->base_lsn + used;
    place_bound(p);
}

UNTRACED static void change_bytes(input_t *in, const input_t *other) {
    uint64_t granules = BYTES_MAX / 32, at = 32 * roll(granules), to = 32 * roll(granules);
    uint8_t *frame = in->bytes + at, spare[32];
    uint32_t word = LENGTHS[roll(sizeof LENGTHS / sizeof *LENGTHS)];
    uint64_t count = 32 * (1 + roll(8));
    switch (roll(13)) {
    case 0: in->bytes[roll(BYTES_MAX)] ^= (uint8_t)(1u << roll(8)); break;
    case 1: in->bytes[roll(BYTES_MAX)] = (uint8_t)roll(256); break;
    case 2: memcpy(frame, &word, 4); break;
    case 3: word = (uint32_t)roll(256); memcpy(frame, &word, 4); break;
    case 4: frame[30] = (uint8_t)roll(5); break;
    case 5: frame[31] = (uint8_t)roll(4); break;
    case 6: memset(frame, 0, 32); break;
    case 7: memcpy(in->bytes + to, frame, 32); break;
    case 8: memcpy(spare, frame, 32); memcpy(frame, in->bytes + to, 32); memcpy(in->bytes + to, spare, 32); break;
    case 9: word = (uint32_t)roll(4); memcpy(frame + 24, &word, 4); break;
    case 10: memcpy(frame, other->bytes + at, BYTES_MAX - at); break;
    case 11: if (count > BYTES_MAX - (at > to ? at : to)) count = 32;
             memmove(in->bytes + to, frame, count); break;
    default: seal(in, at, BYTES_MAX - at); break;
    }
}

static input_t corpus[CORPUS_MAX];
static uint32_t corpus_count;

UNTRACED static void mutate(void) {
    if (!corpus_count || roll(64) == 0) {
        lay_out(present);
        return;
    }
    *present = corpus[roll(corpus_count)];
    for (uint64_t n = 1 + roll(4); n; n--) {
        if (roll(4) == 0)
            change_place(present);
        else
            change_bytes(present, &corpus[roll(corpus_count)]);
    }
    if (roll(3))
        repair(present);
}

/* ------------------------------------------------------------------ running */

UNTRACED static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

UNTRACED static void save(const char *directory) {
    uint32_t step = corpus_count / SAVED_MAX + 1;
    for (uint32_t n = 0; n < corpus_count; n += step) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%04u", directory, n);
        FILE *file = fopen(name, "wb");
        if (!file || fwrite(&corpus[n], sizeof corpus[n], 1, file) != 1 || fclose(file) != 0)
            exit(2);
    }
}

UNTRACED static void keep(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof *present) != 0)
        exit(2);
    present = mmap(NULL, sizeof *present, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (present == MAP_FAILED)
        exit(2);
}

UNTRACED static void prepare(void) {
    size_t bytes = 3 * 4096;
    uint8_t *arena = mmap(NULL, bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED || mprotect(arena + bytes, 4096, PROT_NONE) != 0)
        exit(2);
    arena_end = arena + bytes;
    core_columns = columns_in(columns_memory[0]);
    oracle_columns = columns_in(columns_memory[1]);
    crc_initialize();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_install_malloc_and_free_hooks(count_allocation, count_nothing);
#endif
    struct itimerval second = {{1, 0}, {1, 0}};
    signal(SIGVTALRM, tick);
    setitimer(ITIMER_VIRTUAL, &second, NULL); /* of our own time, however busy the machine is */
}

UNTRACED static int fuzz(char **arguments, int count) {
    double until = now_s() + strtod(arguments[0], NULL);
    uint64_t most = strtoull(arguments[1], NULL, 10), edges = 0;
    dice = strtoull(arguments[2], NULL, 10);
    keep(arguments[3]);
    while (most ? executions < most : executions % 1024 || now_s() < until) {
        mutate();
        judge(present);
        if (something_new() && corpus_count < CORPUS_MAX)
            corpus[corpus_count++] = *present;
    }
    for (size_t edge = 0; edge < EDGES; edge++)
        edges += seen[edge] != 0;
    if (count > 4)
        save(arguments[4]);
    printf("executions %llu corpus %u edges %llu\n", (unsigned long long)executions, corpus_count,
           (unsigned long long)edges);
    return 0;
}

UNTRACED static int replay(char **paths, int count) {
    static input_t in;
    for (int n = 0; n < count; n++) {
        FILE *file = fopen(paths[n], "rb");
        if (!file || fread(&in, sizeof in, 1, file) != 1 || fclose(file) != 0)
            return 2;
        judge(&in);
    }
    printf("executions %llu\n", (unsigned long long)executions);
    return 0;
}

/* ------------------------------------------------------------------- racing */

static uint8_t *racing_length;

UNTRACED static void *change_length(void *unused) {
    (void)unused;
    for (uint32_t n = 0;; n++)
        *(volatile uint32_t *)(void *)racing_length = n & 1 ? 0 : 0x7FFFFFE0;
    return NULL;
}

enum { CHANGES_MIN = 20000 };

/* Somebody changes a length for ever while it is read, as one who shares the memory can: what
 * was checked is what has to be used.  Both values are seen in turn, or it was no race. */
UNTRACED static int race(uint64_t rounds) {
    pthread_t thread;
    uint8_t *base = arena_end - 64;
    uint64_t changes = 0;
    double until = now_s() + 10;
    memset(base, 0, 64);
    base[30] = KIND_DATA;
    racing_length = base;
    if (pthread_create(&thread, NULL, change_length, NULL) != 0)
        return 2;
    columns_t none = {.capacity = UINT64_MAX};
    tags_t all = {.kind = TAGS_ALL};
    for (enum frame_problem before = FRAME_VALID; executions < rounds || changes < CHANGES_MIN;) {
        walk_t w = frame_walk(base, 0, 0, 64, 64, 0, 0, &all, 0, &none);
        if (w.next_lsn > 64)
            violation("a walk leaves its bounds", w.next_lsn, 64);
        changes += w.problem != before;
        before = w.problem;
        if (++executions % 1024 == 0 && now_s() > until)
            break; /* one core only, and much else to do */
    }
    printf("executions %llu\n", (unsigned long long)executions);
    fflush(stdout);
    _exit(changes < CHANGES_MIN / 1000 ? 2 : 0);
}

UNTRACED int main(int count, char **arguments) {
    prepare();
    if (count >= 6 && strcmp(arguments[1], "fuzz") == 0)
        return fuzz(arguments + 2, count - 2);
    if (count >= 2 && strcmp(arguments[1], "replay") == 0)
        return replay(arguments + 2, count - 2);
    if (count == 3 && strcmp(arguments[1], "race") == 0)
        return race(strtoull(arguments[2], NULL, 10));
    return 2;
}
