/* Guard: the ranges, the handler and the ticket (guard.h says what they are for).
 *
 * This file knows addresses.  It may not know what is mapped there, or why.
 */
#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUARD_RANGES 16384u

_Atomic uint64_t process_ticket = 1;
long guard_page_bytes;

static guard_range_t guard_ranges[GUARD_RANGES];
static _Atomic uint32_t guard_hint;
static struct sigaction guard_previous;
static int guard_install_error;

/* To whatever handler was there before. */
static void guard_pass_on(int number, siginfo_t *info, void *context) {
    if (guard_previous.sa_flags & SA_SIGINFO) {
        guard_previous.sa_sigaction(number, info, context);
    } else if (guard_previous.sa_handler == SIG_IGN && info->si_code <= 0) {
        return;
    } else if (guard_previous.sa_handler != SIG_DFL && guard_previous.sa_handler != SIG_IGN) {
        guard_previous.sa_handler(number);
    } else {
        sigaction(SIGBUS, &guard_previous, NULL); /* the instruction faults again, as it should */
        if (info->si_code <= 0)
            raise(number); /* no instruction did it: somebody sent it */
    }
}

static void guard_handler(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    /* What a process sent has no address, and a misaligned access would only fault again (G4). */
    int ours = info->si_code > 0 && info->si_code != BUS_ADRALN;
    for (unsigned i = 0; ours && i < GUARD_RANGES; i++) {
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
    guard_pass_on(number, info, context);
}

static void guard_install_now(void) {
    guard_page_bytes = sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_sigaction = guard_handler,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &guard_previous) != 0)
        guard_install_error = errno;
}

int guard_install(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, guard_install_now);
    return guard_install_error;
}

guard_range_t *guard_add(void *base, size_t length, int protection) {
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

void guard_remove(guard_range_t *range) {
    atomic_store(&range->begin, 0);
    atomic_store(&range->end, 0);
}
