"""A real log beside a model of it: a list of records and four integers.

Hypothesis appends, reserves, waits, reads, reopens and pickles; segments are as small
as they come, so that rolls and straddles happen all the time.  After every step the
watermarks must be in order and on the right side of the model's; at the end all is
read back by the package and by the second reader of the format.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import tempfile
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from support import arrow
from support.pyreader import PAD, PyLog

import shmlog

SEGMENT = WINDOW = 64 << 10
RECORD_MAX = WINDOW // 2 - 32
SIZES = st.one_of(
    st.sampled_from([0, 1, 31, 32, 33, 64, RECORD_MAX - 33, RECORD_MAX - 1, RECORD_MAX]), st.integers(0, 5000)
)
TAGS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Expected:
    """One record of the model."""

    lsn: int
    tag: int
    payload: bytes


def payload(size: int, salt: int) -> bytes:
    return (salt.to_bytes(4, "little") * (size // 4 + 1))[:size]


def stored(size: int) -> int:
    return (32 + size + 31) // 32 * 32


class LogMachine(RuleBasedStateMachine):
    """The model's rules; `records` is the log in LSN order, `end` its tail."""

    reservations: Bundle[tuple[object, int, int]] = Bundle("reservations")

    @initialize()
    def make(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="shmlog-test-")
        self.path = os.path.join(self.directory, "log")
        self.log = shmlog.open(
            self.path,
            create=True,
            segment_bytes=SEGMENT,
            window_bytes=WINDOW,
            timeout=20,
            sync_interval=0.001,
        )
        self.records: list[Expected] = []
        self.end = 0
        self.durable = 0
        self.open: dict[int, object] = {}
        self.salt = 0
        self.marks = (0, 0, 0, 0)

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        for reservation in self.open.values():
            reservation.abort()  # type: ignore[attr-defined]
        try:
            self.log.close()
            self.everything_reads_the_same_from_the_files()
            left = [name for name in os.listdir("/dev/shm") if PyLog(self.path).log_id.hex()[:16] in name]
            assert not left, f"left in /dev/shm: {left}"
        finally:
            shutil.rmtree(self.directory)

    # ---------------------------------------------------------------- the model

    def _place(self, sizes: list[int], end: int) -> list[int]:
        """Where frames go that are laid out from `end`; a PAD goes before one that would straddle."""
        lsns = []
        for size in sizes:
            if stored(size) > SEGMENT - end % SEGMENT:
                end += SEGMENT - end % SEGMENT
            lsns.append(end)
            end += stored(size)
        self.end = end
        return lsns

    def _fresh(self, size: int) -> bytes:
        self.salt += 1
        return payload(size, self.salt)

    def _room(self, sizes: list[int]) -> bool:
        """Whether an open reservation does not stop the append for ever."""
        if not self.open:
            return True
        most = self.end + sum(map(stored, sizes)) + SEGMENT // 2
        return most <= min(self.open) + WINDOW

    def _add(self, lsns: list[int], tag: int, payloads: list[bytes], placed: list[int]) -> None:
        assert lsns == placed
        self.records += [Expected(*item) for item in zip(lsns, [tag] * len(lsns), payloads, strict=True)]

    # ---------------------------------------------------------------- appending

    @rule(size=SIZES, tag=TAGS, durable=st.booleans())
    def append(self, size: int, tag: int, durable: bool) -> None:
        durable = durable and not self.open
        if self._room([size]):
            data = self._fresh(size)
            lsn = self.log.append(data, tag, durable=durable)
            self._add([lsn], tag, [data], self._place([size], self.end))
            if durable:
                self.durable = self.end

    @rule(size=st.integers(RECORD_MAX + 1, RECORD_MAX + 100))
    def append_a_record_that_is_too_large(self, size: int) -> None:
        with pytest.raises(shmlog.RecordTooLargeError, match=str(RECORD_MAX)):
            self.log.append(bytes(size))

    @rule(sizes=st.lists(st.integers(0, 3000), max_size=20), tag=TAGS, atomic=st.booleans())
    def append_many(self, sizes: list[int], tag: int, atomic: bool) -> None:
        total = sum(map(stored, sizes))
        if not self._room(sizes):
            return
        data = [self._fresh(size) for size in sizes]
        if atomic and total > WINDOW // 2:
            with pytest.raises(shmlog.RecordTooLargeError):
                self.log.append_many(data, tag, atomic=True)
            return
        lsns = self.log.append_many(data, tag, atomic=atomic)
        self._add(lsns.tolist(), tag, data, self._place(sizes, self.end))

    @rule(count=st.integers(0, 60), width=st.sampled_from([0, 1, 8, 24, 32, 33, 400]), tag=TAGS)
    def append_array(self, count: int, width: int, tag: int) -> None:
        if not self._room([width] * count):
            return
        rows = np.frombuffer(self._fresh(count * width), np.uint8).reshape(count, width)
        lsns = self.log.append_array(rows, tag)
        self._add(lsns.tolist(), tag, [row.tobytes() for row in rows], self._place([width] * count, self.end))

    @precondition(lambda self: len(self.open) < 3)
    @rule(target=reservations, size=SIZES, tag=TAGS)
    def reserve(self, size: int, tag: int) -> tuple[object, int, int]:
        if not self._room([size]):
            return (None, 0, 0)
        reservation = self.log.reserve(size, tag)
        (lsn,) = self._place([size], self.end)
        assert reservation.lsn == lsn
        self.open[lsn] = reservation
        return (reservation, lsn, tag)

    @rule(taken=consumes(reservations), publish=st.booleans())
    def end_a_reservation(self, taken: tuple[object, int, int], publish: bool) -> None:
        reservation, lsn, tag = taken
        if reservation is None:
            return
        del self.open[lsn]
        if not publish:
            reservation.abort()  # type: ignore[attr-defined]
            return
        buffer = reservation.buffer  # type: ignore[attr-defined]
        data = self._fresh(len(buffer))
        buffer[:] = data
        buffer.release()
        assert reservation.publish() == lsn  # type: ignore[attr-defined]
        self.records.append(Expected(lsn, tag, data))
        self.records.sort(key=lambda record: record.lsn)

    # ------------------------------------------------------- waiting and reading

    @precondition(lambda self: not self.open)
    @rule()
    def wait_until_durable(self) -> None:
        self.log.wait_durable()
        assert self.log.durable_lsn >= self.end
        self.durable = self.end

    @precondition(lambda self: not self.open)
    @rule()
    def read_all_back(self) -> None:
        self.log.wait_committed()
        assert [(r.lsn, r.tag, bytes(r.data)) for r in self.log.read()] == self._all()
        batches = [batch[n] for batch in self.log.read_batches() for n in range(len(batch))]
        assert [(r.lsn, r.tag, bytes(r.data)) for r in batches] == self._all()
        assert [(row[0], row[2], row[4]) for row in arrow.rows(self.log.scan())] == self._all()
        taken = self.log.take([record.lsn for record in self.records])
        assert [(r.lsn, r.tag, bytes(r.data)) for r in taken] == self._all()

    @precondition(lambda self: self.open)
    @rule()
    def read_what_is_committed_below_an_open_reservation(self) -> None:
        first = min(self.open)
        assert self.log.committed_lsn <= first
        found = [(r.lsn, r.tag, bytes(r.data)) for r in self.log.read()]
        assert found == self._all()[: len(found)]
        assert not found or found[-1][0] < first

    @precondition(lambda self: self.records and not self.open)
    @rule(data=st.data())
    def read_a_part(self, data: st.DataObject) -> None:
        self.log.wait_committed()
        begin = data.draw(st.integers(0, len(self.records) - 1))
        end = data.draw(st.integers(begin, len(self.records) - 1))
        found = self.log.read(self.records[begin].lsn, self.records[end].lsn)
        lsns = [record.lsn for record in self.records[begin:end]]
        assert [r.lsn for r in found] == lsns
        parts = self.log.scan(self.records[begin].lsn, self.records[end].lsn).split(
            data.draw(st.integers(1, 9))
        )
        assert [row[0] for part in parts for row in arrow.rows(part)] == lsns
        assert [r.lsn for part in parts for batch in part for r in batch] == lsns

    @precondition(lambda self: not self.open)
    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.everything_reads_the_same_from_the_files()
        self.log = shmlog.open(self.path, timeout=20, sync_interval=0.001)
        assert self.log.reserved_lsn == self.log.durable_lsn == self.end
        self.durable = self.end
        self.marks = (0, 0, 0, 0)

    @precondition(lambda self: not self.open)
    @rule()
    def go_on_with_a_pickled_handle(self) -> None:
        other = pickle.loads(pickle.dumps(self.log))
        self.log.close()
        self.log = other

    # ---------------------------------------------------------------- all steps

    @invariant()
    def watermarks_are_in_order_and_only_grow(self) -> None:
        if not hasattr(self, "log"):
            return
        trimmed, durable = self.log.trimmed_lsn, self.log.durable_lsn
        committed, reserved = self.log.committed_lsn, self.log.reserved_lsn
        assert trimmed <= durable <= committed <= reserved == self.end
        assert self.durable <= durable
        now = (trimmed, durable, committed, reserved)
        assert all(before <= after for before, after in zip(self.marks, now, strict=True))
        self.marks = now

    def _all(self) -> list[tuple[int, int, bytes]]:
        return [(record.lsn, record.tag, record.payload) for record in self.records]

    def everything_reads_the_same_from_the_files(self) -> None:
        log = PyLog(self.path)
        frames = list(log.frames(0, self.end))
        data = [frame for frame in frames if frame.kind == 1]
        assert [(frame.lsn, frame.tag, frame.payload) for frame in data] == self._all()
        for frame, after in itertools.pairwise(frames):
            assert frame.kind != PAD or after.lsn % SEGMENT == 0, "a PAD ends its segment"
        if self.end:
            mark = log.newest_mark()
            assert mark.durable_lsn == self.end
            assert mark.clean


LogMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
test_the_log_agrees_with_a_list_of_records = LogMachine.TestCase
