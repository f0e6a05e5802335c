"""Model: what a disk may hold after a power cut, the weakest that is sane.

    a file        a sync that has ended makes durable what the file held when it began
    a sector      (512 bytes) may be any version of it since then
    its size      likewise
    a name        may exist or not, in any order, until its directory was synced
    a rename      happens whole or not at all, unordered with all else

Nothing else is ordered.  A disk is moved along a timeline event by event; draw() throws
dice for what it would hold if the power were cut now.

This module knows files and sectors.  It may not know a log.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crash.power.recorder import SECTOR_BYTES, End, Event, Look, Name, Note, Timeline

PAGE_SECTORS = 8
SUBSETS_MAX = 12
"""With so few dirty sectors every subset of them is drawn sooner or later, not only those of the dice."""

Image = dict[str, bytes | None]
"""What is at each path below the root; None: a directory."""


@dataclass
class _File:
    base: bytearray = field(default_factory=bytearray)
    base_size: int = 0
    sectors: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    """(time, bytes) of each version since the last sync, oldest first"""
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def sync(self, began: int) -> None:
        """Everything up to the time `began` is durable."""
        for sector, versions in list(self.sectors.items()):
            durable = [data for time, data in versions if time <= began]
            if durable:
                self._store(self.base, sector, durable[-1])
                rest = versions[len(durable) :]
                if rest:
                    self.sectors[sector] = rest
                else:
                    del self.sectors[sector]
        known = [size for time, size in self.sizes if time <= began]
        if known:
            self.base_size = known[-1]
            self.sizes = self.sizes[len(known) :]

    @staticmethod
    def _store(image: bytearray, sector: int, data: bytes) -> None:
        at = sector * SECTOR_BYTES
        if len(image) < at + SECTOR_BYTES:
            image.extend(bytes(at + SECTOR_BYTES - len(image)))
        image[at : at + SECTOR_BYTES] = data

    def bytes_with(self, chosen: dict[int, bytes], size: int) -> bytes:
        image = bytearray(self.base)
        for sector, data in chosen.items():
            self._store(image, sector, data)
        return bytes(image[:size]).ljust(size, b"\0")


@dataclass
class _Directory:
    base: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[int, dict[Name, int | None]]] = field(default_factory=list)

    def sync(self, began: int) -> None:
        self.base = self.with_steps(lambda time: time <= began)
        self.changes = [change for change in self.changes if change[0] > began]

    def with_steps(self, happened: Callable[[int], bool]) -> dict[str, int]:
        names = dict(self.base)
        for time, step in self.changes:
            if happened(time):
                for (_, name), inode in step.items():
                    if inode is None:
                        names.pop(name, None)
                    else:
                        names[name] = inode
        return names


@dataclass(frozen=True)
class Draw:
    """One state after a cut."""

    image: Image
    dice: str
    dirty: int

    @property
    def digest(self) -> bytes:
        found = hashlib.blake2b(digest_size=16)
        for path, data in sorted(self.image.items()):
            found.update(f"{path} {-1 if data is None else len(data)} ".encode())
            found.update(data or b"")
        return found.digest()


class Disk:
    """A disk at one moment of a timeline."""

    def __init__(self, timeline: Timeline, deaf: random.Random | None = None) -> None:
        """deaf: a disk that ignores every second sync, by these dice."""
        self._root = timeline.root
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {}
        self._deaf = deaf
        for time, event in enumerate(timeline.events[: timeline.first]):
            self.go_on(time, event)
        for part in (*self._files.values(), *self._directories.values()):
            part.sync(timeline.first)

    def go_on(self, time: int, event: Event) -> None:
        """The event at this time happens."""
        if isinstance(event, Look):
            for inode in event.directories:
                self._directories.setdefault(inode, _Directory())
            for inode, size in event.sizes:
                self._file(inode).sizes.append((time, size))
            for inode, sector, data in event.sectors:
                self._file(inode).sectors.setdefault(sector, []).append((time, data))
            for step in event.names:
                (directory, _), *_ = step
                self._directories.setdefault(directory, _Directory()).changes.append((time, step))
        elif isinstance(event, End) and not event.errno:
            if self._deaf is not None and self._deaf.random() < 0.5:
                return
            part = self._directories.get(event.inode) or self._files.get(event.inode)
            if part is not None:
                part.sync(event.token)

    def _file(self, inode: int) -> _File:
        return self._files.setdefault(inode, _File())

    @property
    def names_pending(self) -> bool:
        return any(directory.changes for directory in self._directories.values())

    def draw(self, rng: random.Random, torn_sector: bool = False) -> Draw:
        """What is on the disk if the power is cut now.  torn_sector: by a disk that also leaves
        half a sector, or garbage, where it was writing."""
        by_page = rng.random() < 0.4
        units = self._units(by_page)
        dice = rng.choice(DICE)
        if len(units) <= SUBSETS_MAX and rng.random() < 0.5:
            dice = _subset
        old_names = rng.choice((0.0, 0.5, 0.5, 1.0))
        names = {
            inode: directory.with_steps(lambda _: rng.random() >= old_names)
            for inode, directory in self._directories.items()
        }
        taken = dice(rng, [[time for time, _ in versions] for _, versions in units])
        chosen: dict[int, dict[int, bytes]] = {}
        for (inode, versions), time in zip(units, taken, strict=True):
            for at, sectors in versions:
                if at <= time:
                    chosen.setdefault(inode, {}).update(sectors)
        if torn_sector and units:
            self._tear(rng, chosen)
        image: Image = {}
        self._collect(image, "", self._root, names, chosen, rng)
        what = f"{dice.__name__.strip('_')} of {len(units)} {'pages' if by_page else 'sectors'}"
        return Draw(image, what, len(units))

    def _tear(self, rng: random.Random, chosen: dict[int, dict[int, bytes]]) -> None:
        inode = rng.choice([inode for inode, file in sorted(self._files.items()) if file.sectors])
        file = self._files[inode]
        sector, versions = rng.choice(sorted(file.sectors.items()))
        old = file.bytes_with({}, len(file.base))[sector * SECTOR_BYTES :][:SECTOR_BYTES]
        new, at = versions[-1][1], rng.randrange(SECTOR_BYTES + 1)
        mixed = new[:at] + old.ljust(SECTOR_BYTES, b"\0")[at:]
        chosen.setdefault(inode, {})[sector] = rng.choice([mixed, rng.randbytes(SECTOR_BYTES)])

    def _units(self, by_page: bool) -> list[tuple[int, list[tuple[int, dict[int, bytes]]]]]:
        """Each dirty page or sector: its file, and its versions, each what it changes."""
        found = []
        for inode, file in sorted(self._files.items()):
            groups: dict[int, dict[int, dict[int, bytes]]] = {}
            for sector, versions in sorted(file.sectors.items()):
                unit = groups.setdefault(sector // PAGE_SECTORS if by_page else sector, {})
                for time, data in versions:
                    unit.setdefault(time, {})[sector] = data
            found += [(inode, sorted(unit.items(), key=lambda item: item[0])) for unit in groups.values()]
        return found

    def _collect(
        self,
        image: Image,
        path: str,
        inode: int,
        names: dict[int, dict[str, int]],
        chosen: dict[int, dict[int, bytes]],
        rng: random.Random,
    ) -> None:
        for name, found in names.get(inode, {}).items():
            below = f"{path}{name}"
            if found in self._directories:
                image[below] = None
                self._collect(image, f"{below}/", found, names, chosen, rng)
            else:
                file = self._file(found)
                size = rng.choice([file.base_size, *(size for _, size in file.sizes)])
                image[below] = file.bytes_with(chosen.get(found, {}), size)


# ----------------------------------------------------------------------- dice
#
# Each is given the times of every dirty unit's versions, and says for each up to which
# time it was written; NEVER: as it was.

NEVER = -1
_Times = list[list[int]]


def _all_old(rng: random.Random, units: _Times) -> list[int]:
    return [NEVER] * len(units)


def _all_new(rng: random.Random, units: _Times) -> list[int]:
    return [times[-1] for times in units]


def _one_missing(rng: random.Random, units: _Times) -> list[int]:
    taken = _all_new(rng, units)
    if units:
        n = rng.randrange(len(units))
        taken[n] = rng.choice([NEVER, *units[n][:-1]])
    return taken


def _one_present(rng: random.Random, units: _Times) -> list[int]:
    taken = _all_old(rng, units)
    if units:
        n = rng.randrange(len(units))
        taken[n] = rng.choice(units[n])
    return taken


def _first_ones(rng: random.Random, units: _Times) -> list[int]:
    count = rng.randrange(len(units) + 1)
    return [times[-1] if n < count else NEVER for n, times in enumerate(units)]


def _last_ones(rng: random.Random, units: _Times) -> list[int]:
    count = rng.randrange(len(units) + 1)
    return [times[-1] if n >= count else NEVER for n, times in enumerate(units)]


def _every_second(rng: random.Random, units: _Times) -> list[int]:
    parity = rng.randrange(2)
    return [times[-1] if n % 2 == parity else NEVER for n, times in enumerate(units)]


def _any_version(rng: random.Random, units: _Times) -> list[int]:
    return [rng.choice([NEVER, *times]) for times in units]


def _mostly_new(rng: random.Random, units: _Times) -> list[int]:
    return [rng.choice([NEVER, *times]) if rng.random() < 0.1 else times[-1] for times in units]


def _subset(rng: random.Random, units: _Times) -> list[int]:
    bits = rng.randrange(1 << len(units))
    return [times[-1] if bits >> n & 1 else NEVER for n, times in enumerate(units)]


DICE = (
    _all_old,
    _all_new,
    _one_missing,
    _one_missing,
    _one_present,
    _first_ones,
    _last_ones,
    _every_second,
    _any_version,
    _any_version,
    _mostly_new,
)


def moments(
    timeline: Timeline, rng: random.Random, count: int, deaf: random.Random | None = None
) -> Iterator[tuple[int, Disk, list[Note]]]:
    """The disk at `count` moments, in their order, and everything noted until then; half of
    the moments are chosen where a name has changed."""
    probe = Disk(timeline)
    times = range(timeline.first, len(timeline.events))
    if not times:
        return
    special = []
    for time in times:
        probe.go_on(time, timeline.events[time])
        if probe.names_pending:
            special.append(time)
    wanted = sorted(rng.choice(special if special and rng.random() < 0.5 else times) for _ in range(count))
    disk, notes, at = Disk(timeline, deaf), [], 0
    for time in times:
        event = timeline.events[time]
        disk.go_on(time, event)
        if isinstance(event, Note):
            notes.append(event)
        while at < len(wanted) and wanted[at] == time:
            at += 1
            yield time, disk, notes


def write(image: Image, root: Path) -> None:
    """Make the tree, durable as far as anybody can tell."""
    for path, data in sorted(image.items()):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
