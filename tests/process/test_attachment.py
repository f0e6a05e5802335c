"""Joining a log: what is refused, what is independent, and what a handle may share."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.files import remove_live
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    block_path,
    check_records,
    flusher_of,
    flusher_pid,
    kill_everybody,
    lose_shared_memory,
    payload,
)

import shmlog
from shmlog.format.layout import CB

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to another user")


@contextlib.contextmanager
def _hidden_block(path: Path) -> Iterator[None]:
    """The control block's name, gone for a while."""
    name = block_path(path)
    name.rename(name.with_suffix(".hidden"))
    try:
        yield
    finally:
        name.with_suffix(".hidden").rename(name)


@pytest.mark.holds("C1")
def test_a_block_removed_while_participants_live_is_never_made_a_second_time(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        with _hidden_block(log_path):
            for _ in range(2):
                with pytest.raises(shmlog.AttachError, match="is not here"):
                    shmlog.open(log_path)
            with pytest.raises(shmlog.AttachError, match="in use"):
                shmlog.recover(log_path)
            with log.reserve(8), pytest.raises(shmlog.AttachError, match="is not here"):
                log.append(b"above what is still being copied")
                shmlog.open_readonly(log_path)  # would see a hole, and an island above it
            assert not block_path(log_path).exists()
            log.append(b"those who are in go on", durable=True)
        with shmlog.open(log_path) as second:
            assert sum(1 for _ in second.read()) == 4


def test_a_block_removed_while_only_the_flusher_lives_is_not_made_a_second_time(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    with flusher_of(log_path) as process:
        with _hidden_block(log_path), pytest.raises(shmlog.AttachError, match="is not here"):
            shmlog.open(log_path)
        process.terminate()
        assert process.wait(30) == 0


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o666])
@pytest.mark.holds("M2")
def test_another_users_block_squatting_the_name_is_refused_and_left_alone(log_path: Path, mode: int) -> None:
    shmlog.open(log_path, create=True).close()
    squat = block_path(log_path)
    try:
        squat.write_bytes(bytes(4096))
        os.chown(squat, 65534, 65534)
        squat.chmod(mode)
        for use in (shmlog.open, shmlog.open_readonly):
            with pytest.raises(shmlog.AttachError, match="belongs to user 65534"):
                use(log_path)
        assert squat.stat().st_uid == 65534 and squat.read_bytes() == bytes(4096)
    finally:
        squat.unlink()
    shmlog.open(log_path).close()


@pytest.mark.parametrize("fault", ["size", "mode", "signature", "boot", "magic"])
@pytest.mark.holds("C2")
def test_a_wrong_block_is_refused_while_somebody_lives(log_path: Path, fault: str) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        name = block_path(log_path)
        good = name.read_bytes()
        name.rename(name.with_suffix(".hidden"))
        try:
            bad = bytearray(good)
            offset = {"signature": CB.SIGNATURE, "boot": CB.BOOT_ID, "magic": 0}.get(fault)
            if offset is not None:
                bad[offset] ^= 1
            name.write_bytes(bad[:-64] if fault == "size" else bad)
            name.chmod(0o666 if fault == "mode" else 0o600)
            with pytest.raises(shmlog.AttachError, match="mode 666" if fault == "mode" else "not"):
                shmlog.open(log_path)
        finally:
            name.unlink(missing_ok=True)
            name.with_suffix(".hidden").rename(name)
        assert_healthy(log)


@pytest.mark.parametrize("fault", ["size", "signature", "boot", "zeros"])
def test_a_wrong_block_that_nobody_uses_is_replaced_from_the_files(log_path: Path, fault: str) -> None:
    def work(wire: Wire) -> None:
        log = shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES)
        lsns = append_some(log, 1, 50)
        log.wait_committed()
        wire.say(lsns)
        wire.hear()

    with Child(work) as child:
        lsns = child.hear()
        kill_everybody(log_path, [child])
    name = block_path(log_path)
    bad = bytearray(name.read_bytes())
    if fault == "size":
        bad = bad[:-4096]
    elif fault == "zeros":
        bad = bytearray(len(bad))
    else:
        bad[CB.SIGNATURE if fault == "signature" else CB.BOOT_ID] ^= 1
    name.write_bytes(bad)
    with shmlog.open(log_path) as log:
        assert log.recovery is not None and log.recovery.end_lsn == log.reserved_lsn
        check_records(log, {1: lsns})
        assert_healthy(log)


@as_root
def test_a_log_of_another_user_is_refused(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    os.chown(log_path, 65534, 65534)
    for use in (shmlog.open, shmlog.repair):
        with pytest.raises(PermissionError, match="belongs to user 65534"):
            use(log_path)
    os.chown(log_path, 0, 0)
    log_path.chmod(0o777)
    with pytest.raises(PermissionError, match="written by anybody"):
        shmlog.open(log_path)


@as_root
def test_another_user_can_neither_read_nor_write_nor_list(log_path: Path) -> None:
    previous = os.umask(0)
    try:
        with shmlog.open(log_path, create=True) as log:
            log.append(b"secret", durable=True)
            made = [name for name in log_path.rglob("*") if name.suffix != ".tmp"]
            names = [*made, block_path(log_path)]

            def look(wire: Wire) -> list[str]:
                os.setuid(65534)
                opened = []
                for name in names:
                    for flags in (os.O_RDONLY, os.O_WRONLY):
                        with contextlib.suppress(PermissionError, IsADirectoryError):
                            os.close(os.open(name, flags))
                            opened.append(str(name))
                with contextlib.suppress(PermissionError):
                    opened += os.listdir(log_path)
                return opened

            os.chmod(log_path.parent, 0o755)
            with Child(look) as child:
                assert child.result() == []
    finally:
        os.umask(previous)


def test_two_logs_open_in_one_process_do_not_mix(tmp_path: Path) -> None:
    with (
        shmlog.open(tmp_path / "a", create=True, segment_bytes=SEGMENT_BYTES) as a,
        shmlog.open(tmp_path / "b", create=True) as b,
    ):
        lsns: dict[int, list[int]] = {1: [], 2: []}
        for n in range(300):
            lsns[1].append(a.append(payload(1, n, 300)))
            lsns[2].append(b.append(payload(2, n, 50)))
        check_records(a, {1: lsns[1]})
        check_records(b, {2: lsns[2]})
        a.close()
        assert_healthy(b)


def test_one_log_twice_in_one_process_has_independent_handles(log_path: Path) -> None:
    """Closing one never drops the other's lock: with POSIX locks it would."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as first:
        second = shmlog.open(log_path)
        assert first.writer_number != second.writer_number
        lsns = {1: append_some(first, 1, 10), 2: append_some(second, 2, 10)}
        reservation = first.reserve(64)
        second.close()
        third = shmlog.open(log_path)
        lsns[3] = append_some(third, 3, 10)
        with pytest.raises(TimeoutError):  # the first is alive, so its range is no hole
            third.wait_committed(lsns[3][0], 0.3)
        assert first.statistics().holes_filled == 0
        number = first.writer_number
        assert any(each.number == number and each.alive for each in third.statistics().participants)
        reservation.buffer[:] = payload(4, 0, 64)
        lsns[4] = [reservation.publish()]
        check_records(third, lsns)
        third.close()
        assert_healthy(first)


def test_a_log_opened_by_a_link_and_by_another_name_is_the_same_log(log_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(log_path)
    with shmlog.open(log_path, create=True) as first, shmlog.open(tmp_path / "link") as second:
        lsn = second.append(b"x", durable=True)
        assert [record.lsn for record in first.read()] == [lsn]


def test_a_log_deleted_and_made_anew_at_its_path_is_another_log(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as old:
        old.append(b"old", durable=True)
        view = next(iter(old.read())).data
        remove_live(log_path)
        with shmlog.open(log_path, create=True) as new:
            new.append(b"new", durable=True)
            assert [bytes(record.data) for record in new.read()] == [b"new"]
            assert bytes(view) == b"old"
            assert_healthy(new, 10)
            pid = flusher_pid(new)
        assert pid
    with shmlog.open(log_path) as new:
        assert bytes(next(iter(new.read())).data) == b"new"


@pytest.mark.parametrize("name", ["LOCK", "shmlog.json", "segment"])
def test_a_symbolic_link_in_place_of_a_file_is_refused_and_its_target_untouched(
    log_path: Path, tmp_path: Path, name: str
) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x")
    victim = log_path / name if name != "segment" else log_path / "segments" / f"{0:020d}.seg"
    target = tmp_path / "target"
    victim.rename(target)
    victim.symlink_to(target)
    before = target.read_bytes()
    with pytest.raises((shmlog.FormatError, OSError)):
        shmlog.open(log_path)
    assert target.read_bytes() == before
    victim.unlink()
    os.link(target, victim)
    with pytest.raises(shmlog.FormatError, match="other names"):
        shmlog.open(log_path)
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises((shmlog.FormatError, OSError)):
        shmlog.open(log_path)
    victim.unlink()


def test_every_slot_taken_is_an_attach_error_that_goes_with_a_slot(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shmlog.memory import participants

    monkeypatch.setattr(participants, "PARTICIPANT_COUNT", 4)
    monkeypatch.setattr(participants, "FLUSHER_SLOTS", 1)
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)  # the flusher has a slot
        second = shmlog.open(log_path)
        with pytest.raises(shmlog.AttachError, match="all 3 participant slots"):
            shmlog.open(log_path, timeout=0.2)
        second.close()
        shmlog.open(log_path).close()
        assert_healthy(log)


def test_slots_of_dead_owners_are_freed_for_who_waits_for_one(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shmlog.memory import participants

    monkeypatch.setattr(participants, "PARTICIPANT_COUNT", 16)
    with shmlog.open(log_path, create=True, flusher="external"):
        used = [Child(_open_and_end, log_path) for _ in range(16 - participants.FLUSHER_SLOTS - 1)]
        for child in used:
            assert child.wait() == 0
        with pytest.raises(shmlog.AttachError, match="all 8 participant slots"):
            shmlog.open(log_path, flusher="external", timeout=0.1)
        with shmlog.open(log_path) as log:  # starts a flusher, though it has no slot yet
            assert_healthy(log)


def _open_and_end(_wire: Wire, path: Path) -> None:
    shmlog.open(path, flusher="external")
    os._exit(0)


def test_a_log_that_no_flusher_can_be_started_for_leaves_no_block(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shmlog.open(log_path, create=True).close()
    with monkeypatch.context() as patch:
        patch.setenv("SHMLOG_PYTHON", str(log_path / "nothing"))
        with pytest.raises(FileNotFoundError, match="nothing"):
            shmlog.open(log_path)
    assert not block_path(log_path).exists()
    shmlog.open(log_path).close()


def test_no_descriptor_of_the_control_block_is_kept(log_path: Path) -> None:
    def open_and_close(wire: Wire) -> int:
        counts = []
        for _ in range(20):
            shmlog.open(log_path).close()
            gc.collect()
            counts.append(len(os.listdir("/proc/self/fd")))
        return counts[-1] - counts[0]

    with shmlog.open(log_path, create=True), Child(open_and_close) as child:
        assert child.result() == 0


def test_a_process_without_descriptors_left_does_not_remove_the_block(log_path: Path) -> None:
    def open_with_few(wire: Wire) -> None:
        for spare in range(12):
            taken = os.dup(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken + spare, 4096))
            with contextlib.suppress(OSError):
                shmlog.open(log_path).close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            os.close(taken)

    with shmlog.open(log_path, create=True) as log:
        with Child(open_with_few) as child:
            child.result()
        assert block_path(log_path).exists()
        assert_healthy(log)
        with shmlog.open(log_path) as second:
            assert_healthy(second)


def test_an_empty_block_of_a_killed_opener_is_replaced(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    block_path(log_path).touch(0o600)
    with shmlog.open(log_path) as log:
        assert_healthy(log)


def test_a_directory_copied_while_dead_is_refused_while_the_original_lives(
    log_path: Path, tmp_path: Path
) -> None:
    """Both name one control block, which belongs to the original."""
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
    shutil.copytree(log_path, tmp_path / "copy")
    identity = json.loads((tmp_path / "copy" / "shmlog.json").read_bytes())
    assert identity["log_id"]
    with shmlog.open(log_path) as log:
        lsn = log.append(b"in the original", durable=True)
        with pytest.raises((shmlog.AttachError, shmlog.FormatError)):
            shmlog.open(tmp_path / "copy").close()
        assert log.committed_lsn > lsn
    lose_shared_memory(log_path)
