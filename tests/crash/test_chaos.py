"""Chaos, a little of it at every run; and that it would see a defect, by defects planted here."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import world
from crash.kit import Budget, Tally
from crash.recipes import chaos
from support.processes import is_alive

import shmlog.flusher.committing
import shmlog.session.attachment
from shmlog.flusher import open_segments
from shmlog.flusher.holes import Busy, Hole
from shmlog.memory.waiting import DURABLE, Waiting

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PATIENCE_S = 180


def test_one_turn_of_chaos_violates_nothing(tmp_path: Path) -> None:
    tally = Tally()
    chaos.turn(Budget(60, seed=5), 0, tally, keep=tmp_path, rounds=1, steps=8)
    assert not tally.violations
    assert tally.survived >= 3, "faults were delivered"


def test_a_round_that_ends_kills_who_had_no_time_to_join_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        while True:
            signal.pause()

    monkeypatch.setattr(world, "in_group", late)
    one = world.World(tmp_path, random.Random(1), Tally(), forked=True)
    try:
        one.begin()
        pids = [actor.pid for actor in one.actors]
        one.kill_all()
        assert len(pids) > 3 and not any(is_alive(pid) for pid in pids)
    finally:
        one.remove()


def _repair_by_time_out(patch: pytest.MonkeyPatch) -> None:
    """A writer that stands still for 30 ms is taken for dead."""
    real, since = shmlog.flusher.committing.find_hole, dict[int, float]()

    def impatient(control, participants, g):  # type: ignore[no-untyped-def]
        found = real(control, participants, g)
        if isinstance(found, Busy) and time.monotonic() - since.setdefault(g, time.monotonic()) > 0.03:
            ends = [claim.end for claim in participants.claims(found.participant) if claim.begin == g]
            return Hole(g, ends[0]) if ends else found
        return found

    patch.setattr(shmlog.flusher.committing, "find_hole", impatient)


def _published_records_dropped(patch: pytest.MonkeyPatch) -> None:
    """What a dead writer left ends the log, though the machine did not restart."""
    real = shmlog.session.attachment.recover
    patch.setattr(
        shmlog.session.attachment, "recover", lambda where, boot, **_: real(where, bytes(16), restarted=True)
    )


def _durable_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    real = Waiting.until
    patch.setattr(Waiting, "until", lambda self, kind, *rest: kind is DURABLE or real(self, kind, *rest))


def _trimmed_files_cut(patch: pytest.MonkeyPatch) -> None:
    """A trim truncates the file before it removes its name."""
    real = open_segments.OpenSegments.remove_below

    def remove_below(self: open_segments.OpenSegments, lsn: int) -> int:
        for first in open_segments.list_segments(self._directory):
            if first < lsn:
                os.truncate(open_segments.segment_path(self._directory, first), 4096)
        return real(self, lsn)

    patch.setattr(open_segments.OpenSegments, "remove_below", remove_below)


@pytest.mark.crash
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "plant",
    [
        _repair_by_time_out,
        _published_records_dropped,
        _durable_before_the_sync,
        _trimmed_files_cut,
    ],
)
def test_chaos_sees_a_planted_defect(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(monkeypatch)
    budget, tally, turn = Budget(PATIENCE_S, seed=1), Tally(), 0
    while budget and not any("not within" not in what for what in tally.violations):
        chaos.turn(budget, turn, tally, forked=True, keep=tmp_path)
        turn += 1
    seen = [what for what in tally.violations if "not within" not in what]
    assert seen, f"not seen in {turn} turns"
    print(f"{plant.__name__}: {turn} turns, {budget.spent_s():.0f} s: {seen[0][:300]}")
