"""Statistics: one look at a log's watermarks, counters and participants.

This module knows the control block and the participant table.  It may not know
how they were joined.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from shmlog.errors import LogFailedError
from shmlog.format.layout import CB, ROLE_HANDLE, STATE_FAILED, STATE_RUNNING, SYNC_BUCKETS
from shmlog.format.retention import Retention
from shmlog.memory.control import BLOCK_LOST, latched
from shmlog.memory.metrics import Metric, metrics
from shmlog.memory.participants import Participant, Table
from shmlog.system import processes


class Blocker(NamedTuple):
    """Who holds committed_lsn back: nothing above what it is still copying can be read."""

    participant: int
    pid: int
    name: str
    lsn: int
    """what it has reserved and not published begins here, and committed_lsn ends"""
    since_ns: int | None
    """wall clock, when the flusher first found it there; None if it has not looked yet"""

    def __str__(self) -> str:
        text = f"participant {self.participant} (pid {self.pid}, {self.name}) has not finished LSN {self.lsn}"
        if self.since_ns is None:
            return text
        return f"{text} for {max(0, time.time_ns() - self.since_ns) / 1e9:.1f} s"


class CursorPlace(NamedTuple):
    """A named cursor's durable place."""

    name: str
    lsn: int
    lag_bytes: int
    """of the log, frames and all"""
    pid: int | None
    """of the process that has it open, as far as that can be seen"""
    shipper: dict[str, Any] | None = None
    """what a shipper whose cursor it is said last: time_ns, position_lsn, lag_bytes, lag_records,
    lag_seconds, retries, resyncs, failing, last_error"""


class WriterRate(NamedTuple):
    """What one participant appended in a second, between two looks."""

    participant: int
    pid: int
    name: str
    records_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """One look at a log; counters are since its control block was made."""

    time_ns: int
    """wall clock of this look"""
    reserved_lsn: int
    committed_lsn: int
    durable_lsn: int
    trimmed_lsn: int
    limit_lsn: int
    """room is ready up to here"""
    records: int
    payload_bytes: int
    waits: int
    """how often somebody waited: for room, or for a watermark"""
    commits: int
    syncs: int
    sync_seconds: float
    """of all syncs together"""
    sync_latency: tuple[int, ...]
    """syncs by how long they took: entry i counts those of less than 2**i microseconds and no
    less than half of that; the last one also every slower one"""
    rolls: int
    """segments made"""
    holes_filled: int
    """ranges that dead writers left"""
    hole_bytes: int
    flushers: int
    """how many flusher processes there have been"""
    flusher_pid: int | None
    """of the one that runs"""
    participants: tuple[Participant, ...]
    blocked_by: Blocker | None
    """who holds committed_lsn back at this moment, be it for ever or for the time of a copy"""
    retention: Retention | None
    budget_held: bool
    """whether a writer lacks room for which a trim must come first that something holds back"""
    cursors: tuple[CursorPlace, ...]
    failed: str | None
    """why the log has failed"""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        plain = asdict(self)
        plain["blocked_by"] = self.blocked_by and self.blocked_by._asdict()
        plain["cursors"] = [place._asdict() for place in self.cursors]
        plain["retention"] = self.retention and self.retention.to_dict()
        return plain

    def metrics(self) -> tuple[Metric, ...]:
        """The same for monitoring: names, kinds and units as Prometheus and OpenTelemetry have them."""
        return metrics(self)

    def sync_quantile_s(self, share: float) -> float:
        """An upper bound of how long this share (0 to 1) of the syncs took; 0.0 if there was none."""
        whole, seen = sum(self.sync_latency), 0
        for bucket, count in enumerate(self.sync_latency):
            seen += count
            if whole and seen >= share * whole:
                return float(2**bucket) / 1e6
        return 0.0

    def rates(self, earlier: Statistics) -> tuple[WriterRate, ...]:
        """What each participant of both looks appended since the earlier one.  From the counters
        beside its claims: records and payload bytes, however many calls they took."""
        seconds = max(1, self.time_ns - earlier.time_ns) / 1e9
        before = {(each.number, each.started_ns): each for each in earlier.participants}
        found = []
        for now in self.participants:
            then = before.get((now.number, now.started_ns))
            if then is not None:
                records, size = now.records - then.records, now.payload_bytes - then.payload_bytes
                found.append(WriterRate(now.number, now.pid, now.name, records / seconds, size / seconds))
        return tuple(found)


def blocked_by(load: Callable[[int], int], table: Table) -> Blocker | None:
    """Who holds committed_lsn back, if anybody who lives does: the participant whose claim begins
    there; or a flusher that is stopped while there is something to commit."""
    committed = load(CB.COMMITTED_LSN)
    if committed >= load(CB.RESERVED_LSN):
        return None
    since_ns = load(CB.BLOCKED_NS) if load(CB.BLOCKED_LSN) == committed else None
    flusher_pid = load(CB.FLUSHER_PID)
    stopped = processes.describe(flusher_pid).endswith("stopped")
    for number in range(table.high):
        if table.used(number) and table.alive(number):
            who = table.describe(number)
            claims = any(claim.begin == committed for claim in table.claims(number))
            if claims or (stopped and who.role != ROLE_HANDLE and who.pid == flusher_pid):
                name = who.name if claims else f"{who.name}, stopped"
                found = Blocker(number, who.pid, name, committed, since_ns)
                return found if load(CB.COMMITTED_LSN) == committed else None
    return None


def gather(
    load: Callable[[int], int],
    table: Table,
    flusher_runs: bool,
    retention: Retention | None,
    places: Callable[[int], tuple[CursorPlace, ...]],
) -> Statistics:
    """Read it all; watermarks from the lowest up, so that they are in order.  places(committed):
    the cursors."""
    trimmed, durable, committed = load(CB.TRIMMED_LSN), load(CB.DURABLE_LSN), load(CB.COMMITTED_LSN)
    reserved = load(CB.RESERVED_LSN)
    records, payload_bytes, waits = table.totals()
    return Statistics(
        time_ns=time.time_ns(),
        reserved_lsn=reserved,
        committed_lsn=committed,
        durable_lsn=durable,
        trimmed_lsn=trimmed,
        limit_lsn=load(CB.LIMIT_LSN),
        records=records,
        payload_bytes=payload_bytes,
        waits=waits,
        commits=load(CB.COMMITS),
        syncs=load(CB.SYNCS),
        sync_seconds=load(CB.SYNC_NS) / 1e9,
        sync_latency=tuple(load(CB.SYNC_LATENCY + 8 * bucket) for bucket in range(SYNC_BUCKETS)),
        rolls=load(CB.ROLLS),
        holes_filled=load(CB.FILL_COUNT),
        hole_bytes=load(CB.FILL_BYTES),
        flushers=load(CB.GENERATION),
        flusher_pid=load(CB.FLUSHER_PID) if flusher_runs else None,
        participants=tuple(table.describe(number) for number in range(table.high) if table.used(number)),
        blocked_by=blocked_by(load, table),
        retention=retention,
        budget_held=bool(load(CB.BUDGET_HELD)) and load(CB.WANTED_LIMIT) > load(CB.LIMIT_LSN),
        cursors=places(committed),
        failed=_failed(load),
    )


def _failed(load: Callable[[int], int]) -> str | None:
    state = load(CB.STATE)
    if state == STATE_RUNNING:
        return None
    if state == STATE_FAILED:
        return str(latched(load))
    return str(LogFailedError(0, 0, BLOCK_LOST))


def at_rest(
    bounds: tuple[int, int],
    durable: int,
    retention: Retention | None,
    places: Callable[[int], tuple[CursorPlace, ...]],
    failed: str | None,
) -> Statistics:
    """Those of a log that nobody uses; bounds: (trimmed_lsn, committed_lsn)."""
    trimmed, committed = bounds
    return Statistics(
        time_ns=time.time_ns(),
        reserved_lsn=committed,
        committed_lsn=committed,
        durable_lsn=durable,
        trimmed_lsn=trimmed,
        limit_lsn=committed,
        records=0,
        payload_bytes=0,
        waits=0,
        commits=0,
        syncs=0,
        sync_seconds=0.0,
        sync_latency=(0,) * SYNC_BUCKETS,
        rolls=0,
        holes_filled=0,
        hole_bytes=0,
        flushers=0,
        flusher_pid=None,
        participants=(),
        blocked_by=None,
        retention=retention,
        budget_held=False,
        cursors=places(committed),
        failed=failed,
    )
