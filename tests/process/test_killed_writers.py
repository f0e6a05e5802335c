"""Writers that die or stand still in the middle: their holes are filled once their death
is proven, never before, and nobody else's record is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    check_records,
    read_side,
    until,
    write_until_killed,
)

import shmlog
from shmlog.format.layout import FRAME_HEADER_BYTES, KIND_FILL, SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

WINDOW_BYTES = 64 << 10


def _reserve_and_wait(wire: Wire, path: Path, nbytes: int) -> None:
    """Hold a reservation open until told what to do with it."""
    with shmlog.open(path) as log:
        reservation = log.reserve(nbytes, 7)
        wire.say((reservation.lsn, log.writer_number))
        reservation.buffer[:] = b"r" * nbytes
        wire.say("filled")
        wire.hear()
        wire.say(reservation.publish())


def _kind_at(path: Path, lsn: int) -> int:
    """The kind byte of the frame at lsn, as the file has it."""
    first = lsn - lsn % SEGMENT_BYTES
    data = (path / "segments" / f"{first:020d}.seg").read_bytes()
    return data[SEGMENT_HEADER_BYTES + lsn - first + FRAME_HEADER_BYTES - 2]


@pytest.mark.parametrize("nbytes", [0, 100, 5000, 30_000])
@pytest.mark.holds("R2")
def test_a_hole_of_a_killed_reservation_is_filled_and_records_above_it_become_readable(
    log_path: Path, nbytes: int
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=WINDOW_BYTES) as log:
        below = log.append(b"below", durable=True)
        with Child(_reserve_and_wait, log_path, nbytes) as child:
            lsn, number = child.hear()
            child.hear()
            above = [log.append(b"above"), *log.append_many([b"1", b"22"]).tolist()]
            with pytest.raises(TimeoutError):
                log.wait_committed(above[0], 0.05)
            assert [record.lsn for record in log.read()] == [below], "never an island"
            assert log.committed_lsn == lsn
            child.kill()
            log.wait_committed(above[-1], 30)
        assert [record.lsn for record in log.read()] == [below, *above]
        assert _kind_at(log_path, lsn) == KIND_FILL
        statistics = log.statistics()
        assert statistics.holes_filled == 1
        assert statistics.hole_bytes == above[0] - lsn
        until(
            lambda: all(each.number != number for each in log.statistics().participants),
            "the slot is free again",
        )
        assert_healthy(log)


def test_a_hole_over_a_segment_end_is_filled_in_both_segments(
    log_path: Path,
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        while log.reserved_lsn < SEGMENT_BYTES - 8000:
            log.append(bytes(1000))
        begin = log.reserved_lsn
        with Child(_reserve_and_wait, log_path, 20_000) as child:
            lsn, _ = child.hear()
            assert begin < SEGMENT_BYTES == lsn
            child.hear()
            above = log.append(b"above")
            child.kill()
        log.wait_committed(above, 30)
        assert _kind_at(log_path, begin) == _kind_at(log_path, lsn) == KIND_FILL
        assert [record.lsn for record in log.read(begin)] == [above]
        assert log.statistics().hole_bytes == above - begin
        assert_healthy(log)


def test_holes_of_many_killed_writers_side_by_side_cost_no_record_between_them(log_path: Path) -> None:
    with (
        shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log,
        contextlib.ExitStack() as stack,
    ):
        mine: list[int] = []
        children = []
        for n in range(6):
            children.append(stack.enter_context(Child(_reserve_and_wait, log_path, 64 * n)))
            children[-1].hear()
            children[-1].hear()
            if n % 2:
                mine += append_some(log, 0, 3, first=len(mine), seed=n)
        survivor = children.pop(3)
        random.Random(5).shuffle(children)
        for child in children:
            child.kill()
        survivor.say("publish")
        published = survivor.hear()
        log.wait_committed(mine[-1], 30)
        assert [record.lsn for record in log.read()] == sorted([*mine, published])
        # two dead neighbours with nothing between them may be one hole or two
        assert 3 <= log.statistics().holes_filled <= 5
        assert_healthy(log)


def test_a_zombie_that_nobody_reaps_counts_as_dead(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, Child(_reserve_and_wait, log_path, 10) as child:
        child.hear()
        above = log.append(b"above")
        child.signal(signal.SIGKILL)
        log.wait_committed(above, 30)
        assert Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z"


def test_a_process_that_execs_with_an_open_reservation_counts_as_dead(log_path: Path) -> None:
    """It keeps its pid, so only the lock can tell."""

    def reserve_and_exec(wire: Wire) -> None:
        log = shmlog.open(log_path)
        reservation = log.reserve(100)
        wire.say(reservation.lsn)
        wire.hear()
        os.execv("/bin/sleep", ["sleep", "1000"])

    with shmlog.open(log_path, create=True) as log, Child(reserve_and_exec) as child:
        lsn = child.hear()
        above = log.append(b"above")
        child.say("exec")
        log.wait_committed(above, 30)
        assert [record.lsn for record in log.read()] == [above] and lsn < above
        assert Path(f"/proc/{child.pid}/comm").read_text().strip() == "sleep"


@pytest.mark.holds("F2", "R1")
def test_a_stopped_writer_is_never_overwritten_and_named_when_the_window_is_full(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=WINDOW_BYTES) as log:
        below = log.append(b"below", durable=True)
        with Child(_reserve_and_wait, log_path, 1000) as child:
            lsn, _ = child.hear()
            child.hear()
            child.stop()
            mine = []
            with pytest.raises(shmlog.LogFullError, match=rf"pid {child.pid}\b.* has not finished LSN {lsn}"):
                while True:
                    mine.append(log.append(bytes(1000), timeout=0.2))
            assert len(mine) > 50, "others go on until the window is full"
            tail = log.reserved_lsn
            for _ in range(3):
                with pytest.raises(shmlog.LogFullError):
                    log.append(bytes(1000), timeout=0.05)
            assert log.reserved_lsn == tail, "what is refused reserves nothing"
            assert log.committed_lsn == lsn and log.statistics().holes_filled == 0
            child.resume()
            child.say("publish")
            assert child.hear() == lsn
            log.wait_committed(mine[-1], 30)
            child.result()
        mine.append(log.append(b"there is room again"))
        log.wait_committed()
        assert [record.lsn for record in log.read()] == [below, lsn, *mine]
        assert bytes(next(iter(log.read(lsn))).data) == b"r" * 1000
        assert log.statistics().holes_filled == 0
        assert_healthy(log)


def test_a_writer_killed_while_it_is_stopped_gives_its_room_back(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=WINDOW_BYTES) as log:
        with Child(_reserve_and_wait, log_path, 1000) as child:
            child.hear()
            child.hear()
            child.stop()
            mine = []
            with pytest.raises(shmlog.LogFullError):
                while True:
                    mine.append(log.append(bytes(1000), timeout=0.1))
            waiting: list[int] = []
            thread = threading.Thread(target=lambda: waiting.append(log.append(bytes(1000), timeout=30)))
            thread.start()
            child.kill()
            thread.join()
        log.wait_committed()
        assert [record.lsn for record in log.read()] == mine + waiting and waiting
        assert log.statistics().holes_filled == 1
        assert_healthy(log)


def test_a_reservation_left_by_an_exception_is_filled_by_its_live_owner(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        with pytest.raises(ZeroDivisionError), log.reserve(100) as reservation:
            reservation.buffer[:50] = b"x" * 50
            raise ZeroDivisionError
        dropped = log.reserve(100)
        del dropped
        with log.reserve(24, 5) as reservation:
            reservation.array("f8")[:] = [1.0, 2.0, 3.0]
        log.wait_committed()
        (record,) = log.read()
        assert (record.lsn, record.tag) == (reservation.lsn, 5)
        assert np.frombuffer(record.data).tolist() == [1.0, 2.0, 3.0]
        assert_healthy(log)


@pytest.mark.parametrize("most", [600, 20_000])
def test_writers_killed_at_random_moments_lose_nothing_returned_and_stop_nobody(
    log_path: Path, tmp_path: Path, most: int
) -> None:
    rng = random.Random(most)
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        mine: list[int] = []
        sides = {}
        with Child(write_until_killed, log_path, 1, tmp_path / "survivor", most) as survivor:
            survivor.hear()
            for life in range(2, 14):
                sides[life] = tmp_path / f"side-{life}"
                with Child(write_until_killed, log_path, life, sides[life], most) as child:
                    child.hear()
                    enough = 16 * rng.randrange(1, 200)
                    until(lambda: sides[life].exists() and sides[life].stat().st_size >= enough)  # noqa: B023
                    child.kill()
                mine += append_some(log, 0, 5, first=len(mine), seed=life)
            log.wait_durable(mine[-1], 30)
        sides[1] = tmp_path / "survivor"
        log.wait_durable(None, 30)
        returned = {life: read_side(side) for life, side in sides.items()}
        check_records(log, {0: mine, **returned}, killed=sides)
        assert_healthy(log)


def test_killed_batches_are_whole_or_absent_if_atomic(log_path: Path) -> None:
    def batches(wire: Wire, writer: int) -> None:
        log = shmlog.open(log_path)
        wire.say("here")
        rows = [bytes([writer]) * 900] * 20
        while True:
            log.append_many(rows, writer, atomic=True)

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        for writer in range(1, 9):
            with Child(batches, writer) as child:
                child.hear()
                mark = log.committed_lsn + 60_000 * writer % 200_000
                until(lambda: log.committed_lsn > mark)  # noqa: B023
                child.kill()
        log.append(b"end", durable=True)
        counts: dict[int, int] = {}
        for record in log.read():
            counts[record.tag] = counts.get(record.tag, 0) + 1
        assert counts.pop(0) == 1
        assert set(counts) == set(range(1, 9)) and all(count % 20 == 0 for count in counts.values())


def test_dead_writers_slots_are_used_again(log_path: Path) -> None:
    """More lives than there are slots would need: numbers are given back."""

    with shmlog.open(log_path, create=True) as log:
        for _ in range(20):
            with Child(lambda wire: (shmlog.open(log_path).append(b"x"), os._exit(0))) as child:
                child.wait()
        log.append(b"end", durable=True)
        until(lambda: len(log.statistics().participants) == 2)
        assert sum(1 for _ in log.read()) == 21
        assert log.statistics().records == 21
