"""A real log beside a model of it: a list of records and four integers.

Hypothesis appends, reserves, waits, reads in every way, keeps a cursor, trims, forks, kills
workers and the flusher, cuts the power, reopens and pickles; segments are as small as they
come, so that rolls and straddles happen all the time.  After every step the watermarks must
be in order and on the right side of the model's; at the end all is read back by the package
and by the second reader of the format.

A cut is simulated: everybody is killed, the control block is lost, the machine has another
boot id, and from some place above what was durable on the files hold zeros.
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
from support.processes import Child, Wire, kill_everybody, kill_flusher, lose_shared_memory
from support.pyreader import HEADER_AREA, PAD, PyLog

import shmlog
from shmlog.disk import directory, recovery
from shmlog.disk.recovery import Case

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SEGMENT = WINDOW = 64 << 10
RECORD_MAX = WINDOW // 2 - 32
SIZES = st.one_of(
    st.sampled_from([0, 1, 31, 32, 33, 64, RECORD_MAX - 33, RECORD_MAX - 1, RECORD_MAX]), st.integers(0, 5000)
)
TAGS = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
OTHER_BOOT = bytes(range(16))
SMALL = st.lists(st.integers(0, 2000), min_size=1, max_size=5)


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


def _append_in_child(wire: Wire, log: shmlog.Log, payloads: list[bytes], tag: int) -> list[int]:
    """With the inherited handle."""
    lsns = [log.append(data, tag) for data in payloads]
    log.close()
    return lsns


def _append_and_hang(wire: Wire, path: str, payloads: list[bytes], tag: int, size: int) -> None:
    """Append, reserve, and wait to be killed."""
    log = shmlog.open(path, timeout=20)
    lsns = [log.append(data, tag) for data in payloads]
    reservation = log.reserve(size, tag)
    reservation.buffer[: size // 2] = b"x" * (size // 2)
    wire.say((lsns, reservation.lsn))
    wire.hear()


def _append_until_cut(wire: Wire, path: str, durable: list[bytes], late: list[bytes], tag: int) -> None:
    """Append, and append more that nobody waits for; wait to be killed."""
    log = shmlog.open(path, timeout=20, sync_interval=1000)
    first = [log.append(data, tag) for data in durable]
    log.wait_durable()
    more = [log.append(data, tag) for data in late]
    log.wait_committed()
    wire.say((first, more))
    wire.hear()


class LogMachine(RuleBasedStateMachine):
    """The model's rules; `records` is the log in LSN order, `end` its tail."""

    steps = 0
    """of every machine, for those who count them"""

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
        self.trimmed = 0
        self.cursor_lsn: int | None = None
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
        assert [r.lsn for r in found] == [record.lsn for record in self.records[begin:end]]

    @precondition(lambda self: not self.open)
    @rule(tag=st.integers(0, 3), records=st.sampled_from([1, 2, 1000]))
    def read_by_tag_and_as_arrays(self, tag: int, records: int) -> None:
        self.log.wait_committed()
        expected = [record for record in self.records if record.tag == tag]
        batches = list(self.log.read_batches(tag=tag, records=records))
        assert [int(lsn) for batch in batches for lsn in batch.lsn] == [record.lsn for record in expected]
        assert all(len(batch) <= records for batch in batches)
        payloads = iter(record.payload for record in expected)
        for batch in batches:
            own = [next(payloads) for _ in range(len(batch))]
            if len({len(data) for data in own}) == 1 and own[0]:
                assert [row.tobytes() for row in batch.array((np.uint8, len(own[0])))] == own

    @precondition(lambda self: self.records and not self.open)
    @rule(data=st.data())
    def tail_and_seek(self, data: st.DataObject) -> None:
        self.log.wait_committed()
        begin = data.draw(st.integers(0, len(self.records) - 1))
        expected = [record.lsn for record in self.records[begin : begin + 5]]
        tail = self.log.tail(self.records[begin].lsn, timeout=10)
        assert [next(tail).lsn for _ in expected] == expected
        assert self.log.seek_time(0) == self.records[0].lsn
        assert self.log.seek_time(2**62) == self.end

    @precondition(lambda self: not self.open)
    @rule()
    def look_without_joining(self) -> None:
        self.log.wait_committed()
        with shmlog.open_readonly(self.path) as other:
            assert other.live
            assert [(r.lsn, r.tag, bytes(r.data)) for r in other.read()] == self._all()
        report = shmlog.verify(self.path)
        assert report.ok and report.records == len(self.records)

    # ------------------------------------------------------- cursors and trimming

    @precondition(lambda self: not self.open)
    @rule(data=st.data())
    def move_the_cursor(self, data: st.DataObject) -> None:
        self.log.wait_committed()
        with self.log.cursor("model") as cursor:
            at = self.trimmed if self.cursor_lsn is None else self.cursor_lsn
            assert cursor.lsn == at
            self.cursor_lsn = at
            if at < self.trimmed:
                with pytest.raises(shmlog.TrimmedError):
                    next(cursor.batches())
                return
            found = [int(lsn) for batch in cursor.batches() for lsn in batch.lsn]
            assert found == [record.lsn for record in self.records if record.lsn >= at]
            places = [self.end, *(record.lsn for record in self.records)]
            self.cursor_lsn = cursor.commit(places[data.draw(st.integers(0, len(places) - 1))])
            self.durable = max(self.durable, self.cursor_lsn)

    @precondition(lambda self: not self.open)
    @rule(share=st.floats(0, 1))
    def trim(self, share: float) -> None:
        self.log.wait_durable()
        self.durable = self.end
        before = int(self.end * share)
        target = min(before, max(0, self.end - 1)) // SEGMENT * SEGMENT
        self.trimmed = max(self.trimmed, target)
        assert self.log.trim(before) == self.trimmed
        self.records = [record for record in self.records if record.lsn >= self.trimmed]

    # ------------------------------------------------------- processes and deaths

    @precondition(lambda self: not self.open)
    @rule(sizes=SMALL, tag=TAGS)
    def append_in_a_forked_child(self, sizes: list[int], tag: int) -> None:
        data = [self._fresh(size) for size in sizes]
        with Child(_append_in_child, self.log, data, tag) as child:
            lsns = child.result()
        self._add(lsns, tag, data, self._place(sizes, self.end))

    @precondition(lambda self: not self.open)
    @rule(sizes=SMALL, tag=TAGS, left=st.integers(0, 3000))
    def kill_a_worker(self, sizes: list[int], tag: int, left: int) -> None:
        """What it reserved is passed over, what it appended stays."""
        data = [self._fresh(size) for size in sizes]
        with Child(_append_and_hang, self.path, data, tag, left) as child:
            lsns, hole = child.hear()
            child.kill()
        *placed, at = self._place([*sizes, left], self.end)
        self._add(lsns, tag, data, placed)
        assert hole == at
        self.log.wait_committed()

    @precondition(lambda self: not self.open)
    @rule()
    def kill_the_flusher(self) -> None:
        self.append(size=10, tag=0, durable=True)  # so there is one
        kill_flusher(self.log)

    @precondition(lambda self: not self.open)
    @rule(durable=SMALL, late=SMALL, tag=TAGS, data=st.data())
    def cut_the_power(self, durable: list[int], late: list[int], tag: int, data: st.DataObject) -> None:
        """Everybody gone, another boot, zeros from the middle of some late record on."""
        self.log.close()
        first, more = ([self._fresh(size) for size in sizes] for sizes in (durable, late))
        with Child(_append_until_cut, self.path, first, more, tag) as child:
            lsns, late_lsns = child.hear()
            kill_everybody(self.path, [child])
        lose_shared_memory(self.path)
        self._add(lsns, tag, first, self._place(durable, self.end))
        end = self.end
        placed = self._place(late, end)
        kept = data.draw(st.integers(0, len(late)))
        where = directory.load(self.path)
        if kept < len(late):
            # not byte 31: an empty record's last, its flags, is zero as it is
            self._zero_from(late_lsns[kept] + data.draw(st.integers(0, 30)))
            self.end = placed[kept]  # a PAD before it, if there is one, stays
        self._add(late_lsns[:kept], tag, more[:kept], placed[:kept])
        found = recovery.recover(where, OTHER_BOOT)
        assert found.case in (Case.RESTART, Case.TORN)
        assert found.end_lsn == self.end >= end
        self.log = shmlog.open(self.path, timeout=20, sync_interval=0.001)
        assert self.log.reserved_lsn == self.end
        self.durable, self.marks = end, (0, 0, 0, 0)

    def _zero_from(self, lsn: int) -> None:
        for first in PyLog(self.path).segments():
            if first + SEGMENT > lsn:
                with open(os.path.join(self.path, "segments", f"{first:020d}.seg"), "r+b") as file:
                    at = max(0, lsn - first)
                    file.seek(HEADER_AREA + at)
                    file.write(bytes(SEGMENT - at))

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
        LogMachine.steps += 1
        trimmed, durable = self.log.trimmed_lsn, self.log.durable_lsn
        committed, reserved = self.log.committed_lsn, self.log.reserved_lsn
        assert self.trimmed == trimmed <= durable <= committed <= reserved == self.end
        assert self.durable <= durable
        now = (trimmed, durable, committed, reserved)
        assert all(before <= after for before, after in zip(self.marks, now, strict=True))
        self.marks = now

    def _all(self) -> list[tuple[int, int, bytes]]:
        return [(record.lsn, record.tag, record.payload) for record in self.records]

    def everything_reads_the_same_from_the_files(self) -> None:
        log = PyLog(self.path)
        frames = list(log.frames(self.trimmed, self.end))
        data = [frame for frame in frames if frame.kind == 1]
        assert [(frame.lsn, frame.tag, frame.payload) for frame in data] == self._all()
        for frame, after in itertools.pairwise(frames):
            assert frame.kind != PAD or after.lsn % SEGMENT == 0, "a PAD ends its segment"
        if self.end:
            mark = log.newest_mark()
            assert mark.durable_lsn == self.end
            assert mark.clean


LogMachine.TestCase.settings = settings(max_examples=6, stateful_step_count=30, deadline=None)
test_the_log_agrees_with_a_list_of_records = LogMachine.TestCase
