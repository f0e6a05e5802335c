"""Statistics: one look at a log's watermarks, counters and participants.

This module knows the control block and the participant table.  It may not know
how they were joined.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shmlog.format.layout import CB
from shmlog.memory.control import ControlBlock
from shmlog.memory.participants import Participant, Participants


@dataclass(frozen=True, slots=True)
class Statistics:
    """One look at a log; counters are since its control block was made."""

    reserved_lsn: int
    committed_lsn: int
    durable_lsn: int
    trimmed_lsn: int
    records: int
    payload_bytes: int
    waits: int
    commits: int
    syncs: int
    sync_seconds: float
    holes_filled: int
    hole_bytes: int
    flushers: int
    """how many flusher processes there have been"""
    flusher_pid: int | None
    participants: tuple[Participant, ...]
    failed: str | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def gather(block: ControlBlock, table: Participants, flusher_runs: bool) -> Statistics:
    """Read it all; watermarks from the lowest up, so that they are in order."""
    trimmed, durable, committed = block.trimmed_lsn, block.durable_lsn, block.committed_lsn
    reserved = block.reserved_lsn
    records, payload_bytes, waits = table.totals()
    return Statistics(
        reserved_lsn=reserved,
        committed_lsn=committed,
        durable_lsn=durable,
        trimmed_lsn=trimmed,
        records=records,
        payload_bytes=payload_bytes,
        waits=waits,
        commits=block.load(CB.COMMITS),
        syncs=block.load(CB.SYNCS),
        sync_seconds=block.load(CB.SYNC_NS) / 1e9,
        holes_filled=block.load(CB.FILL_COUNT),
        hole_bytes=block.load(CB.FILL_BYTES),
        flushers=block.load(CB.GENERATION),
        flusher_pid=block.load(CB.FLUSHER_PID) if flusher_runs else None,
        participants=tuple(table.describe(number) for number in range(table.high) if table.used(number)),
        failed=str(block.failure()) if block.failed else None,
    )
