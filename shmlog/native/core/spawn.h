/* Spawn: start a program that is nobody's child.
 *
 *   this process --clone, no exit signal--> a moment's helper --posix_spawn--> the program
 *
 * The helper shares our memory, ends at once and is collected here; the program then
 * belongs to init.  A child of the process itself would turn up in the os.wait() of a
 * pre-fork server, which has never heard of it.  Without an exit signal the helper
 * does not either: a plain wait passes it over.
 *
 * This file knows processes.  It may not know which program it is.
 */
#ifndef SHMLOG_SPAWN_H
#define SHMLOG_SPAWN_H

/* arguments[0] is the program's path; both arrays end in NULL.  0 or an errno. */
int spawn_detached(char *const *arguments, char *const *environment);

#endif
