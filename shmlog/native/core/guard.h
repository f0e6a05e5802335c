/* Guard: a SIGBUS inside one of our mappings becomes an error, not a death.
 *
 * A store or load faults when the file under a mapping was truncated, its disk
 * is gone or lied about its space.  The handler puts an anonymous page where the
 * fault was, so that the instruction completes, and counts the fault against the
 * mapping; the code that was copying looks at that count before it publishes or
 * believes anything.  (systemd's journal does the same.)  A fault anywhere else is
 * passed to whatever handler was there before.
 *
 * The cost on the fast path is nothing: no jump buffer is set.
 *
 * Invariants
 *   G1  A range is complete before `begin` is set, and `begin` is cleared before
 *       the range is unmapped.
 *   G2  The handler calls only mmap and sigaction; both are plain system calls.
 *
 * Also here, because both end in "this handle may not be used as before": the
 * process-wide ticket that forks and faults advance.
 */
#ifndef SHMLOG_GUARD_H
#define SHMLOG_GUARD_H

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUARD_RANGES 16384u

typedef struct {
    _Atomic uintptr_t begin; /* 0: unused */
    _Atomic uintptr_t end;
    _Atomic int protection;
    _Atomic uint32_t faults;
} guard_range_t;

static guard_range_t guard_ranges[GUARD_RANGES];
static _Atomic uint32_t guard_hint;
static struct sigaction guard_previous;
static long guard_page_bytes;

/* Advanced by a fork (in the child) and by a fault; a handle whose own copy
 * differs takes the slow path.  Never 0. */
static _Atomic uint64_t process_ticket = 1;

static void guard_handler(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    for (unsigned i = 0; i < GUARD_RANGES; i++) {
        guard_range_t *range = &guard_ranges[i];
        uintptr_t begin = atomic_load(&range->begin);
        if (!begin || at < begin || at >= atomic_load(&range->end))
            continue;
        void *page = (void *)(at & ~(uintptr_t)(guard_page_bytes - 1));
        if (mmap(page, (size_t)guard_page_bytes, atomic_load(&range->protection),
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        atomic_fetch_add(&range->faults, 1);
        atomic_fetch_add(&process_ticket, 1);
        return;
    }
    if (guard_previous.sa_flags & SA_SIGINFO) {
        guard_previous.sa_sigaction(number, info, context);
    } else if (guard_previous.sa_handler != SIG_DFL && guard_previous.sa_handler != SIG_IGN) {
        guard_previous.sa_handler(number);
    } else {
        sigaction(SIGBUS, &guard_previous, NULL); /* the instruction faults again, as it should */
    }
}

static void guard_initialize(void) {
    guard_page_bytes = sysconf(_SC_PAGESIZE);
}

/* Install the handler, once, before the first range. */
static int guard_install(void) {
    static _Atomic int installed;
    if (atomic_exchange(&installed, 1))
        return 0;
    struct sigaction action = {.sa_sigaction = guard_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &guard_previous);
}

/* NULL when every range is in use. */
static guard_range_t *guard_add(void *base, size_t length, int protection) {
    uint32_t hint = atomic_load(&guard_hint);
    for (uint32_t n = 0; n < GUARD_RANGES; n++) {
        guard_range_t *range = &guard_ranges[(hint + n) % GUARD_RANGES];
        uintptr_t free_end = 0;
        /* `end` is what a range is taken by; `begin` is what makes it count (G1). */
        if (!atomic_compare_exchange_strong(&range->end, &free_end, (uintptr_t)base + length))
            continue;
        atomic_store(&range->protection, protection);
        atomic_store(&range->faults, 0);
        atomic_store(&range->begin, (uintptr_t)base);
        atomic_store(&guard_hint, hint + n + 1);
        return range;
    }
    return NULL;
}

static void guard_remove(guard_range_t *range) {
    atomic_store(&range->begin, 0);
    atomic_store(&range->end, 0);
}

static inline int guard_faulted(const guard_range_t *range) {
    return range && atomic_load_explicit(&range->faults, memory_order_relaxed) != 0;
}

#endif
