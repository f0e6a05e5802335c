"""Cursors: at least once, whatever happens in between."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
from pathlib import Path

import pytest
from support.processes import Child, Wire

import shmlog


def _numbers(cursor: shmlog.Cursor) -> list[int]:
    return [int(bytes(record.data)) for batch in cursor.batches() for record in batch]


def _append(log: shmlog.Log, begin: int, end: int) -> None:
    log.append_many([b"%d" % number for number in range(begin, end)])
    log.wait_committed()


def test_a_cursor_goes_on_where_it_was_committed(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        _append(log, 0, 10)
        with log.cursor("etl") as cursor:
            assert _numbers(cursor) == list(range(10))
            cursor.commit()
        _append(log, 10, 15)
    with shmlog.open(log_path) as log, log.cursor("etl") as cursor:
        assert _numbers(cursor) == list(range(10, 15))


def test_what_was_not_committed_comes_again(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        _append(log, 0, 10)
        with log.cursor("etl") as cursor:
            assert _numbers(cursor) == list(range(10))
        with log.cursor("etl") as cursor:
            assert _numbers(cursor) == list(range(10))


@pytest.mark.parametrize("offset", [0, 512])
def test_one_spoilt_copy_costs_at_most_the_last_commit(log_path: Path, offset: int) -> None:
    with shmlog.open(log_path, create=True) as log:
        _append(log, 0, 20)
        places = [record.lsn for record in log.read()]
        with log.cursor("etl") as cursor:
            for place in (places[4], places[8]):
                cursor.commit(place)
        path = log_path / "cursors" / "etl"
        data = bytearray(path.read_bytes())
        data[offset + 20] ^= 1
        path.write_bytes(data)
        with log.cursor("etl") as cursor:
            assert cursor.lsn in (places[4], places[8])
            assert _numbers(cursor)[-1] == 19


def test_a_cursor_with_no_valid_copy_is_a_format_error(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.cursor("etl").close()
        (log_path / "cursors" / "etl").write_bytes(b"\1" * 1024)
        with pytest.raises(shmlog.FormatError, match="no valid copy"):
            log.cursor("etl")


@pytest.mark.parametrize("content", [b"", bytes(1024)])
def test_a_cursor_whose_making_was_interrupted_is_made(log_path: Path, content: bytes) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        (log_path / "cursors").mkdir(0o700)
        (log_path / "cursors" / "etl").write_bytes(content)
        with log.cursor("etl") as cursor:
            assert cursor.lsn == 0 and len(list(cursor.batches())) == 1


def test_a_cursor_is_never_ahead_of_what_is_durable(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, sync_interval=1000) as log, log.cursor("etl") as cursor:
        for n in range(10):
            log.append(b"%d" % n)
        log.wait_committed()
        assert log.durable_lsn < log.committed_lsn
        assert sum(map(len, cursor.batches())) == 10
        place = cursor.commit()
        assert log.durable_lsn >= place == log.committed_lsn


def test_a_cursor_beyond_the_end_of_the_log_is_refused(log_path: Path, tmp_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        end = log.committed_lsn
    shutil.copytree(log_path, tmp_path / "copy")
    with shmlog.open(log_path) as log:
        log.append(b"y", durable=True)
        with log.cursor("etl") as cursor:
            cursor.commit(log.committed_lsn)
    shutil.copytree(log_path / "cursors", tmp_path / "copy" / "cursors")
    with (
        shmlog.open(tmp_path / "copy") as log,
        pytest.raises(shmlog.FormatError, match=f"the log ends at {end}"),
    ):
        log.cursor("etl")


def test_a_new_cursor_is_held_by_one_of_those_who_open_it_at_once(log_path: Path) -> None:
    def hold(wire: Wire, name: str) -> int:
        with shmlog.open(log_path) as log:
            wire.say("ready")
            wire.hear()
            try:
                cursor = log.cursor(name)
            except shmlog.AttachError:
                cursor = None
            wire.say(cursor is not None)
            wire.hear()
        return 0

    with shmlog.open(log_path, create=True):
        for trial in range(5):
            with contextlib.ExitStack() as stack:
                children = [stack.enter_context(Child(hold, f"c{trial}")) for _ in range(4)]
                for child in children:
                    child.hear()
                for child in children:
                    child.say("open")
                assert sum(child.hear() for child in children) == 1
                for child in children:
                    child.say("end")
                    child.result()


def test_a_forked_child_cannot_use_the_parents_cursor(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, log.cursor("etl") as cursor:
        log.append(b"x", durable=True)

        def use(wire: Wire) -> str:
            problems = []
            for call in (cursor.batches, cursor.commit):
                try:
                    call()
                except shmlog.ClosedError as error:
                    problems.append(str(error))
            return " ".join(problems)

        with Child(use) as child:
            assert child.result().count("belongs to the parent process") == 2
        assert len(list(cursor.batches())) == 1
    with pytest.raises(shmlog.ClosedError):
        cursor.batches()


def test_a_place_that_is_no_place_is_not_committed(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, log.cursor("etl") as cursor:
        log.append(b"x", durable=True)
        with pytest.raises(ValueError, match="no record begins at LSN 33"):
            cursor.commit(33)
        with pytest.raises(TypeError):
            cursor.commit(1.0)  # type: ignore[arg-type]


def test_a_place_inside_a_record_is_refused_before_anybody_relies_on_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, log.cursor("etl") as cursor:
        first, last = log.append(bytes(200)), log.append(b"x", durable=True)
        for go in (cursor.seek, cursor.commit):
            with pytest.raises(ValueError, match=f"no record begins at LSN {first + 64}"):
                go(first + 64)
            assert go(last) == last
            assert go(log.committed_lsn) == log.committed_lsn
        assert [found.lag.records for found in log.cursors()] == [0]


def test_a_cursor_is_open_once_only(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, log.cursor("etl"):
        with pytest.raises(shmlog.AttachError, match="open elsewhere"):
            log.cursor("etl")
        log.cursor("other").close()


def _hold(path: str, ready: multiprocessing.synchronize.Event) -> None:
    log = shmlog.open(path)
    cursor = log.cursor("etl")
    list(cursor.batches())
    cursor.commit()
    ready.set()
    multiprocessing.Event().wait(60)


def test_a_killed_holder_frees_its_cursor_and_keeps_its_place(log_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with shmlog.open(log_path, create=True) as log:
        _append(log, 0, 5)
        ready = context.Event()
        holder = context.Process(target=_hold, args=(str(log_path), ready))
        holder.start()
        assert ready.wait(20)
        holder.kill()
        holder.join()
        _append(log, 5, 7)
        with log.cursor("etl") as cursor:
            assert _numbers(cursor) == [5, 6]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_name_that_could_leave_the_directory_is_refused(log_path: Path, name: str) -> None:
    with shmlog.open(log_path, create=True) as log, pytest.raises(ValueError, match="cursor's name"):
        log.cursor(name)
    assert not (log_path / "cursors").exists()


def test_a_place_beyond_the_end_is_refused(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, log.cursor("etl") as cursor:
        with pytest.raises(ValueError, match="not committed"):
            cursor.commit(1 << 20)
        cursor.close()
        with pytest.raises(shmlog.ClosedError):
            cursor.commit()
