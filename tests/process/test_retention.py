"""Retention: a log stays within its budget, and what a cursor needs stays in the log."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import Child, Wire, append_some, until, whose

import shmlog
from shmlog.disk import settings
from shmlog.format.layout import CB
from shmlog.tools.configure import configured

SMALL = 64 << 10
FILE = SMALL + 8192
BUDGET = 1 << 20


def _disk_bytes(path: Path) -> int:
    """What the segment files take at most, those that are just being made too."""
    total = 0
    for entry in os.scandir(path / "segments"):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _open(path: Path, **kept: object) -> shmlog.Log:
    retention = shmlog.Retention(**({"bytes": BUDGET} | kept))  # type: ignore[arg-type]
    return shmlog.open(path, create=True, segment_bytes=SMALL, window_bytes=SMALL, retention=retention)


def _write(wire: Wire, path: Path, number: int, count: int) -> None:
    with shmlog.open(path) as log:
        wire.say(append_some(log, number, count)[-1])


def _fill(log: shmlog.Log) -> str:
    """Append until the budget is used up; what the error says then."""

    def refused() -> str:
        try:
            while True:
                log.append(bytes(1000), timeout=0.2)
        except shmlog.LogFullError as error:  # perhaps only of a flusher that is not there yet
            return str(error) if "the budget of" in str(error) else ""

    return str(until(refused))


class _Watcher(threading.Thread):
    """Sees how much the files take, as often as it can."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.most, self.ended = path, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.001):
            self.most = max(self.most, _disk_bytes(self.path))

    def __enter__(self) -> _Watcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


@pytest.mark.holds("H2")
def test_twenty_times_the_budget_goes_through_a_log_that_stays_within_it(log_path: Path) -> None:
    with _open(log_path) as log, _Watcher(log_path) as watcher:
        rows = np.zeros((512, 96), np.uint8)
        first = log.append_array(rows)
        log.wait_committed()
        batch = next(log.read_batches(stop=int(first[-1]) + 1))
        view, before = batch.array("V96"), batch.array("V96").tobytes()
        with Child(_write, log_path, 1, 4000) as one, Child(_write, log_path, 2, 4000) as other:
            while log.reserved_lsn < 20 * BUDGET:
                log.append_array(rows, timeout=20)
            one.hear()
            other.hear()
        assert log.trimmed_lsn > 18 * BUDGET
        assert view.tobytes() == before, "a live view does not change"
        with log.cursor("last") as cursor:
            kept = [record for batch in cursor.batches() for record in batch]
            assert kept[0].lsn == cursor.lsn >= log.trimmed_lsn > 18 * BUDGET
        log.wait_durable()
        assert shmlog.verify(log_path).ok
    assert 0 < watcher.most <= BUDGET


def _read_slowly(wire: Wire, path: Path, count: int) -> None:
    """Read on only when the writers can go on no more, or all is written."""
    with shmlog.open(path) as log, log.cursor("slow") as cursor:
        wire.say(cursor.lsn)
        seen, written = 0, False
        while seen < count:
            if not written:
                until(lambda: log.statistics().budget_held or wire.heard())
                written = wire.heard()
            for batch in cursor.batches():
                for record in batch:
                    assert whose(record.data) == (1, seen)
                    seen += 1
            cursor.commit()
        wire.say(seen)


@pytest.mark.holds("H1")
def test_a_slow_cursor_reads_every_record_while_the_log_stays_within_its_budget(log_path: Path) -> None:
    with _open(log_path) as log, _Watcher(log_path) as watcher:
        with Child(_read_slowly, log_path, 6000) as reader:
            assert reader.hear() == 0
            append_some(log, 1, 6000, most=4000)
            assert log.reserved_lsn > 4 * BUDGET
            reader.say("all is written")
            assert reader.hear() == 6000
        log.remove_cursor("slow")
    assert watcher.most <= BUDGET


def test_a_budget_that_a_cursor_holds_back_is_an_error_that_names_the_cursor(log_path: Path) -> None:
    with _open(log_path) as log:
        with log.cursor("etl") as cursor:
            text = _fill(log)
            assert str(BUDGET) in text and f"'etl', open in pid {os.getpid()}" in text and " LSN 0," in text
            assert log.statistics().budget_held
            assert log.trimmed_lsn == 0, "what the cursor needs stays"
            first = next(log.read())
            assert first.lsn == 0
            for _ in cursor.batches():
                pass
            cursor.commit()
        log.append(bytes(1000), timeout=20)
        until(lambda: log.trimmed_lsn > 0, "there is room again")
        until(lambda: not log.statistics().budget_held)


def test_a_reader_whose_records_go_when_the_budget_is_full_is_told_where_the_log_begins(
    log_path: Path,
) -> None:
    with _open(log_path, when_full="trim") as log, log.cursor("etl") as cursor, _Watcher(log_path) as watcher:
        while log.reserved_lsn < 3 * BUDGET:
            log.append(bytes(1000), timeout=20)
        with pytest.raises(shmlog.TrimmedError) as caught:
            list(cursor.batches())
        assert caught.value.lsn == 0 < caught.value.trimmed_lsn <= log.trimmed_lsn
    assert watcher.most <= BUDGET


def test_cursors_that_are_ignored_hold_nothing_back(log_path: Path) -> None:
    with _open(log_path, cursors="ignore") as log, log.cursor("etl"):
        while log.reserved_lsn < 3 * BUDGET:
            log.append(bytes(1000), timeout=20)
        assert log.trimmed_lsn > BUDGET


def test_a_budget_that_a_killed_reader_holds_back_comes_free_with_its_cursor(
    log_path: Path,
) -> None:
    with _open(log_path) as log:
        with Child(_read_slowly, log_path, 10**9) as reader:
            reader.hear()
            reader.stop()
            assert f"'slow', open in pid {reader.pid}" in _fill(log)
            reader.kill()
        assert "the cursor 'slow' still needs" in _fill(log)
        log.remove_cursor("slow")
        log.append(bytes(SMALL // 4), timeout=20)


@pytest.mark.holds("H3")
def test_a_live_flusher_follows_a_change_within_a_second(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SMALL, window_bytes=SMALL) as log:
        while log.reserved_lsn < 3 * BUDGET:
            log.append(bytes(1000))
        log.wait_durable()
        assert log.trimmed_lsn == 0
        at = time.monotonic()
        shmlog.configure(log_path, retention=shmlog.Retention(bytes=BUDGET))
        until(lambda: log.trimmed_lsn > BUDGET, "it is trimmed")
        took_s = time.monotonic() - at
        until(lambda: _disk_bytes(log_path) <= BUDGET)
        settings.stamp(log._directory)
        Path(settings.retention_path(log._directory)).write_text("{")
        log.append(b"x", durable=True)
        until(lambda: "stays as it was" in (log_path / "flusher.log").read_text(), "the damage is logged")
        assert log.statistics().retention is None
        while log.reserved_lsn < 5 * BUDGET:
            log.append(bytes(1000), timeout=20)
        assert _disk_bytes(log_path) <= BUDGET, "it is kept as before"
        shmlog.configure(log_path, retention=None)
        until(lambda: log._joined.control.load(CB.BUDGET_BYTES) == 0, "nothing is given up any more")
    assert took_s < 5, "a second, and what a loaded machine adds"


def test_what_is_older_than_it_is_kept_goes_and_nothing_younger(log_path: Path) -> None:
    with _open(log_path, bytes=None, age=3600.0) as log:
        while log.reserved_lsn < BUDGET:
            log.append(bytes(1000))
        log.wait_durable()
        shmlog.configure(log_path, retention=shmlog.Retention(age=1800.0))
        until(lambda: log._joined.control.load(CB.BUDGET_BYTES) == 0)
        kept = log.trimmed_lsn
        shmlog.configure(log_path, retention=shmlog.Retention(age=0.0))
        until(lambda: log.trimmed_lsn > BUDGET // 2, "it is trimmed")
        assert kept == 0
        assert next(log.read()).lsn == log.trimmed_lsn, "the last segment stays"


def test_a_flusher_that_was_killed_is_followed_by_one_that_keeps_the_budget(log_path: Path) -> None:
    with _open(log_path) as log, _Watcher(log_path) as watcher:
        for turn in range(1, 3):
            while log.reserved_lsn < turn * 2 * BUDGET:
                log.append(bytes(1000), timeout=20)
            pid = log.statistics().flusher_pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        log.append(b"x", durable=True)
        assert shmlog.verify(log_path).ok
    assert watcher.most <= BUDGET
    with shmlog.open(log_path) as log:
        assert configured(log_path) == shmlog.Retention(bytes=BUDGET)
        assert _disk_bytes(log_path) <= BUDGET


@pytest.mark.holds("H1")
def test_a_cursor_made_while_a_trim_is_about_to_begin_starts_above_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SMALL, window_bytes=SMALL) as log:
        while log.reserved_lsn < 4 * SMALL:
            log.append(bytes(1000))
        log.wait_durable()
        log._joined.control.native.store(CB.TRIMMING_LSN, 2 * SMALL)
        with log.cursor("etl") as cursor:
            assert cursor.lsn == 2 * SMALL


def test_a_retention_that_no_log_could_keep_is_refused(log_path: Path) -> None:
    with pytest.raises(ValueError, match="segments of this log take"):
        _open(log_path, bytes=3 * FILE)
    for wrong in ({"bytes": 0}, {"age": -1.0}, {"age": float("nan")}, {"cursors": "maybe"}, {"when_full": 1}):
        with pytest.raises(ValueError):
            shmlog.Retention(**wrong)  # type: ignore[arg-type]
    for wrong in ({"bytes": "1G"}, {"bytes": 1.5}, {"age": True}):
        with pytest.raises(TypeError):
            shmlog.Retention(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        shmlog.configure(log_path, retention={"bytes": 1})  # type: ignore[arg-type]


def test_a_hostile_retention_file_is_a_format_error_and_no_more(log_path: Path) -> None:
    with _open(log_path) as log:
        path = Path(settings.retention_path(log._directory))
    good = json.loads(path.read_text())
    for hostile in (
        "[" * 3000,
        "{}",
        "null",
        json.dumps(good | {"bytes": True}),
        json.dumps(good | {"bytes": 10**30}),
        json.dumps(good | {"bytes": 1}),
        json.dumps(good | {"age_s": "1"}),
        json.dumps(good | {"cursors": []}),
        json.dumps(good | {"version": 2}),
        json.dumps(good).replace('"wait"', "NaN"),
        " " * 5000,
    ):
        path.write_text(hostile)
        with pytest.raises(shmlog.FormatError, match=r"retention\.json"):
            configured(log_path)
    with shmlog.open(log_path) as log:
        log.append(b"it goes on", durable=True)
