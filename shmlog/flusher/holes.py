"""Holes: what a dead writer left behind, found exactly and filled.

The scan has stopped at LSN g, below the tail.  Then, in this order: load the tail
T; for each participant ask whether it lives and only then read its claims; read the
bits of [g, T) again; load committed_lsn.  If g is set by now, or committed_lsn has
passed it, scan on (R0; asked once before, for T may be more than a window above a
g that is long past).  Otherwise

  R1  A live participant claims g (held or tentative): it is still copying.  Wait,
      for ever if it is suspended.
  R2  A dead participant *holds* a claim that begins at g: the hole is exactly
      [g, claim.end), even if some of its upper bits are set, for it may have died
      half-way through publishing.
  R3  Otherwise the owner died before it set a single bit: the hole runs from g to
      the nearest of the next set bit, the next claim above g that is live or held,
      and T.

Why it is exact: a live owner's claim is stored before its compare-and-swap and
cleared only after its bits are set; whoever saw T through that compare-and-swap
sees the claim, or a later value and with it the bits.  A claim whose
compare-and-swap failed can only delay a repair, never cause one.

Why committed_lsn, and why last: the flusher's other threads commit too.  To bits
that one of them has cleared, or to a dead owner's claim that it has passed, the
rules would see a hole where records are; but it stored committed_lsn before it
cleared a bit (B2).  If committed_lsn is still g after all else has been read,
nothing of that was cleared; and what is a hole then stays one until it is filled,
for nobody alive owns its first granule.

A hole is filled under a held claim of the filler's own, so a filler that dies is
itself a case of R2.

This module knows claims, bits and FILL frames.  It may not know why it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shmlog import _native
from shmlog.format.geometry import Geometry
from shmlog.format.layout import CB, FRAME_HEADER_BYTES, GRANULE_BYTES, KIND_FILL
from shmlog.memory.participants import Claim, Participants


@dataclass(frozen=True, slots=True)
class Hole:
    """[begin, end) will never be published by whoever reserved it."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Busy:
    """The range at `lsn` belongs to a live participant: wait for it (R1)."""

    lsn: int
    participant: int


def find_hole(control: _native.Control, participants: Participants, g: int) -> Hole | Busy | None:
    """What is at g, where the scan has stopped; None: look again, it has moved."""
    tail = control.load(CB.RESERVED_LSN)
    if g >= tail or control.load(CB.COMMITTED_LSN) != g:  # R0: so the tail is within the window of g
        return None
    seen: list[tuple[int, bool, Claim]] = []
    for number in range(participants.high):
        alive = participants.alive(number)  # first (T3)
        seen.extend((number, alive, claim) for claim in participants.claims(number))
    next_set = control.scan(g, tail, True)
    if next_set == g or control.load(CB.COMMITTED_LSN) != g:  # R0: the bits first
        return None
    for number, alive, claim in seen:
        if claim.begin == g and alive:
            return Busy(g, number)
    for _, _, claim in seen:
        if claim.begin == g and claim.held and g < claim.end <= tail:  # else overwritten
            return Hole(g, claim.end)
    ends = [claim.begin for _, alive, claim in seen if claim.begin > g and (alive or claim.held)]
    return Hole(g, min([next_set, tail, *ends]))


def fill_hole(
    control: _native.Control,
    participants: Participants,
    number: int,
    hole: Hole,
    geometry: Geometry,
    seed: int,
    memory: Callable[[int], memoryview],
) -> None:
    """Make the hole a FILL frame in each segment it touches, and publish it.

    number is the filler's own participant; memory(lsn) gives the writable bytes of
    the segment that holds lsn, header included."""
    participants.hold(number, hole.begin, hole.end)
    now = time.time_ns()
    for begin, end in geometry.segment_ranges(hole.begin, hole.end):
        at = geometry.file_offset(begin)
        header = _native.filler(KIND_FILL, begin, end - begin, now, number, seed)
        memory(begin)[at : at + FRAME_HEADER_BYTES] = header
    control.publish(hole.begin, hole.end)
    participants.unhold(number)
    control.add(CB.FILL_COUNT, 1)
    control.add(CB.FILL_BYTES, hole.end - hole.begin)


assert FRAME_HEADER_BYTES <= GRANULE_BYTES, "a FILL frame fits the smallest hole"
