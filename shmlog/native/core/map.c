/* Map: making memory with several owners, and letting go of it (map.h says what for).
 *
 * This file knows pages and their holders.  It may not know what is in them.
 */
#include "map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

static int map_pages(int fd, size_t bytes, int protection, int flags, map_t **out) {
    map_t *map = malloc(sizeof *map);
    if (!map)
        return ENOMEM;
    void *base = mmap(NULL, bytes, protection, flags, fd, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        free(map);
        return error;
    }
    *map = (map_t){.base = base, .bytes = bytes, .writable = (protection & PROT_WRITE) != 0, .file = {.fd = -1}};
    atomic_init(&map->holders, 1);
    *out = map;
    return 0;
}

int map_file(int fd, size_t bytes, int writable, map_t **out) {
    int error = guard_install(), protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (!error)
        error = map_pages(fd, bytes, protection, MAP_SHARED, out);
    if (error)
        return error;
    (*out)->range = guard_add((*out)->base, bytes, protection);
    if ((*out)->range)
        return 0;
    map_drop(*out);
    return ENOMEM;
}

int map_memory(size_t bytes, map_t **out) {
    return map_pages(-1, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, out);
}

void map_keep_file(map_t *map, int fd) {
    struct stat found;
    if (fstat(fd, &found) != 0)
        return;
    map->file = (file_t){fcntl(fd, F_DUPFD_CLOEXEC, 0), found.st_dev, found.st_ino, found.st_size};
}

/* Release what was done with the pages, acquire what others did: the last one unmaps (O1). */
void map_drop(map_t *map) {
    if (atomic_fetch_sub_explicit(&map->holders, 1, memory_order_acq_rel) != 1)
        return;
    if (map->range)
        guard_remove(map->range);
    file_close(&map->file);
    munmap(map->base, map->bytes);
    free(map);
}
