/* Fork: descriptors that must not survive in a child.
 *
 * An open-file-description lock is shared with every forked child that keeps the
 * descriptor: the parent's death would then go unnoticed.  So the child closes
 * them at once, by pthread_atfork, which os.fork and a fork made by some other C
 * library both pass through, and the ticket tells every handle to attach anew.
 *
 * Invariants
 *   K1  A descriptor is closed at most once in each process: by its owner in the
 *       process that opened it, by the hook in a child.
 *   K2  No fork falls between the opening of a descriptor and its registration: a
 *       child would keep what it knows nothing of.
 *   K3  The hook is installed once in a process: installed twice, it would lock its own
 *       mutex twice and the next fork would hang.
 *
 * This file knows descriptors.  It may not know what is open on them.
 */
#ifndef SHMLOG_FORK_H
#define SHMLOG_FORK_H

#include <stdatomic.h>
#include <stdint.h>

/* Another number in every forked child. */
extern _Atomic uint64_t fork_generation;

/* A descriptor that forked children close at birth; fd is -1 once it is closed. */
typedef struct {
    int fd;
    int slot; /* where it is registered */
    uint64_t generation;
} fork_fd_t;

/* Install the hook, once (K3): 0 or an errno. */
int fork_initialize(void);

/* Open and register: 0 or an errno, and then fd is -1.  Blocks forks of other threads for
 * as long; so the caller must hold nothing that a forking thread may hold, such as the GIL. */
int fork_open(const char *path, int flags, fork_fd_t *opened);

/* Close it, unless that was done or the descriptor is the parent process's (K1). */
void fork_close(fork_fd_t *opened);

/* Whether it is open, in this process. */
static inline int fork_is_open(const fork_fd_t *opened) {
    return opened->fd >= 0 && opened->generation == atomic_load(&fork_generation);
}

#endif
