"""concurrent.futures with spawned workers: each opens the log once, in the initializer.

The results go through the log, not through pickles; a future carries the LSN alone.

    8 results, 0 to 63
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import shmlog

PATH = "executor-log"
log: shmlog.Log


def begin() -> None:
    global log
    log = shmlog.open(PATH)


def square(number: int) -> int:
    result = np.arange(1000) % (number + 1) ** 2  # large, and never pickled
    return log.append(result, tag=number, durable=True)


if __name__ == "__main__":
    with shmlog.open(PATH, create=True) as log:
        with ProcessPoolExecutor(2, get_context("spawn"), initializer=begin) as pool:
            lsns = list(pool.map(square, range(8)))
        results = log.take(lsns, np.dtype(("i8", 1000)))  # in the order of the tasks
        assert results.shape == (8, 1000)
        print(f"{len(results)} results, {results.min()} to {results.max()}")
