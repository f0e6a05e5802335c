/* Scan: opening segments, finding records, handing out batches (scan.h says of what).
 *
 * This file knows segment files and the bounds that it is given.  It may not know a control
 * block.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "scan.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const problem_texts[] = {
#define SHMLOG_TEXT(name, number, text) text,
    FRAME_PROBLEMS(SHMLOG_TEXT)
#undef SHMLOG_TEXT
};

void scan_free(scan_t *scan) {
    if (scan->form)
        form_drop(scan->form);
    if (scan->map)
        map_drop(scan->map);
    free(scan->directory);
    free(scan->holes);
    free((void *)(uintptr_t)scan->tags.set);
    free(scan);
}

/* ------------------------------------------------------------------ errors */

__attribute__((format(printf, 3, 4))) static int scan_fails(scan_t *s, int error, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(s->text, sizeof s->text, format, values);
    va_end(values);
    return s->error = error;
}

static uint64_t segment_of(const scan_t *s, uint64_t lsn) { return lsn - lsn % s->segment_bytes; }

#define FILE_NAME "%s/%020" PRIu64 ".seg"

static int scan_damaged(scan_t *s, uint64_t lsn, const char *why) {
    return scan_fails(s, EIO, FILE_NAME ": damaged at LSN %" PRIu64 ": %s", s->directory, segment_of(s, lsn),
                      lsn, why);
}

/* ---------------------------------------------------------------- segments */

/* Nothing but a whole file of ours, as every reader has it. */
static const char *file_problem(const scan_t *s, int fd) {
    struct stat found;
    if (fstat(fd, &found) != 0)
        return "cannot be looked at";
    if (!S_ISREG(found.st_mode) || found.st_nlink > 1)
        return "is no regular file with one name";
    if (found.st_uid != s->owner)
        return "belongs to another user";
    if ((uint64_t)found.st_size != SEGMENT_HEADER_BYTES + s->segment_bytes)
        return "has another size";
    return NULL;
}

/* Map the segment that holds lsn, unless it is. */
static int scan_map(scan_t *s, uint64_t lsn) {
    uint64_t first = segment_of(s, lsn);
    if (s->map && s->map_lsn == first)
        return 0;
    if (s->map)
        map_drop(s->map);
    s->map = NULL;
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, FILE_NAME, s->directory, first) >= sizeof path)
        return scan_fails(s, ENAMETOOLONG, "the path of LSN %" PRIu64 " is too long", lsn);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return scan_fails(s, ENOENT, "%s: LSN %" PRIu64 " has been trimmed, or the log is gone", path, lsn);
    if (fd < 0)
        return scan_fails(s, errno, "%s: %s", path, strerror(errno));
    const char *problem = file_problem(s, fd);
    int error = problem ? 0 : map_file(fd, SEGMENT_HEADER_BYTES + s->segment_bytes, 0, &s->map);
    close(fd);
    if (problem)
        return scan_fails(s, EINVAL, "%s %s", path, problem);
    if (error)
        return scan_fails(s, error, "%s: cannot be mapped: %s", path, strerror(error));
    s->map_lsn = first;
    if (memcmp(s->map->base, s->header, SCAN_HEADER_BYTES) != 0 &&
        memcmp(s->map->base + s->copy_at, s->header, SCAN_HEADER_BYTES) != 0)
        return scan_fails(s, EINVAL, "%s is no segment of this log", path);
    return 0;
}

/* Where the piece that begins at s->begin ends, which a hole, a segment or the bounds do; holes
 * are passed over first. */
static uint64_t piece_end(scan_t *s) {
    uint64_t end = s->end;
    for (size_t i = 0; i < s->hole_count; i++) {
        uint64_t low = s->holes[i][0], high = s->holes[i][1];
        if (s->begin >= low && s->begin < high)
            s->begin = high;
        else if (low > s->begin && low < end)
            end = low;
    }
    uint64_t segment_end = segment_of(s, s->begin) + s->segment_bytes;
    return end < segment_end ? end : segment_end;
}

/* ----------------------------------------------------------------- batches */

/* The first of the records that does not have the size that the form asks for, or count. */
static uint64_t unequal(const scan_t *s, uint64_t count) {
    uint64_t i = 0;
    if (s->form->payload_bytes == ANY_BYTES)
        return count;
    while (i < count && s->piece.payload_bytes[i] == s->form->payload_bytes)
        i++;
    return i;
}

/* Add the records of [s->begin, end) to the batch, up to its capacity; s->error for what stops
 * it sooner. */
static void scan_fill(scan_t *s, uint64_t end, batch_t *batch, uint64_t capacity) {
    scan_piece_t *p = &s->piece;
    columns_t to = {p->lsn, p->time_ns, p->tag, p->writer, p->payload_bytes, 0};
    uint64_t stop = s->stop < end ? s->stop : end;
    while (s->begin < stop && batch_count(batch) < capacity && !s->error) {
        uint64_t left = capacity - batch_count(batch);
        to.capacity = left < SCAN_PIECE ? left : SCAN_PIECE;
        walk_t w = frame_walk(s->map->base + SEGMENT_HEADER_BYTES, s->map_lsn, s->begin, stop, end, s->seed,
                              s->verify, &s->tags, 0, &to);
        uint64_t fitting = unequal(s, w.count);
        for (uint64_t i = 0; i < w.count; i++)
            p->at[i] = p->lsn[i] - s->map_lsn + SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES;
        batch_add(batch, &to, p->at, fitting);
        s->begin = w.next_lsn;
        if (map_faulted(s->map))
            scan_damaged(s, s->begin, "the file was changed or lost under the reader");
        else if (fitting < w.count)
            scan_fails(s, EINVAL, "the record at LSN %" PRIu64 " has %" PRIu32 " bytes, and the dtype %" PRIu64,
                       p->lsn[fitting], p->payload_bytes[fitting], s->form->payload_bytes);
        else if (w.problem != FRAME_VALID)
            scan_damaged(s, s->begin, problem_texts[w.problem]);
    }
}

/* How many records a batch of [s->begin, end) may have to hold. */
static uint64_t scan_capacity(const scan_t *s, uint64_t end) {
    uint64_t each = frame_bytes(s->form->payload_bytes == ANY_BYTES ? 0 : s->form->payload_bytes);
    uint64_t most = (end - s->begin) / each + 1;
    uint64_t fitting = s->batch_bytes / (s->form->row_bytes + 1) + 1;
    most = most < fitting ? most : fitting;
    return most < s->batch_records ? most : s->batch_records;
}

static int scan_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    scan_t *s = stream->private_data;
    out->release = NULL;
    while (!s->error) {
        uint64_t end = piece_end(s);
        if (s->begin >= s->stop || s->begin >= s->end)
            return 0;
        if (scan_map(s, s->begin) != 0)
            break;
        uint64_t capacity = scan_capacity(s, end);
        batch_t *batch = batch_new(s->form, s->map, capacity);
        if (!batch)
            return scan_fails(s, ENOMEM, "no memory for a batch of %" PRIu64 " records", capacity);
        scan_fill(s, end, batch, capacity);
        int faulted = map_faulted(s->map); /* then none of it is to be believed */
        if (batch_count(batch) && !faulted) {
            batch_move(batch, out);
            return 0;
        }
        batch_free(batch);
    }
    return s->error;
}

static int scan_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    scan_t *s = stream->private_data;
    return form_schema(s->form, out);
}

static const char *scan_last_error(struct ArrowArrayStream *stream) {
    scan_t *s = stream->private_data;
    return s->error ? s->text : NULL;
}

static void scan_release(struct ArrowArrayStream *stream) {
    scan_free(stream->private_data);
    stream->release = NULL;
}

void scan_stream(scan_t *scan, struct ArrowArrayStream *out) {
    *out = (struct ArrowArrayStream){.get_schema = scan_schema,
                                     .get_next = scan_next,
                                     .get_last_error = scan_last_error,
                                     .release = scan_release,
                                     .private_data = scan};
}
