"""Everything killed at once, machine still up: every append that returned is there,
whether the control block survived or not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    block_path,
    check_records,
    flusher_pid,
    kill_everybody,
    lose_shared_memory,
    read_side,
    shared_names,
    until,
    write_until_killed,
)

import shmlog
from shmlog.disk.recovery import Case

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _kill_all(path: Path, tmp_path: Path, writers: int, rounds: int = 0) -> dict[int, Path]:
    """Run writers with a flusher, and kill -9 all of it in the middle; the side files."""
    sides = {n: tmp_path / f"side-{rounds}-{n}" for n in range(100 * rounds + 1, 100 * rounds + 1 + writers)}
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child(write_until_killed, path, n, side)) for n, side in sides.items()
        ]
        for child in children:
            child.hear()
        rng = random.Random(rounds)
        goals = {side: 16 * rng.randrange(20, 600) for side in sides.values()}
        until(lambda: all(side.exists() and side.stat().st_size >= goal for side, goal in goals.items()))
        kill_everybody(path, children)
    return sides


@pytest.mark.parametrize("block", ["kept", "lost"])
def test_everything_killed_keeps_every_returned_append(log_path: Path, tmp_path: Path, block: str) -> None:
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10).close()
    sides: dict[int, Path] = {}
    for rounds in range(3):
        sides |= _kill_all(log_path, tmp_path, 4, rounds)
        assert block_path(log_path).exists()
        if block == "lost":
            lose_shared_memory(log_path)
        with shmlog.open(log_path) as log:
            if block == "lost":
                assert log.recovery is not None
                assert log.recovery.case in (Case.HOLES, Case.INTACT)
            else:
                assert log.recovery is None, "the block is joined, not rebuilt"
            log.wait_durable(timeout=30)
            check_records(log, {n: read_side(side) for n, side in sides.items()}, killed=sides)
            assert_healthy(log)


def _reserve_in_the_middle(wire: Wire, path: Path) -> None:
    log = shmlog.open(path)
    below = append_some(log, 1, 20)
    reservation = log.reserve(1000)
    reservation.buffer[:] = b"h" * 1000
    above = append_some(log, 1, 20, first=20)
    log.wait_durable(below[-1])
    wire.say((below + above, reservation.lsn, flusher_pid(log)))
    wire.hear()


@pytest.mark.parametrize("block", ["kept", "lost"])
@pytest.mark.parametrize("flusher", ["stopped first", "running"])
def test_a_hole_among_published_records_is_filled_when_all_were_killed(
    log_path: Path, block: str, flusher: str
) -> None:
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(_reserve_in_the_middle, log_path) as child:
        lsns, hole, pid = child.hear()
        os.kill(pid, signal.SIGSTOP if flusher == "stopped first" else 0)
        kill_everybody(log_path, [child])
    if block == "lost":
        lose_shared_memory(log_path)
        with shmlog.open_readonly(log_path) as dead:
            assert [record.lsn for record in dead.read()] == lsns, "what recovery would keep"
            assert [record.lsn for record in dead.read(lsns[25])] == lsns[25:]
        report = shmlog.verify(log_path)
        assert (report.ok, report.records, report.state) == (True, len(lsns), "holes")
    with shmlog.open(log_path) as log:
        if block == "lost":
            assert log.recovery is not None and log.recovery.case is Case.HOLES
            assert [begin for begin, _ in log.recovery.holes] == [hole]
        check_records(log, {1: lsns})
        if block == "kept":
            assert log.statistics().holes_filled == 1
        assert_healthy(log)


def test_a_log_whose_dead_block_is_lost_twice_recovers_twice_to_the_same_records(log_path: Path) -> None:
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(_reserve_in_the_middle, log_path) as child:
        lsns, _, _ = child.hear()
        kill_everybody(log_path, [child])
    for _ in range(3):
        lose_shared_memory(log_path)
        with Child(_open_and_die, log_path) as child:
            child.hear()
            kill_everybody(log_path, [child])
    lose_shared_memory(log_path)
    with shmlog.open(log_path) as log:
        check_records(log, {1: lsns})
        assert_healthy(log)


def _open_and_die(wire: Wire, path: Path) -> None:
    log = shmlog.open(path)
    wire.say(flusher_pid(log))
    wire.hear()


def test_only_the_flusher_and_all_semaphores_lost_goes_on_with_the_block(log_path: Path) -> None:
    """Names of semaphores are made anew by whoever comes next."""
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(_reserve_in_the_middle, log_path) as child:
        lsns, _, _ = child.hear()
        kill_everybody(log_path, [child])
    for name in shared_names(log_path):
        if name != block_path(log_path):
            name.unlink()
    with shmlog.open(log_path) as log:
        check_records(log, {1: lsns})
        assert_healthy(log)
