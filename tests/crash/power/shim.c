/* Shim: tells a recorder of every fsync and fdatasync of a process, before and after.
 *
 *     LD_PRELOAD=shim.so SHMLOG_RECORDER=/path/of/a/socket python ...
 *
 *     b INODE                  a sync begins; the answer is a token
 *     e INODE TOKEN RESULT     it has ended; 0 or an errno
 *
 * The recorder answers once it has looked at the files, so what it saw before a sync began
 * is what the sync makes durable, and what it noted before a promise came before it.  A
 * connection for each message: no descriptor that a process could close or inherit.
 * A message that is not answered ends the process: a sync that nobody saw would be a fault
 * that was not delivered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static unsigned long tell(const char *path, const char *message) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[32] = "";
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        send(fd, message, strlen(message), MSG_NOSIGNAL) < 0 || recv(fd, answer, sizeof answer - 1, 0) <= 0)
        abort();
    close(fd);
    return strtoul(answer, NULL, 10);
}

static int watched(int fd, const char *name) {
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *path = getenv("SHMLOG_RECORDER");
    struct stat found;
    if (!path || fstat(fd, &found) != 0)
        return call(fd);
    char message[96];
    snprintf(message, sizeof message, "b %lu", (unsigned long)found.st_ino);
    unsigned long token = tell(path, message);
    int result = call(fd), error = errno;
    snprintf(message, sizeof message, "e %lu %lu %d", (unsigned long)found.st_ino, token, result ? error : 0);
    tell(path, message);
    errno = error;
    return result;
}

int fsync(int fd) { return watched(fd, "fsync"); }

int fdatasync(int fd) { return watched(fd, "fdatasync"); }
