"""Backups: whole, by themselves, of logs in use and dead ones, whatever interrupts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child, Wire, append_some, payload, until, whose

import shmlog
from shmlog.cli.main import main

SMALL = 64 << 10
CHANGES = ["fsync", "unlink", "pwrite", "rename", "mkdir", "ftruncate", "posix_fallocate"]
"""The calls by which a backup changes its target."""


def _records(path: Path) -> list[tuple[int, int, int, int, bytes]]:
    with shmlog.open_readonly(path) as log:
        return [(it.lsn, it.time_ns, it.tag, it.writer, bytes(it.data)) for it in log.read()]


def _make(path: Path, count: int = 300) -> None:
    with shmlog.open(path, create=True, segment_bytes=SMALL, window_bytes=SMALL) as log:
        append_some(log, 1, count)


def _write_on(wire: Wire, path: Path, writer: int) -> None:
    with shmlog.open(path) as log:
        wire.say("begun")
        sequence = 0
        while not wire.heard():
            log.append(payload(writer, sequence, 200), writer)
            sequence += 1


def test_a_backup_of_a_log_in_use_opens_by_itself_beside_it(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with (
        shmlog.open(log_path, create=True, segment_bytes=SMALL, window_bytes=SMALL) as log,
        Child(_write_on, log_path, 2) as child,
    ):
        child.hear()
        append_some(log, 1, 300)
        log.wait_durable()
        durable = log.durable_lsn
        done: list[tuple[int, int]] = []
        report = shmlog.backup(log_path, target, lambda *bytes_: done.append(bytes_))
        assert durable <= report.end_lsn <= log.durable_lsn
        assert done[-1][0] == done[-1][1] == report.end_lsn
        with shmlog.open(target) as copy:
            assert copy.recovery is not None and copy.recovery.case.value == "clean"
            kept = [bytes(record.data) for record in copy.read()]
            assert kept == [bytes(record.data) for record in log.read(stop=report.end_lsn)]
            assert len(kept) == report.records
            copy.append(b"the copy goes its own way", durable=True)
        child.say("end")
        child.wait()
    ids = [json.loads((each / "shmlog.json").read_text())["log_id"] for each in (log_path, target)]
    assert ids[0] != ids[1]
    assert shmlog.verify(target).ok and shmlog.verify(log_path).ok


def test_a_later_backup_adds_what_is_new_and_forgets_what_was_trimmed(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    _make(log_path)
    first = shmlog.backup(log_path, target)
    assert _records(target) == _records(log_path)
    old = os.stat(target / "segments" / f"{SMALL:020d}.seg").st_mtime_ns
    again = shmlog.backup(log_path, target)
    assert (again.added_from_lsn, again.records) == (first.end_lsn, 0)
    for turn in range(3):
        with shmlog.open(log_path) as log, log.cursor("etl") as cursor:
            append_some(log, 2 + turn, 150)
            log.trim(turn * SMALL)
            log.wait_committed()
            cursor.commit(log.committed_lsn)
        report = shmlog.backup(log_path, target)
        assert report.records == 150 and report.added_from_lsn < report.end_lsn
        assert _records(target) == _records(log_path)
        with shmlog.open_readonly(target) as copy:
            assert copy.cursors()[0].lsn == report.end_lsn
        assert shmlog.verify(target).ok
    assert os.stat(target / "segments" / f"{2 * SMALL:020d}.seg").st_mtime_ns > 0 < old
    assert not (target / "segments" / f"{SMALL:020d}.seg").exists()


def _back_up(wire: Wire, source: Path, target: Path, die_at: int) -> int:
    """Back up, and be killed before the change number `die_at` of the target; how many there were."""
    calls = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    shmlog.backup(source, target)
    return calls


@pytest.mark.holds("I1")
def test_a_backup_killed_at_any_change_leaves_nothing_that_opens_or_a_prefix(
    log_path: Path, tmp_path: Path
) -> None:
    target, before = tmp_path / "copy", tmp_path / "before"
    _make(log_path, 120)
    whole = _records(log_path)
    for turn in range(2):
        earlier = _records(target) if turn else None
        if turn:
            shutil.copytree(target, before)
            with shmlog.open(log_path) as log:
                append_some(log, 2, 120)
            whole = _records(log_path)
        n, ended = 0, False
        while not ended:
            n += 1 if turn == 0 or n < 20 else 3
            with Child(_back_up, log_path, target, n) as child:
                ended = child.wait() == 0
                if not ended and child.status != -signal.SIGKILL:
                    child.result()
            if not ended and earlier is None:
                with pytest.raises((shmlog.FormatError, FileNotFoundError)):
                    if not (target / "shmlog.json").exists():
                        shmlog.open_readonly(target)
                    assert _records(target) == whole, "the last steps come after all is there"
                    raise shmlog.FormatError
            else:
                found = _records(target)
                assert found == whole[: len(found)] and len(found) >= len(earlier or [])
                assert shmlog.verify(target).ok
        assert n > 20
        shmlog.backup(log_path, target)
        assert _records(target) == whole
    assert shmlog.recover(target, dry_run=True).case.value == "clean"


@pytest.mark.holds("I2")
def test_an_earlier_backup_that_somebody_wrote_to_is_not_added_to(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    _make(log_path)
    shmlog.backup(log_path, target)
    with shmlog.open(target) as copy:
        with pytest.raises(shmlog.AttachError):
            shmlog.backup(log_path, target)
        copy.append(b"its own", durable=True)
    with pytest.raises(shmlog.FormatError, match="written to"):
        shmlog.backup(log_path, target)


def test_what_is_no_backup_of_this_log_is_left_alone(log_path: Path, tmp_path: Path) -> None:
    other, full, target = tmp_path / "other", tmp_path / "full", tmp_path / "copy"
    _make(log_path)
    _make(other, 10)
    shmlog.backup(other, target)
    full.mkdir()
    (full / "letter").write_text("do not lose me")
    for wrong, why in ((full, "letter"), (other, "neither empty nor a backup"), (target, "another log")):
        with pytest.raises(shmlog.FormatError, match=why):
            shmlog.backup(log_path, wrong)
    with pytest.raises(ValueError, match="the log itself"):
        shmlog.backup(log_path, log_path)
    assert os.listdir(full) == ["letter"] and len(_records(target)) == len(_records(other)) == 10


def test_a_copy_with_the_same_id_takes_the_logs_place(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    _make(log_path)
    records = _records(log_path)
    shmlog.backup(log_path, target, same_id=True)
    with pytest.raises(ValueError, match="same_id"):
        shmlog.backup(log_path, target)
    shutil.rmtree(log_path)
    os.rename(target, log_path)
    with shmlog.open(log_path) as log:
        assert log.append(b"it goes on", durable=True) >= records[-1][0]
    assert _records(log_path)[:-1] == records


def _hold_and_die(wire: Wire, path: Path) -> None:
    with shmlog.open(path) as log:
        log.append(b"before")
        with log.reserve(1000):
            wire.say(log.append(b"above"))
            wire.hear()


@pytest.mark.holds("I3")
def test_the_hole_of_a_dead_writer_is_filled_in_the_copy_of_a_dead_log(
    log_path: Path, tmp_path: Path
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SMALL, flusher="external") as log:
        log_id = log._directory.identity.log_id
        with Child(_hold_and_die, log_path) as child:
            child.hear()
            flusher = until(lambda: log.statistics().flusher_pid)
            os.kill(flusher, signal.SIGKILL)
            until(lambda: log.statistics().flusher_pid is None)
            log._flusher_mode = "external"
            child.kill()
        log.close()
    from shmlog.memory import block

    block.unlink_all(log_id)
    assert shmlog.recover(log_path, dry_run=True).case.value == "holes"
    shmlog.backup(log_path, tmp_path / "copy")
    assert [record[-1] for record in _records(tmp_path / "copy")] == [b"before", b"above"]
    assert shmlog.verify(tmp_path / "copy").ok


def test_damage_in_the_log_does_not_get_into_the_copy(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    _make(log_path)
    with open(log_path / "segments" / f"{0:020d}.seg", "r+b") as file:
        file.seek(20000)
        file.write(b"\xff\xff")
    with pytest.raises(shmlog.CorruptionError) as caught:
        shmlog.backup(log_path, target)
    assert 0 < caught.value.lsn < 20000
    assert not (target / "shmlog.json").exists()


@pytest.mark.holds("I3")
def test_a_trim_during_the_copy_takes_nothing_from_it(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with shmlog.open(log_path, create=True, segment_bytes=SMALL, window_bytes=SMALL) as log:
        append_some(log, 1, 600)
        log.wait_durable()
        end = log.durable_lsn
        report = shmlog.backup(log_path, target, lambda done, whole: log.trim(end) and None)
        assert log.trimmed_lsn > report.begin_lsn == 0
        shmlog.backup(log_path, target)
        append_some(log, 2, 600)
        log.wait_durable()
        log.trim(log.durable_lsn)
        with pytest.raises(shmlog.TrimmedError):
            shmlog.backup(log_path, target)
    assert {whose(record[-1])[0] for record in _records(target)} == {1}


def test_an_empty_log_has_an_empty_copy_that_grows_with_it(log_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with shmlog.open(log_path, create=True):
        pass
    assert shmlog.backup(log_path, target).end_lsn == 0
    assert _records(target) == []
    with shmlog.open(log_path) as log:
        log.append(bytes(20 << 20), durable=True)
        log.append(b"small", durable=True)
    assert shmlog.backup(log_path, target).records == 2
    assert _records(target) == _records(log_path)


def test_the_command_says_what_it_copied(log_path: Path, tmp_path: Path, capfdbinary: Any) -> None:
    _make(log_path)
    assert main(["backup", str(log_path), str(tmp_path / "copy"), "--json"]) == 0
    facts = json.loads(capfdbinary.readouterr().out)
    assert facts["records"] == 300 and facts["begin_lsn"] == 0
    assert main(["configure", str(log_path), "--retain-bytes=1M", "--retain-age=7d", "--json"]) == 0
    kept = json.loads(capfdbinary.readouterr().out)
    assert kept == {"bytes": 1 << 20, "age_s": 604800.0, "cursors": "protect", "when_full": "wait"}
    assert main(["configure", str(log_path), "--retain-bytes", "none", "--when-full", "trim"]) == 0
    said = capfdbinary.readouterr().out
    assert b"everything is kept, for 604800 s; cursors: protect; when full: trim" in said
