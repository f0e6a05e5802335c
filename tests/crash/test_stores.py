"""One shape of each of the recipes stores, latency, calls and points, and that they bite."""

from __future__ import annotations

import functools

import pytest
from crash.kit import Budget, Tally
from crash.recipes import calls, latency, points, stores
from crash.stores import tracer
from crash.stores.planting import caught
from crash.stores.stage import SHAPES, staged
from support.processes import flusher_of

import shmlog

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
traced = pytest.mark.skipif(tracer.missing() is not None, reason=str(tracer.missing()))


def _clean(tally: Tally) -> None:
    assert not tally.violations
    assert tally.tried


@traced
def test_a_writer_is_killed_passed_and_resumed_at_every_store_of_an_append() -> None:
    tally = Tally()
    with staged() as stage, flusher_of(stage.path):
        turn = functools.partial(stores._writer_turn, SHAPES[0])
        stores._guarded("append", turn, stage, Budget(60, 1), tally)
    _clean(tally)
    assert tally.tried == 3 * (int(tally.figures["stores"]) + 1), "so many were delivered"


@traced
def test_stores_sees_the_range_of_a_live_writer_repaired() -> None:
    seen = caught("stores", stores.BUGS["a live writer's range is repaired"], 30, 1)
    assert seen is not None
    assert "was passed" in seen


def test_a_process_is_killed_at_some_lines_of_making_a_log_and_of_joining_it_after_a_fork() -> None:
    counted = points.Points()
    for kill in (points.Kill("maker", 99), points.Kill("maker", 400), points.Kill("forker", 150)):
        assert points.try_kill(kill, counted) == []


def test_some_calls_of_a_flusher_a_user_and_a_maker_fail_or_kill_them() -> None:
    tally = Tally()
    calls.torture(Budget(60, 1), tally, most=16)
    _clean(tally)


def test_a_dead_writer_holds_nobody_up_for_long(log_path: object) -> None:
    with shmlog.open(str(log_path), create=True, segment_bytes=1 << 16, window_bytes=1 << 16) as log:
        log.append(b"", durable=True)
        for waits in (True, False):
            assert latency._writer_dies_ms(log, waits, 0.0) < 10 * latency.WRITER_GOAL_MS
