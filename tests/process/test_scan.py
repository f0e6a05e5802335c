"""Scan: a range of a log as an object that outlives its handle and crosses processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import arrow
from support.processes import SEGMENT_BYTES, Child, append_some, kill_everybody, lose_shared_memory

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

Row = tuple[int, int, bytes]


def rows(source: Any) -> list[Row]:
    """What a scan, or an iterator of batches, has."""
    return [(record.lsn, record.tag, bytes(record.data)) for batch in source for record in batch]


def read(log: Any, *bounds: int | None, **options: Any) -> list[Row]:
    return [(record.lsn, record.tag, bytes(record.data)) for record in log.read(*bounds, **options)]


def fill(log: shmlog.Log, count: int = 300) -> list[int]:
    """Records of many sizes and ten tags over several segments, with ranges given up among them."""
    lsns = []
    for n in range(count):
        lsns.append(log.append(bytes([n % 251]) * (n * 37 % 900), tag=n % 10, timeout=30))
        if n % 17 == 0:
            log.reserve(50).abort()
    log.wait_committed(timeout=30)
    return lsns


def test_a_scan_is_iterated_as_often_as_wanted_and_stays_what_it_was(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = fill(log)
        scan, part = log.scan(), log.scan(lsns[10], lsns[200] + 1)
        expected = read(log)
        assert rows(scan) == expected and (scan.start, scan.stop) == (0, log.committed_lsn)
        assert rows(part) == expected[10:201]
        assert rows(log.scan(lsns[3], lsns[3])) == rows(log.scan(lsns[5], lsns[3])) == []
        assert rows(log.scan(stop=1 << 62)) == expected
        log.append(b"later", durable=True)
        assert rows(scan) == rows(scan) == expected
    assert rows(scan) == expected
    kept = list(part)
    shutil.rmtree(log_path)
    assert rows(kept) == expected[10:201]
    assert str(log_path) in repr(scan) and scan.path == str(log_path)


TAGS = [
    3,
    range(2, 7),
    range(9, -1, -3),
    range(4, 5, 7),
    range(0),
    {1, 8},
    frozenset({0}),
    {3, 99},
    [7, 7, 2],
    set(),
]


def test_tags_are_filtered_alike_wherever_they_are_given(log_path: Path) -> None:
    with (
        shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log,
        shmlog.open_readonly(log_path) as readonly,
    ):
        fill(log, 100)
        everything = read(log)
        for tags in TAGS:
            wanted = {tags} if isinstance(tags, int) else set(tags)
            expected = [row for row in everything if row[1] in wanted]
            assert read(log, tags=tags) == expected, tags
            assert rows(log.read_batches(tag=tags)) == expected
            assert rows(log.scan(tags=tags)) == expected
            assert rows(pickle.loads(pickle.dumps(log.scan(tags=tags)))) == expected
            for tail in (log.tail(0, timeout=0.01, tags=tags), readonly.tail(0, timeout=0.01, tags=tags)):
                assert [next(tail).lsn for _ in expected] == [row[0] for row in expected]
                with pytest.raises(TimeoutError):
                    next(tail)


def test_what_is_no_tag_is_refused_at_once(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        for wrong in (-1, 1 << 32, {5, -1}, range(-3, 2), [1 << 40], "7", b"7", 1.5, {1.5}):
            for method in (log.read, log.scan, log.tail):
                with pytest.raises((ValueError, TypeError)):
                    method(tags=wrong)


def test_a_rare_tag_is_found_among_very_many_records(log_path: Path) -> None:
    """More than read() looks at without letting others have their turn."""
    with shmlog.open(log_path, create=True) as log:
        log.append_many([b""] * 20_000, tag=1)
        last = log.append(b"rare", tag=2, durable=True)
        assert read(log, tags=2) == [(last, 2, b"rare")]


def test_parts_are_cut_at_records_and_are_the_scan_together(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = fill(log)
        for scan in (log.scan(), log.scan(lsns[7], lsns[250] + 1), log.scan(tags={1, 2})):
            for parts in (1, 2, 7, 50):
                split = scan.split(parts)
                assert len(split) == parts
                assert rows(batch for part in split for batch in part) == rows(scan)
                assert [part.start for part in split[1:]] == [part.stop for part in split[:-1]]
                sizes = [part.stop - part.start for part in split]
                assert max(sizes) - min(sizes) <= 2 * (900 + 64), "as equal as records allow"
            again = [piece for part in split for piece in part.split(3)]
            assert rows(batch for piece in again for batch in piece) == rows(scan)


def test_a_split_into_more_parts_than_records_has_none_that_is_empty(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        assert [rows(part) for part in log.scan().split(4)] == [[]]
        log.append_many([b"a" * 100, b"b", b"c" * 5000])
        log.wait_committed()
        parts = log.scan().split(40)
        assert sorted(row[2][:1] for part in parts for row in rows(part)) == [b"a", b"b", b"c"]
        assert all(rows(part) for part in parts)
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="parts must be positive"):
                log.scan().split(wrong)


def test_parts_are_read_by_a_pool_of_fresh_processes_that_join_nothing(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log)
        scan, expected = log.scan(), read(log)
        with multiprocessing.get_context("forkserver").Pool(2) as pool:
            found = pool.map(rows, scan.split(5))
            assert len(log.statistics().participants) == 2, "this handle and the flusher"
            pool.close()
            pool.join()
    assert [row for part in found for row in part] == expected


def test_a_forked_child_goes_on_with_its_parents_scan(log_path: Path) -> None:
    def go_on(wire: Any) -> list[Row]:
        return rows(scan)

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log, 100)
        scan = log.scan()
        half = iter(scan)
        first = next(half)
        with Child(go_on) as child:
            assert child.result() == rows(scan) == rows([first, *half])


def test_a_scan_outlives_the_death_of_everybody_and_of_the_block(log_path: Path) -> None:
    def write(wire: Any) -> None:
        with shmlog.open(log_path) as log:
            append_some(log, 1, 200)
            log.wait_committed()
            wire.say(pickle.dumps(log.scan()))
            wire.hear()

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(write) as child:
        scan = pickle.loads(child.hear())
        expected = rows(scan)
        kill_everybody(log_path, [child])
    lose_shared_memory(log_path)
    assert len(expected) == 200 and rows(scan) == expected
    with shmlog.open(log_path) as log:
        assert log.recovery is not None
        assert rows(scan) == expected


def test_a_scan_of_a_dead_log_passes_over_the_holes_of_dead_writers(log_path: Path) -> None:
    def die(wire: Any) -> None:
        log = shmlog.open(log_path)
        before = append_some(log, 1, 20)
        kept = log.reserve(200)
        after = append_some(log, 1, 20)
        wire.say((before, kept.lsn, after))
        wire.hear()

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(die) as child:
        before, hole, after = child.hear()
        kill_everybody(log_path, [child])
    lose_shared_memory(log_path)
    with shmlog.open_readonly(log_path) as readonly:
        assert readonly.recovery is not None and readonly.recovery.holes[0][0] == hole
        scan = readonly.scan()
        assert [row[0] for row in rows(scan)] == before + after == [record.lsn for record in readonly.read()]
        assert [row[0] for row in arrow.rows(scan)] == before + after
        moved = pickle.loads(pickle.dumps(scan))
        parts = moved.split(6)
        assert rows(batch for part in parts for batch in part) == rows(scan)


def test_a_start_that_is_no_record_is_refused_by_the_call_itself(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = append_some(log, 1, 300, most=3000)
        log.wait_committed()
        for wrong in (lsns[5] + 32, lsns[5] + 1):
            with pytest.raises(ValueError, match=f"no record begins at LSN {wrong}"):
                log.scan(wrong)
        log.wait_durable()
        trimmed = log.trim(lsns[250])
        assert trimmed
        with pytest.raises(shmlog.TrimmedError):
            log.scan(lsns[0])
        assert rows(log.scan()) == read(log)


def test_a_scan_says_so_when_what_it_has_not_reached_was_trimmed(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = append_some(log, 1, 300, most=3000)
        log.wait_durable()
        scan = log.scan()
        log.trim(lsns[250])
        with pytest.raises(shmlog.TrimmedError, match="LSN 0 has been trimmed"):
            next(iter(scan))
        with pytest.raises(shmlog.TrimmedError):
            pickle.loads(pickle.dumps(scan)).split(3)


def test_a_damaged_record_ends_a_scan_as_it_ends_a_read(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = [log.append(bytes(100)) for _ in range(10)]
        log.wait_durable()
        with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
            file.seek(SEGMENT_HEADER_BYTES + lsns[4] + 32 + 50)
            file.write(b"\x01")
        scan, found = log.scan(), iter(log.scan())
        assert len(next(found)) == 4
        with pytest.raises(shmlog.CorruptionError, match=rf"LSN {lsns[4]}: the checksum"):
            next(found)
        assert len(rows(log.scan(verify=False))) == 10
        assert len(rows(batch for part in scan.split(2)[1:] for batch in part)) == 5


def test_a_pickled_scan_does_not_read_another_log_in_the_same_place(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        pickled = pickle.dumps(log.scan())
    shutil.rmtree(log_path)
    shmlog.open(log_path, create=True).close()
    with pytest.raises(shmlog.FormatError, match="replaced by another log"):
        pickle.loads(pickled)


def test_reading_goes_on_after_a_record_at_its_next_lsn(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log, 120)
        records = list(log.read())
        for n, record in enumerate(records):
            following = next(log.read(record.next_lsn), None)
            assert (following and following.lsn) == (records[n + 1].lsn if n < 119 else None)
        with log.cursor("etl") as cursor:
            assert cursor.commit(records[50].next_lsn) <= records[51].lsn


# ------------------------------------------------------------- parts of a batch


def test_parts_of_a_batch_are_what_they_would_be_of_a_list(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append_array(np.arange(100.0), tag=1)
        log.append_array(np.arange(100.0, 200.0), tag=2)
        log.wait_committed()
        (batch,) = log.scan()
        whole, values = list(batch), np.arange(200.0)
        assert batch[5] == whole[5] and batch[-1] == whole[-1] and batch[np.int64(3)] == whole[3]
        mask = batch.tag == 2
        for index in (
            slice(10, 20),
            slice(None),
            slice(-5, None),
            slice(3, 150, 7),
            slice(None, None, -1),
            slice(50, 10),
            mask,
            mask & False,
            mask.tolist(),
            [7, 3, 3, 199],
            [],
            np.array([-1, 0, 1]),
        ):
            part = batch[index]
            assert isinstance(part, shmlog.RecordBatch)
            expected = np.arange(200)[
                np.asarray(index, None if index else np.intp) if isinstance(index, list) else index
            ]
            assert list(part) == [whole[n] for n in expected.tolist()]
            assert part.array("f8").tolist() == values[expected].tolist()
            assert list(part[:2]) == list(part)[:2]
        assert batch[10:20].array("f8", copy=False).base is not None
        for unordered in (batch[::-1], batch[[3, 1, 2, 4]]):
            with pytest.raises(ValueError, match="without a copy"):
                unordered.array("f8", copy=False)
        for wrong in (np.zeros((2, 2), bool), np.zeros(3), [0.5]):
            with pytest.raises(TypeError):
                batch[wrong]
        with pytest.raises(IndexError):
            batch[200]
        with pytest.raises(IndexError):
            batch[np.zeros(3, bool)]


def test_reading_goes_on_after_a_part_of_a_batch_at_its_next_lsn(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsns = log.append_array(np.arange(100.0)).tolist()
        log.append(b"left out", tag=9)
        log.wait_committed()
        (batch,) = log.scan(tags=0)
        assert batch.next_lsn == log.committed_lsn
        assert batch[:10].next_lsn == lsns[10] and batch[::-1].next_lsn == batch.next_lsn
        assert batch[90:].next_lsn == batch.next_lsn, "what was filtered out behind it was seen too"
        assert batch[10:10].next_lsn == lsns[10] and batch[100:].next_lsn == batch.next_lsn
        assert batch[batch.tag == 5].next_lsn == lsns[0], "rather twice than never"
        assert batch[[5, 7, 2]].next_lsn == lsns[8]


def test_a_batch_says_how_to_send_it_instead_of_pickling(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsns = log.append_array(np.arange(8))
        log.wait_committed()
        for batch in (next(log.read_batches()), log.take(lsns)):
            with pytest.raises(TypeError, match=r"a RecordBatch cannot be pickled.*take\(\)"):
                pickle.dumps(batch)
            assert copy.copy(batch).array("i8").sum() == 28
