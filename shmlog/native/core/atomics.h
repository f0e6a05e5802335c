/* Atomics: the few operations on shared words, and which one pairs with which.
 *
 *   label      store / RMW side                   load side                 without it
 *   RESERVE    writer: CAS reserved_lsn           flusher: load the tail T  T seen, claim not: a live
 *              (after the claim's store)          (before any claim)        writer's range is called a hole
 *   HELD       writer: store claim.begin|HELD     flusher: load claim       half-published frame split
 *              (before any bit)                   (after the bits say 0)
 *   PUBLISH    writer: or/store bits, downward    flusher: scan upward      half a record committed
 *   COMMIT     flusher: store committed_lsn       readers: load it          bytes not yet visible are read
 *   CLEAR      flusher: clear bits after COMMIT,  next flusher: finishes    published records look like
 *              then store cleared_lsn             [cleared, committed)      a hole after a flusher's death
 *   LIMIT      flusher: store limit_lsn after     writer: load before CAS   a bit of the next lap is set,
 *              cleared_lsn and prepared_lsn                                 then cleared; or a store past
 *                                                                          the end of the file
 *   DURABLE    flusher: store durable_lsn         waiters: load it          called durable too soon
 *   SLEEP      flusher: store sleep word, then    writer: set bits, then    both miss: nobody wakes
 *              load the work (all seq_cst)        load sleep word (seq_cst) the flusher
 *   WANTED     waiter: raise wanted_*, then load  flusher: store sleep word, then  both miss: nobody wakes
 *              the sleep word (all seq_cst)       load wanted_* (all seq_cst)      the flusher
 *   WAKE       flusher: store a watermark, then   waiter: futex wait on the value  a wait lasts its whole
 *              load wanted_*, futex wake          it saw; the kernel compares      slice
 *
 * SHMLOG_STEP(label) is nothing in the shipped build.  The test build defines
 * it as a point at which a scheduler may switch to another participant or let
 * this one die there; a step that returns nonzero means "dead: touch nothing
 * more".  Every store to shared memory of the append path has one in front.
 */
#ifndef SHMLOG_ATOMICS_H
#define SHMLOG_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint64_t shared_u64;

_Static_assert(sizeof(shared_u64) == 8, "an atomic word is eight bytes");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free to be shared");

#ifdef SHMLOG_STEPS
int shmlog_step(const char *label);
#define SHMLOG_STEP(label)            \
    do {                              \
        if (shmlog_step(label))       \
            return OUTCOME_DIED;      \
    } while (0)
#else
#define SHMLOG_STEP(label) ((void)0)
#endif

/* What an attempt to append ended with. */
enum outcome {
    OUTCOME_DONE = 0,
    OUTCOME_ROOM = 1,   /* end > limit_lsn: nothing was reserved */
    OUTCOME_MAP = 2,    /* a segment is not mapped here: nothing was reserved */
    OUTCOME_STALE = 3,  /* forked, closed or a mapping faulted: nothing was reserved */
    OUTCOME_CLAIMS = 4, /* every claim of this participant is in use */
    OUTCOME_FAULT = 5,  /* a mapping faulted while copying: reserved, never published */
    OUTCOME_DIED = 6,   /* test build only */
    OUTCOME_DISK = 7    /* the disk refused a large payload: its range was given back */
};

static inline shared_u64 *word_at(uint8_t *base, uint64_t offset) {
    return (shared_u64 *)(void *)(base + offset);
}

#endif
