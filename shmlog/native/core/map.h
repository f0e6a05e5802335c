/* Map: memory with several owners: a file mapped and guarded, or pages of nobody's file.
 *
 *   Mapping (Python) ---\
 *   an Arrow array ------+--> map_t {holders} --> pages
 *   a stream -----------/
 *
 * An Arrow consumer lets go of an array in any thread, with or without Python's lock, and
 * after the interpreter has ended too.  So what keeps the pages is a count of its own, and
 * no Python object.
 *
 * Invariants
 *   O1  The pages are unmapped when the last holder has let go, and not before.
 *
 * This file knows pages and their holders.  It may not know what is in them.
 */
#ifndef SHMLOG_MAP_H
#define SHMLOG_MAP_H

#include "guard.h"
#include "large.h"

typedef struct {
    _Atomic size_t holders;
    uint8_t *base;
    size_t bytes;
    int writable;
    guard_range_t *range; /* NULL: no file is behind it, so nothing can fault */
    file_t file;          /* a descriptor of the map's own, if it was asked for and there was one */
} map_t;

/* Map a file, shared, with one holder: 0 or an errno; ENOMEM when there are too many. */
int map_file(int fd, size_t bytes, int writable, map_t **out);

/* Zeroed pages of this process alone, with one holder: 0 or ENOMEM. */
int map_memory(size_t bytes, map_t **out);

/* Keep a descriptor of the file of a map that nobody else has yet; none if there are too many. */
void map_keep_file(map_t *map, int fd);

void map_drop(map_t *map);

static inline map_t *map_hold(map_t *map) {
    atomic_fetch_add_explicit(&map->holders, 1, memory_order_relaxed);
    return map;
}

static inline int map_faulted(const map_t *map) { return guard_faulted(map->range); }

#endif
