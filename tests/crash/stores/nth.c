/* Nth: the n-th call of one name fails, or kills the process that makes it.
 *
 *   LD_PRELOAD=nth.so python ...      every call goes on to libc and costs a look more
 *   nth_arm(which, n, action, counts) from now on, in this process, calls are counted by
 *                                     name in counts[]; of name `which` the n-th fails
 *                                     with errno `action`, or is never made: 0, SIGKILL
 *
 * Calls of one name count from 1, whichever thread makes them; nth_arm(-1, ...) only counts.
 * Of malloc, calloc and realloc only those count that were made in or right below [low, high),
 * the code that nth_watch() has named.  counts[] may be memory that a parent shares.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define NAMES(X)                                                                                         \
    X(open) X(close) X(read) X(pread) X(write) X(pwrite) X(fsync) X(fdatasync) X(fstat) X(stat) X(lstat) \
    X(ftruncate) X(posix_fallocate) X(fallocate) X(fcntl) X(mmap) X(munmap) X(madvise) X(ioctl)          \
    X(rename) X(unlink) X(mkdir) X(chmod) X(fchmod) X(opendir) X(fdopendir) X(shm_open) X(shm_unlink)    \
    X(sem_open) X(sem_unlink) X(sem_timedwait) X(dup2) X(fork) X(clone) X(posix_spawn)               \
    X(pthread_create) X(malloc) X(calloc) X(realloc)

#define NUMBER(name) nth_##name,
enum { NAMES(NUMBER) NAME_COUNT };
#define TEXT(name) #name,
static const char *const names[] = {NAMES(TEXT) NULL};

/* counts[] has one more: how often the fault was delivered. */
static _Atomic int64_t *counts;
static int target = -1, action;
static int64_t wanted;
static uintptr_t low, high;
static _Thread_local int inside;

enum { FRAMES_MAX = 9 };

const char *nth_name(int which) { return which >= 0 && which < NAME_COUNT ? names[which] : NULL; }

void nth_watch(uintptr_t begin, uintptr_t end) {
    void *frames[FRAMES_MAX];
    backtrace(frames, FRAMES_MAX); /* it allocates at its first call */
    low = begin;
    high = end;
}

void nth_arm(int which, int64_t n, int what, _Atomic int64_t *where) {
    target = which;
    wanted = n;
    action = what;
    counts = where;
}

/* Whether this call is the one: then errno is set. */
static int strikes(int which) {
    _Atomic int64_t *table = counts;
    if (!table)
        return 0;
    int64_t n = atomic_fetch_add(&table[which], 1) + 1;
    if (which != target || n != wanted)
        return 0;
    atomic_fetch_add(&table[NAME_COUNT], 1);
    if (!action)
        kill(getpid(), SIGKILL);
    errno = action;
    return 1;
}

static int in_watched_code(void) {
    void *frames[FRAMES_MAX];
    int found = 0;
    if (inside)
        return 0;
    inside = 1;
    int depth = backtrace(frames, FRAMES_MAX);
    for (int i = 0; i < depth; i++)
        found |= (uintptr_t)frames[i] >= low && (uintptr_t)frames[i] < high;
    inside = 0;
    return found;
}

#define REAL(result, name, parameters) \
    static result(*real) parameters;   \
    if (!real)                         \
    real = (result(*) parameters)dlsym(RTLD_NEXT, name)

#define CALL(which, result, symbol, parameters, arguments, failed) \
    result symbol parameters {                                     \
        REAL(result, #symbol, parameters);                         \
        return strikes(nth_##which) ? (failed) : real arguments;   \
    }

#define OPEN(symbol)                                                    \
    int symbol(const char *path, int flags, ...) {                      \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        REAL(int, #symbol, (const char *, int, ...));                   \
        return strikes(nth_open) ? -1 : real(path, flags, mode);        \
    }
OPEN(open)
OPEN(open64)

#define CONTROL(which, symbol, kind)                                \
    int symbol(int fd, kind request, ...) {                         \
        va_list rest;                                               \
        va_start(rest, request);                                    \
        void *argument = va_arg(rest, void *);                      \
        va_end(rest);                                               \
        REAL(int, #symbol, (int, kind, ...));                       \
        return strikes(nth_##which) ? -1 : real(fd, request, argument); \
    }
CONTROL(fcntl, fcntl, int)
CONTROL(fcntl, fcntl64, int)
CONTROL(ioctl, ioctl, unsigned long)

sem_t *sem_open(const char *name, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    unsigned value = flags & O_CREAT ? va_arg(rest, unsigned) : 0;
    va_end(rest);
    REAL(sem_t *, "sem_open", (const char *, int, ...));
    return strikes(nth_sem_open) ? SEM_FAILED : real(name, flags, mode, value);
}


/* The kernel has let go of the descriptor, whatever close() says. */
int close(int fd) {
    REAL(int, "close", (int));
    int fails = strikes(nth_close), error = errno, result = real(fd);
    errno = fails ? error : errno;
    return fails ? -1 : result;
}

CALL(read, ssize_t, read, (int fd, void *to, size_t n), (fd, to, n), -1)
CALL(pread, ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at), -1)
CALL(write, ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n), -1)
CALL(pwrite, ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at), -1)
CALL(fsync, int, fsync, (int fd), (fd), -1)
CALL(fdatasync, int, fdatasync, (int fd), (fd), -1)
CALL(fstat, int, fstat64, (int fd, struct stat64 *to), (fd, to), -1)
CALL(stat, int, stat64, (const char *path, struct stat64 *to), (path, to), -1)
CALL(lstat, int, lstat64, (const char *path, struct stat64 *to), (path, to), -1)
CALL(ftruncate, int, ftruncate64, (int fd, off64_t size), (fd, size), -1)
CALL(posix_fallocate, int, posix_fallocate64, (int fd, off64_t at, off64_t n), (fd, at, n), errno)
CALL(fallocate, int, fallocate64, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n), -1)

/* Of files only: anonymous memory is the interpreter's own, and where it has none for a new
 * thread, CPython 3.11 waits for ever for that thread to start. */
#define MAP(symbol, offset)                                                                     \
    void *symbol(void *at, size_t n, int protection, int flags, int fd, offset from) {          \
        REAL(void *, #symbol, (void *, size_t, int, int, int, offset));                         \
        return fd >= 0 && strikes(nth_mmap) ? (void *)-1 : real(at, n, protection, flags, fd, from); \
    }
MAP(mmap, off_t)
MAP(mmap64, off64_t)

CALL(munmap, int, munmap, (void *at, size_t n), (at, n), -1)
CALL(madvise, int, madvise, (void *at, size_t n, int advice), (at, n, advice), -1)
CALL(rename, int, rename, (const char *from, const char *to), (from, to), -1)
CALL(unlink, int, unlink, (const char *path), (path), -1)
CALL(mkdir, int, mkdir, (const char *path, mode_t mode), (path, mode), -1)
CALL(chmod, int, chmod, (const char *path, mode_t mode), (path, mode), -1)
CALL(fchmod, int, fchmod, (int fd, mode_t mode), (fd, mode), -1)
CALL(opendir, DIR *, opendir, (const char *path), (path), NULL)
CALL(fdopendir, DIR *, fdopendir, (int fd), (fd), NULL)
CALL(shm_open, int, shm_open, (const char *name, int flags, mode_t mode), (name, flags, mode), -1)
CALL(shm_unlink, int, shm_unlink, (const char *name), (name), -1)
CALL(sem_unlink, int, sem_unlink, (const char *name), (name), -1)
CALL(sem_timedwait, int, sem_timedwait, (sem_t * sem, const struct timespec *until), (sem, until), -1)
CALL(dup2, int, dup2, (int from, int to), (from, to), -1)
CALL(fork, pid_t, fork, (void), (), -1)
CALL(pthread_create, int, pthread_create,
     (pthread_t * thread, const pthread_attr_t *how, void *(*what)(void *), void *argument),
     (thread, how, what, argument), errno)

CALL(posix_spawn, int, posix_spawn,
     (pid_t * pid, const char *path, const posix_spawn_file_actions_t *files, const posix_spawnattr_t *how,
      char *const *arguments, char *const *environment),
     (pid, path, files, how, arguments, environment), errno)

/* Those with no more arguments: the core's. */
int clone(int (*what)(void *), void *stack, int flags, void *argument, ...) {
    REAL(int, "clone", (int (*)(void *), void *, int, void *, ...));
    return strikes(nth_clone) ? -1 : real(what, stack, flags, argument);
}

/* dlsym allocates: not for these. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);

static int starves(int which) { return high && counts && in_watched_code() && strikes(which); }

void *malloc(size_t n) { return starves(nth_malloc) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return starves(nth_calloc) ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t n) { return starves(nth_realloc) ? NULL : __libc_realloc(old, n); }
