"""A disk that goes away under a running log: shut down, remounted read-only, full behind the file
system's back.  No process dies of it; what was durable is there afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.namespaces import needs_namespaces, run_in_namespace


def _may_loop() -> bool:
    if os.geteuid() != 0 or not shutil.which("losetup"):
        return False
    return subprocess.run(["losetup", "-f"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.crash,
    needs_namespaces,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not shutil.which("losetup")
        or subprocess.run(["losetup", "-f"], capture_output=True).returncode != 0,
        reason="needs loop devices",
    ),
    pytest.mark.timeout(300),
]

PROGRAM = """
    import fcntl, os, pathlib, signal, struct, subprocess, sys
    import shmlog
    from support.processes import Child, assert_healthy, flusher_pids, is_alive, note, payload
    from support.processes import read_side, until, whose
    root, fault = sys.argv[1:3]
    disk, path = root + "/disk", root + "/disk/log"

    def write(wire, writer):
        '''Until the log says that it cannot go on; what it says is the result.'''
        signal.alarm(60)
        fd = os.open(f"{root}/side-{writer}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        log = shmlog.open(path, timeout=5)
        wire.say("open")
        n, said = 0, []
        while len(said) < 3:
            try:
                lsn = log.append(payload(writer, n, 50 + n * 37 % 3000), writer, durable=True)
                note(fd, n, lsn)
                n += 1
            except (shmlog.ShmlogError, OSError) as error:
                said.append(type(error).__name__)
        try:
            sum(1 for _ in log.read())
            log.close()
        except (shmlog.ShmlogError, OSError) as error:
            said.append("then " + type(error).__name__)
        return said

    def watch(wire):
        '''Hold views over the fault, and touch them.'''
        signal.alarm(60)
        log = shmlog.open_readonly(path)
        held = [record.data for record in log.read()]
        wire.say(len(held))
        wire.hear()
        touched = sum(len(bytes(data)) for data in held)
        for _ in range(3):
            try:
                sum(len(bytes(record.data)) for record in log.read())
            except (shmlog.ShmlogError, OSError):
                pass
        return touched

    with shmlog.open(path, create=True, segment_bytes=1 << 20) as log:
        for n in range(100):
            log.append(payload(9, n, 1000), 9)
        log.wait_durable()
    writers = [Child(write, n) for n in range(3)]
    for writer in writers:
        writer.hear()
    sides = [root + f"/side-{n}" for n in range(3)]
    def many(side):
        return os.path.exists(side) and os.path.getsize(side) > 16 * 20
    until(lambda: all(map(many, sides)), "records are durable")
    watcher = Child(watch)
    assert watcher.hear() >= 100
    if fault == "shut down":
        fd = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 1))
        os.close(fd)
    elif fault == "read-only":
        mounts = pathlib.Path("/proc/mounts").read_text().splitlines()
        (loop,) = {line.split()[0] for line in mounts if line.split()[1] == disk}
        pathlib.Path("/sys/fs/ext4", os.path.basename(loop), "trigger_fs_error").write_text("planned")
    else:  # the file system has room, the device under it has none
        with open(root + "/thin/ballast", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    said = [writer.result(80) for writer in writers]  # each ends by itself, and by no signal
    watcher.say("touch")
    assert watcher.result(80) > 0
    promised = {n: read_side(pathlib.Path(side)) for n, side in enumerate(sides)}
    until(lambda: not any(map(is_alive, flusher_pids(path))), "the flusher has left", 60)
    if fault == "full below":
        os.unlink(root + "/thin/ballast")
    def unmounted():
        return subprocess.run(["umount", disk], capture_output=True).returncode == 0
    until(unmounted, "nobody uses the disk")
    subprocess.run(["mount", "-o", "loop", root + "/thin/image", disk], check=True, timeout=60)
    with shmlog.open(path) as log:
        found = {n: [] for n in (*promised, 9)}
        for record in log.read():
            writer, sequence = whose(record.data)
            assert sequence == len(found[writer])
            found[writer].append(record.lsn)
        assert len(found[9]) == 100
        for n, lsns in promised.items():
            assert found[n][: len(lsns)] == lsns, f"{len(lsns)} were durable, {len(found[n])} are there"
        assert_healthy(log)
    print(said, sum(map(len, promised.values())))
"""

MOUNTS = {
    "ext4": "mkfs.ext4 -q -F -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard",
    "xfs": "mkfs.xfs -q -f -K",
}


@pytest.mark.parametrize(
    ("system", "fault"),
    [
        ("ext4", "shut down"),
        ("xfs", "shut down"),
        ("ext4", "read-only"),
        ("ext4", "full below"),
        ("xfs", "full below"),
    ],
)
def test_a_disk_that_goes_away_kills_no_process_and_loses_nothing_durable(
    tmp_path: Path, system: str, fault: str
) -> None:
    if not shutil.which(f"mkfs.{system}"):
        pytest.skip(f"needs mkfs.{system}")
    thin = "size=340m" if fault == "full below" else "size=1g"
    options = "loop,errors=remount-ro" if system == "ext4" else "loop"
    mounts = f"""
        mount -t tmpfs none /dev/shm
        mkdir {tmp_path}/thin {tmp_path}/disk
        mount -t tmpfs -o {thin} none {tmp_path}/thin
        truncate -s 320m {tmp_path}/thin/image
        {MOUNTS[system]} {tmp_path}/thin/image
        mount -o {options} {tmp_path}/thin/image {tmp_path}/disk
    """
    out = run_in_namespace(mounts, PROGRAM, tmp_path, fault)
    assert "LogFailedError" in out or (fault == "full below" and "LogFullError" in out), out
    print(out)
