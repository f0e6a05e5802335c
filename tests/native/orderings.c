/* The pairs of the core's atomics (atomics.h), each put to the test by threads that rely on it.
 *
 *   orderings SCENARIO BUDGET            every run with so many choices that cost
 *   orderings SCENARIO BUDGET SEED RUNS  so many random ones
 *
 * Prints the number of runs; exit status 1 and what went wrong if one did.
 *
 * The writers, the commit step, the waits and the sync cycle are the core's.  What the flusher
 * does in Python is done here with the same accesses: Control.load and store are seq_cst,
 * Control.scan has a fence in front (control.c).  Bells and the lock around a step hand over what
 * their giver has seen, no more.
 */
#define _GNU_SOURCE
#include "weak_memory.h"

#include "append.h"
#include "commit.h"
#include "sync.h"
#include "wait.h"

enum { SLOTS = 2, WINDOW = 64 * GRANULE_BYTES, SEGMENT = 1 << 16, SEED = 5, PAYLOAD = 40, FRAME = 96 };

static uint8_t control[CB_HEADER_BYTES + SLOTS * PT_BYTES + 8] __attribute__((aligned(64)));
static const bitmap_t ring = {.words = (shared_u64 *)(void *)(control + CB_HEADER_BYTES + SLOTS * PT_BYTES),
                              .granules = WINDOW / GRANULE_BYTES};
static writer_t writers[2];
static segment_entry_t entries[2][4];
static int bells; /* posted and not yet waited for */
static int step_locked;
static view_t bell_view, step_view;
static uint64_t prepared_at_first;

_Atomic uint64_t process_ticket = 1;

/* Not the real checksum: it only has to see every byte. */
static uint32_t sum(uint32_t crc, const uint8_t *data, size_t bytes) {
    model_touch(data, bytes, 0);
    for (size_t i = 0; i < bytes; i++)
        crc = crc * 31 + data[i];
    return crc;
}

uint32_t (*crc_raw)(uint32_t crc, const uint8_t *data, size_t n) = sum;

/* The block but for counters, and what the threads of a handle share. */
static int watched(const volatile void *at) {
    const volatile uint8_t *a = at;
    if (a >= control && a < control + sizeof control) {
        uint64_t offset = (uint64_t)(a - control) - CB_HEADER_BYTES - PT_CLAIMS;
        return a < control + CB_HEADER_BYTES || a >= control + CB_HEADER_BYTES + SLOTS * PT_BYTES ||
               offset % CL_BYTES < CL_RECORDS;
    }
    return at == &writers[0].free_claims || at == &writers[0].floor;
}

static void prepare(void) {
    memset(control, 0, sizeof control);
    atomic_store(word_at(control, CB_STATE), STATE_RUNNING);
    atomic_store(word_at(control, CB_PREPARED_LSN), prepared_at_first);
    atomic_store(word_at(control, CB_LIMIT_LSN), prepared_at_first);
    atomic_store(word_at(control, CB_INTENT_LSN), NO_LSN);
    for (unsigned n = 0; n < SLOTS; n++) {
        for (unsigned claim = 0; claim < CLAIM_COUNT; claim++)
            atomic_store(word_at(control, CB_HEADER_BYTES + n * PT_BYTES + PT_CLAIMS + claim * CL_BYTES), NO_LSN);
        memset(entries[n], 0, sizeof entries[n]);
        writer_initialize(&writers[n], entries[n], SEED, SEGMENT, WINDOW);
        writer_attach(&writers[n], control, NULL, ring, (uint16_t)n);
        segment_map(&writers[n], 0, model_plain, NULL, NULL);
    }
    bells = step_locked = 0;
    bell_view = step_view = (view_t){0};
}

/* ---- what the threads do ---- */

static void ring_bell(void) {
    model_switch();
    model_give(&bell_view);
    bells++;
    model_wake(&bells);
}

static void wait_for_bell(void) {
    model_switch();
    while (!bells)
        model_sleep(&bells);
    bells--;
    model_take(&bell_view);
}

static void read_record(uint64_t lsn) {
    frame_t f;
    if (frame_check(model_plain + lsn, lsn, FRAME, SEED, 1, &f) != FRAME_VALID)
        model_fail("a record that may be read is not valid");
}

static commit_t step(void) {
    commit_t c;
    while (step_locked) /* ControlBlock.step: one thread at a time */
        model_sleep(&step_locked);
    step_locked = 1;
    model_take(&step_view);
    commit_step(control, &ring, WINDOW, &c);
    model_give(&step_view);
    step_locked = 0;
    model_wake(&step_locked);
    return c;
}

static uint64_t load(uint64_t word) { return atomic_load(word_at(control, word)); }

static uint64_t scan(uint64_t begin, uint64_t end, int set) { /* Control.scan */
    atomic_thread_fence(memory_order_seq_cst);
    return bitmap_scan(&ring, begin >> GRANULE_SHIFT, end >> GRANULE_SHIFT, set) << GRANULE_SHIFT;
}

/* find_hole (flusher/holes.py), where everybody lives: there is none. */
static void find_no_hole(uint64_t g) {
    uint64_t tail = load(CB_RESERVED_LSN);
    if (g >= tail || load(CB_COMMITTED_LSN) != g)
        return;
    int busy = 0;
    for (uint64_t n = 0; n < SLOTS; n++)
        busy |= (load(CB_HEADER_BYTES + n * PT_BYTES + PT_CLAIMS + CL_BEGIN) & ~(uint64_t)CLAIM_HELD) == g;
    if (scan(g, tail, 1) == g || load(CB_COMMITTED_LSN) != g)
        return;
    if (!busy)
        model_fail("a live writer's record is taken for a hole");
}

/* Committer.loop and _sleep, without time-outs, until `end` is committed. */
static void commit_until(uint64_t end) {
    for (;;) {
        uint64_t wanted = load(CB_WANTED_COMMITTED);
        commit_t c = step();
        if (c.committed >= end)
            return;
        atomic_store(word_at(control, CB_COMMIT_SLEEP), (uint64_t)SLEEP_IDLE);
        int moved = load(CB_RESERVED_LSN) != c.reserved ||
                    (c.committed < c.reserved &&
                     scan(c.committed, c.committed + GRANULE_BYTES, 0) == c.committed + GRANULE_BYTES);
        if (load(CB_WANTED_COMMITTED) == wanted && !moved)
            wait_for_bell();
        atomic_store(word_at(control, CB_COMMIT_SLEEP), (uint64_t)SLEEP_AWAKE);
    }
}

/* Waiting.until, without time-outs. */
static void wait_for(uint64_t watermark, uint64_t wanted, uint64_t sleep_word, uint64_t target) {
    for (int ring_first = 1;; ring_first = 0) {
        enum wait_end end =
            word_wait(control, watermark, wanted, sleep_word, target, ring_first, 0, UINT64_C(1) << 60);
        if (end == WAIT_REACHED)
            return;
        if (end == WAIT_RING)
            ring_bell();
    }
}

static void append(writer_t *w, unsigned tag) {
    uint8_t data[PAYLOAD];
    memset(data, (int)tag, sizeof data);
    piece_t piece = {.data = data, .bytes = sizeof data};
    plan_t plan = plan_pieces(w, &piece, 1);
    plan.tag = tag;
    for (;;) {
        ticketed_t t = {0};
        uint64_t lsn;
        if (claim_take(w, &t) != OUTCOME_DONE)
            model_fail("no claim is free");
        int outcome = append_plan(w, &plan, &t, &lsn);
        if (outcome == OUTCOME_DONE)
            return;
        claim_give(w, &t);
        if (outcome != OUTCOME_ROOM || t.want > SEGMENT)
            model_fail("an append was refused for ever although there is room");
        wait_for(CB_LIMIT_LSN, CB_WANTED_LIMIT, CB_COMMIT_SLEEP, t.want);
    }
}

/* ---- the scenarios ---- */

static void append_first(void) { append(&writers[0], 1); }
static void append_second(void) { append(&writers[1], 2); }
static void append_by_the_same(void) { append(&writers[0], 2); }

static void append_and_ring(void) {
    append_first();
    if (flusher_sleeps(&writers[0]))
        ring_bell();
}

static void step_twice(void) {
    step();
    step();
}

/* Preparer.loop: the bytes, then how far they go, then the limit. */
static void prepare_piece(void) {
    memset(model_plain, 0, FRAME);
    atomic_store(word_at(control, CB_PREPARED_LSN), (uint64_t)WINDOW);
    step();
    word_wake(word_at(control, CB_LIMIT_LSN));
}

static void read_committed(void) {
    if (word_wait(control, CB_COMMITTED_LSN, CB_WANTED_COMMITTED, CB_COMMIT_SLEEP, 1, 0, 0, 0) == WAIT_REACHED)
        read_record(0);
}

static void look_for_holes(void) {
    find_no_hole(0);
    find_no_hole(FRAME);
    find_no_hole(0);
}

static void commit_one(void) { commit_until(FRAME); }

static void wait_committed(void) {
    wait_for(CB_COMMITTED_LSN, CB_WANTED_COMMITTED, CB_COMMIT_SLEEP, FRAME);
    read_record(0);
}

static void wait_durable(void) {
    wait_for(CB_DURABLE_LSN, CB_WANTED_DURABLE, CB_SYNC_SLEEP, FRAME);
    read_record(0);
}

/* Syncer.loop and _sleep, without time-outs, where one record is waited for. */
static void sync_when_wanted(void) {
    for (;;) {
        uint64_t wanted = load(CB_WANTED_DURABLE);
        if (wanted) {
            if (sync_cycle(control, NULL, 0, NULL, 0, 0, step().committed) != 0)
                model_fail("a sync failed");
            return;
        }
        atomic_store(word_at(control, CB_SYNC_SLEEP), (uint64_t)SLEEP_IDLE);
        if (load(CB_WANTED_DURABLE) == wanted)
            wait_for_bell();
        atomic_store(word_at(control, CB_SYNC_SLEEP), (uint64_t)SLEEP_AWAKE);
    }
}

/* What counts is what the waiter, another thread, sees of the record. */
static void append_and_sync(void) {
    append_first();
    sync_when_wanted();
}

static void check(uint64_t end) {
    commit_t c;
    commit_step(control, &ring, WINDOW, &c);
    if (c.committed != end || c.reserved != end)
        model_fail("not everything that was appended is committed");
    for (uint64_t lsn = 0; lsn < end; lsn += FRAME)
        read_record(lsn);
}

static void check_one(void) { check(FRAME); }
static void check_two(void) { check(2 * FRAME); }

static const scenario_t scenarios[] = {
    {"read", {append_first, step_twice, read_committed}, check_one},
    {"writers", {append_first, append_second, step_twice, read_committed}, check_two},
    {"holes", {append_first, step_twice, look_for_holes}, check_one},
    {"handle", {append_first, append_by_the_same}, check_two},
    {"room", {append_first, prepare_piece, step_twice}, check_one},
    {"sleep", {append_and_ring, commit_one}, check_one},
    {"wait", {append_and_ring, commit_one, wait_committed}, check_one},
    {"sync", {append_and_sync, wait_durable}, check_one},
};

int main(int count, char **arguments) {
    model_watches = watched;
    for (size_t i = 0; count > 2 && i < sizeof scenarios / sizeof *scenarios; i++) {
        if (strcmp(arguments[1], scenarios[i].name) != 0)
            continue;
        prepared_at_first = strcmp(arguments[1], "room") == 0 ? 0 : WINDOW;
        uint64_t seed = count > 4 ? strtoull(arguments[3], NULL, 10) : 0;
        uint64_t most = count > 4 ? strtoull(arguments[4], NULL, 10) : 0;
        uint64_t runs = model_explore(prepare, &scenarios[i], (unsigned)atoi(arguments[2]), seed, most);
        printf("%llu runs\n", (unsigned long long)runs);
        if (model_problem)
            fprintf(stderr, "%s\n", model_problem);
        return model_problem != NULL;
    }
    return 2;
}
