"""Cut-off: live processes whose file system stops under them.

    python -m crash.power.cutoff --seed 7 --seconds 30

Runs in a mount namespace of its own and prints one JSON object.  Writers, a flusher, a
cursor and trims are busy on ext4 or XFS, with one set of mount options after the other.
Somewhere in the middle the file system is told to shut down (the ioctl of the kernel's own
tests of crashes), with its journal written out first or without.  The processes are
killed, the file system is mounted again, the log recovered and checked.  No process may
have died of a signal that it was not sent.

Only what was noted before the shutdown was promised: a promise that is read after it may
never have been one.

This module knows file systems and processes.  It may not know what is checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from crash.kit import NO_END
from crash.power import lives
from crash.power.images import Image
from crash.power.mounts import attached, copy_sparse, make_file_system, mount, mounted, shut_down, unmount
from crash.power.promises import Promises, Violation
from crash.power.recorder import SOCKET
from crash.power.workers import ends_at, report, worker_arguments
from support.processes import Child, Wire, block_path

SET_UPS = (
    ("ext4", "commit=1"),
    ("xfs", ""),
    ("ext4", "commit=1000"),
    ("ext4", "nodelalloc"),
    ("ext4", "data=writeback"),
    ("xfs", "wsync"),
    ("ext4", "commit=5"),
)
NOTES_MAX = 300
VIOLATIONS_MAX = 3
_PR_SET_CHILD_SUBREAPER = 36


def set_up_name(kind: str, options: str) -> str:
    return f"{kind} {options or 'as mounted'}"


class Worker:
    def __init__(self, seed: int, ends_at: float, scratch: Path, keep: Path, cuts: int) -> None:
        self._seed = seed
        self._ends_at = ends_at
        self._scratch = scratch
        self._keep = keep
        self._cuts = cuts
        self._fs = scratch / "fs"
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def run(self) -> None:
        for kind in ("ext4", "xfs"):
            make_file_system(self._scratch / kind, kind)
            self._canary(kind)
        turn = 0
        while turn < self._cuts and time.monotonic() < self._ends_at:
            if len(self.violations) >= VIOLATIONS_MAX:
                return
            turn += 1
            kind, options = SET_UPS[turn % len(SET_UPS)]
            rng = random.Random(f"{self._seed}:{turn}")
            flush_journal = rng.random() < 0.5
            promises = self._cut(kind, options, rng, flush_journal)
            image = Image(self._scratch / "image", kind, promises)
            try:
                found = image.check(self._scratch)
                self.counts[f"as {found.recovery.case.value}"] += 1
            except Violation as problem:
                story = f"{kind} {options}, journal {'written' if flush_journal else 'lost'}"
                self.violations.append(image.keep(self._keep, f"{self._seed}-{turn}", story, problem))
            self.counts.update(["cuts", kind, set_up_name(kind, options)])

    def _canary(self, kind: str) -> None:
        """Of two stores the one that was not synced is gone after a shutdown, the other is not."""
        for flush_journal in (False, True):
            copy_sparse(self._scratch / kind, self._scratch / "image")
            file = self._fs / "file"
            with attached(self._scratch / "image") as device:
                with mounted(device, self._fs, kind):
                    with file.open("wb", buffering=0) as stream:
                        stream.write(b"synced")
                        os.fsync(stream.fileno())
                        os.pwrite(stream.fileno(), b"forgot", 0)
                    shut_down(self._fs, flush_journal)
                with mounted(device, self._fs, kind):
                    left = file.read_bytes()
            if left == b"synced":
                self.counts["canary"] += 1
            else:
                self.violations.append(f"{kind} holds {left!r} after a shutdown: nothing is tested")

    def _cut(self, kind: str, options: str, rng: random.Random, flush_journal: bool) -> Promises:
        """Live on a fresh file system and shut it down; what was promised before.  image: what
        is left."""
        copy_sparse(self._scratch / kind, self._scratch / "image")
        door_path = self._scratch / "door"
        notes: list[dict[str, Any]] = []
        name = ""
        with (
            attached(self._scratch / "image") as device,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door,
        ):
            mount(device, self._fs, kind, options)
            try:
                door.bind(str(door_path))
                door.listen(64)
                with Child(self._live, str(door_path), rng.random()) as child:
                    try:
                        count = rng.randrange(1, NOTES_MAX)
                        _hear(door, notes, 1)  # the log is made
                        name = block_path(self._fs / "log").name
                        _hear(door, notes, count - 1)
                        time.sleep(rng.choice((0.0, rng.random() * 0.01)))
                        shut_down(self._fs, flush_journal)
                        time.sleep(rng.choice((0.0, 0.02)))  # for who stores into what is no more
                    finally:
                        os.killpg(child.pid, signal.SIGKILL)
                        child.wait()
                        self._reap()
            finally:
                for left in Path("/dev/shm").glob(f"*{name}*") if name else ():
                    left.unlink()
                unmount(self._fs)
                door_path.unlink(missing_ok=True)
        return Promises().and_then(notes)

    def _live(self, wire: Wire, door: str, seed: float) -> None:
        os.setsid()
        os.environ[SOCKET] = door
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        lives.endless_life(self._fs / "log", seed)

    def _reap(self) -> None:
        """Wait for the orphans; P8: none has been killed by anybody but us."""
        with contextlib.suppress(ChildProcessError):
            while True:
                _, status = os.waitpid(-1, 0)
                code = os.waitstatus_to_exitcode(status)
                if code < 0 and code != -signal.SIGKILL:
                    self.violations.append(f"{self._seed}: a process died of {signal.Signals(-code).name}")
                self.counts["told of an error"] += code > 0


def _hear(door: socket.socket, notes: list[dict[str, Any]], count: int) -> None:
    """Hear so many notes, and no more."""
    for _ in range(count):
        ready, _, _ = select.select([door], [], [], 60.0)
        assert ready, "nothing was promised for a minute"
        wire, _ = door.accept()
        with wire:
            notes.append(json.loads(wire.recv(1 << 16)[2:]))
            wire.send(b"0")


def main() -> int:
    parser = worker_arguments()
    parser.add_argument("--cuts", type=int, default=NO_END)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    mount("none", options.scratch, "tmpfs", "size=2g")
    until = ends_at(options.seconds)
    worker = Worker(options.seed, until, options.scratch, options.keep, options.cuts)
    worker.run()
    report(worker.counts, worker.violations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
