"""A disk that refuses a record's page, and a flusher that is killed between the error and
the latch, or lives to latch it; then, the disk being well again, a successor, and a cut of
the power.  Whatever anybody called durable is on the disk.

A turn, in namespaces of its own (nothing of it outlives them):

    ext4 on a loop device on a disk that refuses a marker (support.poisoned_disk)
    canary: a write of the marker is an error, or the turn proves nothing
    a log; appends, with the zeros ahead synced before or not
    a record with the marker, and more records; somebody waits until the flusher has failed
    the disk heals; pages that the kernel takes for clean leave memory, or do not
    a successor; somebody waits: until it is durable, or has failed
    what is called durable is noted; then the file system is shut down and all is killed
    another boot: recovery, and every record below the note must be there
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crash.kit import Budget, Goal, Recipe, Tally
from support.poisoned_disk import PoisonedDisk

import shmlog
from shmlog.disk import directory
from shmlog.disk.recovery import Case
from shmlog.disk.segments import segment_path
from shmlog.system import files, machine

TURN_S = 90.0
DISK_BYTES = 96 << 20
SEGMENT_BYTES = 1 << 20
MARKER = b"a page that this disk does not take"
_SHUTDOWN = 0x8004587D
_NO_FLUSH = 2
_FLUSHER = """
import os, signal, sys
from shmlog.flusher.syncing import Syncer
from shmlog.session import sidecar
from shmlog.system import machine
machine.has_kernels_boot_id = lambda: True  # though one is mounted over it: the machine restarts
def die(self, *_):  # told, and killed before it is latched
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "dies":
    Syncer.fail = die
sys.exit(sidecar.run(sys.argv[1], 10_000, 0o600, False))
"""


def missing() -> str | None:
    """Why the recipe cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root, to mount a disk of its own"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse"
    tried = subprocess.run(
        [
            "unshare",
            "-m",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            "command -v mkfs.ext4 && losetup -f",
        ],
        capture_output=True,
    )
    return None if tried.returncode == 0 else "needs unshare, mkfs.ext4 and a loop device"


def run(budget: Budget) -> Tally:
    tally, turn = Tally(), 0
    tally.figures |= {"durable after all": 0, "latched": 0, "left memory": 0}
    while budget.goes_on(tally) or turn == 0:
        try:
            outcome = one_turn(budget.seed, turn)
        except (subprocess.SubprocessError, ValueError) as problem:
            outcome = {"violation": str(problem)}
        if "violation" in outcome:
            tally.violate(f"seed {budget.seed}, turn {turn}: {outcome}")
        else:
            (tally.survive if outcome["ended"] == "durable" else tally.refuse)()
            what = "durable after all" if outcome["ended"] == "durable" else "latched"
            tally.figures[what] = int(tally.figures[what]) + 1
            tally.figures["left memory"] = int(tally.figures["left memory"]) + outcome["dropped"]
        turn += 1
    return tally


def one_turn(seed: int, turn: int) -> dict[str, Any]:
    """What came of one turn, run in a process with namespaces of its own."""
    with tempfile.TemporaryDirectory(prefix="failed-sync-") as root:
        command = ["unshare", "-m", "--propagation", "private", "--pid", "--fork", "--mount-proc"]
        command += ["--kill-child", sys.executable, "-m", "crash.recipes.failed_sync", root, f"{seed}:{turn}"]
        paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TURN_S, env=os.environ | {"PYTHONPATH": paths}
        )
        if done.returncode != 0:
            return {"violation": f"the turn ended with {done.returncode}: {done.stderr[-2000:]}"}
        outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return outcome


# ------------------------------------------------------------------------- within a turn


class Turn:
    """The disk and the flushers of one turn."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.root, self.dice = root, dice
        self.disk = PoisonedDisk(root / "disk", DISK_BYTES)
        self.mount = root / "mount"
        self.path = self.mount / "log"
        self.flushers: list[subprocess.Popen[bytes]] = []

    def play(self) -> dict[str, Any]:
        machine.has_kernels_boot_id = lambda: True  # as in _FLUSHER
        self.mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/shm"], check=True)
        with self.disk:
            block_bytes = self.dice.choice(["1024", "4096"])
            subprocess.run(["mkfs.ext4", "-q", "-F", "-b", block_bytes, self.disk.path], check=True)
            with self.mounted():
                self.canary()
                self.restart()
                claimed = self.in_a_child(self.live)
            with self.mounted():
                for name in os.listdir("/dev/shm"):
                    os.unlink(f"/dev/shm/{name}")
                self.restart()
                return claimed | self.in_a_child(lambda: self.check(claimed))

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        subprocess.run(["mount", "-o", "loop,commit=1000", self.disk.path, self.mount], check=True)
        source = os.stat(self.mount).st_dev
        device = f"/dev/{Path(f'/sys/dev/block/{os.major(source)}:{os.minor(source)}').resolve().name}"
        subprocess.run(["losetup", "--direct-io=on", device], check=True)
        try:
            yield
        finally:
            deadline = time.monotonic() + 20
            while (done := subprocess.run(["umount", self.mount], capture_output=True)).returncode != 0:
                assert time.monotonic() < deadline, done.stderr

    def canary(self) -> None:
        """An error that the disk gives is one that a sync gives, or all of this proves nothing."""
        self.disk.poison(MARKER)
        with files.descriptor(files.create_file(str(self.mount / "canary"), 0o600)) as fd:
            files.write_all(fd, MARKER * 100, 0)
            try:
                os.fdatasync(fd)
            except OSError as error:
                assert error.errno == errno.EIO, error
            else:
                raise AssertionError("the fault is not delivered")
        self.disk.heal()
        os.unlink(self.mount / "canary")

    def restart(self) -> None:
        """As if the machine had: another boot id."""
        name, own = "/proc/sys/kernel/random/boot_id", self.root / "boot_id"
        subprocess.run(["umount", name], capture_output=True)
        own.write_text(f"{uuid.UUID(int=self.dice.getrandbits(128))}\n")
        subprocess.run(["mount", "--bind", own, name], check=True)

    def flusher(self, how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _FLUSHER, str(self.path), how]
        self.flushers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return self.flushers[-1]

    def live(self) -> dict[str, Any]:
        """The log's life up to the cut: what was appended, and what was called durable."""
        dice, lsns = self.dice, []
        dies, synced, dropped = dice.random() < 0.8, dice.random() < 0.6, dice.random() < 0.5
        log = shmlog.open(
            self.path,
            create=True,
            segment_bytes=SEGMENT_BYTES,
            window_bytes=SEGMENT_BYTES,
            flusher="external",
            timeout=20,
        )
        first = self.flusher("dies" if dies else "lives")

        def append(count: int, payload: bytes = b"") -> None:
            for _ in range(count):
                size = dice.choice([40, 400, 9000])
                lsns.append(log.append(payload + struct.pack("<Q", len(lsns)) * (size // 8)))

        append(dice.randrange(1, 400))
        log.wait_durable()
        if synced:  # the zeros ahead, once writers leave time for it: later writes convert nothing
            synced = self.until(lambda: not self.never_written(log.reserved_lsn))
        self.disk.poison(MARKER)
        refused = self.disk.refused
        bad = log.reserved_lsn
        append(1, MARKER)
        append(dice.randrange(0, 300), dice.choice([b"", MARKER]))
        while dropped and log.reserved_lsn < bad + 3 * SEGMENT_BYTES:  # until the writer's map has gone
            append(10)
        failed = self.wait(log, 20.0, lambda: first.poll() is not None)
        assert self.disk.refused > refused, "the fault was not delivered"
        if dies:
            assert first.poll() is not None, f"the flusher lives: {failed}"
        else:
            assert failed == "LogFailedError", failed
        assert log.durable_lsn <= bad, "durable while the disk refused it"
        self.disk.heal()
        if dropped:
            for segment in {segment_path(directory.load(str(self.path)), lsn) for lsn in lsns if lsn >= bad}:
                with files.descriptor(files.open_file(segment, writable=False)) as fd:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if dies:
            self.flusher("lives")
        if dies and dice.random() < 0.5:
            with contextlib.suppress(shmlog.LogFailedError):
                append(dice.randrange(1, 50))
        ended = self.wait(log, 30.0, lambda: False)
        assert ended in ("durable", "LogFailedError") if dies else ended == "LogFailedError", ended
        if ended == "LogFailedError":
            with contextlib.suppress(shmlog.LogFailedError):
                log.append(b"x")
                raise AssertionError("a failed log took a record")
            assert log.durable_lsn <= bad, "durable though the log has failed"
        durable = log.durable_lsn  # before the cut: afterwards more may be claimed than was
        with files.descriptor(os.open(self.mount, os.O_RDONLY)) as fd:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        return {"lsns": lsns, "durable": durable, "ended": ended, "dropped": dropped, "synced": synced}

    def never_written(self, lsn: int) -> bool:
        where = directory.load(str(self.path))
        with files.descriptor(files.open_file(segment_path(where, lsn), writable=False)) as fd:
            return files.never_written(fd, 0, where.identity.geometry.file_bytes)

    @staticmethod
    def until(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 1
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        return condition()

    @staticmethod
    def wait(log: shmlog.Log, timeout_s: float, over: Callable[[], bool]) -> str:
        """Wait for all to be durable: "durable", or the error's name."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                log.wait_durable(timeout=0.1)
                return "durable"
            except shmlog.LogFailedError:
                return "LogFailedError"
            except TimeoutError:
                if over() or time.monotonic() > deadline:
                    return "TimeoutError"

    def check(self, claimed: dict[str, Any]) -> dict[str, Any]:
        report = shmlog.verify(self.path)
        with shmlog.open(self.path, timeout=20, flusher="external") as log:
            assert log.recovery is not None and log.recovery.case in (Case.TORN, Case.RESTART), log.recovery
            found = {record.lsn: bytes(record.data) for record in log.read()}
            end = log.reserved_lsn
            log_end = {"end": end, "recovery": str(log.recovery)[:400]}
            self.flusher("lives")
            log.append(b"and on", durable=True)
        wanted = [lsn for lsn in claimed["lsns"] if lsn < claimed["durable"]]
        lost = [lsn for lsn in wanted if lsn not in found]
        if lost or end < claimed["durable"] or not report.ok:
            return {
                "violation": f"{len(lost)} records lost of {len(wanted)} from LSN {lost[:1]} on",
                **log_end,
            }
        for count, lsn in enumerate(wanted):
            assert found[lsn].removeprefix(MARKER)[:8] == struct.pack("<Q", count), f"LSN {lsn} is another's"
        return {}

    def in_a_child(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do it in a process that is gone then, its flushers too: nothing keeps the disk."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    result = work()
                except BaseException:
                    result = {"violation": traceback.format_exc()}
                for flusher in self.flushers:
                    flusher.kill()
                    flusher.wait()
                with os.fdopen(write, "w") as pipe:
                    json.dump(result, pipe)
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        result = json.loads(text)
        if "violation" in result:
            raise Violation(result)
        return result


class Violation(Exception):
    """Whose argument is the turn's outcome."""


RECIPE = Recipe(
    "failed-sync",
    "a sync that failed and a flusher killed with the news",
    run,
    (Goal("durable after all", 30), Goal("latched", 30), Goal("left memory", 20)),
    80.0,
    missing=missing,
)


if __name__ == "__main__":
    try:
        outcome = Turn(Path(sys.argv[1]), random.Random(sys.argv[2])).play()
    except Violation as violation:
        (outcome,) = violation.args
    outcome.pop("lsns", None)
    print(json.dumps(outcome))
