/* Wait: sleep until a shared watermark reaches an LSN, and wake who sleeps.
 *
 *   waiter                                   flusher
 *   raise wanted to the target    WANTED     store its sleep word
 *   load the sleep word: ring?               load wanted: work to do?
 *   load the watermark            WAKE       store the watermark
 *   futex wait while it is that              futex wake, all of them
 *
 * The watermark itself is what is slept on: one system call wakes every waiter of
 * every process, whoever is not yet satisfied sleeps again, and nobody has to be
 * registered anywhere, so a dead waiter leaves nothing behind.  Only the low half
 * of the word is compared; were it to come round to the same value within one
 * slice (4 GiB committed meanwhile), the slice would be slept out.
 *
 * Where there is no futex the watermark is looked at every half millisecond.
 *
 * This file knows words and bits.  It may not know what they mean.
 */
#ifndef SHMLOG_WAIT_H
#define SHMLOG_WAIT_H

#include <errno.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "atomics.h"
#include "bitmap.h"
#include "layout.h"

/* After a slice a waiter looks at what the core cannot know: the lease, the deadline, the
 * signals.  The spin is about one sync of a fast disk: within it, spinning saves two
 * wake-ups. */
#define WAIT_SLICE_NS 50000000u
#define DURABLE_SPIN_NS 100000u

enum wait_end { WAIT_REACHED = 1, WAIT_TIMEOUT = 2, WAIT_RING = 3, WAIT_FAILED = 4 };

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void word_sleep(shared_u64 *word, uint64_t seen, uint64_t ns) {
    struct timespec timeout = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT, (uint32_t)seen, &timeout, NULL, 0);
#else
    if (ns > 500000)
        timeout = (struct timespec){.tv_nsec = 500000};
    nanosleep(&timeout, NULL);
    (void)word;
    (void)seen;
#endif
}

static inline void word_wake(shared_u64 *word) {
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
#else
    (void)word;
#endif
}

static inline void raise_to(shared_u64 *word, uint64_t value) {
    uint64_t old = atomic_load(word);
    while (old < value && !atomic_compare_exchange_weak(word, &old, value))
        ;
}

/* After storing a watermark that was `old`: wake its waiters if there can be any.  The
 * store and this load, the waiter's raise and its load of the watermark are all
 * seq_cst: either we see what is wanted, or the waiter sees what we stored. */
static inline void wake_if_wanted(uint8_t *control, uint64_t watermark, uint64_t wanted, uint64_t old) {
    if (atomic_load(word_at(control, wanted)) > old)
        word_wake(word_at(control, watermark));
}

/* Watch a word for at most ns; whether it is at least target.  Gives the core up
 * again and again, so that whoever has to move the word can run. */
static inline int word_spin(shared_u64 *word, uint64_t target, uint64_t ns) {
    uint64_t until = ns ? monotonic_ns() + ns : 0;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load(word) >= target)
                return 1;
            cpu_relax();
        }
        if (ns)
            sched_yield();
    } while (ns && monotonic_ns() < until);
    return 0;
}

/* Watch a word until it has not changed for quiet_ns, at most for most_ns; whether it changed. */
static inline int word_settle(shared_u64 *word, uint64_t quiet_ns, uint64_t most_ns) {
    uint64_t now = monotonic_ns(), until = now + most_ns, changed = now;
    uint64_t first = atomic_load(word), seen = first;
    while (now < until && now - changed < quiet_ns) {
        for (int i = 0; i < 32; i++)
            cpu_relax();
        sched_yield();
        now = monotonic_ns();
        uint64_t value = atomic_load(word);
        if (value != seen)
            seen = value, changed = now;
    }
    return seen != first;
}

/* As word_spin, for the bit of one granule. */
static inline int bit_spin(const bitmap_t *b, uint64_t granule, uint64_t ns) {
    uint64_t until = monotonic_ns() + ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (bitmap_scan(b, granule, granule + 1, 1) == granule)
                return 1;
            cpu_relax();
        }
        sched_yield();
    } while (monotonic_ns() < until);
    return 0;
}

/* One slice of a wait.  RING: the flusher's loop sleeps; ring its bell, then wait on
 * with ring = 0.  Spins first only if others wait too: a crowd is spared its wake-ups,
 * but one caller alone, running on while its pages are written, makes the flusher
 * interrupt its core to write-protect them.  Who has rung has raised what is wanted by
 * itself: then only what lies above it is somebody else's. */
static inline enum wait_end word_wait(uint8_t *control, uint64_t watermark, uint64_t wanted,
                                      uint64_t sleep_word, uint64_t target, int ring, uint64_t spin_ns,
                                      uint64_t slice_ns) {
    shared_u64 *word = word_at(control, watermark);
    if (atomic_load(word) >= target)
        return WAIT_REACHED;
    int company = atomic_load(word_at(control, wanted)) > (ring ? atomic_load(word) : target);
    raise_to(word_at(control, wanted), target);
    if (ring && atomic_load(word_at(control, sleep_word)) != SLEEP_AWAKE)
        return WAIT_RING;
    if (company && word_spin(word, target, spin_ns))
        return WAIT_REACHED;
    uint64_t until = monotonic_ns() + slice_ns;
    for (;;) {
        uint64_t seen = atomic_load(word);
        if (seen >= target)
            return WAIT_REACHED;
        if (atomic_load(word_at(control, CB_STATE)) != STATE_RUNNING)
            return WAIT_FAILED;
        uint64_t now = monotonic_ns();
        if (now >= until)
            return WAIT_TIMEOUT;
        word_sleep(word, seen, until - now);
    }
}

#endif
