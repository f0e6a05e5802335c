"""Trimming: whole segments go, views and later records stay."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.processes import SEGMENT_BYTES, flusher_of

import shmlog
from shmlog.format.layout import CB

SMALL = 64 << 10


def _filled(path: Path, count: int = 4000) -> tuple[shmlog.Log, list[int]]:
    log = shmlog.open(path, create=True, segment_bytes=SMALL, window_bytes=SMALL, timeout=20)
    lsns = [log.append(b"%08d" % number * 12) for number in range(count)]
    log.wait_durable()
    return log, lsns


def test_trim_gives_up_whole_segments_below_the_lsn_and_no_more(log_path: Path) -> None:
    log, lsns = _filled(log_path)
    with log:
        trimmed = log.trim(lsns[3000])
        assert trimmed == lsns[3000] - lsns[3000] % SMALL
        assert log.trimmed_lsn == trimmed
        names = sorted(os.listdir(log_path / "segments"))
        assert names[0] == f"{trimmed:020d}.seg"
        assert [record.lsn for record in log.read()] == [lsn for lsn in lsns if lsn >= trimmed]


def test_a_view_of_a_trimmed_segment_keeps_its_bytes(log_path: Path) -> None:
    log, lsns = _filled(log_path)
    with log:
        batch = next(log.read_batches())
        before = batch.array("S96").copy()
        view = batch.array("S96")
        log.trim(lsns[-1])
        assert not (log_path / "segments" / f"{0:020d}.seg").exists()
        np.testing.assert_array_equal(view, before)


def test_reading_from_a_trimmed_lsn_says_where_the_log_begins(log_path: Path) -> None:
    log, lsns = _filled(log_path)
    with log:
        trimmed = log.trim(lsns[2500])
        with pytest.raises(shmlog.TrimmedError) as caught:
            list(log.read(lsns[10]))
        assert (caught.value.lsn, caught.value.trimmed_lsn) == (lsns[10], trimmed)


def test_a_reader_that_trimming_overtakes_gets_trimmed_error_not_a_missing_file(log_path: Path) -> None:
    log, lsns = _filled(log_path)
    with log:
        batches = log.read_batches(records=10)
        next(batches)
        trimmed = log.trim(lsns[-1])
        with pytest.raises(shmlog.TrimmedError) as caught:
            for _ in batches:
                pass
        assert caught.value.trimmed_lsn == trimmed


def test_trim_survives_a_clean_reopen(log_path: Path) -> None:
    log, lsns = _filled(log_path)
    with log:
        trimmed = log.trim(lsns[2000])
    with shmlog.open(log_path) as again:
        assert again.trimmed_lsn == trimmed
        assert next(again.read()).lsn == trimmed
        assert again.trim(0) == trimmed


def test_a_trim_that_a_dead_flusher_began_is_finished_by_the_next(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, flusher="external") as log:
        with flusher_of(log_path) as flusher:
            for _ in range(300):
                log.append(bytes(1000))
            log.wait_durable()
            flusher.kill()
            flusher.wait()
        target = 2 * SEGMENT_BYTES
        log._joined.control.native.store(CB.TRIMMED_LSN, target)  # and then it died
        with flusher_of(log_path) as sidecar:
            assert log.trim(target, timeout=10) == target
            assert min(path.name for path in (log_path / "segments").iterdir()) == f"{target:020d}.seg"
            log.close()
            sidecar.terminate()
            assert sidecar.wait(30) == 0
    assert shmlog.recover(log_path, dry_run=True).trimmed_lsn == target


def test_trim_of_what_is_not_committed_is_refused(log_path: Path) -> None:
    log, lsns = _filled(log_path, 100)
    with log:
        with pytest.raises(ValueError, match="not committed"):
            log.trim(lsns[-1] + (1 << 30))
        with pytest.raises(ValueError, match="not committed"):
            log.trim(-32)
        assert log.trim(lsns[50]) == 0, "the segment that holds the LSN stays"
        assert len(list(log.read())) == 100


def test_trim_at_a_segments_very_end_keeps_the_segment_with_the_mark(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SMALL, window_bytes=SMALL) as log:
        for _ in range(2):
            log.append_array(np.zeros((512, 32), np.uint8))
        log.wait_durable()
        assert log.durable_lsn == SMALL
        assert log.trim(SMALL) == 0
    with shmlog.open(log_path) as again:
        assert again.reserved_lsn == SMALL
        assert len(list(again.read())) == 1024
