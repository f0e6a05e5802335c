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
 *   G2  The handler calls only mmap, sigaction and raise; all are plain system calls.
 *   G3  The handler is installed once in a process: installed twice, it would take
 *       itself for the handler before it and pass a foreign fault in a circle.
 *   G4  Only a fault of the memory behind an address is ours: not a signal that was sent,
 *       nor a misaligned access.
 *
 * Also here, because both end in "this handle may not be used as before": the
 * process-wide ticket that forks and faults advance.
 *
 * This file knows addresses.  It may not know what is mapped there, or why.
 */
#ifndef SHMLOG_GUARD_H
#define SHMLOG_GUARD_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    _Atomic uintptr_t begin; /* 0: unused */
    _Atomic uintptr_t end;
    _Atomic int protection;
    _Atomic uint32_t faults;
} guard_range_t;

/* Advanced by a fork (in the child) and by a fault; a handle whose own copy
 * differs takes the slow path.  Never 0. */
extern _Atomic uint64_t process_ticket;

/* Set by guard_install. */
extern long guard_page_bytes;

/* Install the handler, once, before the first range (G3): 0 or an errno. */
int guard_install(void);

/* Guard [base, base + length).  NULL when every range is in use. */
guard_range_t *guard_add(void *base, size_t length, int protection);
void guard_remove(guard_range_t *range);

static inline int guard_faulted(const guard_range_t *range) {
    /* The handler ran, if it did, in the middle of this thread's plain stores: the compiler may
     * not look at the count before them. */
    atomic_signal_fence(memory_order_seq_cst);
    return range && atomic_load_explicit(&range->faults, memory_order_relaxed) != 0;
}

#endif
