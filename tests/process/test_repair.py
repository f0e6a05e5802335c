"""Repair: what is destroyed is lost and named, everything else is read as before."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    block_path,
    kill_everybody,
    lose_shared_memory,
)

import shmlog
from shmlog.errors import AttachError, FormatError
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import HEADER_OFFSETS, MARK_SLOTS

RECORDS = 1200
"""Of about 200 bytes: five segments."""


def _payload(n: int) -> bytes:
    return random.Random(n).randbytes(40 + n * 37 % 320)


@pytest.fixture(scope="module")
def _original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, bytes]]:
    """A closed log and its records."""
    path = tmp_path_factory.mktemp("original") / "log"
    with shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        records = {log.append(_payload(n)): _payload(n) for n in range(RECORDS)}
        log.wait_durable()
    return path, records


@pytest.fixture
def damaged(_original: tuple[Path, dict[int, bytes]], log_path: Path) -> tuple[Path, dict[int, bytes]]:
    """A log of the test's own to be damaged, and what was in it."""
    shutil.copytree(_original[0], log_path)
    with shmlog.open(log_path):  # it knows now that it is here
        pass
    return log_path, dict(_original[1])


def _segments(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*.seg"))


def _overwrite(file: Path, offset: int, data: bytes) -> None:
    with open(file, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def _read(path: Path) -> dict[int, bytes]:
    with shmlog.open_readonly(path) as log:
        return {record.lsn: bytes(record.data) for record in log.read()}


def _untouched(records: dict[int, bytes], lost: list[tuple[int, int]]) -> dict[int, bytes]:
    """The records that no lost range touches."""
    return {
        lsn: data
        for lsn, data in records.items()
        if not any(lsn < end and begin < lsn + 32 + len(data) for begin, end in lost)
    }


def _repair(path: Path, kept: dict[int, bytes]) -> shmlog.RepairReport:
    """Repair, and demand what every repair promises."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    plan = shmlog.repair(path)
    assert plan.changes
    assert not plan.applied
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert after == before, "a plan changes nothing"
    report = shmlog.repair(path, apply=True)
    assert report.verified is not None
    assert report.verified.ok
    assert _read(path) == kept
    with shmlog.open(path) as log:
        lsn = log.append(b"and on", durable=True)
    assert lsn not in kept
    assert _read(path) == kept | {lsn: b"and on"}
    assert not shmlog.repair(path).changes, "it is whole now"
    return report


def test_log_that_is_not_damaged_needs_no_repair(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, records = damaged
    report = shmlog.repair(path, apply=True)
    assert not report.changes
    assert not (path / "repaired").exists()
    assert _read(path) == records


def test_destroyed_length_costs_one_record(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, records = damaged
    lsn = sorted(records)[100]
    _overwrite(_segments(path)[0], SEGMENT_HEADER_BYTES + lsn, b"\xff\xff\xff\x7f")
    assert not shmlog.verify(path).ok
    report = _repair(path, {at: data for at, data in records.items() if at != lsn})
    assert [loss.begin_lsn for loss in report.lost] == [lsn]
    (kept,) = Path(report.kept, "segments").iterdir()
    assert kept.read_bytes()[:4] == b"\xff\xff\xff\x7f"


def test_damage_where_the_vouched_part_ends_does_not_keep_the_log_closed(
    damaged: tuple[Path, dict[int, bytes]],
) -> None:
    path, records = damaged
    lost = sorted(records)[-3:]
    at = SEGMENT_HEADER_BYTES + lost[0] % SEGMENT_BYTES
    file = _segments(path)[lost[0] // SEGMENT_BYTES]
    _overwrite(file, at, bytes(2000))
    with pytest.raises(shmlog.CorruptionError):
        shmlog.open(path)
    report = _repair(path, {at: data for at, data in records.items() if at < lost[0]})
    assert report.lost[-1].begin_lsn == lost[0]


@pytest.mark.holds("Y2")
def test_atomic_batch_that_lost_a_frame_is_lost_whole(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        before = log.append(b"before")
        batch = [int(lsn) for lsn in log.append_many([bytes([n]) * 100 for n in range(6)], atomic=True)]
        after = log.append(b"after", durable=True)
    _overwrite(_segments(log_path)[0], SEGMENT_HEADER_BYTES + batch[2] + 40, b"damage")
    report = _repair(log_path, {before: b"before", after: b"after"})
    assert [(loss.begin_lsn, loss.end_lsn) for loss in report.lost] == [(batch[0], after)]


def _no_segment(path: Path) -> tuple[int, int]:
    _segments(path)[1].unlink()
    return SEGMENT_BYTES, 2 * SEGMENT_BYTES


def _no_first_segments(path: Path) -> tuple[int, int]:
    for file in _segments(path)[:2]:
        file.unlink()
    return 0, 2 * SEGMENT_BYTES


def _cut(path: Path) -> tuple[int, int]:
    os.truncate(_segments(path)[1], SEGMENT_HEADER_BYTES + 30_000)
    return SEGMENT_BYTES + 30_000, 2 * SEGMENT_BYTES


def _longer(path: Path) -> tuple[int, int]:
    with open(_segments(path)[1], "ab") as stream:
        stream.write(b"more than was there")
    return 0, 0


def _no_header(path: Path) -> tuple[int, int]:
    for offset in HEADER_OFFSETS:
        _overwrite(_segments(path)[2], offset, bytes(512))
    return 0, 0


def _renamed(path: Path) -> tuple[int, int]:
    _segments(path)[1].rename(path / "segments/00000000000099942400.seg")
    return 0, 0


def _swapped(path: Path) -> tuple[int, int]:
    one, two = _segments(path)[1:3]
    one.rename(path / "segments/between")
    two.rename(one)
    (path / "segments/between").rename(two)
    return 0, 0


def _no_marks(path: Path) -> tuple[int, int]:
    for file in _segments(path):
        for offset in MARK_SLOTS.offsets:
            _overwrite(file, offset, bytes(MARK_SLOTS.copy_bytes))
    return 0, 0


def _no_mark_in_the_last(path: Path) -> tuple[int, int]:
    for offset in MARK_SLOTS.offsets:
        _overwrite(_segments(path)[-1], offset, bytes(MARK_SLOTS.copy_bytes))
    return 0, 0


def _stranger(path: Path) -> tuple[int, int]:
    (path / "segments/notes.txt").write_text("not a segment")
    return 0, 0


def _foreign(path: Path) -> tuple[int, int]:
    other = path.parent / "other"
    with shmlog.open(other, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        append_some(log, 1, 5)
    shutil.copy(_segments(other)[0], _segments(path)[1])
    return SEGMENT_BYTES, 2 * SEGMENT_BYTES


def _no_identity(path: Path) -> tuple[int, int]:
    (path / "shmlog.json").unlink()
    return 0, 0


def _bad_identity(path: Path) -> tuple[int, int]:
    (path / "shmlog.json").write_text('{"format": "shmlog", "version"')
    return 0, 0


@pytest.mark.parametrize(
    "damage",
    [
        _no_segment,
        _no_first_segments,
        _cut,
        _longer,
        _no_header,
        _no_mark_in_the_last,
        _renamed,
        _swapped,
        _no_marks,
        _stranger,
        _foreign,
        _no_identity,
        _bad_identity,
    ],
    ids=lambda damage: damage.__name__.strip("_").replace("_", " "),
)
def test_files_that_are_damaged_missing_or_strange_cost_what_was_in_them(
    damage: Callable[[Path], tuple[int, int]], damaged: tuple[Path, dict[int, bytes]]
) -> None:
    path, records = damaged
    lost = damage(path)
    report = _repair(path, _untouched(records, [lost]))
    assert Path(report.kept, "repair.json").exists()


@pytest.mark.holds("Y1")
@pytest.mark.parametrize("seed", range(6))
def test_random_damage_costs_only_the_records_that_it_touches(
    seed: int, damaged: tuple[Path, dict[int, bytes]]
) -> None:
    path, records = damaged
    dice = random.Random(seed)
    hits = []
    for _ in range(dice.randint(1, 8)):
        number = dice.randrange(len(_segments(path)))
        size = dice.choice((1, 8, 100, 5000))
        offset = dice.randrange(SEGMENT_BYTES - size)
        old = _segments(path)[number].read_bytes()[SEGMENT_HEADER_BYTES + offset :][:size]
        new = bytes(byte ^ dice.randint(1, 255) for byte in old)
        _overwrite(_segments(path)[number], SEGMENT_HEADER_BYTES + offset, new)
        begin = number * SEGMENT_BYTES + offset
        hits.append((begin, begin + size))
    end = max(lsn + 32 + len(data) for lsn, data in records.items())
    if all(begin >= end for begin, _ in hits):
        pytest.skip("nothing that was vouched for was hit")
    shmlog.repair(path, apply=True)
    assert shmlog.verify(path).ok
    found, expected = _read(path), _untouched(records, hits)
    assert {lsn: data for lsn, data in found.items() if lsn in expected} == expected
    assert all(records[lsn] == data for lsn, data in found.items()), "nothing is invented"


def test_cursor_that_cannot_be_read_is_moved_away_and_said_to_be_lost(
    damaged: tuple[Path, dict[int, bytes]],
) -> None:
    path, records = damaged
    with shmlog.open(path) as log, log.cursor("reader") as cursor:
        cursor.commit(sorted(records)[5])
    (path / "cursors/reader").write_bytes(b"x" * 1024)
    report = _repair(path, records)
    assert [change.kind for change in report.changes] == ["aside"]
    assert Path(report.kept, "cursors/reader").read_bytes() == b"x" * 1024


def test_every_segment_lost_goes_on_above_every_cursor(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, records = damaged
    furthest = sorted(records)[-1]
    with shmlog.open(path) as log, log.cursor("reader") as cursor:
        cursor.commit(furthest)
    for file in _segments(path):
        file.unlink()
    with pytest.raises(shmlog.CorruptionError):
        shmlog.open(path)
    _repair(path, {})
    with shmlog.open(path) as log:
        assert log.append(b"new") > furthest


def test_cursor_above_what_is_left_is_moved_to_the_end(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, records = damaged
    with shmlog.open(path) as log, log.cursor("reader") as cursor:
        cursor.commit(sorted(records)[-1])
    _segments(path)[-1].unlink()
    _no_marks(path)
    kept = {lsn: data for lsn, data in records.items() if lsn < (len(_segments(path))) * SEGMENT_BYTES}
    shmlog.repair(path, apply=True)
    assert _read(path) == kept
    with shmlog.open(path) as log, log.cursor("reader") as cursor:
        lsn = log.append(b"new", durable=True)
        assert cursor.lsn <= lsn
        assert [bytes(record.data) for record in log.read(cursor.lsn)] == [b"new"]


def test_first_segments_lost_count_as_trimmed(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, _ = damaged
    _no_first_segments(path)
    shmlog.repair(path, apply=True)
    with shmlog.open(path) as log:
        assert log.trimmed_lsn == 2 * SEGMENT_BYTES
        with pytest.raises(shmlog.TrimmedError):
            next(iter(log.read(0)))


def _die(wire: Wire, path: Path) -> None:
    log = shmlog.open(path)
    log.append(b"here", durable=True)
    wire.say("here")
    wire.hear()


def test_control_block_that_survived_does_not_outlive_the_repair(
    damaged: tuple[Path, dict[int, bytes]],
) -> None:
    path, _ = damaged
    with Child(_die, path) as child:
        child.hear()
        kill_everybody(path, [child])
    _no_first_segments(path)
    shmlog.repair(path, apply=True)
    assert not block_path(path).exists()
    with shmlog.open(path) as log:
        assert log.trimmed_lsn == 2 * SEGMENT_BYTES


def _stay(wire: Wire, path: Path) -> None:
    with shmlog.open(path) as log:
        log.append(b"here", durable=True)
        wire.say("here")
        wire.hear()


def _torn_copy(log_path: Path) -> tuple[Path, dict[int, bytes]]:
    """A copy of a log that was written to: its first file is older than the others."""
    copy = log_path.with_name("copy")
    (copy / "segments").mkdir(parents=True)
    records = {}
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        for n in range(40):
            records[log.append(b"%05d" % n + b"." * 600)] = b"%05d" % n + b"." * 600
        log.wait_durable()
        shutil.copy(_segments(log_path)[0], copy / "segments")
        early = log.committed_lsn
        for n in range(40, 250):
            lsn = log.append(b"%05d" % n + b"." * 600)
            if not early <= lsn < SEGMENT_BYTES:
                records[lsn] = b"%05d" % n + b"." * 600
        log.wait_durable()
        for file in _segments(log_path)[1:]:
            shutil.copy(file, copy / "segments")
        shutil.copy(log_path / "shmlog.json", copy)
        (copy / "LOCK").touch(0o600)
        for file in ("shmlog.json", "LOCK"):
            (copy / file).chmod(0o600)
    return copy, records


def test_torn_copy_keeps_every_record_that_was_copied(log_path: Path) -> None:
    copy, records = _torn_copy(log_path)
    with pytest.raises(shmlog.CorruptionError):
        shmlog.open(copy)
    report = _repair(copy, records)
    assert [loss.end_lsn for loss in report.lost] == [SEGMENT_BYTES]


def test_hole_above_the_mark_of_a_copy_is_a_loss_that_is_named(log_path: Path) -> None:
    """Killed with a hole, and copied: in the copy nobody knows what was there."""
    with Child(_leave_a_hole, log_path) as child:
        first, hole, last = child.hear()
        kill_everybody(log_path, [child])
    copy = log_path.with_name("copy")
    shutil.copytree(log_path, copy)
    lose_shared_memory(log_path)
    with pytest.raises(shmlog.CorruptionError, match="is a copy"):
        shmlog.open(copy)
    report = _repair(copy, {first: b"first", last: b"last"})
    assert [(loss.begin_lsn, loss.end_lsn) for loss in report.lost] == [(hole, last)]


def _leave_a_hole(wire: Wire, path: Path) -> None:
    log = shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES)
    first = log.append(b"first", durable=True)
    reservation = log.reserve(100)
    last = log.append(b"last")
    wire.say((first, reservation.lsn, last))
    wire.hear()


def test_log_in_use_is_not_repaired(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, _ = damaged
    with Child(_stay, path) as child:
        child.hear()
        with pytest.raises(AttachError, match="in use"):
            shmlog.repair(path, apply=True)
        child.say("go")


def test_directory_that_nothing_tells_the_owner_of_is_refused(log_path: Path) -> None:
    (log_path / "segments").mkdir(parents=True)
    with pytest.raises(FormatError, match="nothing says"):
        shmlog.repair(log_path)
    with pytest.raises(FileNotFoundError):
        shmlog.repair(log_path / "nowhere")


def test_repair_interrupted_at_any_change_can_be_done_again(
    damaged: tuple[Path, dict[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shmlog.tools import repair as tool

    path, records = damaged
    lost = [_no_segment(path), _cut_last_but_one(path)]
    _overwrite(_segments(path)[0], SEGMENT_HEADER_BYTES, b"\xff" * 8)
    _swap_names(path)
    count = len(shmlog.repair(path).changes)
    real = tool._apply
    for stop in range(count):
        copy = path.parent / f"copy-{stop}"
        shutil.copytree(path, copy)
        done = 0

        def until_stop(*arguments: object, stop: int = stop) -> None:
            nonlocal done
            if done == stop:
                raise KeyboardInterrupt
            done += 1
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(tool, "_apply", until_stop)
        with pytest.raises(KeyboardInterrupt):
            shmlog.repair(copy, apply=True)
        monkeypatch.setattr(tool, "_apply", real)
        shmlog.repair(copy, apply=True)
        assert shmlog.verify(copy).ok
        kept = _untouched(records, [*lost, (0, 32)])
        assert _read(copy) == kept
        shutil.rmtree(copy)


def _cut_last_but_one(path: Path) -> tuple[int, int]:
    file = _segments(path)[-2]
    os.truncate(file, SEGMENT_HEADER_BYTES + 20_000)
    return int(file.stem) + 20_000, int(file.stem) + SEGMENT_BYTES


def _swap_names(path: Path) -> None:
    one, two = _segments(path)[0], _segments(path)[1]
    one.rename(path / "segments/x")
    two.rename(one)
    (path / "segments/x").rename(two)


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shmlog", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_repair_verb_says_first_and_does_it_when_told(damaged: tuple[Path, dict[int, bytes]]) -> None:
    path, records = damaged
    lsn = sorted(records)[50]
    _overwrite(_segments(path)[0], SEGMENT_HEADER_BYTES + lsn, b"\xff" * 4)
    said = _run("repair", path)
    assert said.returncode == 1
    assert f"[{lsn}, " in said.stdout
    assert "--yes" in said.stdout
    assert not shmlog.verify(path).ok
    facts = json.loads(_run("repair", path, "--json").stdout)
    assert facts["damaged"]
    assert facts["lost"][0]["begin_lsn"] == lsn
    done = _run("repair", path, "--yes")
    assert done.returncode == 0, done
    assert "every frame is valid now" in done.stdout
    assert _run("repair", path).stdout.endswith("nothing to repair\n")
