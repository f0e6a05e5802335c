"""Ahead: the durable records from a position on, cut into what is shipped at once.

    log    | record | record | PAD | record | FILL .... end
    part   |  first part           |  second part         |        a part ends where the next record begins

What lies between two records and is none belongs to the part before it (I14 of ship): so the end of a part
is known only when the next record is seen, and the last part ends at the end.

This module knows records and sizes.  It may not know engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import shmlog

if TYPE_CHECKING:
    from shmlog.integrations.ship import Tail


class Part(NamedTuple):
    """What is put in one piece, and what the tail is after it."""

    begin_lsn: int
    tail: Tail
    records: shmlog.RecordBatch
    chunk: bytes
    """empty, where the engine takes records"""
    bytes: int


class Ahead:
    """Durable records from a position on, cut into parts; knows where the next record begins (I14)."""

    def __init__(self, log: shmlog.Log, begin: int, end: int, tags: int | Iterable[int] | None) -> None:
        self._end = end
        self._batches: Iterator[shmlog.RecordBatch] = log.read_batches(begin, end, tags)
        self._batch: shmlog.RecordBatch | None = None
        self._advance()

    @property
    def more(self) -> bool:
        """Whether part() has another."""
        return self._batch is not None

    def _advance(self) -> None:
        self._at = 0
        self._batch = next(self._batches, None)
        if self._batch is not None:
            granules = (self._batch.nbytes.astype(np.int64) + 63) // 32
            self._sizes = (granules * 32).cumsum()

    def part(self, most_bytes: int, most: int) -> tuple[shmlog.RecordBatch | None, int]:
        """As many of the next records as fit, at least one, and where the next one after them begins;
        None: there are no more."""
        batch, at = self._batch, self._at
        if batch is None:
            return None, self._end
        before = int(self._sizes[at - 1]) if at else 0
        stop = max(at + 1, int(np.searchsorted(self._sizes, before + most_bytes, "right")))
        stop = min(stop, at + most)
        part = batch[at:stop]
        self._at = stop
        if stop >= len(batch):
            self._advance()
        return part, self._end if self._batch is None else int(self._batch.lsn[self._at])
