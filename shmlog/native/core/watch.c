/* Watch: the list, its lock and the thread (watch.h says what they are for).
 *
 * This file knows words and descriptors.  It may not know who waits, or for what.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include "fork.h"
#include "wait.h"

#define WORDS_MAX 127u /* of futex_waitv's 128: one is the turn */
#define POLL_NS 1000000u

/* futex_waitv(2) of Linux 5.16; older headers do not know it. */
#define SYS_FUTEX_WAITV 449
#define FUTEX_SIZE_U32 2u
typedef struct {
    uint64_t value, address;
    uint32_t flags, reserved;
} waited_t;

static const struct {
    uint64_t watermark, wanted, sleep_word;
} kinds[WATCH_KINDS] = {{CB_COMMITTED_LSN, CB_WANTED_COMMITTED, CB_COMMIT_SLEEP},
                        {CB_DURABLE_LSN, CB_WANTED_DURABLE, CB_SYNC_SLEEP}};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static watch_t *listed;           /* under the lock */
static int running;               /* under the lock */
static _Alignas(8) shared_u64 turn; /* changed under the lock, read by the sleeping kernel */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int hook_error;

static void prepare_fork(void) { pthread_mutex_lock(&lock); }
static void parent_forked(void) { pthread_mutex_unlock(&lock); }
static void child_forked(void) { /* U3 */
    listed = NULL;
    running = 0;
    pthread_mutex_unlock(&lock);
}
static void install_hook(void) { hook_error = pthread_atfork(prepare_fork, parent_forked, child_forked); }

static void tell(const watch_t *watch) {
    uint64_t one = 1;
    ssize_t ignored = write(watch->writes, &one, sizeof one); /* full: it is readable already */
    (void)ignored;
}

/* What the thread is to sleep on. */
typedef struct {
    waited_t words[WORDS_MAX + 1];
    unsigned count;
    uint64_t until_ns; /* 0: without end */
} sleep_t;

static void sooner(sleep_t *s, uint64_t ns) {
    if (!s->until_ns || ns < s->until_ns)
        s->until_ns = ns;
}

static void add_word(sleep_t *s, shared_u64 *word, uint64_t seen) {
    s->words[s->count++] =
        (waited_t){.value = (uint32_t)seen, .address = (uintptr_t)word, .flags = FUTEX_SIZE_U32};
}

/* Under the lock: whether the watch has something to say; if not, what it waits for. */
static int look(watch_t *w, uint64_t now, sleep_t *s) {
    if (w->due_ns && now >= w->due_ns)
        return 1;
    if (w->due_ns)
        sooner(s, w->due_ns);
    if (w->control && atomic_load(word_at(w->control, CB_STATE)) != STATE_RUNNING)
        return 1;
    for (int kind = 0; kind < WATCH_KINDS && w->control; kind++) {
        if (!w->targets[kind])
            continue;
        shared_u64 *word = word_at(w->control, kinds[kind].watermark);
        uint64_t seen = atomic_load(word);
        if (seen >= w->targets[kind])
            return 1;
        if (w->writable && s->count <= WORDS_MAX)
            add_word(s, word, seen);
        else
            sooner(s, now + POLL_NS);
    }
    return 0;
}

static void look_at_all(sleep_t *s) {
    pthread_mutex_lock(&lock);
    *s = (sleep_t){0};
    add_word(s, &turn, atomic_load(&turn)); /* U2: before the targets */
    uint64_t now = monotonic_ns();
    for (watch_t **at = &listed; *at;) {
        watch_t *w = *at;
        if (!look(w, now, s)) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->listed = 0;
        memset(w->targets, 0, sizeof w->targets);
        tell(w);
    }
    pthread_mutex_unlock(&lock);
}

static void sleep_on(const sleep_t *s) {
    struct timespec until = {.tv_sec = (time_t)(s->until_ns / 1000000000u),
                             .tv_nsec = (long)(s->until_ns % 1000000000u)};
#ifdef __linux__
    static _Atomic int without; /* the kernel has no futex_waitv */
    if (s->count == 1 && !s->until_ns) {
        syscall(SYS_futex, &turn, FUTEX_WAIT, (uint32_t)s->words[0].value, NULL, NULL, 0);
        return;
    }
    if (!atomic_load(&without)) {
        long end = syscall(SYS_FUTEX_WAITV, s->words, s->count, 0, s->until_ns ? &until : NULL, CLOCK_MONOTONIC);
        if (end >= 0 || errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT)
            return;
        if (errno == ENOSYS || errno == EINVAL || errno == EPERM)
            atomic_store(&without, 1);
    }
#endif
    (void)until;
    word_sleep(&turn, s->words[0].value, POLL_NS); /* also after EFAULT: a block has just gone */
}

static void *watching(void *unused) {
    sleep_t s;
    for (;;) {
        look_at_all(&s);
        sleep_on(&s);
    }
    return unused;
}

/* Under the lock: 0 or an errno.  Signals are for the threads that were there before, but for a
 * fault of this one: of a block that was cut under it (guard.h), which kills if it is blocked. */
static int start(void) {
    if (running)
        return 0;
    pthread_once(&once, install_hook);
    if (hook_error)
        return hook_error;
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (!error) {
        pthread_t thread;
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        error = pthread_create(&thread, &attributes, watching, NULL);
        pthread_attr_destroy(&attributes);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    running = !error;
    return error;
}

int watch_open(watch_t *watch, uint8_t *control, int writable) {
    int ends[2] = {-1, -1};
#ifdef __linux__
    ends[0] = ends[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ends[0] < 0)
        return errno;
#else
    if (pipe(ends) != 0)
        return errno;
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
    }
#endif
    *watch = (watch_t){.control = control,
                       .writable = writable,
                       .generation = atomic_load(&fork_generation),
                       .reads = ends[0],
                       .writes = ends[1]};
    return 0;
}

int watch_arm(watch_t *watch, int kind, uint64_t target, uint64_t within_ns) {
    uint8_t *control = watch->control;
    if (watch->generation != atomic_load(&fork_generation))
        return WATCH_FOREIGN;
    if (control && atomic_load(word_at(control, kinds[kind].watermark)) >= target)
        return WATCH_REACHED;
    if (control && watch->writable) /* as in word_wait: then the bell, then the watermark */
        raise_to(word_at(control, kinds[kind].wanted), target);
    pthread_mutex_lock(&lock);
    watch->targets[kind] = target;
    watch->due_ns = within_ns ? monotonic_ns() + within_ns : 0;
    if (!watch->listed) {
        watch->next = listed;
        listed = watch;
        watch->listed = 1;
    }
    int error = start();
    atomic_fetch_add(&turn, 1); /* U2 */
    pthread_mutex_unlock(&lock);
    word_wake(&turn);
    if (error) {
        errno = error;
        return -1;
    }
    int asleep = control && watch->writable && atomic_load(word_at(control, kinds[kind].sleep_word)) != SLEEP_AWAKE;
    return asleep ? WATCH_RING : WATCH_ARMED;
}

void watch_clear(watch_t *watch) {
    uint64_t many[16];
    ssize_t got;
    do
        got = read(watch->reads, many, sizeof many);
    while (watch->reads != watch->writes && got == (ssize_t)sizeof many);
}

/* Take it out of the list, and let the thread sleep on nothing of it any more. */
static void unlist(watch_t *watch) {
    if (watch->generation != atomic_load(&fork_generation))
        return; /* in no list of this process */
    pthread_mutex_lock(&lock);
    for (watch_t **at = &listed; *at; at = &(*at)->next)
        if (*at == watch) {
            *at = watch->next;
            break;
        }
    watch->listed = 0;
    memset(watch->targets, 0, sizeof watch->targets);
    atomic_fetch_add(&turn, 1);
    pthread_mutex_unlock(&lock);
    word_wake(&turn);
}

void watch_look_at(watch_t *watch, uint8_t *control, int writable) {
    unlist(watch);
    watch->control = control;
    watch->writable = writable;
}

void watch_remove(watch_t *watch) {
    if (watch->reads < 0)
        return;
    unlist(watch);
    close(watch->reads);
    if (watch->writes != watch->reads)
        close(watch->writes);
    watch->reads = watch->writes = -1;
}
