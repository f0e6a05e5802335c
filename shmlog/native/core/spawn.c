/* Spawn: the helper and what it starts (spawn.h has the picture).
 *
 * This file knows processes.  It may not know which program it is.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clone */
#endif

#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    char *const *arguments;
    char *const *environment;
    int error;
} spawn_t;

/* Its own session, no signals blocked or ignored, /dev/null for the standard files. */
static int spawn_program(spawn_t *s) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int error = posix_spawn_file_actions_init(&files);
    if (error)
        return error;
    error = posix_spawnattr_init(&attributes);
    for (int fd = 0; fd <= 2 && !error; fd++)
        error = posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    if (!error)
        error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error)
        error = posix_spawnattr_setsigdefault(&attributes, &all);
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
#ifdef POSIX_SPAWN_SETSID
    flags = (short)(flags | POSIX_SPAWN_SETSID);
#endif
    if (!error)
        error = posix_spawnattr_setflags(&attributes, flags);
    pid_t pid;
    if (!error)
        error = posix_spawn(&pid, s->arguments[0], &files, &attributes, s->arguments, s->environment);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return error;
}

#ifdef __linux__
static int spawn_helper(void *argument) {
    spawn_t *s = argument;
    s->error = spawn_program(s);
    _exit(0);
}

int spawn_detached(char *const *arguments, char *const *environment) {
    spawn_t s = {.arguments = arguments, .environment = environment, .error = EAGAIN};
    const size_t stack_bytes = 256 * 1024;
    char *stack = malloc(stack_bytes);
    if (!stack)
        return ENOMEM;
    /* VFORK: this thread sleeps until the helper has ended, so its stack is safe. */
    pid_t helper = clone(spawn_helper, stack + (stack_bytes & ~(size_t)63), CLONE_VM | CLONE_VFORK, &s);
    if (helper < 0)
        s.error = errno;
    else
        while (waitpid(helper, NULL, (int)__WCLONE) < 0 && errno == EINTR)
            ;
    free(stack);
    return s.error;
}
#else
int spawn_detached(char *const *arguments, char *const *environment) {
    spawn_t s = {.arguments = arguments, .environment = environment};
    pid_t helper = fork();
    if (helper == 0)
        _exit(spawn_program(&s) ? 1 : 0);
    int status = 0;
    if (helper < 0)
        return errno;
    while (waitpid(helper, &status, 0) < 0 && errno == EINTR)
        ;
    return status ? EAGAIN : 0;
}
#endif
