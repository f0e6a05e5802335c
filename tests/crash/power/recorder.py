"""Recorder: what a tree of files went through while real processes used it.

    with Recorder(root) as recorder:
        timeline = recorder.record(function, *arguments)

The function runs in a child whose fsync and fdatasync calls, and those of its children,
are told to the recorder by shim.c, before and after; note() tells it anything else, above
all what somebody was promised.  At each message the recorder looks at every file below
root and keeps what is not as it was.  Stores through a map are seen that way too, as soon as somebody
syncs or notes: a sync can make nothing durable that was not looked at before.

This module knows files and messages.  It may not know what survives a power cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support.processes import Child, Wire

SECTOR_BYTES = 512
SHIM = Path(__file__).with_name("shim.c")
SOCKET = "SHMLOG_RECORDER"

Name = tuple[int, str]
"""A directory's inode, and a name in it."""


@dataclass
class Look:
    """What had changed since the look before."""

    sectors: list[tuple[int, int, bytes]] = field(default_factory=list)
    """inode, number of the sector, its bytes"""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    names: list[dict[Name, int | None]] = field(default_factory=list)
    """each a step that happens whole or not at all: what the names mean now"""
    directories: list[int] = field(default_factory=list)
    """inodes that are directories, seen for the first time"""


@dataclass
class Begin:
    inode: int
    token: int


@dataclass
class End:
    inode: int
    token: int
    errno: int


@dataclass
class Note:
    value: dict[str, Any]


Event = Look | Begin | End | Note


@dataclass
class Timeline:
    """The tree as it was on disk at first, and what happened to it."""

    root: int
    events: list[Event]
    first: int
    """so many of the events are the tree that was there"""


def build_shim(where: Path) -> Path:
    """Compile the shim, once for a directory."""
    library = where / "shim.so"
    if not library.exists():
        compiler = shlex.split(os.environ.get("CC") or "cc")
        with tempfile.TemporaryDirectory(dir=where) as work:
            made = Path(work, "shim.so")
            command = [
                *compiler,
                "-O1",
                "-shared",
                "-fPIC",
                "-Wall",
                "-Werror",
                str(SHIM),
                "-o",
                str(made),
                "-ldl",
            ]
            subprocess.run(command, check=True)
            made.replace(library)
    return library


def note(**value: Any) -> None:
    """Tell the recorder; when this returns everything that happened before it is recorded."""
    path = os.environ.get(SOCKET)
    if path is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wire:
        wire.connect(path)
        wire.send(b"n " + json.dumps(value).encode())
        if not wire.recv(32):
            raise ConnectionError("the recorder has gone")


class Recorder:
    """Records one tree; `root` is a directory that is durable itself."""

    def __init__(self, root: Path, timeout_s: float = 60.0) -> None:
        if "shim.so" not in os.environ.get("LD_PRELOAD", ""):
            raise RuntimeError(f"{sys.argv[0]} runs without LD_PRELOAD=shim.so: no sync would be seen")
        self._root = root
        self._timeout_s = timeout_s
        self._files: dict[int, np.ndarray] = {}
        self._sizes: dict[int, int] = {}
        self._names: dict[Name, int] = {}
        self._directories: set[int] = set()
        self._events: list[Event] = []

    def record(self, function: Callable[..., Any], *arguments: Any) -> tuple[Timeline, Any]:
        """Run function(*arguments) in a child; what happened to the tree, and what it returned."""
        self._look()
        first = len(self._events)
        with (
            tempfile.TemporaryDirectory() as scratch,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door,
        ):
            path = os.path.join(scratch, "recorder")
            door.bind(path)
            door.listen(64)

            def run(wire: Wire) -> Any:
                os.environ[SOCKET] = path
                return function(*arguments)

            with Child(run) as child:
                self._serve(door, child)
                result = child.result()
        self._look()
        return Timeline(os.stat(self._root).st_ino, self._events, first), result

    # -------------------------------------------------------------- internals

    def _serve(self, door: socket.socket, child: Child) -> None:
        """Answer until the child has said what its function returned."""
        poller = select.poll()
        for fd in (door.fileno(), child._wire.fileno()):
            poller.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(self._timeout_s * 1000)}
            assert ready, f"nothing happened for {self._timeout_s:g} s"
            if door.fileno() not in ready:
                return
            wire, _ = door.accept()
            with wire, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # killed while it told
                message = wire.recv(1 << 16)
                if message:
                    wire.send(str(self._hear(message)).encode())

    def _hear(self, message: bytes) -> int:
        kind, _, rest = message.partition(b" ")
        self._look()
        token = len(self._events)
        if kind == b"n":
            self._events.append(Note(json.loads(rest)))
        elif kind == b"b":
            self._events.append(Begin(int(rest), token))
        else:
            inode, began, errno = map(int, rest.split())
            self._events.append(End(inode, began, errno))
        return token

    def _look(self) -> None:
        seen, names = Look(), {}
        self._walk(str(self._root), os.stat(self._root).st_ino, names, seen)
        if names != self._names:
            self._compare_names(names, seen)
            self._names = names
        if seen.sectors or seen.sizes or seen.names or seen.directories:
            self._events.append(seen)

    def _walk(self, path: str, inode: int, names: dict[Name, int], seen: Look) -> None:
        if inode not in self._directories:
            self._directories.add(inode)
            seen.directories.append(inode)
        with os.scandir(path) as entries:
            for entry in entries:
                names[inode, entry.name] = entry.inode()
                with contextlib.suppress(FileNotFoundError):  # renamed since it was listed: next time
                    if entry.is_dir(follow_symlinks=False):
                        self._walk(entry.path, entry.inode(), names, seen)
                    else:
                        self._compare_file(entry.path, entry.inode(), seen)

    def _compare_names(self, names: dict[Name, int], seen: Look) -> None:
        gone = {name: inode for name, inode in self._names.items() if names.get(name) != inode}
        there = {name: inode for name, inode in names.items() if self._names.get(name) != inode}
        before = {inode: name for name, inode in gone.items() if name not in names}
        for name, inode in there.items():
            step: dict[Name, int | None] = {name: inode}
            if inode in before:  # a rename
                step[before.pop(inode)] = None
            seen.names.append(step)
        seen.names += [{name: None} for name in before.values()]

    def _compare_file(self, path: str, inode: int, seen: Look) -> None:
        data = Path(path).read_bytes()
        size = len(data)
        now = np.frombuffer(data.ljust(-(-size // SECTOR_BYTES) * SECTOR_BYTES, b"\0"), np.uint8)
        now = now.reshape(-1, SECTOR_BYTES)
        old = self._files.get(inode)
        if self._sizes.get(inode, 0) != size:
            self._sizes[inode] = size
            seen.sizes.append((inode, size))
        if old is None or len(old) != len(now):
            grown = np.zeros_like(now)
            if old is not None:
                least = min(len(old), len(now))
                grown[:least] = old[:least]
            old = grown
        for sector in np.flatnonzero((old.view(np.uint64) != now.view(np.uint64)).any(axis=1)).tolist():
            seen.sectors.append((inode, sector, now[sector].tobytes()))
        self._files[inode] = now
