/* Sync: one sync cycle, from intent to durable.
 *
 *   intent_lsn = target         a successor that finds it knows that an error may have
 *                               been reported to a dead flusher and forgotten
 *   for each segment, oldest first:
 *       write the vouched mark  it says what the *last* cycle made durable
 *       fdatasync
 *   durable_lsn = target, wake, intent_lsn = NO_LSN
 *
 * On an error nothing more is touched: the intent stays, the caller latches the
 * failure, and nothing is tried again.
 *
 * This file knows descriptors and words.  It may not know which segments they are.
 */
#ifndef SHMLOG_SYNC_H
#define SHMLOG_SYNC_H

#include <errno.h>
#include <unistd.h>

#include "atomics.h"
#include "layout.h"
#include "wait.h"

static inline int data_sync(int fd) {
    int result;
    do
#ifdef __APPLE__
        result = fsync(fd);
#else
        result = fdatasync(fd);
#endif
    while (result != 0 && errno == EINTR); /* interrupted before anything was said about the data */
    return result == 0 ? 0 : errno;
}

static inline int write_at(int fd, const uint8_t *data, size_t bytes, off_t offset) {
    while (bytes) {
        ssize_t written = pwrite(fd, data, bytes, offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? errno : EIO;
        data += written;
        offset += written;
        bytes -= (size_t)written;
    }
    return 0;
}

/* Only the flusher comes here, once a sync: writers pay nothing for it. */
static inline void count_sync(uint8_t *control, uint64_t took_ns) {
    unsigned bucket = 0;
    while (bucket < SYNC_BUCKETS - 1 && took_ns / 1000 >> bucket)
        bucket++;
    atomic_fetch_add(word_at(control, CB_SYNCS), 1);
    atomic_fetch_add(word_at(control, CB_SYNC_NS), took_ns);
    atomic_fetch_add(word_at(control, CB_SYNC_LATENCY + 8 * bucket), 1);
}

/* 0, or an errno.  ECANCELED: the log had failed meanwhile, nothing was made durable. */
static inline int sync_cycle(uint8_t *control, const int *fds, size_t count, const uint8_t *mark,
                             size_t mark_bytes, off_t mark_offset, uint64_t target) {
    shared_u64 *intent = word_at(control, CB_INTENT_LSN), *durable = word_at(control, CB_DURABLE_LSN);
    uint64_t started = monotonic_ns();
    atomic_store(intent, target);
    for (size_t i = 0; i < count; i++) {
        int error = write_at(fds[i], mark, mark_bytes, mark_offset);
        if (!error)
            error = data_sync(fds[i]);
        if (error)
            return error;
    }
    if (atomic_load(word_at(control, CB_STATE)) != STATE_RUNNING)
        return ECANCELED;
    atomic_store(durable, target); /* DURABLE */
    word_wake(durable);            /* WAKE */
    atomic_store(intent, NO_LSN);
    count_sync(control, monotonic_ns() - started);
    return 0;
}

#endif
