"""Statistics: what a log says of itself, and of whoever holds it back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, until

import shmlog
from shmlog.format.layout import SYNC_BUCKETS
from shmlog.tools import info


def _hold_a_reservation(wire: Wire, path: Path) -> None:
    with shmlog.open(path) as log:
        reservation = log.reserve(100)
        wire.say((reservation.lsn, log.writer_number))
        wire.hear()
        reservation.publish()


def test_whoever_holds_the_watermark_back_is_named_with_pid_lsn_and_since_when(log_path: Path) -> None:
    began_ns = time.time_ns()
    with shmlog.open(log_path, create=True) as log, Child(_hold_a_reservation, log_path) as child:
        lsn, number = child.hear()
        log.append(b"above")
        found = until(lambda: (it := log.statistics().blocked_by) and it.since_ns and it, "it is named")
        assert (found.pid, found.participant, found.lsn) == (child.pid, number, lsn)
        assert began_ns <= found.since_ns <= time.time_ns()
        with shmlog.open_readonly(log_path) as looker:
            assert looker.statistics().blocked_by == found
        assert info.describe(str(log_path))["blocked_by"] == found._asdict()
        child.stop()
        named = f"pid {child.pid}, .*LSN {lsn} for "
        for wait in (
            lambda: log.wait_durable(timeout=0),
            lambda: log.wait_committed(timeout=0),
            lambda: log.append(b"more", durable=True, timeout=0.01),
            lambda: next(log.tail(timeout=0)),
            lambda: next(shmlog.open_readonly(log_path).tail(timeout=0)),
        ):
            with pytest.raises(TimeoutError, match=named):
                wait()
        child.resume()
        child.say("go on")
        log.wait_durable()
        assert log.statistics().blocked_by is None


def test_a_full_window_names_whoever_holds_it_back_and_for_how_long(log_path: Path) -> None:
    with (
        shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log,
        Child(_hold_a_reservation, log_path) as child,
    ):
        lsn, _ = child.hear()
        with pytest.raises(shmlog.LogFullError, match=rf"pid {child.pid}, .* LSN {lsn} for \d"):
            while True:
                log.append(bytes(1000), timeout=0.2)
        child.say("go on")
        child.wait()


def test_a_dead_writer_is_not_named_for_the_flusher_sees_to_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, Child(_hold_a_reservation, log_path) as child:
        child.hear()
        child.kill()
        assert log.statistics().blocked_by is None
        log.append(b"above", durable=True)
        assert log.statistics().blocked_by is None


def test_syncs_are_counted_by_how_long_they_took(log_path: Path) -> None:
    bounds = [2**bucket / 1e6 for bucket in range(SYNC_BUCKETS)]

    def agree(found: shmlog.Statistics) -> bool:
        """The counters and the histogram, which are not read in one step."""
        least = sum(count * (bound / 2) for count, bound in zip(found.sync_latency, bounds, strict=True))
        most = sum(count * bound for count, bound in zip(found.sync_latency, bounds, strict=True))
        counted = sum(found.sync_latency) == found.syncs >= 20
        return counted and least - found.syncs * 1e-6 <= found.sync_seconds <= most

    with shmlog.open(log_path, create=True) as log:
        for _ in range(20):
            log.append(b"x", durable=True)
        until(lambda: agree(log.statistics()), "the histogram says what the counters say", timeout=5)
        found = log.statistics()
        assert 0 < found.sync_quantile_s(0.5) <= found.sync_quantile_s(0.99) <= bounds[-1]


def test_rates_are_those_of_each_writer_between_two_looks(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        before = log.statistics()
        for _ in range(100):
            log.append(b"12345678")
        now = log.statistics()
        mine = {rate.participant: rate for rate in now.rates(before)}[log.writer_number]
        seconds = (now.time_ns - before.time_ns) / 1e9
        assert mine.pid == os.getpid()
        assert mine.records_per_s == pytest.approx(100 / seconds)
        assert mine.bytes_per_s == pytest.approx(800 / seconds)


def test_a_looker_sees_the_same_of_a_live_log_and_the_rest_of_a_dead_one(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, shmlog.open_readonly(log_path) as looker:
        log.append(b"one", durable=True)
        with log.cursor("etl") as cursor:
            here, there = log.statistics(), looker.statistics()
            assert here.cursors == there.cursors == ((cursor.name, 0, log.committed_lsn, os.getpid(), None),)
        assert (there.records, there.committed_lsn, there.flusher_pid) == (1, 64, here.flusher_pid)
        assert [each.pid for each in there.participants] == [each.pid for each in here.participants]
        assert there.to_dict()["cursors"][0]["lag_bytes"] == 64
    with shmlog.open_readonly(log_path) as looker:
        dead = looker.statistics()
    assert (dead.committed_lsn, dead.durable_lsn, dead.flusher_pid) == (64, 64, None)
    assert dead.participants == () and [place.name for place in dead.cursors] == ["etl"]
