"""Recovery and everything that looks at a dead log, over hostile directories.

    shared = Progress()                    # what a child is at, seen by its parent
    run(models, seed, begin, end, root, shared)

Each directory is inspected, verified, read, described, recovered and, now and then,
opened, in a child that may have so much memory and so much time.  What must hold:

    J1  nothing but the log's own errors and OSError is raised;
    J2  every use ends soon;
    J3  no byte, name or kind of file changes unless recovery went through;
    J4  every record that is accepted is a valid frame in the file, and one that was
        appended unless a checksum was forged;
    J5  where only frames were damaged, blindly, either all below the mark is there or it is
        an error;
    J6  the second reader keeps what recovery keeps;
    J7  recovered again it is the same, and what could be read before can be read after.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import random
import resource
import shutil
import signal
import stat
import struct
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.hostile import Change, Model, mutate
from support.pyreader import DATA, FRAME, HEADER_AREA, VERSION, BadFrame, Frame, Origin, PyLog, happened

import shmlog
from shmlog.disk import directory, recovery
from shmlog.disk.recovery import Recovery
from shmlog.memory import block
from shmlog.system import files, machine
from shmlog.tools import info

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / f"v{VERSION}"
TYPED = (shmlog.ShmlogError, OSError)
USE_S = 3.0
"""Of processor time, for any use of one directory; milliseconds are usual."""
HANG_S = 30
"""By the clock, after which the child is killed."""
MEMORY_BYTES = 256 << 20
"""What a child may have beyond what it begins with."""
OTHER_BOOT = bytes(range(16))
SEEN: tuple[Callable[[Origin], Origin], ...] = (
    lambda mark: mark._replace(up_ns=mark.up_ns + 10**9),
    lambda mark: mark._replace(boot_id=OTHER_BOOT, file_system=1),
    lambda mark: mark._replace(
        boot_id=OTHER_BOOT, kernels=False, started_ns=mark.started_ns + 10**9, up_ns=mark.up_ns + 10**9
    ),
    lambda mark: mark._replace(born_ns=mark.born_ns + 1),
)
"""From where a log is seen: where it was written, after a restart, by a container that cannot tell
whether there was one, and in another place."""
OPENED = 40
"""One directory of so many is opened for appending as well."""


def models() -> list[Model]:
    return [Model.load(path) for path in sorted(GOLDEN.glob("*/log"))]


class Violation(AssertionError):
    """What must not be."""


@dataclass
class Outcome:
    """What one directory came to."""

    change: Change
    accepted: bool


class Progress:
    """Numbers that a child leaves where its parent sees them after its death."""

    _WORDS = ("at", "accepted", "refused", "opened", "slowest_us")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)

    def __getitem__(self, word: str) -> int:
        return int(struct.unpack_from("<Q", self._memory, 8 * self._WORDS.index(word))[0])

    def __setitem__(self, word: str, value: int) -> None:
        struct.pack_into("<Q", self._memory, 8 * self._WORDS.index(word), value)

    def text(self) -> str:
        return bytes(self._memory[64:]).rstrip(b"\0").decode(errors="replace")

    def say(self, text: str) -> None:
        self._memory[64:] = text.encode(errors="replace")[:4032].ljust(4032, b"\0")


# ---------------------------------------------------------------- one directory


def snapshot(path: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for where, names, plain in os.walk(path):
        for name in (*names, *plain):
            file = os.path.join(where, name)
            about = os.lstat(file)
            content: Any = None
            if stat.S_ISLNK(about.st_mode):
                content = os.readlink(file)
            elif stat.S_ISREG(about.st_mode):
                with open(file, "rb") as opened:
                    content = opened.read(1 << 20)
            found[file] = (stat.S_IFMT(about.st_mode), about.st_size, about.st_nlink, content)
    return found


class Lenient(PyLog):
    """The second reader, over files that do not change; padding may hold anything, as for the package."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._images: dict[int, bytes] = {}

    def _read(self, first: int, offset: int, size: int) -> bytes:
        if first not in self._images:
            self._images[first] = Path(self._segment_path(first)).read_bytes()
        data = self._images[first][offset : offset + size]
        assert len(data) == size
        return data

    def _whole(self, begin: int, stop: int) -> tuple[int, int]:
        first = begin - begin % self.segment_bytes
        if begin < stop and not self._read(first, HEADER_AREA + begin - first + 30, 1)[0]:
            return begin, begin  # never written, as most granules are
        return super()._whole(begin, stop)

    def _frame(self, image: bytes, at: int, lsn: int) -> Frame:
        if len(image) - at >= FRAME.size:
            size = FRAME.unpack_from(image, at)[0]
            stored = (FRAME.size + size + 31) // 32 * 32
            if at + stored <= len(image):
                used = at + FRAME.size + size
                return super()._frame(image[at:used] + bytes(at + stored - used), 0, lsn)
        return super()._frame(image, at, lsn)


class Judge:
    """Uses one directory in every way there is."""

    def __init__(self, path: Path, change: Change, here: Origin, progress: Progress | None = None) -> None:
        self.path, self.change, self.here, self._progress = path, change, here, progress
        self.where: directory.Directory | None = None

    def run(self, opened: bool) -> bool:
        """Whether recovery accepted the directory."""
        before = snapshot(self.path)
        self.where = self._use("load", lambda: directory.load(str(self.path)))
        found = self._use("inspect", lambda: recovery.inspect(self._where(), self.here.boot_id))
        report = self._use("verify", lambda: shmlog.verify(self.path))
        records, whole = self._read()
        self._use("describe", lambda: info.describe(str(self.path)))
        self._unchanged(before, "looking")
        if found is not None:
            self._compare(found, records, whole)
        done = self._use("recover", lambda: recovery.recover(self._where(), self.here.boot_id))
        if done is None:
            self._unchanged(before, "a recovery that was refused")
        else:
            self._again(done, records, whole, report)
        if opened:
            self._use("open", self._open)
        return done is not None

    def _where(self) -> directory.Directory:
        if self.where is None:
            return directory.load(str(self.path))
        return self.where

    def _use(self, what: str, use: Callable[[], Any]) -> Any:
        """What it returned; None if it was refused (J1, J2)."""
        began = time.process_time()
        try:
            return use()
        except TYPED:
            return None
        except Exception as error:
            raise Violation(f"{what} raised {type(error).__name__}: {error}") from error
        finally:
            took = time.process_time() - began
            if self._progress is not None:
                self._progress["slowest_us"] = max(self._progress["slowest_us"], int(took * 1e6))
            if took > USE_S:
                raise Violation(f"{what} took {took:.1f} s")

    def _read(self) -> tuple[list[tuple[int, int, bytes]], bool]:
        """The records that can be read, and whether all of them could be."""
        found: list[tuple[int, int, bytes]] = []

        def read() -> bool:
            with shmlog.open_readonly(self.path) as log:
                for record in log.read():
                    found.append((record.lsn, record.tag, bytes(record.data)))
            return True

        return found, bool(self._use("read", read))

    def _unchanged(self, before: dict[str, tuple[Any, ...]], by: str) -> None:
        """J3."""
        after = snapshot(self.path)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                raise Violation(f"{by} changed {name}")

    def _compare(self, found: Recovery, records: list[tuple[int, int, bytes]], whole: bool) -> None:
        """J4, J5, J6."""
        model = self.change.model
        for lsn, tag, payload in records:
            if (
                not self.change.forged
                and not self.change.elsewhere
                and model.records.get(lsn) != (tag, payload)
            ):
                raise Violation(f"a record at {lsn} that nobody appended")
        second = self._second()
        for lsn, tag, payload in records if second else ():
            first = lsn - lsn % second.segment_bytes
            image = second._read(first, HEADER_AREA, second.segment_bytes)
            try:
                frame = second._frame(image, lsn - first, lsn)
            except BadFrame as error:
                raise Violation(f"the record at {lsn} is no valid frame: {error}") from error
            if (frame.kind, frame.tag, frame.payload) != (DATA, tag, payload):
                raise Violation(f"the record at {lsn} differs from its file")
        if self.change.elsewhere:
            return
        if whole:
            have = {lsn for lsn, _, _ in records}
            lost = [n for n in model.records if found.trimmed_lsn <= n < found.vouched_lsn and n not in have]
            if lost and not self.change.forged:
                raise Violation(f"the records at {lost[:5]} are below the mark, and missing without an error")
        if second is not None:
            try:
                kept = second.kept(happened(second.newest_mark().origin, self.here))
            except AssertionError:  # nothing that a flusher writes
                return
            except BadFrame as error:
                raise Violation(f"recovery accepts what the second reader refuses: {error}") from error
            if (kept.end_lsn, tuple(kept.holes)) != (found.end_lsn, found.holes):
                raise Violation(f"the second reader keeps {kept}, recovery {found}")

    def _second(self) -> Lenient | None:
        try:
            log = Lenient(self.path)
            return log if log.segments() else None
        except Exception:  # it has no errors of its own for a log that is none
            return None

    def _again(self, done: Recovery, records: list[tuple[int, int, bytes]], whole: bool, report: Any) -> None:
        """J7."""
        again = self._use("inspect again", lambda: recovery.inspect(self._where(), self.here.boot_id))
        if again is None or (again.end_lsn, again.dropped_bytes, again.holes) != (done.end_lsn, 0, ()):
            raise Violation(f"recovered as {done}, and then found as {again}")
        if not whole:
            return
        after, whole_after = self._read()
        if not whole_after or [one for one in after if one in records] != records:
            raise Violation(f"{len(records)} records could be read, and after recovery {len(after)}")
        if report is not None and report.ok and not shmlog.verify(self.path).ok:
            raise Violation("recovery spoiled a log that was whole")

    def _open(self) -> None:
        where = self._where()
        try:
            log = shmlog.open(self.path, flusher="external", timeout=1.0)
            try:
                for _ in log.read():
                    pass
            finally:
                log.close()
        finally:
            block.unlink_all(where.identity.log_id)


# -------------------------------------------------------------- many of them


@contextlib.contextmanager
def seen_from(here: Origin) -> Iterator[None]:
    """Make this the machine and the place of every log, for this process."""
    real = files.boot_id, machine.has_kernels_boot_id, machine.clocks, machine.place
    files.boot_id = lambda: here.boot_id
    machine.has_kernels_boot_id = lambda: here.kernels
    machine.clocks = lambda: (here.started_ns, here.up_ns)
    machine.place = lambda _: (here.file_system, here.inode, here.born_ns)
    try:
        yield
    finally:
        files.boot_id, machine.has_kernels_boot_id, machine.clocks, machine.place = real


def case_of(known: Sequence[Model], seed: int, turn: int) -> tuple[Change, Origin, bool]:
    """The change, from where it is seen, and whether it is opened too: of one turn."""
    rng = random.Random(f"{seed}:{turn}")
    model = rng.choice(known)
    here = rng.choice(SEEN)(model.origin)
    return mutate(model, rng), here, rng.randrange(OPENED) == 0


def renamed(known: Sequence[Model], seed: int) -> list[Model]:
    """The models under ids that no other log of this machine has."""
    rng = random.Random(f"{seed}:ids")
    return [model.renamed(uuid.UUID(int=rng.getrandbits(128), version=4).bytes) for model in known]


def judge_turn(
    known: Sequence[Model], seed: int, turn: int, root: Path, progress: Progress | None = None
) -> bool:
    """Make and judge the directory of one turn: whether it was accepted.  It is left where it
    is if it raises."""
    change, here, opened = case_of(known, seed, turn)
    path = root / f"{turn}"
    change.tree.write(path)
    with seen_from(here):
        accepted = Judge(path, change, here, progress).run(opened)
    if progress is not None and opened:
        progress["opened"] += 1
    shutil.rmtree(path)
    return accepted


def child(known: Sequence[Model], seed: int, turns: range, root: Path, progress: Progress) -> int:
    """Judge some turns in a forked process with limits; its exit status: 0, or 9 with progress.text()."""
    pid = os.fork()
    if pid:
        return _outcome(pid)
    status = 70
    with contextlib.suppress(BaseException):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        logging.disable(logging.CRITICAL)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            for turn in turns:
                progress["at"] = turn
                signal.alarm(HANG_S)
                accepted = judge_turn(known, seed, turn, root, progress)
                word = "accepted" if accepted else "refused"
                progress[word] += 1
            status = 0
        except BaseException as error:
            progress.say(f"{type(error).__name__}: {error}")
            status = 9
    os._exit(status)


def _outcome(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def keep(path: Path, to: Path) -> None:
    """The directory as one compressed file: sparse segments cost nothing."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(to, "w:xz") as archive:
        archive.add(path, arcname="log")
