"""Following: batches as they are committed, by handles and cursors; cursors seen from outside."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, kill_everybody

import shmlog

Opener = Callable[[Path], "shmlog.Log | shmlog.ReadonlyLog"]
OPENERS = pytest.mark.parametrize("opener", [shmlog.open, shmlog.open_readonly])


@pytest.fixture(autouse=True)
def _made(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        log.append(b"before", durable=True)


def _write(wire: Wire, path: Path, count: int) -> None:
    with shmlog.open(path) as log:
        wire.hear()
        for n in range(count):
            log.append(n.to_bytes(4, "little") * 50, n % 3)
        log.wait_committed()
        wire.say("done")


@OPENERS
def test_batches_of_another_process_come_once_and_in_order(log_path: Path, opener: Opener) -> None:
    with Child(_write, log_path, 3000) as child, opener(log_path) as log:
        batches = log.tail_batches(timeout=20)
        child.say("go")
        found: list[bytes] = []
        while len(found) < 3000:
            found += [bytes(record.data[:4]) for record in next(batches)]
        child.hear()
    assert found == [n.to_bytes(4, "little") for n in range(3000)]


@OPENERS
def test_tags_are_filtered_and_the_place_goes_on_over_what_was_left_out(
    log_path: Path, opener: Opener
) -> None:
    with Child(_write, log_path, 900) as child, opener(log_path) as log:
        batches = log.tail_batches(tags={1}, timeout=20)
        child.say("go")
        found: list[int] = []
        while len(found) < 300:
            batch = next(batches)
            assert set(batch.tag.tolist()) == {1}
            found += [int.from_bytes(record.data[:4], "little") for record in batch]
    assert found == list(range(1, 900, 3))


@OPENERS
def test_quiet_log_times_out_and_a_closed_handle_ends_the_wait(log_path: Path, opener: Opener) -> None:
    log = opener(log_path)
    with pytest.raises(TimeoutError, match="no record was committed"):
        next(log.tail_batches(timeout=0.05))
    errors: list[BaseException] = []

    def follow() -> None:
        try:
            next(log.tail_batches())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    log.close()
    thread.join(20)
    assert isinstance(errors[0], shmlog.ClosedError)


def test_delay_makes_one_batch_of_what_comes_within_it(log_path: Path) -> None:
    with shmlog.open(log_path) as log, shmlog.open(log_path) as reader:
        batches = reader.tail_batches(timeout=20, max_delay=1.0)
        got: list[shmlog.RecordBatch] = []
        thread = threading.Thread(target=lambda: got.append(next(batches)))
        thread.start()
        for n in range(20):
            log.append(b"%d" % n)
            log.wait_committed()
        thread.join(20)
        assert [bytes(record.data) for record in got[0]] == [b"%d" % n for n in range(20)]


def test_readonly_follower_goes_on_over_the_death_of_everybody(log_path: Path) -> None:
    with shmlog.open_readonly(log_path) as reader:
        batches = reader.tail_batches(timeout=20)
        with Child(_write_until_killed, log_path) as child:
            first = next(batches)
            kill_everybody(log_path, [child])
        with shmlog.open(log_path) as log:
            lsn = log.append(b"another session")
            last = first
            while int(last.lsn[-1]) < lsn:
                following = next(batches)
                assert int(following.lsn[0]) >= last.next_lsn
                last = following
            assert bytes(last[-1].data) == b"another session"


def _write_until_killed(wire: Wire, path: Path) -> None:
    log = shmlog.open(path)
    while True:
        log.append(os.urandom(20))


# ------------------------------------------------------------------ cursors


def test_cursor_follows_and_its_place_survives(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        with log.cursor("reader") as cursor:
            following = cursor.follow(timeout=10)
            assert [bytes(record.data) for record in next(following)] == [b"before"]
            log.append(b"one")
            assert [bytes(record.data) for record in next(following)] == [b"one"]
            cursor.commit()
            log.append(b"two")
            next(following)  # seen, and not committed
        with log.cursor("reader") as cursor:
            assert [bytes(record.data) for record in next(cursor.follow(timeout=10))] == [b"two"]


def test_cursor_seeks_by_lsn_and_by_time(log_path: Path) -> None:
    with shmlog.open(log_path) as log, log.cursor("reader") as cursor:
        one = log.append(b"one")
        log.wait_committed()
        moment = time.time_ns()
        two = log.append(b"two")
        log.wait_committed()
        assert cursor.seek(one) == one
        assert [bytes(record.data) for batch in cursor.batches() for record in batch] == [b"one", b"two"]
        assert cursor.seek(time_ns=moment) == two
        assert cursor.lag.records == 1
        assert cursor.commit() == two
        for wrong in (two + 1, two + (1 << 20), -32):
            with pytest.raises(ValueError, match=r"not committed|no record begins"):
                cursor.seek(wrong)
        with pytest.raises(TypeError):
            cursor.seek()
        assert cursor.lsn == two
    with shmlog.open(log_path) as log, log.cursor("reader") as cursor:
        assert cursor.lsn == two


@OPENERS
def test_cursors_are_seen_with_lag_and_holder_while_they_are_held(log_path: Path, opener: Opener) -> None:
    with shmlog.open(log_path) as log:
        first = log.append(b"one")
        last = log.append(b"two", durable=True)
        with log.cursor("idle") as cursor:
            cursor.commit(log.committed_lsn)
        with log.cursor("held") as cursor:
            cursor.commit(first)
            with opener(log_path) as other:
                held, idle = other.cursors()
            assert (held.name, held.lsn, held.pid) == ("held", first, os.getpid())
            assert (held.lag.bytes, held.lag.records) == (log.committed_lsn - first, 2)
            assert 0 < held.lag.seconds < 60
            assert (idle.name, idle.pid, idle.lag) == ("idle", None, (0, 0, 0.0))
            assert last < idle.lsn


def test_cursor_is_removed_unless_it_is_held(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        with log.cursor("reader"), pytest.raises(shmlog.AttachError, match="open elsewhere"):
            log.remove_cursor("reader")
        log.remove_cursor("reader")
        assert log.cursors() == []
        with pytest.raises(FileNotFoundError):
            log.remove_cursor("reader")
        with log.cursor("reader") as cursor:
            assert cursor.lsn == log.trimmed_lsn


def _take(wire: Wire, path: Path) -> None:
    with shmlog.open(path) as log:
        wire.say("ready")
        wire.hear()
        for _ in range(300):
            try:
                with log.cursor("contended") as cursor:
                    cursor.commit(log.committed_lsn)
                    assert Path(path, "cursors/contended").exists(), "what is held has its name"
            except shmlog.AttachError:
                continue
        wire.say("done")


def test_cursor_that_is_removed_while_others_open_it_is_never_held_without_its_name(log_path: Path) -> None:
    with Child(_take, log_path) as one, Child(_take, log_path) as two, shmlog.open(log_path) as log:
        for child in (one, two):
            child.hear()
        for child in (one, two):
            child.say("go")
        removed = 0
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                log.remove_cursor("contended")
                removed += 1
            except (shmlog.AttachError, FileNotFoundError):
                continue
        assert [child.hear() for child in (one, two)] == ["done", "done"]
        assert removed
