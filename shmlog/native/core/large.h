/* Large: payloads that go into their segment by a system call, not by stores into its map.
 *
 *   stores   page cache: zero a page, map it here, and then copy over the zeros
 *   pwrite   page cache: copy                                    coherent with every map
 *
 * From some size on the zeros and the faults cost more than the call (docs/decisions/0018).
 *
 * Invariants
 *   H8  Nothing is written through a descriptor that is no longer the whole segment file: a
 *       program may have closed it under us and opened another under its number, and a
 *       file that was cut would grow again, with zeros for records.
 *   H9  What the disk refuses is an error of the one record.  Whatever else stops the call
 *       stops no append: the bytes go through the map, where such a thing is met as ever.
 *
 * This file knows one open file.  It may not know frames.
 */
#ifndef SHMLOG_LARGE_H
#define SHMLOG_LARGE_H

#include <errno.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define LARGE_BYTES 32768u /* payloads from here on */

/* A descriptor, and what it was opened as. */
typedef struct {
    int fd; /* -1: none */
    dev_t device;
    ino_t inode;
    off_t bytes;
} file_t;

enum large_end { LARGE_WRITTEN = 0, LARGE_UNUSABLE = -1 }; /* or an errno of the disk */

/* H8: is the descriptor still what it was opened as, and the file of that size? */
static inline int file_usable(const file_t *file) {
    struct stat now;
    return file && file->fd >= 0 && fstat(file->fd, &now) == 0 && now.st_ino == file->inode &&
           now.st_dev == file->device && now.st_size == file->bytes;
}

static inline void file_close(const file_t *file) {
    struct stat now;
    if (file->fd >= 0 && fstat(file->fd, &now) == 0 && now.st_ino == file->inode && now.st_dev == file->device)
        close(file->fd);
}

/* Write `bytes` and after them `padding` zeros, less than 32, at an offset. */
static inline int large_write(const file_t *file, const void *data, uint64_t bytes, uint64_t padding,
                              uint64_t offset) {
    static const uint8_t zeros[32];
    uint64_t done = 0, all = bytes + padding;
    while (done < all) {
        uint64_t left = done < bytes ? bytes - done : 0;
        struct iovec parts[2] = {{(uint8_t *)(uintptr_t)data + done, left},
                                 {(uint8_t *)(uintptr_t)zeros, all - done - left}};
        ssize_t n = pwritev(file->fd, parts, 2, (off_t)(offset + done));
        if (n > 0)
            done += (uint64_t)n;
        else if (n == 0 || errno != EINTR) /* H9 */
            return n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO) ? errno : LARGE_UNUSABLE;
    }
    return LARGE_WRITTEN;
}

#endif
