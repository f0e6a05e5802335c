"""The model of the chaos driver: what must be in the log, from what its lives have noted.

It is kept outside of the log and of the processes that use it.  A restart of the machine cuts
it at the LSN where the log goes on: what was called durable lies below, or is lost.

This module knows notes and records.  It may not know processes.
"""

from __future__ import annotations

import bisect
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from crash.actors import (
    APPENDED,
    ASKED,
    BATCH_MAX,
    BORN,
    DURABLE,
    GAP,
    MARKS,
    NOTE,
    PLACE,
    SEEN,
    UNKNOWN_LSN,
)
from support.processes import FOLLOW_UP, whose

import shmlog


@dataclass
class Life:
    """What one process has noted."""

    read_bytes: int = 0
    pids: list[int] = field(default_factory=list)
    appended: list[int] = field(default_factory=list)
    """LSNs, by sequence"""
    durable: int = 0
    """as many of them were called durable"""
    cut: bool = False
    """whether a restart took some of them: then nothing more of this life is left"""
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    """what a reader saw without a gap: LSN and checksum"""
    marks: tuple[int, int] = (0, 0)


class Model:
    """Everything that was noted."""

    def __init__(self, sides: Path) -> None:
        self.sides = sides
        self.lives: dict[int, Life] = {}
        self.marks = (0, 0)
        """the highest committed and durable LSN that anybody read"""
        self.place = 0
        self.asked = 0
        self.records = 0

    def learn(self) -> None:
        """Read what has been noted since."""
        for side in self.sides.iterdir():
            if side.name.isdigit():
                self._learn(self.lives.setdefault(int(side.name), Life()), side)

    def _learn(self, life: Life, side: Path) -> None:
        with side.open("rb") as file:
            file.seek(life.read_bytes)
            data = file.read()
        data = data[: len(data) // NOTE.size * NOTE.size]
        life.read_bytes += len(data)
        for kind, a, b in NOTE.iter_unpack(data):
            if kind == APPENDED:
                assert a == len(life.appended), f"the note of record {a} is the {len(life.appended)}th"
                life.appended.append(b)
                self.records += 1
            elif kind == SEEN:
                life.spans[-1].append((a, b))
            elif kind == GAP:
                life.spans.append([])
            elif kind == DURABLE:
                life.durable = max(life.durable, a)
            elif kind == MARKS:
                assert a >= life.marks[0] and b >= life.marks[1], f"marks went back to {a}, {b}"
                life.marks = (a, b)
                self.see(a, b)
            elif kind == PLACE:
                self.place = max(self.place, a)
            elif kind == ASKED:
                self.asked = max(self.asked, a)
            elif kind == BORN:
                life.pids.append(a)

    def see(self, committed: int, durable: int) -> None:
        self.marks = (max(self.marks[0], committed), max(self.marks[1], durable))

    def cut(self, end: int) -> None:
        """The machine restarted, and the log goes on at `end`."""
        assert end >= self.marks[1], f"durable up to {self.marks[1]} before a restart, goes on at {end}"
        assert end >= self.place, f"a cursor was at {self.place} before a restart, the log goes on at {end}"
        self.marks = (min(self.marks[0], end), self.marks[1])
        for number, life in self.lives.items():
            kept = len(life.appended)
            while kept and life.appended[kept - 1] >= end:  # an unknown LSN too: it may be lost
                if life.appended[kept - 1] == UNKNOWN_LSN and kept <= life.durable:
                    break  # it may not: check() will look for it
                kept -= 1
            if kept < len(life.appended):
                assert kept >= life.durable, (
                    f"life {number}: {life.durable} records were durable, {kept} are left below {end}"
                )
                known = life.appended[kept] != UNKNOWN_LSN
                del life.appended[kept:]
                life.cut = known
            for span in life.spans:
                while span and span[-1][0] >= end:
                    span.pop()
            life.marks = (min(life.marks[0], end), life.marks[1])

    def check(self, log: shmlog.Log | shmlog.ReadonlyLog) -> None:
        """Every noted append is there once, whole, in its writer's order; readers saw nothing
        else; no watermark is lower than it was."""
        trimmed, durable, committed = log.trimmed_lsn, log.durable_lsn, log.committed_lsn
        assert trimmed <= self.asked, f"trimmed up to {trimmed}, asked for {self.asked}"
        assert durable >= self.marks[1], f"durable up to {durable}, was {self.marks[1]}"
        assert committed >= self.marks[0], f"committed up to {committed}, was {self.marks[0]}"
        sums: dict[int, int] = {}
        found: dict[int, dict[int, int]] = {}
        newest: dict[int, int] = {}
        last = trimmed - 1
        for record in log.read():
            assert record.lsn > last, f"LSN {record.lsn} after {last}"
            last = record.lsn
            sums[record.lsn] = zlib.crc32(record.data)
            writer, sequence = whose(record.data)
            if writer != FOLLOW_UP:
                before = newest.get(writer, sequence - 1)
                assert sequence == before + 1, f"life {writer}: record {sequence} after {before}"
                newest[writer] = sequence
                found.setdefault(writer, {})[sequence] = record.lsn
        lsns = list(sums)
        for number, life in self.lives.items():
            self._check_appended(number, life, found.pop(number, {}), trimmed)
            for span in life.spans:
                self._check_seen(number, span, sums, lsns, trimmed)
        assert not found, f"records of lives that there were not: {sorted(found)}"

    def _check_appended(self, number: int, life: Life, own: dict[int, int], trimmed: int) -> None:
        before = trimmed
        for sequence, lsn in enumerate(life.appended):
            if lsn == UNKNOWN_LSN:
                assert before < trimmed or sequence in own or not sequence, (
                    f"life {number}: record {sequence} (said to be appended) is lost"
                )
                continue
            before = lsn
            if lsn >= trimmed:
                assert own.get(sequence) == lsn, (
                    f"life {number}: record {sequence} was appended at {lsn}, is at {own.get(sequence)}"
                )
        more = [sequence for sequence in own if sequence >= len(life.appended)]
        most = 0 if life.cut else BATCH_MAX
        assert len(more) <= most, f"life {number}: records {more} that nobody noted"

    def _check_seen(
        self, number: int, span: list[tuple[int, int]], sums: dict[int, int], lsns: list[int], trimmed: int
    ) -> None:
        """What a reader was given without a gap is what the log holds there."""
        del span[: bisect.bisect_left(span, (trimmed, 0))]
        if not span:
            return
        begin, end = (bisect.bisect_left(lsns, span[0][0]), bisect.bisect_right(lsns, span[-1][0]))
        there = [(lsn, sums[lsn]) for lsn in lsns[begin:end]]
        if there != span:
            gone = sorted(set(span) ^ set(there))[:4]
            raise AssertionError(
                f"reader {number} saw other records in [{span[0][0]}, {span[-1][0]}]: (LSN, sum) {gone}"
            )
