"""Copies of a log, and containers with a boot id of their own: what is valid above a hole is
kept where the writers stored it, dropped after a restart, and else not touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    kill_everybody,
    lose_shared_memory,
    shared_names,
    until,
)
from support.pyreader import PyLog

import shmlog
from shmlog.disk.cases import Case
from shmlog.system import files, machine

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SIZES = {"segment_bytes": SEGMENT_BYTES, "window_bytes": SEGMENT_BYTES}
OTHER_BOOT = bytes(range(16))


def _copy(path: Path, to: Path, *more: str) -> Path:
    """As people do it; cp complains of a temporary file that was renamed meanwhile."""
    subprocess.run(["cp", "-r", *more, str(path), str(to)], timeout=60, capture_output=True)
    assert (to / "shmlog.json").exists()
    return to


def _snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    found = (each for each in sorted(path.rglob("*")) if each.is_file())
    return {str(each): (each.stat().st_mtime_ns, each.read_bytes()) for each in found}


def _refuses(path: Path, lsn: int, told: bool = True) -> None:
    """Everything refuses the copy, names the place, and touches nothing."""
    before = _snapshot(path)
    for restarted in (None, True, False):
        with pytest.raises(shmlog.CorruptionError, match="is a copy") as raised:
            shmlog.recover(path, restarted=restarted)
        assert (raised.value.path, raised.value.lsn) == (str(path / f"segments/{0:020d}.seg"), lsn)
    uses = (shmlog.open, shmlog.open_readonly) if told else (shmlog.open,)
    for use in uses:
        with pytest.raises(shmlog.CorruptionError, match="is a copy"):
            use(path)
    report = shmlog.verify(path)
    assert (report.ok, report.problem_lsn) == (False, lsn)
    assert _snapshot(path) == before


def _closed(log: shmlog.Log) -> None:
    log.close()
    until(lambda: not shared_names(log.path), "the flusher has left")


def test_a_copy_made_while_a_record_was_written_is_refused_and_not_filled(
    log_path: Path, tmp_path: Path
) -> None:
    log = shmlog.open(log_path, create=True, **SIZES)
    log.append(b"first", durable=True)
    with log.reserve(100) as reservation:
        lsns = [log.append(b"above %d" % n) for n in range(20)]
        copies = [_copy(log_path, tmp_path / f"copy{n}", *how) for n, how in enumerate(([], ["-p"], ["-a"]))]
    log.wait_committed()
    assert [record.lsn for record in log.read()][2:] == lsns
    _closed(log)
    for copy in copies:
        _refuses(copy, reservation.lsn)


@pytest.mark.parametrize("then", ["killed", "closed"])
def test_a_copy_whose_older_segment_was_copied_earlier_is_refused(
    log_path: Path, tmp_path: Path, then: str
) -> None:
    """Closed: the last segment says that the log was left in order."""
    log, copy = shmlog.open(log_path, create=True, **SIZES), tmp_path / "copy"
    for n in range(40):
        log.append(b"%05d" % n * 100)
    log.wait_durable()
    end = log.committed_lsn
    (copy / "segments").mkdir(parents=True)
    shutil.copy(log_path / "segments" / f"{0:020d}.seg", copy / "segments")
    while log.committed_lsn < 4 * SEGMENT_BYTES:
        log.append(bytes(500))
    for _ in range(3):  # each sync writes the mark of the one before it
        log.append(b"", durable=True)
    if then == "closed":
        _closed(log)
    for path in log_path.rglob("*"):
        made = path.suffix != ".tmp" and path.is_file()
        if made and not (copy / path.relative_to(log_path)).exists():
            shutil.copy(path, copy / path.relative_to(log_path))
    if then == "killed":
        _closed(log)
    _refuses(copy, end, told=False)
    with shmlog.open_readonly(copy) as reading:  # no mark is written: it may read up to there
        found = []
        with pytest.raises(shmlog.CorruptionError) as raised:
            found.extend(bytes(record.data) for record in reading.read())
        assert raised.value.lsn == end and len(found) == 40


def test_a_copy_that_missed_a_segment_between_others_is_refused(log_path: Path, tmp_path: Path) -> None:
    log = shmlog.open(log_path, create=True, sync_interval=1000, **SIZES)
    log.append(b"first", durable=True)
    while log.committed_lsn < 3 * SEGMENT_BYTES + 1000:
        log.append(bytes(500))
        log.wait_committed()
    copy = _copy(log_path, tmp_path / "copy")
    _closed(log)
    missed = copy / "segments" / f"{SEGMENT_BYTES:020d}.seg"
    missed.unlink()
    for use in (shmlog.open, shmlog.open_readonly, shmlog.recover):
        with pytest.raises(shmlog.CorruptionError, match=r"segment is missing; .*is a copy") as raised:
            use(copy)
        assert (raised.value.path, raised.value.lsn) == (str(missed), SEGMENT_BYTES)


def _fall(wire: Wire, path: Path) -> None:
    log = shmlog.open(path, create=True, sync_interval=1000, **SIZES)
    log.append(b"first", durable=True)
    reservation = log.reserve(100)
    lsns = [log.append(b"above %d" % n) for n in range(20)]
    wire.say((reservation.lsn, lsns[0], log.reserved_lsn))
    wire.hear()


def _with_a_hole(path: Path) -> tuple[int, int, int]:
    """A log whose processes were all killed, one of them within an append; (hole, its end, end)."""
    with Child(_fall, path) as child:
        found: tuple[int, int, int] = child.hear()
        kill_everybody(path, [child])
    lose_shared_memory(path)
    return found


def test_a_log_is_where_it_was_written_only_with_the_lock_file_of_then(
    log_path: Path, tmp_path: Path
) -> None:
    begin, end, _ = _with_a_hole(log_path)
    moved = log_path.rename(tmp_path / "moved")
    assert shmlog.recover(moved, dry_run=True).holes == ((begin, end),)
    (moved / "LOCK").unlink()
    (moved / "LOCK").touch(0o600)
    _refuses(moved, begin)


def test_a_log_restored_in_its_own_place_from_a_torn_copy_is_refused(log_path: Path, tmp_path: Path) -> None:
    """Its LOCK may have the inode number of the one that was removed, but not its birth."""
    begin, _, _ = _with_a_hole(log_path)
    copy = _copy(log_path, tmp_path / "copy", "-a")
    shutil.rmtree(log_path)
    _copy(copy, log_path, "-a")
    _refuses(log_path, begin)


def test_a_whole_copy_opens_and_is_from_then_on_a_log_of_its_own_place(
    log_path: Path, tmp_path: Path
) -> None:
    log = shmlog.open(log_path, create=True, **SIZES)
    while log.committed_lsn < 2 * SEGMENT_BYTES:
        log.append(bytes(500))
    log.wait_committed()
    count = len(list(log.read()))
    _closed(log)
    copy = _copy(log_path, tmp_path / "copy")
    assert shmlog.verify(copy).state == "clean"
    with shmlog.open(copy) as log:
        assert log.recovery is not None and log.recovery.case is Case.CLEAN
        assert PyLog(copy).newest_mark().origin[4:] == machine.place(str(copy / "LOCK"))
        assert len(list(log.read())) == count
    until(lambda: not shared_names(copy), "the flusher has left")
    begin, end, _ = _with_a_hole(copy)
    with shmlog.open(copy) as log:
        assert log.recovery is not None and log.recovery.case is Case.HOLES
        assert log.recovery.holes == ((begin, end),)
    again = _copy(copy, tmp_path / "again")
    assert shmlog.recover(again).case in (Case.CLEAN, Case.RESTART), "the hole was filled before the copy"


def test_a_copy_of_a_killed_log_without_a_hole_loses_nothing_but_what_is_torn(
    log_path: Path, tmp_path: Path
) -> None:
    begin, end, _ = _with_a_hole(log_path)
    segment = log_path / "segments" / f"{0:020d}.seg"
    with segment.open("r+b") as file:  # of what lies above the hole, the first half of a record
        file.seek(8192 + end + 34)
        file.write(bytes(SEGMENT_BYTES - end - 34))
    found = shmlog.recover(_copy(log_path, tmp_path / "copy"))
    assert (found.case, found.end_lsn, found.reason) == (Case.TORN, begin, "never written")
    assert end - begin < found.dropped_bytes <= end - begin + 64


# ----------------------------------------------------------------- containers


def _may_unshare() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


in_containers = pytest.mark.skipif(not _may_unshare(), reason="needs root and unshare -m")

_OWN_ID = """set -e
cat /proc/sys/kernel/random/uuid > "$1/boot_id"
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
mount -t tmpfs none /dev/shm
shift; exec "$@"
"""
"""As systemd-nspawn and LXC do; the mounts go with the last process."""

_DIE = """
import os, signal, subprocess, sys, shmlog
path = sys.argv[1]
log = shmlog.open(path, create=True, flusher="external", segment_bytes=65536, window_bytes=65536)
flusher = subprocess.Popen([sys.executable, "-m", "shmlog", "flush", path], stderr=subprocess.DEVNULL)
log.append(b"first", durable=True)
reservation = log.reserve(100)
lsns = [log.append(b"returned %d" % n) for n in range(100)]
print(reservation.lsn, lsns[0], log.reserved_lsn, flush=True)
flusher.kill()
flusher.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def _contained(root: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    shell = ["sh", "-c", _OWN_ID, "sh", str(root), sys.executable, *command]
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", *options, *shell],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _contained_hole(root: Path, path: Path) -> tuple[int, int, int]:
    done = _contained(root, "-c", _DIE, str(path))
    begin, end, tail = map(int, done.stdout.split())
    return begin, end, tail


def _recovered(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@in_containers
def test_a_container_that_starts_again_with_another_boot_id_loses_no_append_that_returned(
    log_path: Path, tmp_path: Path
) -> None:
    begin, end, tail = _contained_hole(tmp_path, log_path)
    assert not PyLog(log_path).newest_mark().origin.kernels
    found = _recovered(_contained(tmp_path, "-m", "shmlog", "recover", "--json", str(log_path)))
    assert (found["state"], found["holes"], found["end_lsn"]) == ("holes", [[begin, end]], tail)
    assert shmlog.verify(log_path).records == 101
    assert shmlog.verify(log_path).state in ("clean", "holes", "intact", "restart")


@in_containers
@pytest.mark.parametrize("answer", ["--not-restarted", "--restarted"])
def test_a_container_whose_clocks_do_not_tell_asks_and_obeys(
    log_path: Path, tmp_path: Path, answer: str
) -> None:
    begin, end, tail = _contained_hole(tmp_path, log_path)
    before = _snapshot(log_path)
    shifted = ("--time", "--boottime", "100000", "--fork")
    for verb in (["recover"], ["recover", "--dry-run"], ["verify"], ["cat"]):
        done = _contained(tmp_path, "-m", "shmlog", *verb, str(log_path), options=shifted)
        assert done.returncode == 1 and f"hole at LSN {begin}" in done.stderr, done.stdout + done.stderr
    info = _contained(tmp_path, "-m", "shmlog", "info", "--json", str(log_path), options=shifted)
    assert (json.loads(info.stdout)["state"], json.loads(info.stdout)["problem_lsn"]) == ("unclear", begin)
    assert _snapshot(log_path) == before
    said = _contained(tmp_path, "-m", "shmlog", "recover", "--json", answer, str(log_path), options=shifted)
    found = _recovered(said)
    if answer == "--restarted":
        assert (found["state"], found["end_lsn"], found["dropped_bytes"]) == ("torn", begin, tail - begin)
    else:
        assert (found["state"], found["holes"], found["end_lsn"]) == ("holes", [[begin, end]], tail)
    assert shmlog.verify(log_path).records == (1 if answer == "--restarted" else 101)


@in_containers
def test_a_boot_id_that_is_mounted_over_is_not_the_kernels(tmp_path: Path) -> None:
    program = "from shmlog.system import machine; print(machine.has_kernels_boot_id())"
    assert _contained(tmp_path, "-c", program).stdout == "False\n"
    assert machine.has_kernels_boot_id()


@contextlib.contextmanager
def _clocks(monkeypatch: pytest.MonkeyPatch, started_by: int, up_by: int) -> Iterator[None]:
    """This process in a container with a boot id of its own, whose clocks have moved."""
    started, up = machine.clocks()
    with monkeypatch.context() as patch:
        patch.setattr(files, "boot_id", lambda: OTHER_BOOT)
        patch.setattr(machine, "has_kernels_boot_id", lambda: False)
        patch.setattr(machine, "clocks", lambda: (started + started_by, up + up_by))
        yield


def test_a_containers_restart_is_told_from_the_machines_by_the_clocks(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end, tail = _with_a_hole(log_path)
    hour = 3600 * 10**9
    with _clocks(monkeypatch, 0, hour):
        found = shmlog.recover(log_path, dry_run=True)
        assert (found.case, found.holes, found.end_lsn) == (Case.HOLES, ((begin, end),), tail)
    with _clocks(monkeypatch, 2 * hour, -hour):
        found = shmlog.recover(log_path, dry_run=True)
        assert (found.case, found.end_lsn, found.dropped_bytes) == (Case.TORN, begin, tail - begin)
    for started_by in (hour, -hour):
        with _clocks(monkeypatch, started_by, hour), pytest.raises(shmlog.RestartUnclearError) as raised:
            shmlog.recover(log_path)
        assert (raised.value.path, raised.value.lsn) == (str(log_path / f"segments/{0:020d}.seg"), begin)


def test_where_a_restart_is_unclear_a_log_without_a_hole_goes_on(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shmlog.open(log_path, create=True, **SIZES) as log:
        log.append(b"x", durable=True)
        end = log.committed_lsn
    until(lambda: not shared_names(log_path), "the flusher has left")
    with _clocks(monkeypatch, 3600 * 10**9, 3600 * 10**9):
        assert shmlog.recover(log_path, dry_run=True).case is Case.CLEAN
        with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
            file.seek(8192 + end + 4)
            file.write(b"\xff")
        found = shmlog.recover(log_path, dry_run=True)
        assert (found.case, found.end_lsn, found.dropped_bytes) == (Case.TORN, end, 32)
