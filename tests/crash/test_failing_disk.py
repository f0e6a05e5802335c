"""A disk that takes some writes and not others: what a failed sync left in memory is durable
or an error, never called durable while it is not.

The disk is an ext4 on a loop device whose image is a file with holes in a tmpfs: once
the tmpfs is full, what has been written can be written again, and what has not cannot.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import SEGMENT_BYTES, append_some

import shmlog
from shmlog.disk import directory, failure, recovery, rewriting
from shmlog.disk.failure import Failure
from shmlog.disk.recovery import Case
from shmlog.format.marks import MARK_SLOTS, SECTOR_BYTES
from shmlog.system import files

OTHER_BOOT = bytes(range(16))

_MOUNTS = """
    mount --make-rprivate /
    mount -t tmpfs none /dev/shm
    mkdir -p "$1/tmpfs" "$1/disk"
    mount -t tmpfs -o size=136m none "$1/tmpfs"
    truncate -s 128m "$1/tmpfs/image"
    mkfs.ext4 -q -F -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$1/tmpfs/image"
    # no holes where the journal and the inodes are: they can always be written
    dd if="$1/tmpfs/image" of="$1/tmpfs/image" bs=1M conv=notrunc status=none
    mount -o loop "$1/tmpfs/image" "$1/disk"
    fstrim "$1/disk"
"""
"""For the process alone: they, and the loop device, go with it."""

_TOOLS = """
    import os, signal, subprocess, sys, time
    import shmlog
    from shmlog.disk import directory
    from shmlog.format.layout import CB
    from support.processes import block_path, until

    root = sys.argv[1]
    disk, path = root + "/disk", root + "/disk/log"

    def fill():
        with open(root + "/tmpfs/ballast", "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass

    def make_room():
        os.unlink(root + "/tmpfs/ballast")

    def forget_memory():
        def unmounted():
            return subprocess.run(["umount", disk], capture_output=True).returncode == 0
        until(unmounted, "nobody uses the disk")
        subprocess.run(["mount", "-o", "loop", root + "/tmpfs/image", disk], check=True, timeout=60)
"""


def _may_make_a_disk() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "mkfs.ext4", "fstrim", "losetup"))):
        return False
    done = subprocess.run(["unshare", "-m", "losetup", "-f"], capture_output=True)
    return done.returncode == 0


on_a_failing_disk = pytest.mark.skipif(
    not _may_make_a_disk(), reason="needs root, unshare -m, mkfs.ext4 and a loop device"
)


def _on_a_failing_disk(root: Path, program: str) -> str:
    """Run a Python program that has such a disk at root/disk; its output."""
    source = textwrap.dedent(_TOOLS) + textwrap.dedent(program)
    shell = f'set -e\n{_MOUNTS}\nshift; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", shell, "sh", str(root), sys.executable, "-c", source, str(root)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@on_a_failing_disk
def test_what_a_failed_sync_left_in_memory_is_on_disk_once_recovery_vouches_for_it(tmp_path: Path) -> None:
    program = """
        log = shmlog.open(path, create=True, segment_bytes=32 << 20, window_bytes=2 << 20, timeout=20,
                          sync_interval=1000)
        lsns = [log.append(b"before", durable=True)]
        fill()
        try:
            for end in range(12 << 20, 72 << 20, 12 << 20):  # zeros prepared before fill() may be there
                while lsns[-1] < end:
                    lsns.append(log.append(len(lsns).to_bytes(8, "little") * 128))
                log.wait_durable()
            raise SystemExit("the disk did not fail")
        except shmlog.LogFailedError as error:
            failed = error
        durable = log.durable_lsn
        log.close()
        until(lambda: not block_path(path).exists(), "the flusher leaves")
        said = open(path + "/flusher.log").read()
        assert "not marked clean" in said and "all is durable" not in said, said
        make_room()
        with shmlog.open(path, timeout=20) as log:
            assert log.recovery.case.value == "intact" and log.recovery.vouched_lsn <= durable
            assert log.recovery.failure is not None, said
            assert log.recovery.failure.errno == failed.errno, log.recovery
            assert log.recovery.failure.lsn == failed.lsn == durable, log.recovery
            found = [record.lsn for record in log.read()]
            assert found == lsns[: len(found)] and found[-1] >= durable, (len(found), durable)
            found.append(log.append(b"after", durable=True))
        until(lambda: not block_path(path).exists(), "the flusher leaves")
        del log
        forget_memory()
        report = shmlog.verify(path)
        assert report.ok, report
        with shmlog.open(path, timeout=20) as log:
            assert log.recovery.case.value == "clean" and log.recovery.failure is None
            assert [record.lsn for record in log.read()] == found
        print(len(found))
    """
    assert int(_on_a_failing_disk(tmp_path, program)) > 1


@on_a_failing_disk
def test_a_successor_calls_nothing_durable_whose_zeros_a_dead_flusher_could_not_write(tmp_path: Path) -> None:
    program = """
        flusher = '''
        import os, signal, sys
        from shmlog.flusher.syncing import Syncer
        from shmlog.session import sidecar
        def die(self, error):  # told, and killed before it is latched
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[2] == "dies":
            Syncer.fail = die
        sys.exit(sidecar.run(sys.argv[1], 0.01, 0o600, False))
        '''
        import atexit, textwrap
        def flush(how):
            command = [sys.executable, "-c", textwrap.dedent(flusher), path, how]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            atexit.register(process.kill)  # also if this program fails
            return process

        log = shmlog.open(path, create=True, segment_bytes=64 << 20, window_bytes=16 << 20,
                          flusher="external", timeout=20)
        first = flush("dies")
        log.append(bytes(1000), durable=True)
        prepared = log._joined.control.load(CB.PREPARED_LSN)
        fill()
        while log.reserved_lsn < prepared and first.poll() is None:
            try:
                log.append(bytes(100_000), timeout=1)
            except shmlog.LogFullError:  # it is dead, and was not seen dead yet
                pass
        assert first.wait(timeout=20) == -signal.SIGKILL
        make_room()
        second = flush("lives")
        try:
            while log.reserved_lsn < prepared + (6 << 20):
                log.append(bytes(100_000), durable=True)
        except shmlog.LogFailedError:
            pass
        durable = log.durable_lsn
        log.close()
        second.terminate()
        assert second.wait(timeout=20) == 0
        del log
        forget_memory()
        with shmlog.open(path, timeout=20) as log:
            assert log.recovery.end_lsn >= durable
        assert shmlog.verify(path).ok
        print(durable)
    """
    assert int(_on_a_failing_disk(tmp_path, program)) > 1000


@pytest.fixture
def crashed(log_path: Path) -> directory.Directory:
    """A log of which a part is not vouched for."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 1, 200)
    where = directory.load(str(log_path))
    found = recovery.inspect(where, files.boot_id())
    assert found.mark is not None
    for path in (log_path / "segments").iterdir():  # as if the last mark of all were an early one
        with path.open("r+b") as file:
            header = file.read(512).ljust(SECTOR_BYTES, b"\0")
            early = found.mark.next(durable_lsn=0, trimmed_lsn=0, clean=False)
            file.seek(0)
            file.write(header * 2)
            file.seek(MARK_SLOTS.offset(early.sequence))
            file.write(early.encode(where.identity.log_id))
    return where


def _segments(where: directory.Directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(where.segments_path).iterdir()}


def _pages_that_were_never_written(
    monkeypatch: pytest.MonkeyPatch, heals: bool
) -> Callable[[], set[tuple[int, int]]]:
    """A file system that holds three pages of every segment to be allocated and never
    written until they are written past the page cache."""
    left: dict[int, set[int]] = {}
    healed: set[tuple[int, int]] = set()
    write_past_the_cache = rewriting._write_past_the_cache

    def never_written(fd: int, begin: int, end: int) -> bool:
        pages = left.setdefault(os.fstat(fd).st_ino, {0, 3 * 4096, 4 * 4096})
        return any(begin < page + 4096 and page < end for page in pages)

    def write(fd: int, data: memoryview, begin: int) -> bool:
        assert os.pread(fd, len(data), begin) == data, "killed here, nothing is lost"
        inode = os.fstat(fd).st_ino
        for page in [page for page in left[inode] if heals and begin <= page < begin + len(data)]:
            left[inode].discard(page)
            healed.add((inode, page))
        return write_past_the_cache(fd, data, begin)

    monkeypatch.setattr(files, "never_written", never_written)
    monkeypatch.setattr(rewriting, "_write_past_the_cache", write)
    return lambda: healed


@pytest.mark.holds("Z2")
def test_recovery_writes_pages_anew_that_the_file_system_never_wrote(
    crashed: directory.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _segments(crashed)
    assert len(before) > 1
    healed = _pages_that_were_never_written(monkeypatch, heals=True)
    found = recovery.recover(crashed, files.boot_id())
    assert found.case is Case.INTACT and found.vouched_lsn == 0
    assert len(healed()) > 3, "the headers' pages too"
    after = _segments(crashed)
    assert after.keys() == before.keys()
    assert all(after[name][8192:] == before[name][8192:] for name in before)
    assert all(after[name][:512] == before[name][:512] for name in before)


@pytest.mark.holds("Z1")
def test_recovery_vouches_for_nothing_that_left_memory_after_it_was_checked(
    crashed: directory.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a page that the kernel took for clean, and that its disk never had."""
    found, write_anew = recovery.inspect(crashed, files.boot_id()), rewriting.write_anew

    def drop(fd: int, begin: int, end: int, *, alone: bool) -> None:
        if begin > 0:
            os.pwrite(fd, bytes(4096), 3 * 4096)
        write_anew(fd, begin, end, alone=alone)

    monkeypatch.setattr(recovery, "write_anew", drop)
    with pytest.raises(OSError, match="was lost from memory") as raised:
        recovery.recover(crashed, files.boot_id())
    assert raised.value.errno == errno.EIO
    assert recovery.inspect(crashed, files.boot_id()).vouched_lsn == found.vouched_lsn


def test_recovery_vouches_for_nothing_that_still_cannot_be_written(
    crashed: directory.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure.note(crashed, Failure(errno.EIO, 0), 0o600)
    before = _segments(crashed)
    _pages_that_were_never_written(monkeypatch, heals=False)
    with pytest.raises(OSError, match="cannot be written") as raised:
        recovery.recover(crashed, files.boot_id())
    assert raised.value.errno == errno.EIO
    assert _segments(crashed) == before
    assert recovery.inspect(crashed, files.boot_id()).failure == Failure(errno.EIO, 0)


def test_a_failed_log_is_reported_to_its_next_opener_and_to_nobody_after(
    crashed: directory.Directory,
) -> None:
    failure.note(crashed, Failure(errno.EIO, 32), 0o640)
    failure.note(crashed, Failure(errno.ENOSPC, 64), 0o640)  # a consequence: the first one counts
    note = Path(crashed.path, "FAILED")
    assert note.stat().st_mode & 0o777 == 0o640
    assert json.loads(note.read_bytes()).items() >= {"errno": errno.EIO, "lsn": 32}.items()
    assert shmlog.recover(crashed.path, dry_run=True).failure == Failure(errno.EIO, 32)
    with shmlog.open_readonly(crashed.path) as dead:
        assert dead.recovery is not None and dead.recovery.failure == Failure(errno.EIO, 32)
    for expected in (Failure(errno.EIO, 32), None):
        with shmlog.open(crashed.path) as log:
            assert log.recovery is not None and log.recovery.failure == expected
        assert not note.exists()
    assert not list(Path(crashed.path).glob("*.tmp"))


@pytest.mark.parametrize("text", [b"", bytes(64), b"[]", b'{"errno": "x", "lsn": 1}', b"[" * 5000])
def test_a_note_that_a_failing_disk_garbled_still_says_that_the_log_failed(
    crashed: directory.Directory, text: bytes
) -> None:
    Path(crashed.path, "FAILED").write_bytes(text)
    assert recovery.recover(crashed, OTHER_BOOT).failure == Failure(0, 0)
    assert recovery.inspect(crashed, OTHER_BOOT).failure is None


def test_a_disk_that_takes_no_note_does_not_hide_the_failure(
    crashed: directory.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "create_file", refuse)
    failure.note(crashed, Failure(errno.EIO, 0), 0o600)
    assert failure.find(crashed) is None
