"""What others can plant in a log's directory and in /dev/shm, and what a log itself lets out:
nothing planted is followed, waited for or written to, and no byte is anybody else's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
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
    flusher_pids,
    is_alive,
    lose_shared_memory,
    payload,
    shared_names,
    until,
)

import shmlog
from shmlog.format.layout import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

crash = pytest.mark.crash
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
REFUSED = (shmlog.ShmlogError, OSError)
KIND_DATA = 1
SECRET = b"not a log's business\n" * 300


def _make(path: Path) -> list[int]:
    with shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = append_some(log, 1, 300)
        with log.cursor("c") as cursor:
            cursor.commit(lsns[100])
    return lsns


def _use(path: Path) -> None:
    """Everything that touches a file of the log."""
    for use in (shmlog.open_readonly, shmlog.verify, shmlog.recover, shmlog.open):
        with contextlib.suppress(*REFUSED):
            made = use(path)
            if isinstance(made, shmlog.Log):
                for call in (
                    lambda: made.append(bytes(SEGMENT_BYTES // 2), durable=True, timeout=3),  # noqa: B023
                    lambda: made.cursor("c").commit(made.committed_lsn),  # noqa: B023
                    lambda: sum(1 for _ in made.read()),  # noqa: B023
                    lambda: made.trim(made.committed_lsn, timeout=3),  # noqa: B023
                ):
                    with contextlib.suppress(*REFUSED, ValueError):
                        call()
            if isinstance(made, (shmlog.Log, shmlog.ReadonlyLog)):
                made.close()


def _end_flushers(path: Path) -> None:
    for pid in flusher_pids(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        until(lambda: not is_alive(pid), "the flusher has ended")  # noqa: B023


OFTEN = ("LOCK", f"segments/{0:020d}.seg", "flusher.log")
DIRECTORIES = ("segments", "cursors")
PLACES = (
    *OFTEN,
    *DIRECTORIES,
    "shmlog.json",
    f"segments/{2 * SEGMENT_BYTES:020d}.seg",
    f"segments/{4 * SEGMENT_BYTES:020d}.seg.tmp",
    "cursors/c",
    "FAILED",
)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        pytest.param(place, kind, marks=() if place in OFTEN and kind == "symlink" else crash)
        for place in PLACES
        for kind in ("symlink", "hard link", "dangling")
        if kind != "hard link" or place not in DIRECTORIES  # of which each has one name
    ],
)
def test_a_link_planted_in_any_place_leaves_its_target_as_it_was(
    log_path: Path, tmp_path: Path, place: str, kind: str
) -> None:
    _make(log_path)
    victim = log_path / place
    outside = tmp_path / "outside"
    was = victim.is_dir()
    if kind != "dangling":
        if was:
            shutil.copytree(victim, outside)
        else:
            outside.write_bytes(victim.read_bytes() if victim.exists() else SECRET)
    shutil.rmtree(victim) if was else victim.unlink(missing_ok=True)
    os.link(outside, victim) if kind == "hard link" else victim.symlink_to(outside)
    before = _contents(outside)
    _use(log_path)
    assert _contents(outside) == before
    assert not [name for name in tmp_path.iterdir() if name.name not in ("log", "outside")]
    _end_flushers(log_path)
    if place != "shmlog.json":
        lose_shared_memory(log_path)


def _contents(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    return {str(path): path.read_bytes()} if path.exists() else {}


@pytest.mark.parametrize(
    "place",
    [
        f"segments/{0:020d}.seg",
        "LOCK",
        *(pytest.param(name, marks=crash) for name in ("cursors/c", "shmlog.json")),
    ],
)
@pytest.mark.parametrize(
    "kind",
    ["fifo", "sparse", *(pytest.param(kind, marks=crash) for kind in ("directory", "device", "socket"))],
)
def test_what_is_no_file_of_ours_is_refused_without_waiting(log_path: Path, place: str, kind: str) -> None:
    lsns = _make(log_path)
    victim = log_path / place
    victim.unlink()
    if kind == "fifo":
        os.mkfifo(victim, 0o600)
    elif kind == "directory":
        victim.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("needs root, to make a device")
        os.mknod(victim, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    elif kind == "socket":
        os.mknod(victim, 0o600 | stat.S_IFSOCK)
    else:
        victim.touch(0o600)
        os.truncate(victim, 1 << 42)
    began = time.monotonic()

    def use(wire: Wire) -> str:
        try:
            with shmlog.open(log_path, timeout=5) as log:
                sum(1 for _ in log.read())
                log.cursor("c")
        except REFUSED as error:
            return str(error)
        return ""

    try:
        with Child(use) as child:
            refusal = child.result(20)
    finally:
        victim.rmdir() if kind == "directory" else victim.unlink()
    if not (place == "LOCK" and kind == "sparse"):  # it is never read, so its size is nothing to us
        assert refusal and (victim.name in refusal or place == "shmlog.json"), refusal
    assert time.monotonic() - began < 10 and lsns
    _end_flushers(log_path)


@pytest.mark.parametrize("opens", [8, pytest.param(150, marks=[pytest.mark.crash, pytest.mark.timeout(600)])])
def test_a_link_that_is_swapped_in_between_check_and_use_is_never_followed(
    log_path: Path, tmp_path: Path, opens: int
) -> None:
    """Somebody exchanges files of the log for links to a file of the user's, and back, as fast as
    can be, while the log is opened again and again."""
    _make(log_path)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    places = [log_path / f"segments/{0:020d}.seg", log_path / "cursors/c", log_path / "flusher.log"]

    def swap(wire: Wire) -> int:
        swaps = 0
        aside = [tmp_path / f"aside-{n}" for n in range(len(places))]
        while not wire._connection.poll():
            for place, file in zip(places, aside, strict=True):
                with contextlib.suppress(FileNotFoundError):  # the segment was trimmed
                    os.rename(place, file)
                    (link := tmp_path / "link").symlink_to(secret)
                    os.rename(link, place)
            for place, file in zip(places, aside, strict=True):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(file, place)
                    swaps += 1
        return swaps

    outcomes = set()
    with Child(swap) as racer:
        for _ in range(opens):
            try:
                with shmlog.open(log_path, timeout=5) as log:
                    log.append(b"x", durable=True)
                    with log.cursor("c") as cursor:
                        cursor.commit(log.committed_lsn)
                outcomes.add("opened")
            except REFUSED as error:
                outcomes.add(type(error).__name__)
        racer.say("enough")
        assert racer.result() > 20 * opens, "it was swapped many times for each"
    assert secret.read_bytes() == SECRET
    assert outcomes
    _end_flushers(log_path)
    lose_shared_memory(log_path)


@as_root
def test_another_user_can_neither_signal_nor_lock_out_nor_remove(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        pid = log.statistics().flusher_pid
        names = shared_names(log_path)
        assert pid and len(names) == 3

        def attack(wire: Wire) -> list[str]:
            os.setuid(65534)
            done = []
            attempts: dict[str, Callable[[], object]] = {
                "signal": lambda: os.kill(pid, 9),
                "lock": lambda: os.open(log_path / "LOCK", os.O_RDWR),
                "replace": lambda: os.rename(log_path, log_path.with_name("gone")),
            }
            for name in names:
                attempts[f"unlink {name}"] = name.unlink
                attempts[f"write {name}"] = lambda name=name: os.open(name, os.O_WRONLY)  # type: ignore[misc]
                attempts[f"read {name}"] = lambda name=name: os.open(name, os.O_RDONLY)  # type: ignore[misc]
            for what, attempt in attempts.items():
                with contextlib.suppress(PermissionError):
                    attempt()
                    done.append(what)
            return done

        os.chmod(log_path.parent, 0o755)
        with Child(attack) as child:
            assert child.result() == []
        assert_healthy(log)


@as_root
def test_a_user_that_may_read_the_log_can_lock_nobody_out() -> None:
    """A file that may be read can be locked for reading; so LOCK may not be read, whatever the mode."""
    with tempfile.TemporaryDirectory() as scratch:  # that another user can get to
        os.chmod(scratch, 0o755)
        path = Path(scratch, "log")

        def lock(wire: Wire) -> list[str]:
            os.setuid(65534)
            locked = []
            for place in path.rglob("*"):
                with contextlib.suppress(PermissionError, IsADirectoryError):
                    fd = os.open(place, os.O_RDONLY)
                    whole = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
                    fcntl.fcntl(fd, 37, whole)  # F_OFD_SETLK
                    locked.append(place.name)
            wire.say(locked)
            wire.hear()
            return locked

        shmlog.open(path, create=True, mode=0o644).close()
        with Child(lock) as child:
            locked = child.hear()
            assert "shmlog.json" in locked and "LOCK" not in locked
            with shmlog.open(path, mode=0o644, timeout=5) as log:
                assert_healthy(log, 10)
            child.say("done")
            child.result()


@as_root
@pytest.mark.parametrize("which", ["c", "s"])
def test_another_users_semaphore_squatting_a_bells_name_is_refused_and_named(
    log_path: Path, which: str
) -> None:
    """While a block is there; root may open it."""
    shmlog.open(log_path, create=True).close()
    squat = Path("/dev/shm", f"sem.{block_path(log_path).name}-{which}")
    with shmlog.open(log_path) as log:
        squat.rename(aside := squat.with_name(f"{squat.name}.aside"))
        try:
            squat.write_bytes(bytes(32))
            os.chown(squat, 65534, 65534)
            squat.chmod(0o666)
            with pytest.raises(shmlog.AttachError, match="belongs to user 65534"):
                shmlog.open(log_path)
            assert squat.stat().st_uid == 65534
        finally:
            aside.rename(squat)
        assert_healthy(log, 10)


@as_root
def test_a_semaphore_that_may_not_be_touched_is_an_os_error_that_leaves_no_block() -> None:
    """Before a block is there, to a user that may not remove the squatter's semaphore."""
    import shmlog.handle.log

    with tempfile.TemporaryDirectory() as scratch:  # that another user can get to
        os.chown(scratch, 1, 1)
        path = Path(scratch, "log")

        def use(wire: Wire) -> str:
            os.setgid(1)
            os.setuid(1)
            shmlog.open(path, create=True, flusher="external", timeout=1).close()
            wire.say("made")
            wire.hear()
            with pytest.raises(PermissionError, match="/dev/shm/sem"):
                shmlog.open(path, flusher="external", timeout=1)
            return "refused"

        with Child(use) as child:
            assert child.hear() == "made"
            lose_shared_memory(path)
            squat = Path("/dev/shm", f"sem.{block_path(path).name}-c")
            try:
                squat.write_bytes(bytes(32))
                os.chown(squat, 65534, 65534)
                child.say("squatted")
                assert child.result() == "refused"
                assert shared_names(path) == [squat]
            finally:
                squat.unlink()


def test_no_byte_of_a_processs_memory_gets_into_the_files_or_the_block(log_path: Path) -> None:
    """Every allocation is filled with 0x5A, and every free with its complement: neither is in what
    nobody wrote: paddings, headers, tables."""
    program = """
import sys
import numpy as np
import shmlog
log = shmlog.open(sys.argv[1], create=True, segment_bytes=65536, window_bytes=65536)
for n in range(300):
    log.append(bytes(n % 40), n)
log.append_many([bytes(n % 7) for n in range(100)])
log.append_array(np.zeros((100, 5), np.uint8))
with log.reserve(33) as reservation:
    reservation.buffer[:] = bytes(33)
with log.cursor("c") as cursor:
    cursor.commit(log.committed_lsn)
log.wait_durable()
print("written", flush=True)
sys.stdin.read()
"""
    environment = os.environ | {"MALLOC_PERTURB_": str(0x5A), "PYTHONMALLOC": "malloc"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, log_path],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        found = [*(log_path / "segments").iterdir(), *(log_path / "cursors").iterdir(), block_path(log_path)]
        images = {path: path.read_bytes() for path in found if path.suffix != ".tmp"}
        process.communicate(timeout=30)
    assert len(images) >= 3
    for path, data in images.items():
        for canary in (b"\x5a" * 4, b"\xa5" * 4):
            assert canary not in data, f"{path.name} at {data.find(canary)}"
    checked = 0
    for path, data in images.items():
        if path.suffix == ".seg":
            at = SEGMENT_HEADER_BYTES
            while at < len(data) and data[at + FRAME_HEADER_BYTES - 2] == KIND_DATA:
                size = int.from_bytes(data[at : at + 4], "little")
                end = at + -(-(FRAME_HEADER_BYTES + size) // 32) * 32
                assert not any(data[at + FRAME_HEADER_BYTES : end]), "payloads and paddings are zeros"
                at, checked = end, checked + 1
    assert checked > 400


@pytest.mark.crash
@as_root
def test_root_uses_no_log_and_no_cursor_of_another_user(log_path: Path) -> None:
    _make(log_path)
    for place, owner in (
        ("", 65534),
        ("segments", 65534),
        (f"segments/{0:020d}.seg", 65534),
        ("cursors/c", 65534),
    ):
        os.chown(log_path / place, owner, owner)
        with pytest.raises(PermissionError, match="belongs to user 65534"), shmlog.open(log_path) as log:
            for _ in log.read():
                pass
            log.cursor("c").close()
        os.chown(log_path / place, 0, 0)
    with shmlog.open(log_path) as log:
        assert_healthy(log, 10)
        assert log.append(payload(9, 0, 100))
