"""A server that forks its workers: opened before the fork, each request is a record.

One worker is killed in the middle of its work; nothing that it appended is lost, and
nobody waits for it.

    1 of 3 workers was killed, 2 ended well
    every acknowledged request is in the log: True
"""

import os
import signal

import shmlog

log = shmlog.open("requests-log", create=True, timeout=5)  # a full disk answers, it does not hang
begin = log.reserved_lsn


def serve(number: int, acknowledge: int) -> None:
    """What a worker does: a record for each request, then the answer."""
    for request in range(200):
        log.append(b"%d %d" % (number, request), tag=number)
        os.write(acknowledge, b"%d %d\n" % (number, request))
        if number == 0 and request == 100:
            os.kill(os.getpid(), signal.SIGKILL)


answers, acknowledge = os.pipe()
workers = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        serve(number, acknowledge)
        os._exit(0)
    workers.append(pid)
os.close(acknowledge)
with os.fdopen(answers) as lines:
    acknowledged = set(lines.read().splitlines())
ends = [os.waitpid(pid, 0)[1] for pid in workers]
print(f"{sum(map(os.WIFSIGNALED, ends))} of 3 workers was killed, {ends.count(0)} ended well")

log.wait_durable()
found = {bytes(record.data).decode() for record in log.read(begin)}
print("every acknowledged request is in the log:", acknowledged <= found)
log.close()
