"""A consumer that is killed, and the next one, which goes on at the last commit: at least once.

It prints

    the first consumer did 350 jobs and was killed
    the second one did 700, 50 of them again
    each job was done: True
"""

import os
import shutil
import signal

import shmlog

PATH = "jobs-log"
JOBS = 1000


def consume(done: int, kill_at: int | None) -> None:
    """Follow the cursor; a line in the pipe is the work."""
    count = 0
    with shmlog.open(PATH) as log, log.cursor("etl") as cursor:
        for batch in cursor.follow(timeout=30):
            for record in batch:
                os.write(done, bytes(record.data) + b"\n")
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if count % 100 == 0:
                    cursor.commit(record.next_lsn)  # after the work: what is not committed comes again
            if cursor.lsn == log.committed_lsn:
                return


def run(kill_at: int | None = None) -> list[bytes]:
    """A consumer in a process of its own; what it did."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        consume(write, kill_at)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        found = lines.read().splitlines()
    os.waitpid(pid, 0)
    return found


shutil.rmtree(PATH, ignore_errors=True)  # so that it can be run again
with shmlog.open(PATH, create=True) as log:
    log.append_many([b"job %d" % number for number in range(JOBS)])
    log.wait_committed()
    first, second = run(kill_at=350), run()
print(f"the first consumer did {len(first)} jobs and was killed")
print(f"the second one did {len(second)}, {len(set(first) & set(second))} of them again")
print("each job was done:", len(set(first) | set(second)) == JOBS)
