"""Hostile directories: real logs, changed by somebody who knows the format.

    model = Model.load(golden_path).renamed(log_id)     a log's files in memory, under an id of its own
    tree, changes = mutate(model, rng)                  what is to be on disk, and what was done
    tree.write(path)

Most changes are followed by the checksum that makes them look right, so that what is
behind the checksums is reached too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from crc32c import crc32c
from support.pyreader import (
    CURSOR,
    DATA,
    FRAME,
    HEADER_AREA,
    HEADERS,
    MARK,
    MARKS,
    SECTOR,
    SEGMENT,
    VERSION,
    Origin,
    PyLog,
)

SEGMENT_BYTES = 64 << 10
CURSOR_AT = (0, 512)
NUMBERS = (
    0,
    1,
    31,
    32,
    33,
    4096,
    SEGMENT_BYTES,
    1 << 31,
    1 << 32,
    1 << 62,
    (1 << 62) + 32,
    1 << 63,
    2**64 - 1,
)
LENGTHS = (0, 1, 32, 4096, SEGMENT_BYTES - 32, SEGMENT_BYTES, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDF, 0xFFFFFFFF)


@dataclass(frozen=True)
class Node:
    """A file, or what stands in its place."""

    kind: str = "file"
    """file, directory, link, hard link, fifo, socket"""
    data: bytes = b""
    """what is in a file, at its beginning, or where a link leads"""
    size: int = 0
    """zeros, not written, fill it up to here"""
    mode: int = 0o600


@dataclass
class Tree:
    """What is to be written below one directory."""

    nodes: dict[str, Node]

    def write(self, path: Path) -> None:
        """Nothing may be there yet."""
        path.mkdir(mode=0o700)
        for name, node in sorted(self.nodes.items()):
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                _make(path / name, node)

    def segments(self) -> list[str]:
        return [n for n in sorted(self.nodes) if n.startswith("segments/") and self.nodes[n].kind == "file"]

    def patch(self, name: str, at: int, data: bytes) -> None:
        node = self.nodes[name]
        old = node.data.ljust(at + len(data), b"\0")
        self.nodes[name] = replace(node, data=old[:at] + data + old[at + len(data) :])


def _make(path: Path, node: Node) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if node.kind == "directory":
        path.mkdir(exist_ok=True)
    elif node.kind == "link":
        os.symlink(node.data, path)
    elif node.kind == "fifo":
        os.mkfifo(path)
    elif node.kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound, contextlib.suppress(OSError):  # a long path
            bound.bind(str(path))
    else:
        path.write_bytes(node.data)
        if node.size > len(node.data):
            os.truncate(path, node.size)
        if node.kind == "hard link":
            os.link(path, path.with_name("second-name.tmp"))
    if node.kind in ("file", "directory"):
        path.chmod(node.mode if node.kind == "file" else node.mode | 0o100)


@dataclass(frozen=True)
class Model:
    """One real log, in memory."""

    name: str
    log_id: bytes
    files: dict[str, bytes]
    origin: Origin
    """of the newest mark"""
    frames: tuple[tuple[str, int, int], ...]
    """(segment file, offset, LSN) of each frame"""
    records: dict[int, tuple[int, bytes]]
    """LSN -> tag, payload"""

    @property
    def seed(self) -> int:
        return crc32c(self.log_id)

    @classmethod
    def load(cls, path: Path) -> Model:
        files = {
            str(file.relative_to(path)): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        files.setdefault("LOCK", b"")
        log = PyLog(path)
        frames, records = [], {}
        for first in log.segments():
            name = f"segments/{first:020d}.seg"
            lsn = first
            for at in range(HEADER_AREA, len(files[name]) - 31, 32):
                lsn = first + at - HEADER_AREA
                with contextlib.suppress(Exception):
                    frame = log._frame(files[name], at, lsn)
                    frames.append((name, at, lsn))
                    if frame.kind == DATA:
                        records[lsn] = (frame.tag, frame.payload)
        return cls(path.parent.name, log.log_id, files, log.newest_mark().origin, tuple(frames), records)

    def renamed(self, log_id: bytes) -> Model:
        """The same log under another id: its control block has another name."""
        seed, files = crc32c(log_id), dict(self.files)
        identity = json.loads(files["shmlog.json"]) | {"log_id": str(uuid.UUID(bytes=log_id))}
        files["shmlog.json"] = json.dumps(identity).encode()
        for name in [name for name in files if name.startswith("segments/")]:
            data = bytearray(files[name])
            for at in HEADERS:
                data[at + 16 : at + 32] = log_id
                _seal(data, at, SEGMENT.size, 0)
            for at in MARKS:
                if any(data[at : at + MARK.size]):
                    _seal(data, at, MARK.size, seed)
            files[name] = bytes(data)
        for name, at, _ in self.frames:
            data = bytearray(files[name])
            seal_frame(data, at, None, seed)
            files[name] = bytes(data)
        for name in [name for name in files if name.startswith("cursors/")]:
            data = bytearray(files[name])
            for at in CURSOR_AT:
                _seal(data, at, CURSOR.size, seed)
            files[name] = bytes(data)
        return replace(self, log_id=log_id, files=files)

    def tree(self) -> Tree:
        return Tree({name: Node("file", data.rstrip(b"\0"), len(data)) for name, data in self.files.items()})


def _seal(data: bytearray, at: int, size: int, seed: int) -> None:
    """Give a struct that ends in its checksum the right one."""
    if len(data) >= at + size:
        struct.pack_into("<I", data, at + size - 4, crc32c(bytes(data[at : at + size - 4]), seed))


def seal_frame(data: bytearray, at: int, lsn: int | None, seed: int) -> None:
    """Give the frame at an offset its own LSN, unless None, and the checksum of what is there."""
    if len(data) < at + FRAME.size:
        data.extend(bytes(at + FRAME.size - len(data)))
    if lsn is not None:
        struct.pack_into("<Q", data, at + 8, lsn)
    size, kind = struct.unpack_from("<I", data, at)[0], data[at + 30]
    crc = crc32c(bytes(data[at + FRAME.size : at + FRAME.size + size]), seed) if kind == DATA else seed
    crc = crc32c(bytes(data[at : at + 4]) + bytes(data[at + 8 : at + FRAME.size]), crc)
    struct.pack_into("<I", data, at + 4, crc)


# ------------------------------------------------------------------- changes


@dataclass
class Change:
    """One mutation in the making: the tree so far, and what it may no longer claim."""

    model: Model
    tree: Tree
    rng: random.Random
    forged: bool = False
    """a checksum was made to match: there may be records that nobody appended"""
    elsewhere: bool = False
    """something other than frames was changed"""
    done: list[str] = field(default_factory=list)

    @classmethod
    def kept(cls, model: Model) -> Change:
        """What is known of a directory that was kept: nothing."""
        return cls(model, model.tree(), random.Random(0), forged=True, elsewhere=True)

    def some_segment(self) -> str | None:
        names = self.tree.segments()
        return self.rng.choice(names) if names else None

    def some_frame(self) -> tuple[str, int, int] | None:
        found = [frame for frame in self.model.frames if frame[0] in self.tree.segments()]
        return self.rng.choice(found) if found else None

    def number(self) -> int:
        return self.rng.choice(
            (
                *NUMBERS,
                self.rng.getrandbits(64),
                32 * self.rng.randrange(6000),
                SEGMENT_BYTES * self.rng.randrange(9),
            )
        )


def flip_bits(c: Change) -> None:
    if (frame := c.some_frame()) is None:
        return
    name, at, _ = frame
    for _ in range(c.rng.choice((1, 1, 2, 30))):
        where = at + c.rng.randrange(200)
        old = c.tree.nodes[name].data[where : where + 1] or b"\0"
        c.tree.patch(name, where, bytes([old[0] ^ 1 << c.rng.randrange(8)]))


def move_granules(c: Change) -> None:
    """Swap, zero, repeat or scramble some."""
    if (frame := c.some_frame()) is None:
        return
    name, at, _ = frame
    data, count = c.tree.nodes[name].data, 32 * c.rng.choice((1, 1, 2, 16, 128))
    to = HEADER_AREA + 32 * c.rng.randrange(max(1, (len(data) - HEADER_AREA) // 32))
    here, there = data[at : at + count].ljust(count, b"\0"), data[to : to + count].ljust(count, b"\0")
    what = c.rng.randrange(5)
    if what == 0:
        c.tree.patch(name, at, bytes(count))
    elif what == 1:
        c.tree.patch(name, to, here)
    elif what == 2:
        c.tree.patch(name, at, there)
        c.tree.patch(name, to, here)
    elif what == 3:
        c.tree.patch(name, at, c.rng.randbytes(count))
    else:
        c.tree.patch(name, at, b"\xff" * count)


def forge_frame(c: Change) -> None:
    """Hostile fields under a checksum that matches, or nearly."""
    if (frame := c.some_frame()) is None:
        return
    name, at, lsn = frame
    if c.rng.random() < 0.3:  # at any granule, above the end too
        at = HEADER_AREA + 32 * c.rng.randrange(SEGMENT_BYTES // 32)
        lsn = int(name[9:29]) + at - HEADER_AREA if name[9:29].isdigit() else 0
    data = bytearray(c.tree.nodes[name].data.ljust(at + 4096, b"\0"))
    what = c.rng.randrange(7)
    if what == 0:
        struct.pack_into(
            "<I", data, at, c.rng.choice((*LENGTHS, c.rng.getrandbits(32), c.rng.randrange(5000)))
        )
    elif what == 1:
        data[at + 30] = c.rng.randrange(6)
    elif what == 2:
        data[at + 31] = c.rng.choice((0, 1, 1, 2, 255))
    elif what == 3:
        FRAME.pack_into(
            data, at, c.rng.randrange(300), 0, lsn, 1, 2, 3, c.rng.choice((1, 2, 3)), c.rng.choice((0, 1))
        )
    elif what == 4:
        data[at + 32 : at + 64] = c.rng.randbytes(32)
    elif what == 5:
        for granule in range(
            at, min(at + 32 * 512, HEADER_AREA + SEGMENT_BYTES - 32), 32
        ):  # each could be one
            if len(data) < granule + 32:
                data.extend(bytes(granule + 32 - len(data)))
            size = max(0, HEADER_AREA + SEGMENT_BYTES - granule - 32)
            FRAME.pack_into(data, granule, size, 0xBAD, lsn + granule - at, 0, 0, 0, DATA, 0)
    if c.rng.random() < 0.9:
        seal_frame(data, at, lsn if c.rng.random() < 0.8 else c.number(), c.model.seed)
        c.forged = True
    c.tree.patch(name, 0, bytes(data[: HEADER_AREA + SEGMENT_BYTES]))


def forge_mark(c: Change) -> None:
    c.elsewhere = True
    if (name := c.some_segment()) is None:
        return
    at = c.rng.choice(MARKS)
    data = bytearray(c.tree.nodes[name].data.ljust(HEADER_AREA, b"\0"))
    what = c.rng.randrange(4)
    if what == 0:
        data[at + c.rng.randrange(MARK.size)] ^= 1 << c.rng.randrange(8)
    elif what == 1:
        one, other = (slice(mark, mark + MARK.size) for mark in MARKS)
        data[one], data[other] = data[other], data[one]
    elif what == 2:
        data[at : at + 512] = bytes(512)
    else:
        fields = list(MARK.unpack_from(data, at))
        for _ in range(c.rng.choice((1, 1, 2, 5))):
            which = c.rng.randrange(12)
            if which == 0:
                fields[0] = c.rng.choice((b"MARK", b"mark", bytes(4)))
            elif which == 6:
                fields[6] = c.rng.choice((c.model.origin.boot_id, bytes(16), c.rng.randbytes(16)))
            else:
                fields[which] = c.number() % 2 ** (32 if which == 1 else 64)
        MARK.pack_into(data, at, *fields)
        _seal(data, at, MARK.size, c.model.seed)
        c.forged = True
    c.tree.patch(name, 0, bytes(data))


def forge_header(c: Change) -> None:
    c.elsewhere = True
    if (name := c.some_segment()) is None:
        return
    data = bytearray(c.tree.nodes[name].data.ljust(HEADER_AREA, b"\0"))
    what = c.rng.randrange(4)
    if what == 0:
        data[c.rng.choice(HEADERS) + c.rng.randrange(SEGMENT.size)] ^= 1 << c.rng.randrange(8)
    elif what == 1:  # one sector lost: its half of the header area says it all
        at = c.rng.choice(HEADERS)
        data[at : at + SECTOR] = c.rng.choice((bytes(SECTOR), c.rng.randbytes(SECTOR)))
    else:
        at = c.rng.choice(HEADERS)
        fields = list(SEGMENT.unpack_from(data, at))
        which = c.rng.randrange(8)
        if which in (0, 3):
            fields[which] = c.rng.randbytes(8 if which == 0 else 16)
        elif which == 7:
            fields[7] = c.number() % 2**63
        else:
            fields[which] = c.number() % 2 ** (32 if which < 3 else 64)
        SEGMENT.pack_into(data, at, *fields)
        _seal(data, at, SEGMENT.size, 0)
        if what == 2:  # both copies agree
            for other in HEADERS:
                data[other : other + SEGMENT.size] = data[at : at + SEGMENT.size]
        c.forged = True
    c.tree.patch(name, 0, bytes(data))


def _value(rng: random.Random) -> object:
    plain = None, True, 0, 1, -1, 1.0, 1e308, 1 << 70, -(1 << 70), "", "x", "64", [], {}, [[]], "\ud800"
    sizes = [1 << n for n in (10, 13, 15, 16, 17, 20, 30, 31, 40)]
    ids = str(uuid.UUID(int=rng.getrandbits(128))), "{" + "0" * 40 + "}"
    return rng.choice((*plain, *sizes, *ids))


def change_identity(c: Change) -> None:
    c.elsewhere = True
    node = c.tree.nodes.get("shmlog.json")
    if node is None or node.kind != "file":
        return
    text = bytearray(node.data)
    what = c.rng.randrange(7)
    if what == 0 and text:
        text[c.rng.randrange(len(text))] = c.rng.randrange(256)
    elif what == 1:
        text = text[: c.rng.randrange(len(text) + 1)]
    elif what == 2:
        body = json.loads(c.model.files["shmlog.json"])
        body[c.rng.choice(sorted(body))] = _value(c.rng)
        text = bytearray(json.dumps(body).encode(errors="surrogatepass"))
    elif what == 3:
        body = json.loads(c.model.files["shmlog.json"])
        del body[c.rng.choice(sorted(body))]
        text = bytearray(json.dumps(body).encode())
    elif what == 4:
        deep = c.rng.choice((b"[", b'{"a":', b"[[]," * 3)) * c.rng.choice((10, 1000, 16_000))
        text = bytearray(deep[: c.rng.choice((100, 60_000, 70_000))])
    elif what == 5:
        body = json.loads(c.model.files["shmlog.json"])
        name = c.rng.choice(sorted(body))
        text = bytearray(
            json.dumps(body).replace("{", f'{{"{name}": {json.dumps(_value(c.rng))}, ', 1).encode()
        )
    else:
        body = json.loads(c.model.files["shmlog.json"])
        name = c.rng.choice(sorted(body))
        raw = c.rng.choice(
            ("NaN", "-Infinity", "1e999", "0" * 9, "1" * 5000, "1" + "0" * 400, '"\\ud800"', "1.5")
        )
        text = bytearray(json.dumps(body | {name: "@"}).replace('"@"', raw).encode())
        if c.rng.random() < 0.2:
            text = bytearray(text.decode().encode("utf-16"))
    c.tree.nodes["shmlog.json"] = replace(node, data=bytes(text), size=0)


def change_names(c: Change) -> None:
    c.elsewhere = True
    if (name := c.some_segment()) is None:
        return
    nodes = c.tree.nodes
    what = c.rng.randrange(7)
    if what == 0:
        del nodes[name]
    elif what == 1:  # the same content somewhere else
        nodes[f"segments/{c.number() % 10**20:020d}.seg"] = nodes[name]
    elif what == 2:
        nodes[f"segments/{SEGMENT_BYTES * c.rng.randrange(12):020d}.seg"] = nodes.pop(name)
    elif what == 3:  # a whole segment of another place, with its own name and header
        first = c.rng.choice(
            (SEGMENT_BYTES * c.rng.randrange(12), c.number() % 2**64 // SEGMENT_BYTES * SEGMENT_BYTES)
        )
        data = bytearray(nodes[name].data.ljust(HEADER_AREA, b"\0"))
        for at in HEADERS:
            struct.pack_into("<Q", data, at + 32, first)
            _seal(data, at, SEGMENT.size, 0)
        nodes[f"segments/{first:020d}.seg"] = replace(nodes[name], data=bytes(data))
        c.forged = True
    elif what == 4:
        stranger = (
            "notes",
            "0.seg",
            "x" * 250,
            "\udcff\udcfe.seg",
            "é.seg",
            f"{7:020d}.SEG",
            " " * 20 + ".seg",
        )
        nodes["segments/" + c.rng.choice(stranger)] = Node("file", b"x")
    elif what == 5:
        nodes[f"segments/{'٣' * 20}.seg"] = nodes[name]
    else:
        for n in range(c.rng.choice((5, 300))):
            nodes[f"segments/{SEGMENT_BYTES * (1000 + n):020d}.seg" + c.rng.choice(("", ".tmp"))] = Node(
                "file", b""
            )


def change_sizes(c: Change) -> None:
    c.elsewhere = True
    names = [name for name, node in c.tree.nodes.items() if node.kind == "file"]
    if not names:
        return
    name = c.some_segment() if c.rng.random() < 0.7 else c.rng.choice(names)
    if name is None:
        return
    node = c.tree.nodes[name]
    size = max(node.size, len(node.data))
    size = c.rng.choice(
        (
            0,
            1,
            511,
            4095,
            4096,
            8191,
            8192,
            size - 1,
            size + 1,
            size + 4096,
            2 * size,
            1 << 40,
            c.rng.randrange(size + 1),
        )
    )
    c.tree.nodes[name] = replace(node, data=node.data[: max(0, size)], size=max(0, size))


def change_kinds(c: Change) -> None:
    """A link, a FIFO, a socket, a directory, or nothing, where a file is looked for."""
    c.elsewhere = True
    names = [*c.tree.nodes, "LOCK", "FAILED", "flusher.log", "cursors", "segments", "cursors/new"]
    name = c.rng.choice(names)
    kind = c.rng.choice(("link", "fifo", "socket", "directory", "hard link", "gone", "file"))
    old = c.tree.nodes.pop(name, Node())
    if name in ("cursors", "segments") and kind != "gone":
        for below in [below for below in c.tree.nodes if below.startswith(name + "/")]:
            del c.tree.nodes[below]
    if kind == "link":
        target = c.rng.choice(
            (b"/dev/zero", b"/etc/passwd", b"LOCK", os.fsencode(name), b"../segments", b"/", b"")
        )
        c.tree.nodes[name] = Node(kind, target or b"nowhere")
    elif kind != "gone":
        mode = c.rng.choice((0o600, 0, 0o666, 0o777, 0o4755, 0o400))
        c.tree.nodes[name] = Node(kind, old.data, old.size, mode)


def change_cursors(c: Change) -> None:
    c.elsewhere = True
    data = bytearray(1024)
    for sequence, at in enumerate(CURSOR_AT):
        if c.rng.random() < 0.8:
            CURSOR.pack_into(
                data,
                at,
                b"CURS",
                c.rng.choice((VERSION, VERSION, VERSION, 1)),
                sequence,
                c.number() % 2**64,
                0,
            )
            _seal(data, at, CURSOR.size, c.model.seed)
    name = c.rng.choice(("etl", "reader", ".hidden", "x" * 64, "a b", "c.tmp"))
    data = data[: c.rng.choice((1024, 1024, 0, 10, 512))]
    c.tree.nodes[f"cursors/{name}"] = Node("file", bytes(data), c.rng.choice((0, 0, 1 << 17)))


def change_failure(c: Change) -> None:
    c.elsewhere = True
    facts = c.rng.choice(
        (b"", b"{", b"[]", b"null", b'{"errno": 5, "lsn": 4096}', b'{"errno": "x", "lsn": []}')
    )
    facts = c.rng.choice((facts, b'{"errno": 1e999, "lsn": 0}', b'{"errno": NaN, "lsn": 0}', b"[" * 50_000))
    facts = c.rng.choice((facts, b'{"errno": ' + b"9" * 5000 + b', "lsn": 1}', b"\xff" * 100, bytes(70_000)))
    c.tree.nodes["FAILED"] = Node("file", facts, len(facts))


CHANGES: tuple[Callable[[Change], None], ...] = (
    flip_bits,
    move_granules,
    forge_frame,
    forge_frame,
    forge_frame,
    forge_mark,
    forge_header,
    change_identity,
    change_names,
    change_sizes,
    change_kinds,
    change_cursors,
    change_failure,
)
FRAMES_ONLY = (flip_bits, move_granules)


def mutate(model: Model, rng: random.Random) -> Change:
    """Some changes of one kind or of several; a third of the time of frames alone, blindly."""
    change = Change(model, model.tree(), rng)
    choices = FRAMES_ONLY if rng.random() < 0.33 else CHANGES
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        apply = rng.choice(choices)
        apply(change)
        change.done.append(apply.__name__)
    return change
