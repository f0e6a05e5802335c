/* Scan: a range of a log as an Arrow stream, segment by segment.
 *
 *   [begin, stop) of [.., end)      the frames that begin in it; each ends by end
 *   | segment | segment | segment   opened when its turn comes, let go of when it is past
 *        |holes|                    of a dead log: passed over
 *
 * Everything that the stream needs is its own copy: it goes on when the handle is closed,
 * and in whatever thread its consumer asks for the next batch (D2).
 *
 * Invariants
 *   D3  A stream that failed says so again at every further call, after the batches
 *       that came before the failure.
 *
 * This file knows segment files and the bounds that it is given.  It may not know a control
 * block.
 */
#ifndef SHMLOG_SCAN_H
#define SHMLOG_SCAN_H

#include <sys/types.h>

#include "arrow.h"

#define SCAN_PIECE 1024u /* records that are found and then exported, while they are in the cache */
#define SCAN_HEADER_BYTES 32u

typedef struct {
    uint64_t lsn[SCAN_PIECE], at[SCAN_PIECE];
    int64_t time_ns[SCAN_PIECE];
    uint32_t tag[SCAN_PIECE], payload_bytes[SCAN_PIECE];
    uint16_t writer[SCAN_PIECE];
} scan_piece_t;

typedef struct {
    form_t *form;                      /* held */
    char *directory;                   /* owned: of the segment files */
    uint8_t header[SCAN_HEADER_BYTES]; /* how the header of each begins ... */
    uint64_t copy_at;                  /* ... and its copy, at so many bytes */
    uint64_t segment_bytes;
    uid_t owner;                       /* whose the files are */
    uint64_t begin, stop, end;         /* begin moves on */
    uint64_t (*holes)[2];              /* owned; ascending */
    size_t hole_count;
    tags_t tags;                       /* its set is owned */
    uint32_t seed;
    int verify;
    uint64_t batch_records, batch_bytes; /* at most, but for one record */
    map_t *map;                          /* of the segment at map_lsn, or NULL */
    uint64_t map_lsn;
    int error;                           /* an errno, for ever (D3) */
    char text[512];
    scan_piece_t piece;
} scan_t;

/* Make the stream of a scan, which it takes over. */
void scan_stream(scan_t *scan, struct ArrowArrayStream *out);
void scan_free(scan_t *scan);

#endif
