/* Weak memory: the core's own headers, run under a model of C11's atomics instead of x86's.
 *
 * Include this first: it takes the place of the operations of <stdatomic.h>, of memcpy and
 * memset, and of the futex.  Threads are contexts of one real thread; before each atomic access
 * another may go on, and a load may return an older store than the last one:
 *
 *   location    stores 0 1 2 3 ...   in modification order; a read-modify-write reads the last
 *   store       what its thread had seen when it released: a load that acquires it sees that too
 *   view        of a thread: the newest store of each location that it may not read behind, and
 *               the time of each thread up to which plain accesses happened before its own
 *   seq_cst     besides: a load may not read behind a store that is before it in the one order of
 *               all such accesses.  A store takes its place there by its thread's next such
 *               access, for until then weaker stores may overtake it
 *
 * Plain bytes (`model_plain`) are what they are, but two accesses of different threads, one of
 * them a store, of which neither happens before the other, are a race.  A sleeper that nobody
 * can wake any more is a lost wake-up.
 *
 * Every run is a sequence of choices: who goes on, and which store is read; 0 is to stay and to
 * read the last.  All sequences with a given number of other choices are tried (a switch where
 * the thread sleeps or has ended costs nothing), or as many random ones as asked for.
 *
 * What it cannot show: a store that takes a place in modification order before one made
 * earlier, and a load that sees a store which depends on it.
 */
#ifndef WEAK_MEMORY_H
#define WEAK_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { THREADS_MAX = 4, LOCATIONS_MAX = 48, STORES_MAX = 48, CHOICES_MAX = 4096, STACK_BYTES = 1 << 16 };
enum { PLAIN_CELL = 8, PLAIN_BYTES = 1 << 12 };

typedef struct {
    uint16_t time[THREADS_MAX];
    uint8_t seen[LOCATIONS_MAX];
} view_t;

typedef struct {
    uint64_t value;
    view_t released;
} model_store_t;

typedef struct {
    volatile void *at;
    size_t bytes;
    unsigned count;
    model_store_t stores[STORES_MAX];
} location_t;

typedef struct {
    ucontext_t context;
    char stack[STACK_BYTES];
    void (*body)(void);
    view_t view;
    view_t unacquired;              /* of relaxed loads, for a later fence */
    view_t fenced;                  /* what relaxed stores release: the last fence's view */
    uint8_t unordered[LOCATIONS_MAX]; /* seq_cst stores that have no place in the order yet */
    const volatile void *sleeps_on; /* NULL: it may go on */
    int ended;
} model_thread_t;

typedef struct {
    int writer; /* -1: never written */
    uint16_t written, read[THREADS_MAX];
} cell_t;

static model_thread_t model_threads[THREADS_MAX];
static location_t model_locations[LOCATIONS_MAX];
static unsigned model_location_count, model_thread_count;
static uint8_t model_ordered[LOCATIONS_MAX]; /* by the order of seq_cst accesses */
static cell_t model_cells[PLAIN_BYTES / PLAIN_CELL];
static uint8_t model_plain[PLAIN_BYTES] __attribute__((aligned(64)));
static int (*model_watches)(const volatile void *at); /* whether an atomic is modelled */
static int model_self = -1;                           /* -1: no model, nothing runs */
static ucontext_t model_main;
static const char *model_problem;

/* ---- choices ---- */

static struct {
    uint16_t made[CHOICES_MAX], of[CHOICES_MAX];
    unsigned at, depth, spent, budget;
    uint64_t random; /* 0: all sequences, one after the other */
} model_choices;

static unsigned model_choose(unsigned of, int costs) {
    if (of < 2 || (costs && model_choices.spent >= model_choices.budget))
        return 0;
    if (model_choices.random) {
        model_choices.random = model_choices.random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t drawn = model_choices.random >> 33;
        unsigned choice = costs && drawn % 6 ? 0 : (unsigned)(drawn / 6 % of);
        model_choices.spent += costs && choice;
        return choice;
    }
    unsigned at = model_choices.at++;
    if (at >= CHOICES_MAX)
        abort();
    if (at >= model_choices.depth) {
        model_choices.made[at] = 0;
        model_choices.depth = at + 1;
    }
    model_choices.of[at] = (uint16_t)of;
    model_choices.spent += costs && model_choices.made[at];
    return model_choices.made[at];
}

/* Make the next sequence; whether there is one. */
static int model_next(void) {
    unsigned depth = model_choices.at;
    while (depth && model_choices.made[depth - 1] + 1 >= model_choices.of[depth - 1])
        depth--;
    model_choices.depth = depth;
    if (!depth)
        return 0;
    model_choices.made[depth - 1]++;
    return 1;
}

/* ---- threads ---- */

static void model_fail(const char *what) {
    if (!model_problem)
        model_problem = what;
    if (model_self >= 0)
        swapcontext(&model_threads[model_self].context, &model_main); /* for good */
}

static void model_go(int next) {
    int self = model_self;
    model_self = next;
    if (next != self)
        swapcontext(self < 0 ? &model_main : &model_threads[self].context, &model_threads[next].context);
}

/* Let somebody go on: the thread itself first, if it can. */
static void model_switch(void) {
    int able[THREADS_MAX], count = 0, self = model_self;
    int stays = self >= 0 && !model_threads[self].ended && !model_threads[self].sleeps_on;
    if (stays)
        able[count++] = self;
    for (int i = 0; i < (int)model_thread_count; i++)
        if (i != self && !model_threads[i].ended && !model_threads[i].sleeps_on)
            able[count++] = i;
    if (count) {
        model_go(able[model_choose((unsigned)count, stays)]);
        return;
    }
    for (unsigned i = 0; i < model_thread_count; i++)
        if (!model_threads[i].ended)
            model_fail("a wake-up is lost: somebody sleeps and nobody is left to wake him");
    setcontext(&model_main);
}

static void model_body(void) {
    model_threads[model_self].body();
    model_threads[model_self].ended = 1;
    model_switch();
}

static void model_sleep(const volatile void *on) {
    model_threads[model_self].sleeps_on = on;
    model_switch();
}

static void model_wake(const volatile void *on) {
    for (unsigned i = 0; i < model_thread_count; i++)
        if (model_threads[i].sleeps_on == on)
            model_threads[i].sleeps_on = NULL;
}

/* ---- views ---- */

static void view_join(view_t *into, const view_t *from) {
    for (unsigned i = 0; i < THREADS_MAX; i++)
        if (into->time[i] < from->time[i])
            into->time[i] = from->time[i];
    for (unsigned i = 0; i < LOCATIONS_MAX; i++)
        if (into->seen[i] < from->seen[i])
            into->seen[i] = from->seen[i];
}

static void seen_raise(uint8_t *seen, unsigned at, unsigned to) {
    if (seen[at] < to)
        seen[at] = (uint8_t)to;
}

static int acquires(memory_order order) { return order != memory_order_relaxed && order != memory_order_release; }

static int releases(memory_order order) {
    return order == memory_order_release || order == memory_order_acq_rel || order == memory_order_seq_cst;
}

/* ---- atomics ---- */

static uint64_t model_raw(const volatile void *at, size_t bytes) {
    uint64_t value = 0;
    memcpy(&value, (const void *)at, bytes);
    return value;
}

static int model_direct(const volatile void *at) { return model_self < 0 || !model_watches(at); }

/* A step at a location: its index. */
static unsigned model_at(volatile void *at, size_t bytes, memory_order order) {
    model_switch();
    unsigned i = 0;
    while (i < model_location_count && model_locations[i].at != at)
        i++;
    if (i == LOCATIONS_MAX)
        abort();
    location_t *l = &model_locations[i];
    if (i == model_location_count) {
        model_location_count++;
        *l = (location_t){.at = at, .bytes = bytes, .count = 1};
        l->stores[0].value = model_raw(at, bytes);
    }
    if (order == memory_order_seq_cst) {
        model_thread_t *t = &model_threads[model_self];
        for (unsigned n = 0; n < LOCATIONS_MAX; n++)
            seen_raise(model_ordered, n, t->unordered[n]);
        memset(t->unordered, 0, sizeof t->unordered);
    }
    return i;
}

/* Read store n. */
static uint64_t model_read(unsigned i, unsigned n, memory_order order) {
    model_thread_t *t = &model_threads[model_self];
    const model_store_t *s = &model_locations[i].stores[n];
    seen_raise(t->view.seen, i, n);
    view_join(acquires(order) ? &t->view : &t->unacquired, &s->released);
    if (order == memory_order_seq_cst)
        seen_raise(model_ordered, i, n);
    return s->value;
}

/* Append a store; `chained`: it goes on with the release of the one before (a read-modify-write). */
static void model_append(unsigned i, uint64_t value, memory_order order, int chained) {
    model_thread_t *t = &model_threads[model_self];
    location_t *l = &model_locations[i];
    unsigned n = l->count++;
    if (n >= STORES_MAX)
        abort();
    seen_raise(t->view.seen, i, n);
    t->view.time[model_self]++;
    l->stores[n] = (model_store_t){.value = value, .released = releases(order) ? t->view : t->fenced};
    seen_raise(l->stores[n].released.seen, i, n);
    if (chained)
        view_join(&l->stores[n].released, &l->stores[n - 1].released);
    if (order == memory_order_seq_cst)
        seen_raise(t->unordered, i, n);
    memcpy((void *)l->at, &value, l->bytes);
}

/* The oldest store that may be read. */
static unsigned model_oldest(unsigned i, memory_order order) {
    unsigned seen = model_threads[model_self].view.seen[i];
    return order == memory_order_seq_cst && model_ordered[i] > seen ? model_ordered[i] : seen;
}

static uint64_t model_load(const volatile void *at, size_t bytes, memory_order order) {
    if (model_direct(at))
        return model_raw(at, bytes);
    unsigned i = model_at((volatile void *)(uintptr_t)at, bytes, order), last = model_locations[i].count - 1;
    return model_read(i, last - model_choose(last - model_oldest(i, order) + 1, 1), order);
}

static void model_store(volatile void *at, size_t bytes, uint64_t value, memory_order order) {
    if (model_direct(at))
        memcpy((void *)at, &value, bytes);
    else
        model_append(model_at(at, bytes, order), value, order, 0);
}

enum { MODEL_OR, MODEL_AND, MODEL_ADD, MODEL_SUB };

static uint64_t model_fetch(volatile void *at, size_t bytes, int what, uint64_t with, memory_order order) {
    unsigned i = model_direct(at) ? LOCATIONS_MAX : model_at(at, bytes, order);
    uint64_t old = i == LOCATIONS_MAX ? model_raw(at, bytes) : model_read(i, model_locations[i].count - 1, order);
    uint64_t value = what == MODEL_OR    ? old | with
                     : what == MODEL_AND ? old & with
                     : what == MODEL_ADD ? old + with
                                         : old - with;
    if (i == LOCATIONS_MAX)
        memcpy((void *)at, &value, bytes);
    else
        model_append(i, value, order, 1);
    return old;
}

/* One that fails is a load, of any store with another value that it may read. */
static int model_exchange(volatile void *at, size_t bytes, void *expected, uint64_t value, memory_order order,
                          memory_order failure) {
    uint64_t old = model_raw(expected, bytes), found;
    if (model_direct(at)) {
        if ((found = model_raw(at, bytes)) == old)
            memcpy((void *)at, &value, bytes);
    } else {
        unsigned i = model_at(at, bytes, order), last = model_locations[i].count - 1;
        unsigned n = last - model_choose(last - model_oldest(i, failure) + 1, 1);
        while (n < last && model_locations[i].stores[n].value == old)
            n++;
        found = model_read(i, n, n == last && model_locations[i].stores[n].value == old ? order : failure);
        if (found == old)
            model_append(i, value, order, 1);
    }
    memcpy(expected, &found, bytes);
    return found == old;
}

static void model_fence(memory_order order) {
    if (model_self < 0)
        return;
    model_switch();
    model_thread_t *t = &model_threads[model_self];
    if (acquires(order))
        view_join(&t->view, &t->unacquired);
    for (unsigned n = 0; order == memory_order_seq_cst && n < LOCATIONS_MAX; n++) {
        seen_raise(model_ordered, n, t->unordered[n]);
        seen_raise(t->view.seen, n, model_ordered[n]);
        seen_raise(model_ordered, n, t->view.seen[n]);
    }
    if (releases(order))
        t->fenced = t->view;
}

/* What a lock or a semaphore hands over from who gives it up to who takes it. */
static void model_give(view_t *over) {
    if (model_self >= 0) {
        model_threads[model_self].view.time[model_self]++;
        view_join(over, &model_threads[model_self].view);
    }
}

static void model_take(const view_t *over) {
    if (model_self >= 0)
        view_join(&model_threads[model_self].view, over);
}

/* ---- plain bytes ---- */

static void model_touch(const void *at, size_t bytes, int writes) {
    ptrdiff_t from = (const uint8_t *)at - model_plain;
    if (model_self < 0 || from < 0 || from >= PLAIN_BYTES || !bytes)
        return;
    const view_t *view = &model_threads[model_self].view;
    for (size_t c = (size_t)from / PLAIN_CELL; c <= ((size_t)from + bytes - 1) / PLAIN_CELL; c++) {
        cell_t *cell = &model_cells[c];
        int race = cell->writer >= 0 && cell->writer != model_self && view->time[cell->writer] < cell->written;
        for (int i = 0; writes && i < THREADS_MAX; i++)
            race |= i != model_self && view->time[i] < cell->read[i];
        if (race)
            model_fail("a race: plain bytes are touched that another thread may be writing");
        if (writes) /* released at the next store of this thread, or later */
            cell->writer = model_self, cell->written = (uint16_t)(view->time[model_self] + 1);
        else
            cell->read[model_self] = (uint16_t)(view->time[model_self] + 1);
    }
}

static void *model_memcpy(void *to, const void *from, size_t bytes) {
    model_touch(from, bytes, 0);
    model_touch(to, bytes, 1);
    return memcpy(to, from, bytes);
}

static void *model_memset(void *to, int value, size_t bytes) {
    model_touch(to, bytes, 1);
    return memset(to, value, bytes);
}

/* The kernel compares under the lock that a wake takes, and orders both: it sees the last store. */
static long model_futex(volatile void *word, int wakes, uint32_t seen) {
    if (wakes)
        model_wake(word);
    else if ((uint32_t)model_raw(word, 8) == seen)
        model_sleep(word);
    return 0;
}

/* ---- runs ---- */

typedef struct {
    const char *name;
    void (*bodies[THREADS_MAX])(void);
    void (*check)(void); /* when all have ended, with what was stored last */
} scenario_t;

static void model_run(void (*prepare)(void), const scenario_t *scenario) {
    model_self = -1;
    model_problem = NULL;
    model_choices.at = model_choices.spent = model_thread_count = model_location_count = 0;
    memset(model_ordered, 0, sizeof model_ordered);
    memset(model_plain, 0, sizeof model_plain);
    for (size_t c = 0; c < sizeof model_cells / sizeof *model_cells; c++)
        model_cells[c] = (cell_t){.writer = -1};
    prepare();
    for (; model_thread_count < THREADS_MAX && scenario->bodies[model_thread_count]; model_thread_count++) {
        model_thread_t *t = &model_threads[model_thread_count];
        t->body = scenario->bodies[model_thread_count];
        memset(&t->view, 0, offsetof(model_thread_t, ended) + sizeof t->ended - offsetof(model_thread_t, view));
        getcontext(&t->context);
        t->context.uc_stack.ss_sp = t->stack;
        t->context.uc_stack.ss_size = sizeof t->stack;
        t->context.uc_link = NULL;
        makecontext(&t->context, model_body, 0);
    }
    model_switch(); /* until all have ended, or one has failed */
    model_self = -1;
    if (!model_problem)
        scenario->check();
}

/* Every sequence of choices with so many that cost; the number of runs. */
static uint64_t model_explore(void (*prepare)(void), const scenario_t *scenario, unsigned budget,
                              uint64_t seed, uint64_t random_runs) {
    model_choices.budget = budget;
    model_choices.depth = 0;
    model_choices.random = seed;
    uint64_t runs = 0;
    do {
        model_run(prepare, scenario);
        runs++;
    } while (!model_problem && (seed ? runs < random_runs : (uint64_t)model_next()));
    return runs;
}

/* ---- in the place of <stdatomic.h>, <string.h> and the futex ---- */

#define MODEL_TYPE(p) __typeof__((void)0, *(p))
#undef atomic_load
#undef atomic_load_explicit
#undef atomic_store
#undef atomic_store_explicit
#undef atomic_fetch_or
#undef atomic_fetch_or_explicit
#undef atomic_fetch_and_explicit
#undef atomic_fetch_add
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub
#undef atomic_compare_exchange_weak
#undef atomic_compare_exchange_strong
#undef atomic_compare_exchange_strong_explicit
#undef atomic_thread_fence
#define atomic_load_explicit(p, order) ((MODEL_TYPE(p))model_load(p, sizeof *(p), order))
#define atomic_load(p) atomic_load_explicit(p, memory_order_seq_cst)
#define atomic_store_explicit(p, value, order) model_store(p, sizeof *(p), (uint64_t)(value), order)
#define atomic_store(p, value) atomic_store_explicit(p, value, memory_order_seq_cst)
#define MODEL_FETCH(p, what, n, order) model_fetch(p, sizeof *(p), what, n, order)
#define atomic_fetch_or_explicit(p, n, order) MODEL_FETCH(p, MODEL_OR, n, order)
#define atomic_fetch_or(p, n) MODEL_FETCH(p, MODEL_OR, n, memory_order_seq_cst)
#define atomic_fetch_and_explicit(p, n, order) MODEL_FETCH(p, MODEL_AND, n, order)
#define atomic_fetch_add(p, n) MODEL_FETCH(p, MODEL_ADD, n, memory_order_seq_cst)
#define atomic_fetch_sub(p, n) MODEL_FETCH(p, MODEL_SUB, n, memory_order_seq_cst)
#define atomic_compare_exchange_strong_explicit(p, expected, value, order, failure) \
    model_exchange(p, sizeof *(p), expected, (uint64_t)(value), order, failure)
#define atomic_compare_exchange_strong(p, expected, value)                                             \
    atomic_compare_exchange_strong_explicit(p, expected, value, memory_order_seq_cst, memory_order_seq_cst)
#define atomic_compare_exchange_weak(p, expected, value) atomic_compare_exchange_strong(p, expected, value)
#define atomic_thread_fence(order) model_fence(order)
#define memcpy model_memcpy
#define memset model_memset
#define syscall(number, word, operation, value, timeout, ...) \
    ((void)(timeout), model_futex(word, (operation) == FUTEX_WAKE, (uint32_t)(value)))

#endif
