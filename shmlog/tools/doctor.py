"""Doctor: what is wrong with a log and its surroundings, and what to do about it.

Each check is a sentence with a verdict.  All of it is a look: nothing is joined, started or
written.  What lies in the frames is `verify`'s; of a live log only files and marks are
looked at here, of a dead one what recovery would judge.

This module knows which questions to ask, and in which order.  It may not know how the
answers are found, nor put anything right.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from shmlog.disk import cursors, directory, failure, reports, segment, settings
from shmlog.disk.directory import Directory
from shmlog.disk.recovery import inspect
from shmlog.disk.segments import list_segments, newest_mark, segment_path
from shmlog.errors import FormatError, LogFailedError, ShmlogError
from shmlog.format.layout import CB, FORMAT_VERSION, SIGNATURE
from shmlog.memory import block, control
from shmlog.memory.control import ControlView
from shmlog.session.look import Look, view_of
from shmlog.system import files, machine, surroundings
from shmlog.tools import users
from shmlog.tools.leftovers import leftovers

OK, WARNING, WRONG = "ok", "warning", "wrong"


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    verdict: str
    """ok, warning or wrong"""
    text: str
    advice: str = ""
    """what to do, unless it is ok"""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


Checks = Iterator[Check]


def examine(path: str | os.PathLike[str]) -> list[Check]:
    """Every check of the log at path.  FileNotFoundError where there is nothing, FormatError where
    there is no log, PermissionError where this user may not look."""
    where = directory.load(os.fsdecode(path), to_look=True)
    checks: tuple[Callable[[Directory], Checks], ...] = (
        _versions,
        _place,
        _file_system,
        _disk_room,
        _shared_memory,
        _boot,
        _control_block,
        _flusher,
        _participants,
        _failure,
        _files,
        _retention,
        _cursors,
        _leftovers,
    )
    found = []
    for check in checks:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            found += list(check(where))
        except (ShmlogError, OSError) as error:
            found.append(Check(name, WRONG, f"cannot be checked: {error}", "see the message"))
    return found


def _versions(_: Directory) -> Checks:
    try:
        version = importlib.metadata.version("shmlog")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    text = f"shmlog {version}, log format {FORMAT_VERSION}, layout {SIGNATURE:#x}"
    yield Check(
        "versions",
        OK,
        f"{text}, Python {platform.python_version()}, {platform.system()} {platform.release()}",
    )


def _place(where: Directory) -> Checks:
    found = os.stat(where.path)
    text = f"{where.path}, mode {found.st_mode & 0o777:o}, of user {found.st_uid}"
    if not os.path.lexists(where.lock_path):
        if list_segments(where):
            yield Check(
                "place",
                WRONG,
                f"{where.path} has no LOCK: it was removed, or left out of a copy",
                "end whoever uses the log: who comes now does not see their locks. The next open makes one",
            )
            return
    elif os.lstat(where.lock_path).st_uid != where.owner:
        advice = "give the files back to one user: chown -R"
        yield Check("place", WRONG, f"{where.lock_path} belongs to another user than the directory", advice)
        return
    yield Check("place", OK, text)


def _file_system(where: Directory) -> Checks:
    kind = surroundings.file_system(where.path)
    name = "file system"
    if kind in surroundings.NETWORK:
        yield Check(
            name,
            WARNING,
            f"{kind}: a network file system; writers of two machines would ruin the log",
            "use a local disk, or see to it that one machine alone opens the log",
        )
    elif kind in surroundings.VOLATILE:
        yield Check(
            name,
            WARNING,
            f"{kind}: in memory; what is called durable does not survive a restart",
            "put the log on a disk if it is to survive one",
        )
    else:
        yield Check(name, OK, kind or "not known")


def _disk_room(where: Directory) -> Checks:
    room = surroundings.room(where.path)
    piece, size = surroundings.PIECE_BYTES, where.identity.geometry.segment_bytes
    text = f"{_size(room.free_bytes)} free"
    advice = "free disk space, or trim the log; appends go on by themselves"
    if room.free_bytes < min(piece, size) or room.free_files == 0:
        few = " and no more files can be made" if room.free_files == 0 else ""
        yield Check("disk room", WRONG, f"{text}{few}: the next piece cannot be prepared", advice)
    elif room.free_bytes < 2 * size:
        yield Check("disk room", WARNING, f"{text}: less than two segments of {_size(size)}", advice)
    else:
        yield Check("disk room", OK, text)


def _shared_memory(where: Directory) -> Checks:
    needed = 0 if block.exists(where.identity.log_id) else where.identity.geometry.control_bytes
    try:
        room = surroundings.room(surroundings.SHARED_MEMORY)
    except OSError as error:
        yield Check("shared memory", WRONG, f"/dev/shm: {error.strerror}", "mount a tmpfs there")
        return
    text = f"/dev/shm: {_size(room.free_bytes)} free"
    if room.free_bytes < needed:
        advice = "free it (`shmlog gc` lists what dead logs left), or make it larger (docker: --shm-size)"
        yield Check("shared memory", WRONG, f"{text}; opening the log takes {_size(needed)}", advice)
    else:
        yield Check("shared memory", OK, text)


def _boot(_: Directory) -> Checks:
    if not machine.has_kernels_boot_id():
        text = (
            "a container's own: whether the machine restarted is told by its clocks, or must be told by you"
        )
        yield Check("boot id", OK, text)
    elif machine.clocks_are_shifted():
        yield Check("boot id", OK, "the kernel's; a time namespace shifts the clock, which is not looked at")
    else:
        yield Check("boot id", OK, "the kernel's")


def _control_block(where: Directory) -> Checks:
    name = "control block"
    boot_id, in_use = files.boot_id(), Look(where).in_use()
    shown = f"/dev/shm/{block.block_name(where.identity.log_id)}"
    view = view_of(where, boot_id)
    if view is None:
        why = control.why_not(where.identity, boot_id, where.place(), where.owner)
        if why and in_use:
            advice = "end all users of the log; the next open makes a new block. Do not remove it before"
            yield Check(name, WRONG, f"{shown} cannot be joined: {why}", advice)
        elif why:
            yield Check(name, WARNING, f"{shown} is of no use: {why}", "the next open replaces it")
        elif in_use:
            advice = "end its users, and open the log again; or open it in their container"
            yield Check(name, WRONG, block.missing(where.path, where.identity.log_id), advice)
        else:
            yield Check(name, OK, "none: nobody uses the log")
        return
    try:
        view.bounds()
    except LogFailedError as error:
        yield Check(
            name,
            WRONG,
            f"{shown}: {error.what}",
            "end all users of the log; the next open recovers the files",
        )
        return
    marks = ", ".join(
        f"{word.lower()} {view.load(getattr(CB, word + '_LSN'))}"
        for word in ("TRIMMED", "DURABLE", "COMMITTED", "RESERVED")
    )
    if in_use:
        yield Check(name, OK, f"{shown}: {marks}")
    else:
        advice = "the next open goes on with it; nothing is lost while the machine is up"
        yield Check(name, WARNING, f"{shown} is left of users that were killed: {marks}", advice)


def _flusher(where: Directory) -> Checks:
    view = view_of(where, files.boot_id())
    if view is None:
        yield Check("flusher", OK, "none, and none is needed")
        return
    found = users.flusher(where, view)
    if not found.runs:
        if found.starts > 1:
            advice = f"see {where.flusher_log_path}; can that user run Python there, and make files?"
            yield Check("flusher", WRONG, f"none runs, and {found.starts} were started in vain", advice)
        else:
            advice = 'the next one who waits starts one; with flusher="external", run `shmlog flush DIR`'
            yield Check("flusher", WARNING, "none runs", advice)
    elif found.stopped:
        yield Check(
            "flusher",
            WRONG,
            f"{found.who}: nothing becomes readable or durable",
            f"let it go on: kill -CONT {found.pid}",
        )
    else:
        yield Check("flusher", OK, f"{found.who}, the {found.generation}. of this control block")


def _participants(where: Directory) -> Checks:
    view = view_of(where, files.boot_id())
    if view is None:
        return
    found, waited_s = users.participants(where, view), users.held_back_s(view)
    since = "" if waited_s is None else f" for {_age(waited_s)}"
    for user in found:
        text = f"{user.who}, for {_age(user.age_s)}, {user.records} records"
        if user.claims:
            text += f", reserving {', '.join(f'[{begin}, {end})' for begin, end in user.claims)}"
        if not user.alive:
            advice = "a flusher sees to it; nothing is to be done while one runs"
            yield Check("participant", WARNING, f"{text}: it has died and its place is not freed yet", advice)
        elif user.blocks and user.stopped:
            advice = f"let it go on (kill -CONT {user.pid}), or end it: then its range is given up"
            yield Check("participant", WRONG, f"{text}: it is stopped, and everybody waits{since}", advice)
        elif user.blocks:
            advice = "it is between reserve() and publish(): if it stays there, look at that program"
            yield Check("participant", WARNING, f"{text}: everybody waits for it{since}", advice)
        else:
            yield Check("participant", OK, text)
    if len(found) >= users.NEARLY_ALL:
        advice = "use one handle for each process, and close those not needed"
        yield Check("participants", WRONG, f"{len(found)} of {users.ALL} places are taken", advice)


def _failure(where: Directory) -> Checks:
    view, noted = view_of(where, files.boot_id()), failure.find(where)
    latched = users.failure(view) if view is not None else None
    advice = (
        "look at the disk (dmesg); then end all users and open the log again: it is recovered from the files"
    )
    if latched is not None:
        yield Check("failure", WRONG, f"the log has failed: {latched}", advice)
    elif noted is not None:
        yield Check("failure", WRONG, f"the log had failed, says its note: {noted}", advice)
    else:
        yield Check("failure", OK, "none")


def _files(where: Directory) -> Checks:
    view = view_of(where, files.boot_id())
    try:
        if view is None and not Look(where).in_use():
            found = inspect(where, files.boot_id())
            text = f"{found.case.value}: goes on at LSN {found.end_lsn}, {len(found.holes)} holes"
            if found.dropped_bytes:
                advice = "the next open drops what is torn; nothing that was called durable is in it"
                text += f", {found.dropped_bytes} bytes torn: {found.reason}"
                yield Check("files", WARNING, text, advice)
            else:
                yield Check("files", OK, text)
        elif view is not None:
            yield _check_live(where, view)
    except (ShmlogError, OSError) as error:
        advice = "`shmlog verify DIR` says more, `shmlog repair DIR` what can be kept"
        yield Check("files", WRONG, str(error), advice)


def _check_live(where: Directory, view: ControlView) -> Check:
    """Files and marks of a live log, as far as they are not being made or removed."""
    identity, bounds = where.identity, (view.load(CB.TRIMMED_LSN), view.load(CB.DURABLE_LSN))
    for first, _ in identity.geometry.segment_ranges(*bounds):
        path = segment_path(where, first)
        try:
            with files.descriptor(files.open_file(path, writable=False, owner=where.owner)) as fd:
                segment.check(
                    fd, path, identity.log_id, identity.geometry.segment_begin(first), identity.geometry
                )
        except FileNotFoundError:
            if first >= view.load(CB.TRIMMED_LSN):
                raise FormatError(f"{path}: the segment is missing") from None
    segments = list_segments(where)
    mark = newest_mark(where, segments[-2:], check=False) if segments else None
    if mark is not None and mark.durable_lsn > view.load(CB.DURABLE_LSN):
        raise FormatError(f"the newest mark vouches up to LSN {mark.durable_lsn}, above what is durable")
    return Check("files", OK, f"{len(segments)} segments, headers and marks in order")


def _retention(where: Directory) -> Checks:
    view = view_of(where, files.boot_id())
    try:
        found = settings.load_retention(where)
    except (FormatError, OSError) as error:
        advice = "`shmlog configure DIR` says it anew; until then what was said before is followed"
        yield Check("retention", WRONG, str(error), advice)
        return
    if view is not None and view.load(CB.BUDGET_HELD):
        advice = "read on with the cursor that is furthest behind, or `shmlog configure DIR --when-full trim`"
        yield Check("retention", WARNING, "room waits for a trim that something holds back", advice)
    else:
        yield Check("retention", OK, str(found) if found else "all is kept")


def _cursors(where: Directory) -> Checks:
    for name, path in cursors.paths(where):
        try:
            place = cursors.look(path, where.identity.seed, where.owner)
        except (FormatError, OSError) as error:
            yield Check("cursor", WRONG, f"{name}: {error}", "remove the file, and seek the cursor anew")
            continue
        holders = ", ".join(map(users.describe, cursors.holders(path)))
        text = f"{name}: {'not placed yet' if place is None else f'at LSN {place.lsn}'}"
        text += f", open in {holders}" if holders else ""
        report = reports.look(where, name)
        if report is not None and report["failing"]:
            advice = "see to the engine; until then the log keeps what is not shipped"
            yield Check("cursor", WARNING, f"{text}: shipping fails: {report['last_error']}", advice)
            continue
        view = view_of(where, files.boot_id()) if place is not None else None
        held = (
            max(0, view.load(CB.COMMITTED_LSN) - place.lsn) if view is not None and place is not None else 0
        )
        room = os.statvfs(where.path)
        free = room.f_bavail * room.f_frsize
        if held > free:
            advice = "read on or ship, make room, or remove the cursor: what it needs is then given up"
            text += f", holds {_size(held)}, and {_size(free)} are free"
            yield Check("cursor", WARNING, text, advice)
        else:
            yield Check("cursor", OK, text)


def _leftovers(_: Directory) -> Checks:
    found = [left for left in leftovers() if left.state in ("unused", "unsettled")]
    if found:
        text = (
            f"{len(found)} logs that nobody uses have left {_size(sum(left.memory_bytes for left in found))}"
        )
        yield Check("leftovers", WARNING, f"{text} in /dev/shm", "`shmlog gc` lists them")
    else:
        yield Check("leftovers", OK, "none in /dev/shm")


def _size(count: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} bytes"


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
