/* The native core by itself: no Python, threads in the place of processes.
 *
 *   core_test NAME     run one test; exit status 0, or a message and abort
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../shmlog/native/core/append.h"
#include "../../shmlog/native/core/commit.h"
#include "../../shmlog/native/core/crc32c.h"
#include "../../shmlog/native/core/fork.h"
#include "../../shmlog/native/core/frame.h"
#include "../../shmlog/native/core/guard.h"
#include "../../shmlog/native/core/scan.h"
#include "../../shmlog/native/core/take.h"

#define CHECK(truth)                                                              \
    do {                                                                          \
        if (!(truth)) {                                                           \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #truth);   \
            abort();                                                              \
        }                                                                         \
    } while (0)

uint32_t other_unit_crc(const void *data, size_t bytes); /* core_other.c */

/* The vectors of RFC 3720, B.4, and the same through another translation unit. */
static void test_crc(void) {
    static const uint8_t zeros[32];
    uint8_t ones[32], up[32];
    memset(ones, 0xFF, sizeof ones);
    for (unsigned i = 0; i < 32; i++)
        up[i] = (uint8_t)i;
    CHECK(crc32c(0, zeros, 32) == 0x8A9136AA);
    CHECK(crc32c(0, ones, 32) == 0x62A8AB43);
    CHECK(crc32c(0, up, 32) == 0x46DD794E);
    uint8_t *large = malloc(100001);
    for (unsigned i = 0; i < 100001; i++)
        large[i] = (uint8_t)(i * 131 >> 3);
    for (size_t bytes = 0; bytes <= 100001; bytes += 1 + bytes / 7) {
        uint32_t crc = crc32c(0, large, bytes);
        CHECK(crc == ~crc_raw_table(~UINT32_C(0), large, bytes));
        CHECK(crc == other_unit_crc(large, bytes));
        CHECK(crc == crc32c(crc32c(0, large, bytes / 3), large + bytes / 3, bytes - bytes / 3));
    }
    free(large);
}

/* Every run of a ring of 128: published, found, cleared, and nothing beside it. */
static void test_bitmap(void) {
    shared_u64 words[2] = {0};
    bitmap_t b = {.words = words, .granules = 128};
    for (uint64_t first = 100; first < 260; first++)
        for (uint64_t count = 1; count <= 128; count++) {
            bitmap_publish(&b, first, first + count);
            CHECK(bitmap_scan(&b, first, first + count, 0) == first + count);
            if (count < 128)
                CHECK(bitmap_scan(&b, first + count, first + 128, 1) == first + 128);
            bitmap_clear(&b, first, first + count);
            CHECK(words[0] == 0 && words[1] == 0);
        }
}

/* A frame is valid where it is; with any bit of it flipped, nowhere. */
static void test_frames(void) {
    uint8_t bytes[96] = {0};
    frame_t out, f = {.payload_bytes = 33, .lsn = 4096, .kind = KIND_DATA, .tag = 7, .writer = 3};
    memset(bytes + 32, 0xA5, 33);
    frame_seal(bytes, f, crc32c(11, bytes + 32, 33));
    CHECK(frame_check(bytes, 4096, 96, 11, 1, &out) == FRAME_VALID && out.tag == 7);
    CHECK(frame_check(bytes, 4096, 95, 11, 1, &out) == FRAME_BAD_LENGTH);
    CHECK(frame_check(bytes, 4128, 96, 11, 1, &out) == FRAME_BAD_LSN);
    for (unsigned bit = 0; bit < 65 * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(frame_check(bytes, 4096, 96, 11, 1, &out) != FRAME_VALID);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* ---- writers and a flusher over one block, each a thread as if it were a process ---- */

enum { WRITERS = 3, RECORDS = 2000, WINDOW = 1 << 16, SEGMENT = 1 << 21, SLOTS = 8 };

static uint8_t *control, *frames;
static bitmap_t ring;
static _Atomic int writers_left;

static void *write_records(void *number) {
    writer_t w = {0};
    segment_entry_t *entries = calloc(segment_entries(SEGMENT, WINDOW), sizeof *entries);
    writer_initialize(&w, entries, 5, SEGMENT, WINDOW);
    writer_attach(&w, control, NULL, ring, (uint16_t)(uintptr_t)number);
    segment_map(&w, 0, frames, NULL, NULL);
    for (uint32_t i = 0; i < RECORDS; i++) {
        uint8_t data[200];
        memset(data, (int)(i & 0xFF), sizeof data);
        piece_t piece = {.data = data, .bytes = i % 200};
        plan_t plan = plan_pieces(&w, &piece, 1);
        plan.tag = i;
        ticketed_t t;
        uint64_t lsn;
        int outcome;
        do {
            CHECK(claim_take(&w, &t) == OUTCOME_DONE);
            outcome = append_plan(&w, &plan, &t, &lsn);
            if (outcome != OUTCOME_DONE) {
                CHECK(outcome == OUTCOME_ROOM);
                claim_give(&w, &t);
                sched_yield();
            }
        } while (outcome != OUTCOME_DONE);
    }
    free(entries);
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

static void *flush(void *unused) {
    (void)unused;
    commit_t c;
    int left;
    do {
        left = atomic_load(&writers_left); /* before the step that has to see their last */
        CHECK(commit_step(control, &ring, WINDOW, &c) == OUTCOME_DONE);
        sched_yield();
    } while (left || c.committed < c.reserved);
    return NULL;
}

static void test_writers_and_a_flusher(void) {
    size_t block = CB_HEADER_BYTES + SLOTS * PT_BYTES + WINDOW / GRANULE_BYTES / 8;
    control = mmap(NULL, block, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    frames = mmap(NULL, SEGMENT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ring = (bitmap_t){.words = word_at(control, CB_HEADER_BYTES + SLOTS * PT_BYTES),
                      .granules = WINDOW / GRANULE_BYTES};
    atomic_store(word_at(control, CB_STATE), STATE_RUNNING);
    atomic_store(word_at(control, CB_PREPARED_LSN), (uint64_t)SEGMENT);
    uint64_t whole = 0;
    for (unsigned i = 0; i < RECORDS; i++)
        whole += frame_bytes(i % 200);
    CHECK(whole > 4 * (uint64_t)WINDOW && WRITERS * whole <= SEGMENT); /* the ring wraps */
    writers_left = WRITERS;
    pthread_t threads[WRITERS + 1];
    pthread_create(&threads[WRITERS], NULL, flush, NULL);
    for (uintptr_t i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, write_records, (void *)i);
    for (unsigned i = 0; i <= WRITERS; i++)
        pthread_join(threads[i], NULL);
    uint64_t end = atomic_load(word_at(control, CB_COMMITTED_LSN));
    uint32_t next[WRITERS] = {0};
    for (uint64_t lsn = 0; lsn < end;) {
        frame_t f;
        CHECK(frame_check(frames + lsn, lsn, end - lsn, 5, 1, &f) == FRAME_VALID);
        CHECK(f.writer < WRITERS && f.tag == next[f.writer]++ && f.payload_bytes == f.tag % 200);
        for (unsigned i = 0; i < f.payload_bytes; i++)
            CHECK(frames[lsn + FRAME_HEADER_BYTES + i] == (uint8_t)f.tag);
        lsn += frame_bytes(f.payload_bytes);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        CHECK(next[i] == RECORDS);
}

enum { ORDERED = 2000 };
static shared_u64 ordered_words[64];
static uint64_t ordered_data[ORDERED]; /* a word each: of smaller ones the sanitizer forgets some */
static const bitmap_t ordered_ring = {.words = ordered_words, .granules = 64 * 64};

/* First within a word, then over three. */
static void *write_in_order(void *unused) {
    (void)unused;
    for (uint64_t g = 0, end; g < ORDERED; g = end) {
        end = g < ORDERED / 2 || g + 150 > ORDERED ? g + 1 : g + 150;
        for (uint64_t at = g; at < end; at++)
            ordered_data[at] = 7;
        CHECK(bitmap_publish(&ordered_ring, g, end) == OUTCOME_DONE);
    }
    return NULL;
}

/* Nothing but PUBLISH and SCAN orders what is written and what is read: in the test below the
 * writers' next compare-and-swap would hide that one of them is missing. */
static void test_publication(void) {
    pthread_t writer;
    pthread_create(&writer, NULL, write_in_order, NULL);
    for (uint64_t at = 0; at < ORDERED;)
        for (uint64_t end = bitmap_scan(&ordered_ring, at, at + 1, 0); at < end; at++) /* no later word's order */
            CHECK(ordered_data[at] == 7);
    pthread_join(writer, NULL);
}

/* A file that is cut under its map: the store completes and the fault is counted. */
static void test_guard(void) {
    char name[] = "/tmp/core_test_XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0 && ftruncate(fd, 8192) == 0);
    uint8_t *base = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(guard_install() == 0 && guard_install() == 0);
    guard_range_t *range = guard_add(base, 8192, PROT_READ | PROT_WRITE);
    base[5000] = 1;
    CHECK(!guard_faulted(range));
    uint64_t before = atomic_load(&process_ticket);
    CHECK(ftruncate(fd, 4096) == 0);
    *(volatile uint8_t *)(base + 5000) = 2;
    CHECK(guard_faulted(range) && atomic_load(&process_ticket) > before);
    guard_remove(range);
    close(fd);
}

static _Atomic int passed_on;

static void count_signal(int number) {
    (void)number;
    atomic_fetch_add(&passed_on, 1);
}

/* A SIGBUS that a process sent, with one of our addresses in it: none of ours. */
static void test_sent(void) {
    signal(SIGBUS, count_signal);
    CHECK(guard_install() == 0);
    uint8_t *base = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    guard_range_t *range = guard_add(base, 4096, PROT_READ | PROT_WRITE);
    base[0] = 7;
    siginfo_t info = {.si_signo = SIGBUS, .si_code = SI_QUEUE};
    info.si_addr = base;
    CHECK(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGBUS, &info) == 0);
    CHECK(atomic_load(&passed_on) == 1 && !guard_faulted(range) && base[0] == 7);
    guard_remove(range);
}

/* The hook is installed once, however often it is asked for: the next fork does not hang, and
 * the child has closed what was registered. */
static void test_fork(void) {
    fork_fd_t opened = {.fd = -1};
    CHECK(fork_initialize() == 0 && fork_initialize() == 0);
    CHECK(fork_open("/dev/null", O_RDONLY, &opened) == 0 && fork_is_open(&opened));
    int fd = opened.fd;
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(fcntl(fd, F_GETFD) < 0 && !fork_is_open(&opened) ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    fork_close(&opened);
    CHECK(fcntl(fd, F_GETFD) < 0);
}

/* ---- a scan of two segments, whose columns are let go of in several threads ---- */

enum { SCAN_SEGMENT = 1 << 16, SCAN_SEED = 5 };

static void write_segment(const char *directory, uint64_t first) {
    char path[256];
    snprintf(path, sizeof path, "%s/%020llu.seg", directory, (unsigned long long)first);
    uint8_t *bytes = calloc(1, SEGMENT_HEADER_BYTES + SCAN_SEGMENT), *at = bytes + SEGMENT_HEADER_BYTES;
    CHECK(bytes);
    memset(bytes, 'h', SCAN_HEADER_BYTES);
    for (uint64_t lsn = first; lsn < first + SCAN_SEGMENT; lsn += 160, at += 160) {
        uint64_t left = first + SCAN_SEGMENT - lsn;
        if (left < 160) {
            frame_seal_filler(at, KIND_PAD, lsn, left, 0, 0, 0, SCAN_SEED);
            break;
        }
        frame_t f = {.payload_bytes = 128, .lsn = lsn, .kind = KIND_DATA, .tag = (uint32_t)(lsn / 160 % 7)};
        memset(at + 32, (int)(lsn & 0x7F) + 1, 128);
        memcpy(at + 32, &lsn, 8);
        frame_seal(at, f, crc32c(SCAN_SEED, at + 32, 128));
    }
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, bytes, SEGMENT_HEADER_BYTES + SCAN_SEGMENT) == SEGMENT_HEADER_BYTES + SCAN_SEGMENT);
    close(fd);
    free(bytes);
}

static char *copied(const char *text) {
    char *copy = strdup(text);
    CHECK(copy);
    return copy;
}

static scan_t *new_scan(const char *directory) {
    static const node_t nodes[] = {{"", "+s", 3, NODE_STRUCT, 0, 0, 1},
                                   {"data", "vz", 0, NODE_DATA, 0, 0, 1},
                                   {"number", "l", 0, NODE_INSTANTS, 0, 8, 1},
                                   {"list", "+w:2", 1, NODE_LIST, 0, 0, 1},
                                   {"item", "I", 0, NODE_SWAPPED, 8, 4, 2}};
    form_t *form = form_new(5);
    CHECK(form);
    for (size_t i = 0; i < form->count; i++) {
        form->nodes[i] = nodes[i];
        form->nodes[i].name = copied(nodes[i].name);
        form->nodes[i].format = copied(nodes[i].format);
    }
    form->payload_bytes = 128;
    CHECK(form_check(form));
    form->nodes[2].offset = 121;
    CHECK(!form_check(form)); /* beyond the payload */
    form->nodes[2].offset = 0;
    form->nodes[3].child_count = 2;
    CHECK(!form_check(form)); /* no tree */
    form->nodes[3].child_count = 1;
    CHECK(form_check(form));
    scan_t *scan = calloc(1, sizeof *scan);
    CHECK(scan);
    scan->form = form;
    scan->directory = copied(directory);
    memset(scan->header, 'h', SCAN_HEADER_BYTES);
    scan->segment_bytes = SCAN_SEGMENT;
    scan->owner = geteuid();
    scan->stop = scan->end = 2 * SCAN_SEGMENT;
    scan->seed = SCAN_SEED;
    scan->verify = 1;
    scan->batch_records = 100;
    scan->batch_bytes = 1 << 20;
    return scan;
}

static void *let_go(void *array) {
    struct ArrowArray *own = array;
    own->release(own);
    return NULL;
}

static void test_scan(void) {
    char directory[] = "/tmp/core_test_XXXXXX", path[256];
    CHECK(mkdtemp(directory));
    write_segment(directory, 0);
    write_segment(directory, SCAN_SEGMENT);
    struct ArrowArrayStream stream;
    struct ArrowSchema schema;
    struct ArrowArray batch;
    scan_stream(new_scan(directory), &stream);
    CHECK(stream.get_schema(&stream, &schema) == 0 && schema.n_children == 3);
    struct ArrowSchema child = *schema.children[2];
    schema.children[2]->release = NULL; /* moved */
    schema.release(&schema);
    CHECK(!schema.release && strcmp(child.children[0]->format, "I") == 0);
    child.release(&child);
    int64_t rows = 0;
    for (; stream.get_next(&stream, &batch) == 0 && batch.release; rows += batch.length) {
        struct ArrowArray parts[3];
        pthread_t threads[3];
        for (unsigned i = 0; i < 3; i++) {
            parts[i] = *batch.children[i];
            batch.children[i]->release = NULL;
        }
        batch.release(&batch);
        const int64_t *numbers = parts[1].buffers[1];
        for (int64_t i = 1; i < parts[1].length; i++)
            CHECK(numbers[i] == numbers[i - 1] + 160 || numbers[i] == SCAN_SEGMENT);
        for (unsigned i = 0; i < 3; i++)
            CHECK(pthread_create(&threads[i], NULL, let_go, &parts[i]) == 0);
        for (unsigned i = 0; i < 3; i++)
            CHECK(pthread_join(threads[i], NULL) == 0 && !parts[i].release);
    }
    CHECK(rows == 2 * (SCAN_SEGMENT / 160) && stream.get_last_error(&stream) == NULL);
    stream.release(&stream);
    scan_stream(new_scan(directory), &stream); /* released half-way, with a batch that goes on */
    CHECK(stream.get_next(&stream, &batch) == 0 && batch.length == 100);
    stream.release(&stream);
    CHECK(((const int64_t *)batch.children[1]->buffers[1])[99] == 99 * 160);
    batch.release(&batch);
    for (uint64_t first = 0; first <= SCAN_SEGMENT; first += SCAN_SEGMENT) {
        snprintf(path, sizeof path, "%s/%020llu.seg", directory, (unsigned long long)first);
        CHECK(unlink(path) == 0);
    }
    scan_stream(new_scan(directory), &stream);
    CHECK(stream.get_next(&stream, &batch) == ENOENT && stream.get_next(&stream, &batch) == ENOENT);
    CHECK(strstr(stream.get_last_error(&stream), "trimmed"));
    stream.release(&stream);
    CHECK(rmdir(directory) == 0);
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {{"crc", test_crc},     {"bitmap", test_bitmap}, {"frames", test_frames},
                 {"guard", test_guard}, {"sent", test_sent},     {"fork", test_fork},     {"writers", test_writers_and_a_flusher},
                 {"scan", test_scan},     {"publication", test_publication}};
    crc_initialize();
    crc_initialize();
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (count == 2 && strcmp(arguments[1], tests[i].name) == 0) {
            tests[i].run();
            return 0;
        }
    return 2;
}
