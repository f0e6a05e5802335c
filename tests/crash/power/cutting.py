"""Cutting: the worker that records lives, cuts the power at many moments of them and checks
what is left.

    python -m crash.power.cutting --seed 7 --distinct 1000 --seconds 60

Runs with LD_PRELOAD=shim.so and prints one JSON object.  A state is one distinct image of
the log's files, recovered by the real recovery and checked:

    cut          a life of writers, flusher, cursor and trims
    nested       a cut within a recovery of such a state, three deep
    resurrected  such a state recovered, appended to, and cut again

Apart from these, a few states have half a sector or garbage where the disk was writing: no log
survives that of what shared the sector, but it must be detected, and nothing else is lost.

A state that breaks a promise is kept below `--keep`, named SEED-TURN, with all that is
needed to see it again (kept).
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from crash.kit import NO_END
from crash.power import lives
from crash.power.kept import Kept
from crash.power.model import Disk, Draw, Image, moments, write
from crash.power.promises import Found, LostError, Promises, RefusedError, Violation, check
from crash.power.recorder import Recorder, Timeline
from crash.power.workers import ends_at, report, worker_arguments

MOMENTS = 80
DRAWS = 8
"""Of each moment."""
NESTED_SHARE, RESURRECTED_SHARE = 1 / 35, 1 / 35
"""Of the states, and of those that lost a tail: each is the beginning of a life of its own, of
which more cuts are drawn."""
TORN_SHARE = 1 / 8
NESTED_MOMENTS, RESURRECTED_MOMENTS = 8, 16
DEPTH = 3
VIOLATIONS_MAX = 5


def boot(n: int) -> bytes:
    """The boot id of the n-th restart."""
    return n.to_bytes(16, "big")


@dataclass
class Worker:
    """One worker's dice, scratch and counts."""

    seed: int
    least: dict[str, int]
    """how many of each kind are enough; "distinct" is all of them"""
    ends_at: float
    scratch: Path
    keep: Path
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _turn: int = 0
    seen: set[bytes] = field(default_factory=set)

    def run(self) -> None:
        life = 0
        while not self.done:
            life += 1
            root, timeline = self._first_life(life)
            shutil.rmtree(root)
            self._cut_first_life(timeline, f"life {life}")

    @property
    def done(self) -> bool:
        enough = all(self.counts[kind] >= least for kind, least in self.least.items())
        return enough or time.monotonic() > self.ends_at or len(self.violations) >= VIOLATIONS_MAX

    def canary(self) -> int:
        """Cut a life on a disk that ignores every second sync: how many of a hundred states
        break a promise.  With none the harness would see nothing."""
        root, timeline = self._first_life(0)
        shutil.rmtree(root)
        broken, rng = 0, random.Random(f"{self.seed}:deaf")
        for _, disk, notes in moments(timeline, rng, 100, deaf=rng):
            promises = Promises().and_then(note.value for note in notes)
            try:
                self._check(disk.draw(rng).image, promises, boot(1))
            except Violation:
                broken += 1
        return broken

    def _first_life(self, life: int) -> tuple[Path, Timeline]:
        root = self._new_root()
        timeline, _ = Recorder(root).record(lives.first_life, root / "log", f"{self.seed}:{life}")
        self.counts["lives"] += 1
        return root, timeline

    def _cut_first_life(self, timeline: Timeline, story: str) -> None:
        rng = random.Random(f"{self.seed}:{story}")
        for at, disk, notes in moments(timeline, rng, MOMENTS):
            promises = Promises().and_then(note.value for note in notes)
            for _ in range(DRAWS):
                if self.done:
                    return
                draw, dice = self._draw(disk)
                where = f"{story} cut at {at} of {len(timeline.events)}, {draw.dice}"
                if dice.random() < TORN_SHARE:
                    self._judge_torn(disk.draw(dice, torn_sector=True), promises, where)
                found = self._judge("cut", draw, promises, 1, where)
                if found is None or not promises.made:
                    continue
                if dice.random() < NESTED_SHARE:
                    self._cut_recovery(draw.image, promises.after(found), 1, where)
                elif found.recovery.dropped_bytes and dice.random() < RESURRECTED_SHARE:
                    self._cut_after_recovery(draw.image, promises.after(found), where)

    def _cut_recovery(self, image: Image, promises: Promises, depth: int, story: str) -> None:
        """Recover the image and cut that, and one of what is left again."""
        root = self._new_root()
        write(image, root)
        timeline, _ = Recorder(root).record(lives.recovering_life, root / "log", boot(depth))
        shutil.rmtree(root)
        rng = random.Random(f"{self.seed}:{story}")
        again = True
        for at, disk, _ in moments(timeline, rng, NESTED_MOMENTS):
            if self.done:
                return
            draw, _ = self._draw(disk)
            where = f"{story}; recovery {depth} cut at {at} of {len(timeline.events)}, {draw.dice}"
            found = self._judge("nested", draw, promises, depth + 1, where)
            if found is not None and again and depth < DEPTH:
                again = False
                self._cut_recovery(draw.image, promises, depth + 1, where)

    def _cut_after_recovery(self, image: Image, promises: Promises, story: str) -> None:
        """Recover the image, append less than was dropped or a little more, and cut that."""
        root, rng = self._new_root(), random.Random(f"{self.seed}:{story}")
        write(image, root)
        recorder = Recorder(root)
        writer, count = 10, rng.choice([1, 3, 10, 40])
        timeline, _ = recorder.record(lives.going_on_life, root / "log", boot(1), writer, story, count)
        shutil.rmtree(root)
        self.counts["lives"] += 1
        for at, disk, notes in moments(timeline, rng, RESURRECTED_MOMENTS):
            later = promises.and_then(note.value for note in notes)
            for _ in range(2):
                if self.done:
                    return
                draw, _ = self._draw(disk)
                where = f"{story}; went on, cut at {at} of {len(timeline.events)}, {draw.dice}"
                self._judge("resurrected", draw, later, 2, where)

    # -------------------------------------------------------------- internals

    def _new_root(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def _draw(self, disk: Disk) -> tuple[Draw, random.Random]:
        self._turn += 1
        dice = random.Random(f"{self.seed}:{self._turn}")
        return disk.draw(dice), dice

    def _judge(self, kind: str, draw: Draw, promises: Promises, restarts: int, story: str) -> Found | None:
        """Count the state; what was found, or None if it is known or breaks a promise."""
        if draw.digest in self.seen:
            self.counts["known"] += 1
            return None
        self.seen.add(draw.digest)
        self.counts.update([kind, "distinct"])
        boot_id = boot(restarts)
        try:
            found = self._check(draw.image, promises, boot_id)
        except Violation as problem:
            self._keep(Kept(draw.image, promises, boot_id, story, str(problem)))
            return None
        self.counts[f"as {found.recovery.case.value}"] += 1
        return found

    def _judge_torn(self, draw: Draw, promises: Promises, story: str) -> None:
        self.counts["torn sectors"] += 1
        try:
            self._check(draw.image, promises, boot(1))
        except (LostError, RefusedError):
            self.counts["torn sectors detected"] += 1
        except Violation as problem:
            self._keep(Kept(draw.image, promises, boot(1), f"{story}, with a torn sector", str(problem)))

    def _keep(self, kept: Kept) -> None:
        name = f"{self.seed}:{self._turn}"
        self.violations.append(f"{name} {kept.story}: {kept.problem}")
        kept.save(self.keep, name)

    def _check(self, image: Image, promises: Promises, boot_id: bytes) -> Found:
        root = self._new_root()
        try:
            write(image, root)
            return check(root / "log", promises, boot_id)
        finally:
            shutil.rmtree(root)


def main() -> int:
    parser = worker_arguments()
    for kind, least in (("distinct", NO_END), ("nested", 0), ("resurrected", 0)):
        parser.add_argument(f"--{kind}", type=int, default=least)
    parser.add_argument("--no-canary", action="store_true")
    options = parser.parse_args()
    until = ends_at(options.seconds)
    least = {kind: getattr(options, kind) for kind in ("distinct", "nested", "resurrected")}
    worker = Worker(options.seed, least, until, options.scratch, options.keep)
    if not options.no_canary:
        with lives.in_one_place():
            worker.counts["canary"] = worker.canary()
        if not worker.counts["canary"]:
            worker.violations.append("a disk that ignores every second sync lost nothing: nothing is tested")
    with lives.in_one_place():
        worker.run()
    report(worker.counts, worker.violations, worker.seen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
