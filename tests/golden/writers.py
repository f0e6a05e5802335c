"""Writers of golden logs: processes that append what they are told, one thing at a time.

    with Writer(story) as first, Writer(story) as second:
        first.append(b"payload", tag=1)
        second.do(reserve, 1000)
        kill_all(story, first, second)      # or leave: then they close in order

The story keeps what the writers said: where each record went, and whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support.processes import Child, Wire, kill_everybody, lose_shared_memory, until
from support.pyreader import GOES_ON

import shmlog

SEGMENT_BYTES = WINDOW_BYTES = 64 << 10


def pattern(number: int, size: int) -> bytes:
    """A payload that compresses well and differs from its neighbours."""
    return bytes((number + at) % 251 for at in range(size))


@dataclass
class Story:
    """What the writers of one log said."""

    path: Path
    lsns: list[int] = field(default_factory=list)
    """of every record, in the order of the log"""
    told: dict[int, tuple[int, int, int, bytes]] = field(default_factory=dict)
    """LSN -> tag, writer, flags, payload"""
    fillers: list[tuple[int, int, int, int]] = field(default_factory=list)
    """kind, LSN, end, flags: what has to lie between the records that are kept"""
    end_lsn: int = 0
    trimmed_lsn: int = 0
    cursors: dict[str, list[int]] = field(default_factory=dict)
    """name -> places, in the order in which they were committed"""

    def tell(
        self, writer: int, lsns: Sequence[int], payloads: Sequence[bytes], tag: int, atomic: bool = False
    ) -> None:
        for lsn, payload in zip(lsns, payloads, strict=True):
            assert not self.lsns or lsn > self.lsns[-1]
            self.lsns.append(lsn)
            flags = GOES_ON if atomic and lsn != lsns[-1] else 0
            self.told[lsn] = tag, writer, flags, payload


def _obey(wire: Wire, path: Path, options: dict[str, Any]) -> None:
    """A writer process: does what it hears, one thing at a time, until it is to close."""
    with shmlog.open(path, create=True, **options) as log:
        wire.say(log.writer_number)
        kept: list[Any] = []
        while (order := wire.hear()) is not None:
            action, arguments = order
            wire.say(action(log, kept, *arguments))


def _append(log: shmlog.Log, _: list[Any], payload: bytes, tag: int, durable: bool) -> int:
    return log.append(payload, tag, durable=durable)


def _append_many(log: shmlog.Log, _: list[Any], payloads: list[bytes], tag: int, atomic: bool) -> list[int]:
    return [int(lsn) for lsn in log.append_many(payloads, tag, atomic=atomic)]


def _append_array(log: shmlog.Log, _: list[Any], rows: np.ndarray, tag: int) -> list[int]:
    return [int(lsn) for lsn in log.append_array(rows, tag)]


def _fill_and_publish(log: shmlog.Log, _: list[Any], payload: bytes, tag: int) -> int:
    with log.reserve(len(payload), tag) as reservation:
        reservation.buffer[:] = payload
    return reservation.lsn


def reserve_and_abort(log: shmlog.Log, _: list[Any], size: int) -> None:
    reservation = log.reserve(size)
    reservation.buffer[:] = b"a" * size
    reservation.abort()


def reserve(log: shmlog.Log, kept: list[Any], size: int) -> None:
    reservation = log.reserve(size)
    reservation.buffer[: size // 2] = b"h" * (size // 2)
    kept.append(reservation)  # open as long as the process lives


def tail(log: shmlog.Log, _: list[Any]) -> int:
    return log.reserved_lsn


def wait_durable(log: shmlog.Log, _: list[Any]) -> None:
    log.wait_durable()


def trim(log: shmlog.Log, _: list[Any], before: int) -> int:
    return log.trim(before)


def commit(log: shmlog.Log, kept: list[Any], name: str, place: int) -> int:
    if not kept:
        kept.append(log.cursor(name))
    return kept[0].commit(place)


class Writer:
    """One process with a handle of the log; a context manager that closes it in order."""

    def __init__(self, story: Story, **options: Any) -> None:
        sizes = {"segment_bytes": SEGMENT_BYTES, "window_bytes": WINDOW_BYTES}
        self.story = story
        self.child = Child(_obey, story.path, {**sizes, **options})
        self.number: int = self.child.hear()

    def do(self, action: Callable[..., Any], *arguments: Any) -> Any:
        self.child.say((action, arguments))
        return self.child.hear()

    def append(self, payload: bytes, tag: int = 0, durable: bool = False) -> int:
        lsn: int = self.do(_append, payload, tag, durable)
        self.story.tell(self.number, [lsn], [payload], tag)
        return lsn

    def append_many(self, payloads: list[bytes], tag: int = 0, atomic: bool = False) -> list[int]:
        lsns: list[int] = self.do(_append_many, payloads, tag, atomic)
        self.story.tell(self.number, lsns, payloads, tag, atomic)
        return lsns

    def append_array(self, rows: np.ndarray, tag: int) -> None:
        self.story.tell(self.number, self.do(_append_array, rows, tag), [row.tobytes() for row in rows], tag)

    def fill_and_publish(self, payload: bytes, tag: int) -> None:
        self.story.tell(self.number, [self.do(_fill_and_publish, payload, tag)], [payload], tag)

    def fill_up_to(self, left: int) -> None:
        """Append so that `left` bytes of the present segment remain."""
        while (room := SEGMENT_BYTES - self.do(tail) % SEGMENT_BYTES) != left:
            self.append(pattern(room, min(room - left, 20_000) - 32))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.child.status is None:
            self.story.end_lsn = self.do(tail)
            self.child.say(None)
            self.child.result()
        self.child.kill()


def kill_all(story: Story, *writers: Writer) -> None:
    """SIGKILL for everybody, the flusher first, and the control block gone: a container that
    ends.  One segment that was made ahead stays; how many more there are is chance."""
    story.end_lsn = writers[0].do(tail)
    segments = story.path / "segments"
    ahead = segments / f"{story.end_lsn - story.end_lsn % SEGMENT_BYTES + SEGMENT_BYTES:020d}.seg"
    until(ahead.exists, "the next segment is made ahead")
    kill_everybody(story.path, [writer.child for writer in writers])
    lose_shared_memory(story.path)
    for path in segments.iterdir():
        if path.name > ahead.name:
            path.unlink()
