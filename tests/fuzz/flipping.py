"""A small log below its mark, spoiled in every small way: one bit, one cut, one granule.

Two judges: the walker in memory, a few microseconds each, for all of them; and recovery,
verify and a full open over the files, for as many as there is time for.  Silent is what is
accepted although the record that was there is not.  The zeros behind a payload, up to the
next granule, belong to no record; they are the only bytes that may change unseen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.pyreader import DATA, HEADER_AREA, PyLog

import shmlog
from shmlog import _native
from shmlog.disk import directory, recovery
from shmlog.system import files

LOG_BYTES = 16 << 10
GRANULE = 32


def make(path: Path, seed: int = 1) -> None:
    """A log of LOG_BYTES, closed in order: its mark vouches for all of it."""
    rng = random.Random(seed)
    with shmlog.open(path, create=True, segment_bytes=64 << 10, window_bytes=64 << 10) as log:
        while (left := LOG_BYTES - log.reserved_lsn) > 0:
            size = min(int(rng.random() ** 3 * 600), left - GRANULE)
            if rng.random() < 0.15 and left > 600:
                log.append_many([rng.randbytes(rng.randrange(60)) for _ in range(4)], 2, atomic=True)
            elif rng.random() < 0.05:
                log.reserve(size).abort()
            else:
                log.append(rng.randbytes(size), 1)


@dataclass
class Reference:
    """The log in memory."""

    path: Path
    seed: int
    image: bytes
    count: int
    padding: frozenset[int]
    """offsets that belong to no record"""

    @classmethod
    def of(cls, path: Path) -> Reference:
        log = PyLog(path)
        assert log.newest_mark()[1] == LOG_BYTES
        padding: set[int] = set()
        count = 0
        for frame in log.frames(0, LOG_BYTES):
            used = frame.lsn + GRANULE + len(frame.payload)
            padding.update(range(used, frame.end_lsn))  # all that a filler covers, too
            count += frame.kind == DATA
        return cls(path, log.seed, log._read(0, HEADER_AREA, LOG_BYTES), count, frozenset(padding))

    @property
    def file(self) -> Path:
        return self.path / "segments" / f"{0:020d}.seg"

    # ------------------------------------------------------------ in memory

    def silent(self, image: bytes | bytearray) -> bool:
        """Whether the walker takes an image for a log that is whole."""
        found = _native.walk(image, 0, 0, LOG_BYTES, self.seed, True, -1, False, None)
        return found == (self.count, LOG_BYTES, LOG_BYTES, 0)

    def excused(self, offset: int) -> bool:
        return offset in self.padding

    def flips(self, begin: int = 0, end: int = LOG_BYTES) -> Iterator[str | None]:
        """Each bit: None if it was seen, or what was silent."""
        image = bytearray(self.image)
        for at in range(begin, end):
            for bit in range(8):
                image[at] ^= 1 << bit
                bad = self.silent(image) and not self.excused(at)
                image[at] ^= 1 << bit
                yield f"bit {bit} of byte {at}" if bad else None

    def cuts(self) -> Iterator[str | None]:
        """Zeros from each byte on."""
        image = bytearray(self.image)
        for at in range(LOG_BYTES - 1, -1, -1):
            image[at] = 0
            bad = self.silent(image) and any(
                self.image[n] and not self.excused(n) for n in range(at, LOG_BYTES)
            )
            yield f"zeros from byte {at} on" if bad else None

    def granules(self, rng: random.Random | None = None, share: float = 1.0) -> Iterator[str | None]:
        """Each granule zeroed, each pair swapped, each laid over each; or a share of the pairs."""
        image, count = bytearray(self.image), LOG_BYTES // GRANULE
        at = [slice(GRANULE * n, GRANULE * (n + 1)) for n in range(count)]
        for n in range(count):
            yield self._with(image, {n: bytes(GRANULE)}, f"granule {n} zeroed")
            for other in range(count):
                if rng is not None and rng.random() >= share:
                    continue
                here, there = self.image[at[n]], self.image[at[other]]
                if here == there:
                    continue
                yield self._with(image, {other: here}, f"granule {n} laid over {other}")
                if n < other:
                    yield self._with(image, {other: here, n: there}, f"granules {n} and {other} swapped")

    def _with(self, image: bytearray, changes: dict[int, bytes], what: str) -> str | None:
        for n, data in changes.items():
            image[GRANULE * n : GRANULE * (n + 1)] = data
        bad = self.silent(image) and any(
            image[at] != self.image[at] and not self.excused(at)
            for n in changes
            for at in range(GRANULE * n, GRANULE * (n + 1))
        )
        for n in changes:
            image[GRANULE * n : GRANULE * (n + 1)] = self.image[GRANULE * n : GRANULE * (n + 1)]
        return what if bad else None

    # ------------------------------------------------------------- in files

    def flip_in_file(self, at: int, bit: int, full: bool) -> str | None:
        """One bit of the file as recovery, or as every kind of opening, sees it."""
        if self.excused(at):
            return None
        with self.file.open("r+b", buffering=0) as file:
            good = os.pread(file.fileno(), 1, HEADER_AREA + at)
            os.pwrite(file.fileno(), bytes([good[0] ^ 1 << bit]), HEADER_AREA + at)
            try:
                return self._refused(at, full, f"bit {bit} of byte {at} of the file")
            finally:
                os.pwrite(file.fileno(), good, HEADER_AREA + at)

    def cut_file(self, size: int) -> str | None:
        """The file, so short; put back as it was, sparse."""
        good, whole = self.file.read_bytes(), self.file.stat().st_size
        try:
            os.truncate(self.file, size)
            return self._refused(0, False, f"a file of {size} bytes")
        finally:
            self.file.write_bytes(good[: HEADER_AREA + LOG_BYTES])
            os.truncate(self.file, whole)

    def _refused(self, at: int, full: bool, what: str) -> str | None:
        where = directory.load(str(self.path))
        for boot_id in (files.boot_id(), bytes(range(16))):
            try:
                recovery.inspect(where, boot_id)
                return f"{what}: recovery accepts it"
            except shmlog.CorruptionError as error:
                if error.lsn > at:
                    return f"{what}: recovery names LSN {error.lsn}"
            except shmlog.FormatError:
                pass
        if not full:
            return None
        if shmlog.verify(self.path).ok:
            return f"{what}: verify accepts it"
        for use in (shmlog.open, shmlog.open_readonly, shmlog.recover):
            try:
                accepted = use(self.path)
                if isinstance(accepted, shmlog.Log):
                    accepted.close()
                return f"{what}: {use.__name__} accepts it"
            except shmlog.CorruptionError:
                pass
        return None
