/* Watch: a descriptor that becomes readable when a watermark reaches an LSN.
 *
 *   watch_arm            one thread of the process                whoever polls the descriptor
 *   store the target     sleep on every armed word at once        readable: look at the
 *   change the turn -->  reached, failed or due: forget the  -->  watermark, and arm again
 *   and wake it          target, write to the descriptor
 *
 * So a thousand tasks of an event loop wait with one thread of theirs and this one, which is
 * made by the first arm and sleeps while nothing is armed.
 *
 * Invariants
 *   U1  The thread looks at a watch only under the lock and only while it is listed: once
 *       watch_remove has returned, the memory may go.
 *   U2  No arm is slept through: the thread reads the turn under the lock, before it looks at
 *       the targets, and sleeps only while the turn is still that.
 *   U3  A forked child has no such thread, and nothing is listed: it makes watches of its own.
 *
 * It may become readable for nothing, and does so for a watch that has to poll.
 *
 * This file knows words and descriptors.  It may not know who waits, or for what.
 */
#ifndef SHMLOG_WATCH_H
#define SHMLOG_WATCH_H

#include <stdint.h>

enum { WATCH_COMMITTED = 0, WATCH_DURABLE = 1, WATCH_KINDS = 2 };

/* What arming came to. */
enum watch_end { WATCH_ARMED = 0, WATCH_REACHED = 1, WATCH_RING = 2, WATCH_FOREIGN = 3 };

typedef struct watch {
    struct watch *next;
    uint8_t *control; /* NULL: there is no block, only `due` counts */
    int writable;     /* else nobody is told that we wait, and the words are polled */
    int listed;
    uint64_t targets[WATCH_KINDS]; /* 0: not armed */
    uint64_t due_ns;               /* 0: never; monotonic */
    uint64_t generation;           /* of the process that made it */
    int reads, writes;             /* the ends of the descriptor; one and the same on Linux */
} watch_t;

/* Make its descriptors: 0 or an errno. */
int watch_open(watch_t *watch, uint8_t *control, int writable);

/* From now on it is of this block; nothing is armed. */
void watch_look_at(watch_t *watch, uint8_t *control, int writable);

/* Wait for word `kind` to reach target, or `within_ns` (0: without end).  REACHED: it has, and
 * nothing is armed.  RING: armed, but the flusher's loop sleeps; ring its bell.  FOREIGN: it is
 * the parent process's.  -1: no thread could be made, see errno. */
int watch_arm(watch_t *watch, int kind, uint64_t target, uint64_t within_ns);

/* Make the descriptor unreadable until the next time. */
void watch_clear(watch_t *watch);

/* Forget it (U1) and close its descriptors. */
void watch_remove(watch_t *watch);

#endif
