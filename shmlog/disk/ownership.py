"""Ownership: whose the files of a damaged log are, and where each of them belongs.

A header that is whole is believed more than a name, and a name more than nothing; what
neither places is a stranger.  The changes that follow are values: nothing is touched.

This module knows names and headers.  It may not know what lies behind a header.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shmlog.disk import segment
from shmlog.disk.directory import Directory, identity_path
from shmlog.errors import FormatError
from shmlog.format import marks
from shmlog.format.geometry import SEGMENT_BYTES_MIN, WINDOW_BYTES_DEFAULT, WINDOW_SEGMENTS_MAX, Geometry
from shmlog.format.identity import Identity, decode_identity
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.format.marks import Header, Mark, decode_header
from shmlog.system import files


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one file.  `kind`: identity (written anew), aside (moved out of the log),
    rename, resize, make (a segment), patch (bytes at an offset)."""

    kind: str
    path: str
    why: str
    to: str = ""
    offset: int = 0
    data: bytes = field(default=b"", repr=False)
    size: int = 0


@dataclass(slots=True)
class File:
    """A segment file as it was found."""

    path: str
    size: int
    header: Header | None
    mark: Mark | None


def identity(path: str, changes: list[Change]) -> Identity:
    where = identity_path(path)
    try:
        return decode_identity(files.read_small(where), where)
    except FileNotFoundError:
        why = "it is missing"
    except FormatError as error:
        why = str(error).removeprefix(f"{where} ")
    votes: Counter[tuple[bytes, int]] = Counter()
    oldest = time.time_ns()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(os.path.join(path, "segments"))):
            file = _look(os.path.join(path, "segments", name))
            if file is not None and file.header is not None:
                votes[file.header.log_id, file.header.segment_bytes] += 1
                oldest = min(oldest, file.header.created_ns)
    if not votes:
        raise FormatError(
            f"{where} {why}, and no segment's header is whole: nothing says whose files they are"
        )
    (log_id, segment_bytes), _ = votes.most_common(1)[0]
    window_bytes = min(WINDOW_BYTES_DEFAULT, WINDOW_SEGMENTS_MAX * segment_bytes)
    identity = Identity(log_id, Geometry(segment_bytes, window_bytes), oldest)
    changes.append(
        Change(
            "identity",
            where,
            f"{why}; made from the segments' headers, with the default window",
            data=identity.encode(),
        )
    )
    return identity


def _look(path: str, identity: Identity | None = None) -> File | None:
    """What is there, or None if it is no file of ours."""
    try:
        fd = files.open_file(path, writable=False)
    except (FormatError, OSError):
        return None
    with files.descriptor(fd):
        size = os.fstat(fd).st_size
        page = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
    header = mark = None
    with contextlib.suppress(FormatError):
        header = decode_header(page, path)
        if not _possible(header):
            header = None
    if identity is not None:
        mark = marks.newest_mark(page, identity.log_id, identity.geometry.segment_bytes)
    return File(path, size, header, mark)


def _possible(header: Header) -> bool:
    size = header.segment_bytes
    try:
        Geometry(size, SEGMENT_BYTES_MIN)
    except ValueError:
        return False
    return header.first_lsn % size == 0


def candidates(directory: Directory, changes: list[Change]) -> list[File]:
    """Every file among the segments that can be one of this log's; the others are to go."""
    identity, found, strangers = directory.identity, [], []
    for name in sorted(os.listdir(directory.segments_path)):
        path = os.path.join(directory.segments_path, name)
        if name.endswith(".tmp"):
            continue
        file = _look(path, identity)
        if file is None:
            strangers.append((path, "it is not a regular file of this user with one name"))
        elif file.header is not None and file.header.log_id != identity.log_id:
            strangers.append((path, f"it belongs to another log, {file.header.log_id.hex()}"))
        elif file.header is not None and file.header.segment_bytes != identity.geometry.segment_bytes:
            strangers.append((path, f"its segments have {file.header.segment_bytes} bytes"))
        else:
            found.append(file)
    if strangers and not any(file.header for file in found) and not changes:
        raise FormatError(
            f"{identity_path(directory.path)} describes another log than every segment: if the segments are"
            " what is to be repaired, move it away first"
        )
    changes += [Change("aside", path, why) for path, why in strangers]
    return found


def place(directory: Directory, found: list[File], changes: list[Change]) -> dict[int, File]:
    """Each place's file: a header is believed more than a name."""
    size = directory.identity.geometry.segment_bytes
    placed: dict[int, File] = {}
    moves: list[tuple[File, str]] = []

    def named(file: File) -> int | None:
        first = segment.parse_name(os.path.basename(file.path))
        return None if first is None or first % size else first

    for file in found:
        if file.header is not None and file.header.first_lsn == named(file):
            placed[file.header.first_lsn] = file
    for file in found:
        if file.header is None or placed.get(file.header.first_lsn) is file:
            continue
        if file.header.first_lsn in placed:
            changes.append(Change("aside", file.path, "another file holds the LSNs of its header"))
        else:
            placed[file.header.first_lsn] = file
            moves.append((file, segment.file_name(file.header.first_lsn)))
    for file in found:
        first = named(file)
        if file.header is not None:
            continue
        if first is None or first in placed:
            changes.append(Change("aside", file.path, "neither its name nor its header places it"))
        else:
            placed[first] = file
    changes += _renames(directory, moves)
    return placed


def _renames(directory: Directory, moves: list[tuple[File, str]]) -> Iterator[Change]:
    """Through names that are nobody's where two files must change places."""
    taken = {os.path.basename(file.path) for file, _ in moves}
    late = []
    for file, name in moves:
        to = os.path.join(directory.segments_path, name)
        why = "its header says where it belongs"
        if name in taken:
            if file.path != f"{to}.repair":  # where a repair that was interrupted left it
                yield Change("rename", file.path, why, to=f"{to}.repair")
            late.append(Change("rename", f"{to}.repair", why, to=to))
        else:
            yield Change("rename", file.path, why, to=to)
    yield from late
