"""The machine restarted, or the files were damaged: torn is repaired and reported, damage
below what the log vouches for is an error, and what was dropped never comes back.

A restart is another boot id.  What a power cut leaves of unsynced bytes is written into
the files by hand.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    check_records,
    kill_everybody,
    lose_shared_memory,
    payload,
    until,
)
from support.pyreader import PyLog

import shmlog
from shmlog.disk import directory, recovery
from shmlog.disk.cases import Case
from shmlog.flusher import syncing
from shmlog.flusher.open_segments import OpenSegments
from shmlog.format import marks
from shmlog.format.geometry import Geometry
from shmlog.format.layout import ROLE_SIDECAR, SEGMENT_HEADER_BYTES
from shmlog.session import sidecar
from shmlog.session.attachment import attach
from shmlog.session.departure import leave_unserved
from shmlog.system import files

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

OTHER_BOOT = bytes(range(16))


@dataclass
class Dead:
    """A log whose processes were all killed: [0, vouched) is vouched for, records at
    `durable` were synced after that, records at `late` were not waited for."""

    path: Path
    vouched: int
    durable: list[int]
    late: list[int]
    end: int

    def where(self) -> directory.Directory:
        return directory.load(str(self.path))

    @property
    def lsns(self) -> list[int]:
        return self.durable + self.late

    def file(self, lsn: int) -> tuple[Path, int]:
        first = lsn - lsn % SEGMENT_BYTES
        return self.path / "segments" / f"{first:020d}.seg", SEGMENT_HEADER_BYTES + lsn - first

    def write(self, lsn: int, data: bytes) -> None:
        path, offset = self.file(lsn)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, lsn: int, count: int) -> bytes:
        path, offset = self.file(lsn)
        return path.read_bytes()[offset : offset + count]

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        found = {}
        for path in sorted(self.path.rglob("*")):
            if path.is_file():
                found[str(path)] = (path.stat().st_mtime_ns, path.read_bytes())
        return found


def _work_until_killed(wire: Wire, path: Path, counts: tuple[int, int, int]) -> None:
    log = shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES, sync_interval=1000)
    durable = append_some(log, 1, counts[0])
    log.wait_durable()
    vouched = log.durable_lsn
    durable += append_some(log, 1, counts[1], first=len(durable), seed=1)
    log.wait_durable()  # its sync carries the mark that vouches for the first part
    late = append_some(log, 1, counts[2], first=len(durable), seed=2)
    wire.say((vouched, durable, late, log.reserved_lsn))
    wire.hear()


def _make_dead(path: Path, counts: tuple[int, int, int] = (40, 20, 20)) -> Dead:
    with Child(_work_until_killed, path, counts) as child:
        vouched, durable, late, end = child.hear()
        kill_everybody(path, [child])
    lose_shared_memory(path)
    dead = Dead(path, vouched, durable, late, end)
    found = recovery.inspect(dead.where(), files.boot_id())
    dead.vouched = found.vouched_lsn  # a slow run has settled, and so vouched for more
    assert dead.vouched in (vouched, [*late, end][0])
    return dead


@pytest.fixture
def dead(log_path: Path) -> Dead:
    return _make_dead(log_path)


@pytest.fixture(scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Dead:
    return _make_dead(tmp_path_factory.mktemp("model") / "log", (6, 3, 3))


@pytest.fixture
def small(_model: Dead, log_path: Path) -> Dead:
    """A copy of a log of a few KiB."""
    shutil.copytree(_model.path, log_path)
    return Dead(log_path, _model.vouched, _model.durable, _model.late, _model.end)


@contextlib.contextmanager
def _after_restart(path: Path, boot_id: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[shmlog.Log]:
    """The log opened, with a flusher, on a machine of another boot id."""
    lose_shared_memory(path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "boot_id", lambda: boot_id)
        with (
            shmlog.open(path, flusher="external") as log,
            Child(lambda wire: sidecar.run(str(path), 1000.0, 0o600, False)) as flusher,
        ):
            until(lambda: log._joined.control.limit_lsn > log.recovery.end_lsn, "the flusher serves")
            yield log
            log.close()
            flusher.signal(15)
            assert flusher.result() == 0


def _frames(images: dict[str, tuple[int, bytes]]) -> dict[str, bytes]:
    """Of a snapshot, what lies behind the headers and marks."""
    segments = {name: data for name, (_, data) in images.items() if name.endswith(".seg")}
    return {name: data[SEGMENT_HEADER_BYTES:] for name, data in segments.items()}


def _segments(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*.seg"))


def _lsns(log: shmlog.Log) -> list[int]:
    log.wait_committed()
    return [record.lsn for record in log.read()]


def test_a_restart_with_every_byte_on_disk_loses_nothing(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    with _after_restart(dead.path, OTHER_BOOT, monkeypatch) as log:
        assert log.recovery is not None and log.recovery.case is Case.RESTART
        assert (log.recovery.end_lsn, log.recovery.epoch, log.recovery.dropped_bytes) == (dead.end, 2, 0)
        check_records(log, {1: dead.lsns})
        assert log.append(payload(2, 0, 50)) == dead.end
    with shmlog.open_readonly(dead.path) as again:
        assert again.recovery is not None and again.recovery.case is Case.CLEAN


def test_a_torn_tail_is_dropped_reported_and_zeroed(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = dead.late[5]
    dead.write(torn + 40, b"\xff")
    found = recovery.inspect(dead.where(), OTHER_BOOT)
    assert (found.case, found.end_lsn, found.reason) == (Case.TORN, torn, "the checksum does not match")
    assert found.dropped_bytes == dead.end - torn
    with _after_restart(dead.path, OTHER_BOOT, monkeypatch) as log:
        assert log.recovery == found
        assert _lsns(log) == [lsn for lsn in dead.lsns if lsn < torn]
        lsn = log.append(b"goes on where it was torn", durable=True)
        assert lsn == torn
    for begin in range(torn + 64, dead.end, SEGMENT_BYTES):
        assert not dead.read(
            begin, min(dead.end, begin + SEGMENT_BYTES - begin % SEGMENT_BYTES) - begin
        ).strip(b"\0")
    assert shmlog.verify(dead.path).ok


def test_a_record_lost_between_others_hides_those_above_it(dead: Dead) -> None:
    """Later bytes reached the disk, earlier ones did not: a prefix, never an island."""
    lost = dead.late[3]
    dead.write(lost, bytes(dead.late[4] - lost))
    found = recovery.recover(dead.where(), OTHER_BOOT)
    assert (found.case, found.end_lsn, found.reason) == (Case.TORN, lost, "never written")
    assert recovery.inspect(dead.where(), OTHER_BOOT).end_lsn == lost
    assert not dead.read(lost, 4096).strip(b"\0")


def test_dropped_records_never_come_back_after_less_was_appended(
    dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames above the tear name the right LSNs.  Were they left, a shorter log that
    just reaches one of them would end in records that had been reported as dropped."""
    torn, kept = dead.late[0], dead.late[1]
    old = dead.read(kept, dead.end - kept)
    dead.write(torn + 28, b"\xff")
    with _after_restart(dead.path, OTHER_BOOT, monkeypatch) as log:
        assert log.recovery is not None and log.recovery.dropped_bytes == dead.end - torn
        assert log.append(bytes(kept - torn - 32)) == torn
        assert log.reserved_lsn == kept, "ends exactly where an old frame began"
        log.wait_durable()
        expected = _lsns(log)
    assert dead.read(kept, len(old)) != old
    for boot in (OTHER_BOOT, bytes(16)):
        with _after_restart(dead.path, boot, monkeypatch) as log:
            assert _lsns(log) == expected
            assert log.recovery is not None and log.recovery.dropped_bytes == 0


def test_segments_prepared_above_the_tear_are_removed(log_path: Path) -> None:
    dead = _make_dead(log_path, (10, 10, 300))
    torn = dead.late[2]
    assert dead.end - torn > 2 * SEGMENT_BYTES
    dead.write(torn, bytes(64))
    found = recovery.recover(dead.where(), OTHER_BOOT)
    assert (found.case, found.end_lsn) == (Case.TORN, torn)
    assert [path.name for path in (dead.path / "segments").glob("*.seg")] == [f"{0:020d}.seg"]


def test_recovery_interrupted_and_done_again_comes_to_the_same_end(dead: Dead) -> None:
    dead.write(dead.late[2], b"\xee" * 8)
    first = recovery.recover(dead.where(), OTHER_BOOT)
    images = dead.snapshot()
    again = recovery.recover(dead.where(), OTHER_BOOT)
    third = recovery.recover(dead.where(), bytes(16))
    assert first.end_lsn == again.end_lsn == third.end_lsn == dead.late[2]
    assert first.dropped_bytes and not again.dropped_bytes and not third.dropped_bytes
    assert _frames(images) == _frames(dead.snapshot())


def test_a_torn_atomic_batch_is_dropped_whole(log_path: Path) -> None:
    def work(wire: Wire) -> None:
        log = shmlog.open(log_path, create=True, sync_interval=1000)
        lsn = log.append(b"before", durable=True)
        batch = log.append_many([b"%d" % n * 100 for n in range(9)], atomic=True).tolist()
        log.wait_committed()
        wire.say((lsn, batch, log.reserved_lsn))
        wire.hear()

    with Child(work) as child:
        before, batch, end = child.hear()
        kill_everybody(log_path, [child])
    lose_shared_memory(log_path)
    dead = Dead(log_path, 0, [before], batch, end)
    assert recovery.inspect(dead.where(), OTHER_BOOT).end_lsn == end
    path = log_path / "segments" / f"{0:020d}.seg"
    with path.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + batch[7] + 33)
        file.write(b"\xff")
    found = recovery.recover(dead.where(), OTHER_BOOT)
    assert (found.case, found.end_lsn, found.dropped_bytes) == (Case.TORN, batch[0], end - batch[0])


@pytest.mark.parametrize("boot", ["same", "other"])
def test_damage_below_the_mark_is_an_error_that_touches_no_file(dead: Dead, boot: str) -> None:
    boot_id = files.boot_id() if boot == "same" else OTHER_BOOT
    victim = [lsn for lsn in dead.lsns if lsn < dead.vouched][-3]
    dead.write(victim + 36, bytes([dead.read(victim + 36, 1)[0] ^ 1]))
    before = dead.snapshot()
    with pytest.raises(shmlog.CorruptionError) as raised:
        recovery.recover(dead.where(), boot_id)
    assert raised.value.lsn == victim
    assert raised.value.path == str(dead.file(victim)[0])
    assert raised.value.reason == "the checksum does not match"
    assert dead.snapshot() == before


@pytest.mark.holds("S2")
def test_a_mark_vouches_only_for_what_an_earlier_sync_made_durable(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that vouched for its own sync would call a torn tail corrupt."""
    monkeypatch.setattr(syncing, "SETTLE_AFTER_S", 1e9)
    where = directory.create(str(log_path), Geometry(SEGMENT_BYTES, SEGMENT_BYTES), 0o600)
    path = log_path / "segments" / f"{0:020d}.seg"
    with (
        shmlog.open(log_path, flusher="external") as log,
        Child(lambda wire: sidecar.run(str(log_path), 10_000.0, 0o600, False)) as flusher,
    ):
        for _ in range(5):
            lsn = log.append(b"x", durable=True, timeout=30)
            mark = marks.newest_mark(path.read_bytes()[:SEGMENT_HEADER_BYTES], where.identity.log_id)
            assert mark is not None and mark.durable_lsn == lsn
        log.close()
        flusher.signal(15)
        assert flusher.result() == 0


def test_a_log_damaged_below_the_mark_is_not_opened_by_anything(dead: Dead) -> None:
    victim = dead.durable[3]
    dead.write(victim + 8, b"\x01")
    before = dead.snapshot()
    for use in (shmlog.open, shmlog.open_readonly, shmlog.recover):
        with pytest.raises(shmlog.CorruptionError, match=f"LSN {victim}"):
            use(dead.path)
    report = shmlog.verify(dead.path)
    assert (report.ok, report.problem_lsn, report.state) == (False, victim, "corrupt")
    assert dead.snapshot() == before


def test_every_single_bit_flip_below_the_mark_is_detected(small: Dead) -> None:
    where = small.where()
    path, offset = small.file(0)
    assert 1000 < small.vouched < 20_000
    descriptor = os.open(path, os.O_RDWR)
    missed = []
    try:
        for at in range(offset, offset + small.vouched):
            (good,) = os.pread(descriptor, 1, at)
            for bit in range(8):
                os.pwrite(descriptor, bytes([good ^ 1 << bit]), at)
                try:
                    found = recovery.inspect(where, OTHER_BOOT)
                    missed.append((at - offset, bit, found.case))
                except shmlog.CorruptionError as error:
                    assert error.lsn <= at - offset
            os.pwrite(descriptor, bytes([good]), at)
    finally:
        os.close(descriptor)
    # zero padding between a payload and the next frame belongs to no record
    frames = [lsn for lsn in small.lsns if lsn < small.vouched] + [small.vouched]
    padding = set()
    for lsn, following in itertools.pairwise(frames):
        size = int.from_bytes(small.read(lsn, 4), "little")
        padding |= set(range(lsn + 32 + size, following))
    assert {at for at, _, _ in missed} <= padding
    assert recovery.inspect(where, OTHER_BOOT).end_lsn == small.end


def test_every_single_bit_flip_in_a_segments_header_or_mark_is_harmless(small: Dead) -> None:
    """There is another copy of each: the log goes on at the same place."""
    where = small.where()
    path, _ = small.file(0)
    good = path.read_bytes()
    for at in [*range(72), *range(512, 616), *range(4096, 4168), *range(4608, 4712)]:
        for bit in range(8):
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([good[at] ^ 1 << bit]))
            found = recovery.inspect(where, OTHER_BOOT)
            assert found.end_lsn == small.end and found.vouched_lsn <= small.vouched
        with path.open("r+b") as file:
            file.seek(at)
            file.write(good[at : at + 1])


@pytest.mark.parametrize("rubbish", [bytes(4096), b"\xff" * 4096], ids=["zeros", "ones"])
@pytest.mark.parametrize("sector", [0, 4096])
def test_a_lost_sector_of_each_segments_head_costs_nothing_and_is_restored(
    log_path: Path, sector: int, rubbish: bytes
) -> None:
    dead = _make_dead(log_path, (40, 20, 300))
    header = _segments(log_path)[-1].read_bytes()[:68]
    for path in _segments(log_path):
        with path.open("r+b") as file:
            file.seek(sector)
            file.write(rubbish)
    found = recovery.recover(dead.where(), OTHER_BOOT)
    assert (found.case, found.end_lsn) == (Case.RESTART, dead.end)
    assert found.vouched_lsn <= dead.vouched
    *_, last = _segments(log_path)
    data = last.read_bytes()
    assert data[:68] == data[4096:4164] and data[:32] == header[:32]
    with shmlog.open(log_path) as log:
        assert [record.lsn for record in log.read()] == dead.lsns


def test_a_segment_that_lost_both_copies_of_its_mark_is_damaged_if_it_may_hold_the_newest(
    log_path: Path,
) -> None:
    dead = _make_dead(log_path, (40, 20, 300))
    paths = _segments(log_path)
    assert len(paths) > 2
    for path in paths[1:]:
        good = path.read_bytes()
        path.write_bytes(good[:512] + bytes(4096 - 512) + good[4096:4608] + bytes(4096 - 512) + good[8192:])
        before = dead.snapshot()
        for boot_id in (files.boot_id(), OTHER_BOOT):
            with pytest.raises(shmlog.CorruptionError, match="both copies of the segment's mark") as raised:
                recovery.recover(dead.where(), boot_id)
            assert (raised.value.path, raised.value.lsn) == (str(path), int(path.stem))
        assert dead.snapshot() == before
        path.write_bytes(good)


def test_a_log_that_lost_every_mark_is_refused(small: Dead) -> None:
    for path in _segments(small.path):
        good = path.read_bytes()
        path.write_bytes(good[:512] + bytes(4096 - 512) + good[4096:4608] + bytes(4096 - 512) + good[8192:])
    with pytest.raises(shmlog.FormatError, match="no segment holds a valid mark"):
        shmlog.open(small.path)


def test_a_file_cut_anywhere_is_a_clear_error(small: Dead) -> None:
    path, _ = small.file(0)
    good = path.read_bytes()
    for size in [0, 1, 71, 72, 511, 4095, 4096, 8191, 8192, 8193, 9000, len(good) - 1, len(good) + 1]:
        with path.open("r+b") as file:
            file.truncate(size)
        with pytest.raises((shmlog.FormatError, shmlog.CorruptionError), match=r"\.seg"):
            shmlog.open(small.path)
        assert path.stat().st_size == size
        path.write_bytes(good)
    shmlog.open(small.path).close()


@pytest.mark.parametrize("filler", [b"\x00", b"\xff", b"SHMLOGSG", b"garbage!"])
def test_a_segment_of_garbage_is_a_clear_error(small: Dead, filler: bytes) -> None:
    path, _ = small.file(0)
    size = path.stat().st_size
    path.write_bytes((filler * size)[:size])
    with pytest.raises((shmlog.FormatError, shmlog.CorruptionError), match=r"\.seg"):
        shmlog.open(small.path)


def test_frames_of_garbage_above_the_mark_are_torn_after_a_restart(small: Dead) -> None:
    path, _ = small.file(0)
    good = path.read_bytes()
    begin = SEGMENT_HEADER_BYTES + small.vouched
    for filler in (b"\xff", b"\x01\x00", bytes(range(256)), good[SEGMENT_HEADER_BYTES:begin]):
        path.write_bytes((good[:begin] + filler * len(good))[: len(good)])
        found = recovery.inspect(small.where(), OTHER_BOOT)
        assert (found.case, found.end_lsn) == (Case.TORN, small.vouched)
        assert found.dropped_bytes == SEGMENT_BYTES - small.vouched
    path.write_bytes(good)


def test_a_frame_inside_a_payload_is_not_taken_for_a_record_of_its_place(log_path: Path) -> None:
    """A payload may hold a copy of the log; its frames name other LSNs."""
    dead = _make_dead(log_path, (4, 2, 0))
    copy = dead.read(0, dead.end)

    def append(wire: Wire) -> None:
        log = shmlog.open(log_path, sync_interval=1000)
        lsn = log.append(copy)
        wire.say(lsn)
        wire.hear()

    with Child(append) as child:
        lsn = child.hear()
        kill_everybody(log_path, [child])
    lose_shared_memory(log_path)
    dead.write(lsn, bytes(32))  # its header never reached the file
    found = recovery.inspect(dead.where(), files.boot_id())
    assert found.end_lsn == lsn and not found.holes
    dead.write(lsn, b"\xff" * 32)
    assert recovery.inspect(dead.where(), OTHER_BOOT).end_lsn == lsn


def test_a_missing_segment_in_the_middle_is_named(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 1, 600, most=3000)
    names = sorted(path.name for path in (log_path / "segments").iterdir())
    assert len(names) > 4
    gone = names[len(names) // 2]
    (log_path / "segments" / gone).unlink()
    with pytest.raises(shmlog.CorruptionError, match=f"{gone}.*missing"):
        shmlog.open(log_path)


@pytest.mark.parametrize("boot", ["same", "other"])
def test_missing_first_segments_are_damage_and_not_a_trim(
    log_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 0, 500)
    _segments(log_path)[0].unlink()
    if boot == "other":
        monkeypatch.setattr(files, "boot_id", lambda: OTHER_BOOT)
    for use in (shmlog.open, shmlog.open_readonly, shmlog.recover):
        with pytest.raises(shmlog.CorruptionError, match=r"LSN 0.*the segment is missing"):
            use(log_path)
    assert not shmlog.verify(log_path).ok


def test_a_log_without_segments_is_not_empty_if_a_cursor_was_further(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log, log.cursor("unused"):
        pass
    for path in _segments(log_path):
        path.unlink()
    with shmlog.open(log_path) as log:
        assert log.recovery is not None and log.recovery.case is Case.EMPTY
        append_some(log, 0, 10)
        log.wait_durable()
        with log.cursor("reader") as cursor:
            cursor.commit(log.durable_lsn)
    for path in _segments(log_path):
        path.unlink()
    for use in (shmlog.open, shmlog.open_readonly, shmlog.recover):
        with pytest.raises(shmlog.CorruptionError, match="every segment is missing"):
            use(log_path)
    assert not _segments(log_path)


def test_files_that_were_trimmed_may_be_gone_in_any_order(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = append_some(log, 0, 800)
        log.wait_durable()
        kept = {path: path.read_bytes() for path in _segments(log_path)[:3]}
        trimmed = log.trim(3 * SEGMENT_BYTES)
        assert trimmed == 3 * SEGMENT_BYTES
    names = list(kept)
    names[0].write_bytes(kept[names[0]])  # what the disk kept of an unlink that was not synced
    names[2].write_bytes(kept[names[2]])
    assert shmlog.verify(log_path).ok
    with shmlog.open(log_path) as log:
        assert log.trimmed_lsn == trimmed
        assert [record.lsn for record in log.read()] == [lsn for lsn in lsns if lsn >= trimmed]


def test_a_new_flushers_first_mark_goes_over_the_older_copy(log_path: Path) -> None:
    for _ in range(3):
        with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
            log.append(b"x", durable=True)
    newest = max(mark for mark in PyLog(log_path).marks(0) if mark)
    where, boot = directory.load(str(log_path)), files.boot_id()
    joined = attach(where, 0o600, ROLE_SIDECAR, time.monotonic() + 10)
    live = OpenSegments(where, 0o600)
    try:
        geometry = where.identity.geometry
        syncing.Syncer(joined.control, live, geometry, boot, 1.0).sync_mark(clean=False)
        found = PyLog(log_path).marks(0)
        assert newest in found and max(mark.sequence for mark in found if mark) == newest.sequence + 1
    finally:
        live.close()
        leave_unserved(joined)
        joined.lock.close()


def test_a_segment_of_another_log_is_refused(log_path: Path, tmp_path: Path) -> None:
    for path in (log_path, tmp_path / "other"):
        with shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES) as log:
            append_some(log, 1, 10)
    name = f"{0:020d}.seg"
    shutil.copy(tmp_path / "other" / "segments" / name, log_path / "segments" / name)
    with pytest.raises(shmlog.FormatError, match="another log"):
        shmlog.open(log_path)


@pytest.mark.parametrize("name", ["notes.txt", f"{12345:020d}.seg"])
def test_a_stranger_among_the_segments_is_refused(log_path: Path, name: str) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append(b"x")
    (log_path / "segments" / name).write_bytes(b"")
    with pytest.raises(shmlog.FormatError, match=name):
        shmlog.open(log_path)


def test_a_half_made_segment_is_ignored_and_made_again(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        first = append_some(log, 1, 10)
    (log_path / "segments" / f"{SEGMENT_BYTES:020d}.seg.tmp").write_bytes(b"half")
    with shmlog.open(log_path) as log:
        first += append_some(log, 1, 200, first=10, seed=1)
        check_records(log, {1: first})
    until(lambda: not list((log_path / "segments").glob("*.tmp")))


def test_recover_dry_run_says_what_open_would_do_and_changes_nothing(dead: Dead) -> None:
    before = dead.snapshot()
    found = shmlog.recover(dead.path, dry_run=True)
    assert found.end_lsn == dead.end
    assert dead.snapshot() == before
    assert shmlog.recover(dead.path).end_lsn == dead.end
    assert shmlog.recover(dead.path).case in (Case.CLEAN, Case.INTACT)
    with shmlog.open(dead.path) as log:
        with pytest.raises(shmlog.AttachError, match="in use"):
            shmlog.recover(dead.path)
        check_records(log, {1: dead.lsns})


def test_reading_a_dead_log_writes_nothing(dead: Dead) -> None:
    before = dead.snapshot()
    names = sorted(str(path) for path in dead.path.rglob("*"))
    with shmlog.open_readonly(dead.path) as log:
        assert not log.live
        check_records(log, {1: dead.lsns})
        with pytest.raises(TimeoutError):
            next(log.tail(timeout=0.01))
    assert shmlog.verify(dead.path).ok
    assert dead.snapshot() == before
    assert sorted(str(path) for path in dead.path.rglob("*")) == names
    assert not (Path("/dev/shm") / f"shmlog-{dead.where().identity.log_id.hex()[:16]}").exists()
