"""A control block that survived all its users, over files that are not those it speaks of: it is
believed only as far as the files bear it out."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    block_path,
    check_records,
    flusher_of,
    kill_everybody,
    kill_flusher,
    lose_shared_memory,
)

import shmlog
from shmlog.disk.recovery import Case
from shmlog.format.layout import CB, SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

DURABLE, COUNT = 300, 900
"""Records: the last two thirds of them is committed and not yet durable."""


def _write(wire: Wire, path: Path) -> None:
    log = shmlog.open(path, flusher="external")
    lsns = append_some(log, 1, DURABLE)
    log.wait_durable()
    durable = log.durable_lsn
    lsns += append_some(log, 1, COUNT - DURABLE, first=DURABLE)
    prepared = CB.PREPARED_LSN
    while (log._joined.control.load(prepared) - 1) // SEGMENT_BYTES * SEGMENT_BYTES <= log.reserved_lsn:
        lsns += append_some(log, 1, 10, first=len(lsns))
    log.wait_committed()
    wire.say((lsns, durable, log.durable_lsn, log.committed_lsn))
    wire.hear()


@pytest.fixture
def survived(log_path: Path) -> tuple[list[int], int]:
    """A block over a log whose users have all been killed; its LSNs, and durable_lsn."""
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=4 * SEGMENT_BYTES).close()
    with flusher_of(log_path, "--sync-interval", "10000"), Child(_write, log_path) as child:
        lsns, durable, still, committed = child.hear()
        assert durable == still < lsns[-1] < committed
        kill_everybody(log_path, [child])
    assert block_path(log_path).exists()
    return lsns, durable


def _spoil(path: Path, lsn: int) -> None:
    """One bit of the record at lsn is another."""
    segment = path / "segments" / f"{lsn // SEGMENT_BYTES * SEGMENT_BYTES:020d}.seg"
    with segment.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + lsn % SEGMENT_BYTES + 40)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def _zero_from(path: Path, lsn: int) -> None:
    for segment in (path / "segments").glob("*.seg"):
        keep = max(0, lsn - int(segment.stem))
        if keep < SEGMENT_BYTES:
            size = segment.stat().st_size
            os.truncate(segment, SEGMENT_HEADER_BYTES + keep)
            os.truncate(segment, size)


@pytest.mark.holds("E1")
@pytest.mark.parametrize("damage", [_spoil, _zero_from])
@pytest.mark.parametrize("opener", ["handle", "flusher"])
def test_files_that_lost_what_was_not_durable_are_recovered_not_believed(
    log_path: Path,
    survived: tuple[list[int], int],
    damage: Callable[[Path, int], None],
    opener: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As after a disk that was mounted anew.  What is above the damage is kept, what is
    damaged is reported, and nothing of it is called durable."""
    lsns, durable = survived
    lost = next(n for n, lsn in enumerate(lsns) if lsn > durable + 3 * SEGMENT_BYTES // 2)
    damage(log_path, lsns[lost])
    if opener == "flusher":  # alone, it joins before anybody else
        with flusher_of(log_path) as process:
            process.terminate()
            assert process.wait(30) == 0
    with shmlog.open(log_path, timeout=20) as log:
        if opener == "handle":
            assert log.recovery is not None
            assert log.recovery.case is (Case.HOLES if damage is _spoil else Case.INTACT)
            assert "is not believed" in caplog.text and str(lsns[lost]) in caplog.text
        found = [record.lsn for record in log.read()]
        assert found == (lsns[:lost] + lsns[lost + 1 :] if damage is _spoil else lsns[:lost])
        log.wait_durable()
        assert_healthy(log)
    assert shmlog.verify(log_path).ok


@pytest.mark.holds("E1")
@pytest.mark.parametrize("damage", [_spoil, _zero_from])
def test_files_that_lost_what_was_durable_are_refused_and_not_touched(
    log_path: Path, survived: tuple[list[int], int], damage: Callable[[Path, int], None]
) -> None:
    lsns, durable = survived
    lost = max(n for n, lsn in enumerate(lsns) if lsn < durable - 4096)
    damage(log_path, lsns[lost])
    before = {path.name: path.read_bytes() for path in (log_path / "segments").glob("*.seg")}
    with pytest.raises(shmlog.CorruptionError, match=f"LSN {durable} is durable.*remove /dev/shm/") as raised:
        shmlog.open(log_path, timeout=5)
    assert raised.value.lsn == lsns[lost]
    assert {path.name: path.read_bytes() for path in (log_path / "segments").glob("*.seg")} == before
    assert block_path(log_path).exists()
    lose_shared_memory(log_path)


@pytest.mark.holds("E1")
def test_an_older_backup_put_in_place_is_refused_until_the_block_is_removed(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        old = append_some(log, 1, 40)
    backup = log_path.with_name("backup")
    shutil.copytree(log_path / "segments", backup)

    def write(wire: Wire) -> None:
        log = shmlog.open(log_path)
        append_some(log, 1, 200, first=40)
        log.wait_durable()
        wire.say("durable")
        wire.hear()

    with Child(write) as child:
        child.hear()
        kill_everybody(log_path, [child])
    shutil.rmtree(log_path / "segments")
    backup.rename(log_path / "segments")
    with pytest.raises(shmlog.CorruptionError, match="restored from a backup"):
        shmlog.open(log_path, timeout=5)
    lose_shared_memory(log_path)
    with shmlog.open(log_path, timeout=20) as log:
        check_records(log, {1: old})
        assert_healthy(log)


@pytest.mark.holds("E1")
def test_a_segment_that_was_only_prepared_and_is_gone_costs_the_block_and_no_record(
    log_path: Path, survived: tuple[list[int], int]
) -> None:
    lsns, _ = survived
    above = [path for path in (log_path / "segments").glob("*.seg") if int(path.stem) > lsns[-1]]
    assert above
    for path in above:
        path.unlink()
    with shmlog.open(log_path, timeout=20) as log:
        assert log.recovery is not None and log.recovery.case is Case.INTACT
        check_records(log, {1: lsns})
        assert_healthy(log)


@pytest.mark.holds("S3")
def test_a_successor_beside_a_live_writer_calls_nothing_durable_that_the_files_have_not(
    log_path: Path,
) -> None:
    """With somebody alive the block is joined; what is about to become durable is checked all
    the same, and what does not hold is a failure for all, with a note for who comes later."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, flusher="external") as log:
        with flusher_of(log_path, "--sync-interval", "10000") as first:
            lsns = append_some(log, 1, DURABLE)
            log.wait_durable()
            lsns += append_some(log, 1, COUNT - DURABLE, first=DURABLE)
            log.wait_committed()
            first.kill()
            first.wait()
        durable = log.durable_lsn
        lost = next(lsn for lsn in lsns if lsn > durable + SEGMENT_BYTES)
        _spoil(log_path, lost)
        with flusher_of(log_path) as second:
            with pytest.raises(shmlog.LogFailedError) as raised:
                log.wait_durable(timeout=20)
            assert raised.value.errno == errno.EIO and raised.value.lsn == log.durable_lsn == durable
            log.close()
            second.terminate()
            assert second.wait(30) == 0
    assert (log_path / "FAILED").exists()
    with shmlog.open(log_path, timeout=20) as log:
        assert log.recovery is not None and log.recovery.failure is not None
        assert [record.lsn for record in log.read()] == [lsn for lsn in lsns if lsn != lost]


def test_a_record_that_was_being_copied_when_all_were_killed_is_no_damage(log_path: Path) -> None:
    """A hole below published records: it is not committed, so the check ends below it."""

    def write(wire: Wire) -> None:
        log = shmlog.open(log_path)
        lsns = append_some(log, 1, 50)
        log.wait_committed()
        hole = log.reserve(500)
        hole.buffer[:100] = b"x" * 100
        lsns += append_some(log, 1, 50, first=50)
        kill_flusher(log)
        wire.say((lsns, hole.lsn))
        wire.hear()

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(write) as child:
        lsns, _ = child.hear()
        kill_everybody(log_path, [child])
    with shmlog.open(log_path, timeout=20) as log:
        assert log.recovery is None, "the block is joined"
        log.wait_durable()
        check_records(log, {1: lsns})
        assert log.statistics().holes_filled == 1


@pytest.mark.holds("E1")
@pytest.mark.parametrize(
    ("word", "value"), [(CB.RESERVED_LSN, 64), (CB.RESERVED_LSN, 1 << 40), (CB.COMMITTED_LSN, 1 << 40)]
)
def test_a_damaged_block_of_a_log_that_failed_of_it_is_replaced_once_all_have_closed(
    log_path: Path, word: int, value: int
) -> None:
    """No flusher serves such a block, so none takes it away, and no close waits until one has.
    Whichever word a flusher meets first, all are told."""
    log = shmlog.open(
        log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES, timeout=60
    )
    lsns = append_some(log, 1, 100)
    log.wait_durable()
    log._joined.control.native.store(word, value)
    with pytest.raises(shmlog.LogFailedError):
        while True:
            log.append(b"", durable=True)
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 30
    with shmlog.open(log_path, timeout=20) as log:
        assert [record.lsn for record in log.read()][: len(lsns)] == lsns
        log.append(b"and on", durable=True)


@pytest.mark.holds("E2")
def test_a_log_that_failed_and_whose_users_all_died_is_recovered_by_who_opens_it(log_path: Path) -> None:
    """Its block is still there; who joined it could only be told that the log has failed, and read
    what the disk may have lost since."""

    def write(wire: Wire) -> None:
        log = shmlog.open(log_path, segment_bytes=SEGMENT_BYTES)
        lsns = append_some(log, 1, 50)
        log.wait_durable()
        kill_flusher(log)
        log._joined.control.fail(errno.EIO, log.durable_lsn)
        wire.say((lsns, log.durable_lsn))
        wire.hear()

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(write) as child:
        lsns, durable = child.hear()
        kill_everybody(log_path, [child])
    assert block_path(log_path).exists()
    with shmlog.open(log_path, timeout=20) as log:
        assert log.recovery is not None and log.recovery.failure is not None
        assert (log.recovery.failure.errno, log.recovery.failure.lsn) == (errno.EIO, durable)
        check_records(log, {1: lsns})
        assert_healthy(log)
    assert not (log_path / "FAILED").exists()
