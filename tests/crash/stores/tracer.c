/* Tracer: let a child run from store to store of what it shares with others.
 *
 *   scan     single-step from here to the child's next SIGURG; note the instructions
 *            that changed the regions
 *   run_to   break at those instructions alone, and stop when the n-th change was made
 *
 * A region is memory of ours that the child has mapped too: what changes while the child
 * makes one step was changed by that step, as long as nobody else runs who stores there.
 * run_to compares around one instruction at a time, so others may run then.
 *
 * The caller is the thread that forked the child, and the child asked to be traced.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>

typedef struct {
    const uint8_t *at;
    uint64_t bytes;
} region_t;

typedef struct {
    uint64_t address; /* of the instruction that stored */
    uint64_t region;  /* the first region that it changed */
    uint64_t offset;  /* the first byte there */
} change_t;

#define MOST_INSTRUCTIONS 20000000

enum { BROKEN = -1, ENDED = -2, MADE_NOTHING = -3 };

static uint8_t *copy_all(const region_t *regions, uint64_t count) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; i++)
        total += regions[i].bytes;
    uint8_t *copy = malloc(total ? total : 1);
    for (uint64_t i = 0, at = 0; copy && i < count; at += regions[i++].bytes)
        memcpy(copy + at, regions[i].at, regions[i].bytes);
    return copy;
}

/* Whether anything differs from the copy, which is brought up to date. */
static int changed(const region_t *regions, uint64_t count, uint8_t *copy, change_t *change) {
    int found = 0;
    for (uint64_t i = 0; i < count; copy += regions[i++].bytes) {
        if (memcmp(copy, regions[i].at, regions[i].bytes) == 0)
            continue;
        for (uint64_t at = 0; !found && at < regions[i].bytes; at++)
            if (copy[at] != regions[i].at[at]) {
                change->region = i;
                change->offset = at;
                found = 1;
            }
        memcpy(copy, regions[i].at, regions[i].bytes);
    }
    return found;
}

static int go(pid_t pid, int how, int *status) {
    if (ptrace(how, pid, NULL, NULL) != 0)
        return BROKEN;
    while (waitpid(pid, status, __WALL) < 0)
        if (errno != EINTR)
            return BROKEN;
    return WIFSTOPPED(*status) ? 0 : ENDED;
}

static uint64_t where(pid_t pid) {
    struct user_regs_struct registers;
    return ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0 ? registers.rip : 0;
}

/* The number of changes, of which `most` are written to out; the instructions that were
 * stepped in *instructions.  The child stands at its mark, a SIGURG that it never gets.
 * -100 - a signal: another one came first. */
int64_t tracer_scan(pid_t pid, const region_t *regions, uint64_t count, change_t *out, uint64_t most,
                    uint64_t *instructions) {
    uint8_t *copy = copy_all(regions, count);
    int64_t found = 0;
    *instructions = 0;
    for (int status;;) {
        uint64_t at = where(pid);
        int gone = go(pid, PTRACE_SINGLESTEP, &status);
        change_t change = {.address = at};
        if (gone) {
            found = gone;
            break;
        }
        if (changed(regions, count, copy, &change)) {
            if ((uint64_t)found < most)
                out[found] = change;
            found++;
        }
        ++*instructions;
        if (WSTOPSIG(status) == SIGURG)
            break;
        if (WSTOPSIG(status) != SIGTRAP || *instructions == MOST_INSTRUCTIONS) {
            found = -100 - WSTOPSIG(status);
            break;
        }
    }
    free(copy);
    return found;
}

static int poke(pid_t pid, uint64_t at, uint8_t byte, uint8_t *old) {
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, (void *)at, NULL);
    if (errno)
        return BROKEN;
    if (old)
        *old = (uint8_t)word;
    word = (long)(((unsigned long)word & ~0xffUL) | byte);
    return ptrace(PTRACE_POKETEXT, pid, (void *)at, (void *)word) == 0 ? 0 : BROKEN;
}

/* Step over the instruction at a breakpoint, all its repetitions; whether the changes made
 * are now `n` (1), or not yet (0). */
static int over(pid_t pid, uint64_t at, const region_t *regions, uint64_t count, uint64_t n, uint64_t *made,
                change_t *last) {
    int status, result = 0;
    uint8_t *copy = copy_all(regions, count);
    do {
        if ((result = go(pid, PTRACE_SINGLESTEP, &status)))
            break;
        change_t change = {.address = at};
        if (changed(regions, count, copy, &change)) {
            *last = change;
            result = ++*made == n;
        }
    } while (!result && WSTOPSIG(status) == SIGTRAP && where(pid) == at);
    free(copy);
    return result;
}

/* Let the child run until it has made n changes: 0, and the last of them.  MADE_NOTHING: it came to its
 * next signal before that.  Without breakpoints afterwards. */
int tracer_run_to(pid_t pid, const region_t *regions, uint64_t count, const uint64_t *breaks, uint64_t total,
                  uint64_t n, change_t *last) {
    uint8_t old[256];
    uint64_t made = 0;
    int status, result = n == 0;
    if (total > sizeof old)
        return BROKEN;
    for (uint64_t i = 0; i < total; i++)
        if (poke(pid, breaks[i], 0xcc, &old[i]))
            return BROKEN;
    while (!result) {
        if ((result = go(pid, PTRACE_CONT, &status)))
            break;
        struct user_regs_struct registers;
        if (ptrace(PTRACE_GETREGS, pid, NULL, &registers) != 0)
            return BROKEN;
        uint64_t i = 0;
        while (i < total && breaks[i] != registers.rip - 1)
            i++;
        if (WSTOPSIG(status) != SIGTRAP || i == total) {
            result = MADE_NOTHING;
            break;
        }
        registers.rip--;
        if (ptrace(PTRACE_SETREGS, pid, NULL, &registers) != 0 || poke(pid, breaks[i], old[i], NULL))
            return BROKEN;
        result = over(pid, breaks[i], regions, count, n, &made, last);
        if (!result && poke(pid, breaks[i], 0xcc, NULL))
            return BROKEN;
    }
    for (uint64_t i = 0; i < total && result != ENDED; i++)
        poke(pid, breaks[i], old[i], NULL);
    return result < 0 ? result : 0;
}

int tracer_ask(void) { return (int)ptrace(PTRACE_TRACEME, 0, NULL, NULL); }

int tracer_leave(pid_t pid) { return (int)ptrace(PTRACE_DETACH, pid, NULL, NULL); }
