"""One wrong word in the control block of a live log: no call hangs, and nothing durable is lost."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    block_path,
    flusher_pids,
    is_alive,
    lose_shared_memory,
    until,
)

import shmlog
from shmlog.disk.segments import map_segment
from shmlog.format.layout import CB

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

COUNT = 70
"""Records of 1000 bytes: they fill one segment and some of the next."""
WORDS = sorted(name for name in vars(CB) if name != "HEADER_BYTES")
VALUES = {"zero": 0, "all ones": 2**64 - 1, "2**62": 1 << 62, "two segments more": None}
FIRST = {"RESERVED_LSN", "COMMITTED_LSN", "WANTED_TRIMMED"}
"""Those that are tried at every run; the others take minutes."""


def _scribble(path: Path, word: str, value: int | None) -> None:
    fd = os.open(block_path(path), os.O_RDWR)
    try:
        (old,) = struct.unpack("<Q", os.pread(fd, 8, vars(CB)[word]))
        new = old + 2 * SEGMENT_BYTES if value is None else value
        os.pwrite(fd, struct.pack("<Q", new % 2**64), vars(CB)[word])
    finally:
        os.close(fd)


def _use(wire: Wire, path: Path, word: str, value: int | None) -> None:
    log = shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES, timeout=1)
    for n in range(COUNT):
        log.append(b"%1000d" % n)
    log.wait_durable()
    _scribble(path, word, value)
    ends = (shmlog.ShmlogError, TimeoutError, OSError, ValueError)
    calls = (
        lambda: log.append(b"x" * 100, timeout=0.3),
        lambda: sum(1 for _ in log.read()),
        lambda: log.wait_durable(timeout=0.3),
        lambda: log.append(b"x" * 100, timeout=0.3, durable=True),
        lambda: sum(len(batch) for batch in log.read_batches()),
        log.close,
    )
    for call in calls:
        with contextlib.suppress(*ends):
            call()
        wire.say("ended")


@pytest.mark.holds("A6", "C3")
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "word", [word if word in FIRST else pytest.param(word, marks=pytest.mark.crash) for word in WORDS]
)
def test_a_scribbled_word_ends_every_call_and_costs_no_durable_record(
    log_path: Path, word: str, value: str
) -> None:
    try:
        with Child(_use, log_path, word, VALUES[value]) as child:
            for _ in range(6):
                assert child.hear(timeout=10) == "ended"
            child.result(timeout=10)
    finally:
        for pid in flusher_pids(log_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            until(lambda: not is_alive(pid), "the flusher has ended")  # noqa: B023
    block_path(log_path).unlink(missing_ok=True)
    with shmlog.open(log_path, timeout=5) as log:
        own = [bytes(record.data) for record in log.read()]
        assert own[:COUNT] == [b"%1000d" % n for n in range(COUNT)]
        log.append(b"and on", durable=True)


def test_an_append_ends_though_its_tail_was_overwritten_and_put_right_again(log_path: Path) -> None:
    """A higher segment is mapped where the tail's should be, and does not make way for it."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        log.append(b"before", durable=True)
        for number in range(1, 9):
            log._map(number, map_segment(log._directory, 0, writable=True))
        for timeout in (0.0, 0.1):
            with pytest.raises(TimeoutError, match="the append ran out"):
                log.append(b"x", timeout=timeout)
    with shmlog.open(log_path) as log:
        assert log.append(b"and on") == 64


def test_an_overwritten_reason_for_a_full_disk_is_told_as_it_is(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, flusher="external", timeout=0.1) as log:
        log._joined.control.native.store(CB.FULL_ERRNO, 2**64 - 1)
        with pytest.raises(shmlog.LogFullError, match=f"cannot prepare more: Unknown error {2**64 - 1}"):
            log.append(b"x")
    lose_shared_memory(log_path)


def test_watermarks_out_of_order_are_damage_that_a_reader_is_told_of(log_path: Path) -> None:
    """Nobody else is there who might see it first."""
    with shmlog.open(
        log_path,
        create=True,
        segment_bytes=SEGMENT_BYTES,
        window_bytes=SEGMENT_BYTES,
        flusher="external",
        timeout=1,
    ) as log:
        log._joined.control.native.store(CB.COMMITTED_LSN, 2 * SEGMENT_BYTES)
        with pytest.raises(shmlog.LogFailedError, match="the control block is damaged"):
            list(log.read())
    lose_shared_memory(log_path)
