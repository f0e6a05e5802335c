"""Torch: a log as an IterableDataset, shared out over loader workers, resumed by LSN.

    worker 0   | part 0    |                        a range: equal parts, cut where records begin
    worker 1               | part 1    |

    worker 0   | 0 |   | 2 |   | 4 ...              following: stripes of the log, in turn
    worker 1       | 1 |   | 3 |   |

Every record goes to one worker, whatever the workers' speeds, because its LSN says to
which.

This module knows shmlog's public names and torch's protocols.  It may not know how a log is
read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

import shmlog

STRIPE_BYTES = 256 << 10
"""Of the log, to one worker after the other while following."""


class LogDataset(IterableDataset[Any]):
    """The records of a log as tensors, one at a time or in batches.

    dtype: what every payload is (ValueError at one of another size); its shape is a tensor's
    shape, and the fields of a structured dtype are a dictionary of tensors. start: an LSN
    (default: the oldest record). The end is what is committed when the dataset is made; with
    follow=True there is none: iterating blocks for more, `timeout` seconds at most for each
    batch (None: for ever), and ends then. tags: an int, a range or a set of those wanted.
    batch_size: yield tensors of shape (batch_size, *dtype.shape), shorter at the end, and while
    following as many as there are; use a DataLoader with batch_size=None then. rank, ranks: of
    a distributed job, in which every rank reads its share. transform: called with what would
    be yielded.

    state_dict() and load_state_dict() are those of torchdata's StatefulDataLoader: where this
    worker goes on, by LSN. Reads without joining the log; TrimmedError if what is to be read
    next was trimmed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dtype: npt.DTypeLike,
        start: int | None = None,
        *,
        follow: bool = False,
        tags: int | range | set[int] | frozenset[int] | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        rank: int = 0,
        ranks: int = 1,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive: {batch_size}")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be from 0 to {ranks - 1}: {rank}")
        self.path = os.fsdecode(path)
        self.dtype = np.dtype(dtype)
        self.follow = follow
        self.batch_size = batch_size
        self._tags = tags
        self._timeout = timeout
        self._rank, self._ranks = rank, ranks
        self._transform = transform
        self._lsn: int | None = None
        self._resumed: dict[str, int] | None = None
        with shmlog.open_readonly(self.path) as log:
            self._scan = log.scan(start, tags=tags)

    def __iter__(self) -> Iterator[Any]:
        number, count = self._share()
        self._lsn = None if self._resumed is None else self._resumed["lsn"]
        batches = self._following(number, count) if self.follow else self._range(number, count)
        for rows, following in self._groups(batches):
            self._lsn = following
            value = self._tensors(rows)
            yield value if self._transform is None else self._transform(value)

    def state_dict(self) -> dict[str, int]:
        """Where this worker goes on: plain numbers."""
        number, count = self._share()
        lsn = self._begin(number, count) if self._lsn is None else self._lsn
        return {"lsn": lsn, "part": number, "parts": count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there; ValueError if the log is shared out among another number of workers."""
        number, count = self._share()
        if (state["part"], state["parts"]) != (number, count):
            raise ValueError(
                f"the state is of part {state['part']} of {state['parts']}, and this is part {number} of"
                f" {count}: resume with the same number of workers and ranks"
            )
        self._resumed = dict(state)
        self._lsn = int(state["lsn"])

    # -------------------------------------------------------------- internals

    def _share(self) -> tuple[int, int]:
        """(number, count): which part of how many is this process's."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        return self._rank * workers + number, self._ranks * workers

    def _begin(self, number: int, count: int) -> int:
        if self.follow:
            return self._scan.start
        parts = self._scan.split(count)
        return parts[number].start if number < len(parts) else self._scan.stop

    def _start(self, begin: int) -> int:
        resumed, self._resumed = self._resumed, None
        return begin if resumed is None else int(resumed["lsn"])

    def _range(self, number: int, count: int) -> Iterator[shmlog.RecordBatch]:
        parts = self._scan.split(count)
        if number >= len(parts):
            return
        part = parts[number]
        start = self._start(part.start)
        if start < part.stop:
            with shmlog.open_readonly(self.path) as log:
                yield from log.scan(start, part.stop, tags=self._tags)

    def _following(self, number: int, count: int) -> Iterator[shmlog.RecordBatch]:
        with shmlog.open_readonly(self.path) as log:
            start = self._start(self._scan.start)
            batches = log.tail_batches(start, tags=self._tags, timeout=self._timeout)
            while True:
                try:
                    batch = next(batches)
                except TimeoutError:
                    return
                if count > 1:
                    batch = batch[batch.lsn // STRIPE_BYTES % count == number]
                if len(batch):
                    yield batch

    def _groups(self, batches: Iterator[shmlog.RecordBatch]) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """(rows, LSN after them): one row, or batch_size of them."""
        size = self.batch_size or 1
        held: list[npt.NDArray[Any]] = []
        missing, following = size, 0
        for batch in batches:
            rows, at = batch.array(self.dtype), 0
            while at < len(batch):
                part = rows[at : at + missing]
                held.append(part)
                at, missing = at + len(part), missing - len(part)
                following = int(batch.lsn[at]) if at < len(batch) else batch.next_lsn
                if not missing or self.follow:
                    yield _joined(held), following
                    held, missing = [], size
        if held:
            yield _joined(held), following

    def _tensors(self, rows: npt.NDArray[Any]) -> Any:
        """Tensors of memory of their own: what a log's views show is never written to."""
        if rows.dtype.names is not None:
            return {name: self._tensor(rows[name]) for name in rows.dtype.names}
        return self._tensor(rows)

    def _tensor(self, rows: npt.NDArray[Any]) -> torch.Tensor:
        own = np.array(rows if self.batch_size else rows[0], rows.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(own)


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
