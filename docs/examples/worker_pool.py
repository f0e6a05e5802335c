"""A pool of workers, all of which append to one log; the parent reads what they did.

Each worker opens nothing: the handle of the parent joins the log anew in each fork.

    40 tasks by 4 workers, 4000 rows, sum 276000.0
"""

import multiprocessing

import numpy as np

import shmlog

ROW = np.dtype([("task", "u4"), ("value", "f8")])
log = shmlog.open("pool-log", create=True)


def work(task: int) -> None:
    rows = np.zeros(100, ROW)
    rows["task"] = task
    rows["value"] = np.arange(100) + task
    log.append_array(rows, tag=task)  # survives kill -9 of this worker from here on


if __name__ == "__main__":
    begin = log.reserved_lsn  # what earlier runs appended lies below
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(work, range(40))
    log.wait_durable()  # and power loss
    batches = list(log.read_batches(begin))
    rows = np.concatenate([batch.array(ROW) for batch in batches])
    writers = {int(writer) for batch in batches for writer in np.unique(batch.writer)}
    assert 1 <= len(writers) <= 4
    tasks = len(np.unique(rows["task"]))
    print(f"{tasks} tasks by 4 workers, {len(rows)} rows, sum {rows['value'].sum()}")
    log.close()
