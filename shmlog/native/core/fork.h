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
 */
#ifndef SHMLOG_FORK_H
#define SHMLOG_FORK_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "guard.h"

#define FORK_FDS 4096

static _Atomic int fork_fds[FORK_FDS]; /* fd + 1, or 0 */
static _Atomic uint64_t fork_generation = 1;
static pthread_mutex_t fork_opening = PTHREAD_MUTEX_INITIALIZER; /* K2 */

static void fork_prepare(void) { pthread_mutex_lock(&fork_opening); }
static void fork_in_parent(void) { pthread_mutex_unlock(&fork_opening); }

static void fork_in_child(void) {
    for (int i = 0; i < FORK_FDS; i++) {
        int fd = atomic_exchange(&fork_fds[i], 0) - 1;
        if (fd >= 0)
            close(fd);
    }
    atomic_fetch_add(&fork_generation, 1);
    atomic_fetch_add(&process_ticket, 1);
    pthread_mutex_unlock(&fork_opening);
}

/* -1 when too many are registered. */
static int fork_register(int fd) {
    for (int i = 0; i < FORK_FDS; i++) {
        int unused = 0;
        if (atomic_compare_exchange_strong(&fork_fds[i], &unused, fd + 1))
            return i;
    }
    return -1;
}

/* Open and register: 0 or an errno.  Blocks forks of other threads for as long; so the
 * caller must hold nothing that a forking thread may hold, such as the GIL. */
static int fork_open(const char *path, int flags, int *fd, int *index) {
    int error = 0;
    pthread_mutex_lock(&fork_opening);
    do
        *fd = open(path, flags);
    while (*fd < 0 && errno == EINTR);
    if (*fd < 0) {
        error = errno;
    } else if ((*index = fork_register(*fd)) < 0) {
        close(*fd);
        error = EMFILE;
    }
    pthread_mutex_unlock(&fork_opening);
    return error;
}

static void fork_initialize(void) { pthread_atfork(fork_prepare, fork_in_parent, fork_in_child); }

#endif
