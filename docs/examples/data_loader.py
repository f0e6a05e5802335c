"""Training on a log: shuffled batches, gathered by LSN, in worker processes.

A scan and a list of LSNs are all that a worker is sent; the rows come from the mapped
files.  With PyTorch, LogDataset does this and resumes where it was.

    epoch 0: 32 batches of 64, sum 2096128
    epoch 1: 32 batches of 64, sum 2096128
    the two epochs differ in their order: True
"""

from multiprocessing import get_context

import numpy as np

import shmlog

PATH = "samples-log"
SAMPLE = np.dtype([("label", "i4"), ("pixels", "u1", (28,))])


def make() -> None:
    with shmlog.open(PATH, create=True) as log:
        if log.committed_lsn == 0:
            samples = np.zeros(2048, SAMPLE)
            samples["label"] = np.arange(2048)
            log.append_array(samples, durable=True)


def gather(lsns: np.ndarray) -> np.ndarray:
    with shmlog.open_readonly(PATH) as log:
        return log.take(lsns, SAMPLE)["label"]  # verified copies, in this order


if __name__ == "__main__":
    make()
    with shmlog.open_readonly(PATH) as log:
        lsns = np.concatenate([batch.lsn for batch in log.read_batches()])
    orders = []
    with get_context("spawn").Pool(2) as pool:
        for epoch in range(2):
            shuffled = np.random.default_rng(epoch).permutation(lsns)
            batches = pool.map(gather, shuffled.reshape(-1, 64))
            total = sum(int(labels.sum()) for labels in batches)
            print(f"epoch {epoch}: {len(batches)} batches of {len(batches[0])}, sum {total}")
            orders.append(np.concatenate(batches))
    print("the two epochs differ in their order:", bool((orders[0] != orders[1]).any()))
