"""Blocks: cut the power under a real file system, at any block that it has written.

    python -m crash.power.blocks --kind ext4 --seed 7 --seconds 30

Runs in a mount namespace of its own and prints one JSON object.  A life of the log is lived
on a file system on a FUSE disk (fusedisk) that writes down every block and every flush.
Then, at many places of that list, an image is made of all that was flushed and some of what
was not, sector by sector, mounted, recovered and checked.

This module knows disks and file systems.  It may not know what is checked.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crash.kit import NO_END
from crash.power import lives
from crash.power.fusedisk import Barrier, Block, Disk, Logged, Told
from crash.power.images import DamagedError, Image
from crash.power.model import DICE
from crash.power.mounts import attached, copy_sparse, make_file_system, mount, unmount
from crash.power.promises import Promises, Violation
from crash.power.recorder import SECTOR_BYTES, SOCKET
from crash.power.workers import ends_at, report, worker_arguments
from support.processes import Child, Wire

CUTS_OF_A_LIFE = 250
DEAF_CUTS = 25
DEAF_TO = 0.9
"""Of the flushes, by the disk of the canary."""
VIOLATIONS_MAX = 3

Pending = dict[int, list[tuple[int, bytes]]]
"""sector: (time, bytes) of each version that was written since the last flush"""

Unit = list[tuple[int, list[tuple[int, bytes]]]]
"""What is written or not: (time, (sector, bytes) of each sector), one version after the other"""


class Replayer:
    """The disk's durable bytes, as a file, moved along a log of blocks."""

    def __init__(self, base: Path, log: list[Logged], deaf: random.Random | None = None) -> None:
        """deaf: the disk ignores most flushes, by these dice."""
        self._base = base
        self._log = log
        self._deaf = deaf
        self._flushed = 0
        self.pending: Pending = {}
        self.promises = Promises()

    def cuts(self, rng: random.Random, count: int) -> Iterator[int]:
        """Stop at `count` places, in their order."""
        places = [n for n, entry in enumerate(self._log) if isinstance(entry, Block)]
        wanted = sorted(rng.choice(places) for _ in range(count))
        at = 0
        for when, entry in enumerate(self._log):
            if isinstance(entry, Block):
                for n in range(0, len(entry.data), SECTOR_BYTES):
                    sector = (entry.offset + n) // SECTOR_BYTES
                    version = when, entry.data[n : n + SECTOR_BYTES]
                    self.pending.setdefault(sector, []).append(version)
            elif isinstance(entry, Told):
                self.promises = self.promises.and_then([entry.value])
            elif self._deaf is None or self._deaf.random() > DEAF_TO:
                self._flush()
            while at < len(wanted) and wanted[at] == when:
                at += 1
                yield when

    def _flush(self) -> None:
        with self._base.open("r+b", buffering=0) as file:
            for sector, versions in self.pending.items():
                os.pwrite(file.fileno(), versions[-1][1], sector * SECTOR_BYTES)
        self._flushed += 1
        self.pending = {}

    def draw(self, rng: random.Random, image: Path) -> tuple[str, bytes]:
        """Make an image of what the disk may hold now; how, and a digest of it."""
        copy_sparse(self._base, image)
        digest = hashlib.blake2b(self._flushed.to_bytes(8, "little"), digest_size=16)
        dice = rng.choice(DICE)
        whole_writes = rng.random() < 0.3
        units = self._writes() if whole_writes else self._sectors()
        taken = dice(rng, [[when for when, _ in unit] for unit in units])
        with image.open("r+b", buffering=0) as file:
            for unit, last in zip(units, taken, strict=True):
                for when, sectors in unit:
                    for sector, data in sectors if when <= last else ():
                        os.pwrite(file.fileno(), data, sector * SECTOR_BYTES)
                        digest.update(sector.to_bytes(8, "little") + data)
        how = f"{dice.__name__.strip('_')} of {len(units)} {'writes' if whole_writes else 'sectors'}"
        return how, digest.digest()

    def _writes(self) -> list[Unit]:
        """Each write is there or not."""
        writes: dict[int, list[tuple[int, bytes]]] = {}
        for sector, versions in self.pending.items():
            for when, data in versions:
                writes.setdefault(when, []).append((sector, data))
        return [[write] for write in sorted(writes.items())]

    def _sectors(self) -> list[Unit]:
        """Each sector is any of its versions."""
        return [
            [(when, [(sector, data)]) for when, data in versions]
            for sector, versions in sorted(self.pending.items())
        ]


class Worker:
    """One file system's lives and cuts."""

    def __init__(self, kind: str, seed: int, ends_at: float, scratch: Path, keep: Path, images: int) -> None:
        self._kind = kind
        self._seed = seed
        self._ends_at = ends_at
        self._scratch = scratch
        self._keep = keep
        self._images = images
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def run(self) -> None:
        self._canary()
        life = 0
        while not self._done:
            life += 1
            log = self._live(life)
            rng = random.Random(f"{self._seed}:{life}")
            replayer, seen = Replayer(self._scratch / "base", log), set()
            for place in replayer.cuts(rng, CUTS_OF_A_LIFE):
                if self._done:
                    return
                dice, digest = replayer.draw(rng, self._scratch / "image")
                if digest in seen:
                    continue
                seen.add(digest)
                image = Image(self._scratch / "image", self._kind, replayer.promises)
                try:
                    self._check(image)
                except Violation as problem:
                    name = f"{self._seed}-{life}-{len(seen)}"
                    story = f"{self._kind} cut at {place} of {len(log)}, {dice}"
                    self.violations.append(image.keep(self._keep, name, story, problem))
                except DamagedError:
                    self.counts["not mountable"] += 1
                    continue
                self.counts.update(["images", self._kind])

    @property
    def _done(self) -> bool:
        enough = self.counts["images"] >= self._images or len(self.violations) >= VIOLATIONS_MAX
        return enough or time.monotonic() > self._ends_at

    def _canary(self) -> None:
        """A disk that ignores most flushes loses what was promised."""
        log = self._live(0)
        self.counts["barriers"] = sum(isinstance(entry, Barrier) for entry in log)
        rng = random.Random(f"{self._seed}:deaf")
        replayer = Replayer(self._scratch / "base", log, deaf=rng)
        for _ in replayer.cuts(rng, DEAF_CUTS):
            replayer.draw(rng, self._scratch / "image")
            try:
                self._check(Image(self._scratch / "image", self._kind, replayer.promises))
            except Violation:
                self.counts["canary"] += 1
            except DamagedError:
                self.counts["canary not mountable"] += 1
        if not self.counts["canary"]:
            self.violations.append("a disk that ignores most flushes lost nothing: nothing is tested")

    def _live(self, life: int) -> list[Logged]:
        """Live a life on the FUSE disk; what the disk has logged.  base: the disk before."""
        image = self._scratch / "live"
        make_file_system(image, self._kind)
        with Disk(self._scratch, image) as disk:
            with attached(disk.file, direct=True) as device:
                mount(device, self._scratch / "fs", self._kind)
                try:
                    unmount(self._scratch / "fs")  # what mounting for the first time writes is not ours
                    copy_sparse(image, self._scratch / "base")
                    disk.forget()
                    mount(device, self._scratch / "fs", self._kind)
                    with Child(self._first_life, disk.socket, f"{self._seed}:{life}") as child:
                        child.result()
                finally:
                    unmount(self._scratch / "fs")
            log = disk.stop()
        self.counts["lives"] += 1
        return log

    def _first_life(self, wire: Wire, door: str, seed: str) -> None:
        os.environ[SOCKET] = door
        lives.first_life(self._scratch / "fs" / "log", seed)

    def _check(self, image: Image) -> None:
        found = image.check(self._scratch)
        self.counts[f"as {found.recovery.case.value}"] += 1


def main() -> int:
    parser = worker_arguments()
    parser.add_argument("--kind", required=True)
    parser.add_argument("--images", type=int, default=NO_END)
    options = parser.parse_args()
    mount("none", options.scratch, "tmpfs", "size=2g")
    (options.scratch / "fs").mkdir()
    until = ends_at(options.seconds)
    worker = Worker(options.kind, options.seed, until, options.scratch, options.keep, options.images)
    worker.run()
    if worker.counts["not mountable"] > 5 + worker.counts["images"] // 10:
        worker.violations.append(f"{worker.counts['not mountable']} images could not be mounted")
    report(worker.counts, worker.violations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
