/* Fork: the registered descriptors and the hook (fork.h says what they are for).
 *
 * This file knows descriptors.  It may not know what is open on them.
 */
#include "fork.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "guard.h"

#define FORK_FDS 4096

_Atomic uint64_t fork_generation = 1;

static _Atomic int fork_fds[FORK_FDS]; /* fd + 1, or 0 */
static pthread_mutex_t fork_opening = PTHREAD_MUTEX_INITIALIZER; /* K2 */
static int fork_hook_error;

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

int fork_open(const char *path, int flags, fork_fd_t *opened) {
    int error = 0, fd;
    *opened = (fork_fd_t){.fd = -1, .slot = -1};
    pthread_mutex_lock(&fork_opening);
    do
        fd = open(path, flags);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        error = errno;
    } else if ((opened->slot = fork_register(fd)) < 0) {
        close(fd);
        error = EMFILE;
    } else {
        opened->fd = fd;
        opened->generation = atomic_load(&fork_generation);
    }
    pthread_mutex_unlock(&fork_opening);
    return error;
}

void fork_close(fork_fd_t *opened) {
    int fd = opened->fd;
    opened->fd = -1;
    if (fd < 0 || opened->generation != atomic_load(&fork_generation))
        return;
    if (atomic_exchange(&fork_fds[opened->slot], 0) == fd + 1)
        close(fd);
}

static void fork_install_hook(void) {
    fork_hook_error = pthread_atfork(fork_prepare, fork_in_parent, fork_in_child);
}

int fork_initialize(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fork_install_hook);
    return fork_hook_error;
}
