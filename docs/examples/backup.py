"""A backup of a log that is being written to, and a second one that adds what is new.

It prints

    the first backup: a prefix of what was appended
    the second one adds the rest
    the copy opens by itself: 2000 records
"""

import os
import shutil

import shmlog

LOG, COPY = "ledger", "ledger-backup"

for path in (LOG, COPY):  # so that it can be run again
    shutil.rmtree(path, ignore_errors=True)
log = shmlog.open(LOG, create=True)
if (writer := os.fork()) == 0:
    for number in range(2000):
        log.append(b"entry %d" % number)
    log.wait_durable()
    os._exit(0)

first = shmlog.backup(LOG, COPY)  # the writer goes on meanwhile
assert first.records <= 2000
print("the first backup: a prefix of what was appended")

os.waitpid(writer, 0)
second = shmlog.backup(LOG, COPY)
assert second.added_from_lsn == first.end_lsn
assert first.records + second.records == 2000
print("the second one adds the rest")
log.close()

with shmlog.open_readonly(COPY) as copy:
    entries = [bytes(record.data) for record in copy.read()]
assert entries == [b"entry %d" % number for number in range(2000)]
print(f"the copy opens by itself: {len(entries)} records")
