"""Reading: arrays and views of what other processes wrote, that outlive everything."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.files import remove_live
from support.processes import (
    SEGMENT_BYTES,
    Child,
    append_some,
    block_path,
    check_records,
    kill_everybody,
    lose_shared_memory,
)

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

POINT = np.dtype([("x", "<f4"), ("n", "<u2"), ("name", "S5"), ("v", "<i8", (2, 3))])


def _rows(dtype: Any, count: int) -> Any:
    kind = np.dtype(dtype)
    raw = np.random.default_rng(7).integers(0, 256, count * kind.itemsize, np.uint8)
    if kind.kind == "f":
        return np.linspace(-1, 1, count).astype(kind)
    if kind.kind == "M":
        return (np.arange(count) * 86_400).astype("datetime64[s]").astype(kind)
    return np.frombuffer(raw.tobytes(), kind)


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">i4", "c16", "datetime64[ns]", "S7", "V13", POINT])
def test_rows_round_trip_as_an_array_without_a_copy(log_path: Path, dtype: Any) -> None:
    rows = _rows(dtype, 500)
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = log.append_array(rows)
        assert lsns.dtype == np.uint64 and lsns.shape == (500,)
        log.wait_committed()
        batches = list(log.read_batches())
        assert np.concatenate([batch.lsn for batch in batches]).tolist() == lsns.tolist()
        arrays = [batch.array(dtype, copy=False) for batch in batches]
        assert b"".join(array.tobytes() for array in arrays) == rows.tobytes()
        for array in arrays:
            assert array.dtype == np.dtype(dtype) and not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[-1]
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        assert batches[0].array(dtype, copy=True).flags.writeable


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 1, 2)])
def test_rows_of_arrays_round_trip_as_a_sub_array_dtype(log_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(1).random((200, *shape))
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append_array(rows)
        log.wait_committed()
        arrays = [batch.array(np.dtype(("f8", shape)), copy=False) for batch in log.read_batches()]
        assert np.array_equal(np.concatenate(arrays), rows)


def test_unequal_payloads_and_object_dtypes_are_refused_as_arrays(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append_many([b"12345678", b"1234"])
        log.wait_committed()
        (batch,) = log.read_batches()
        with pytest.raises(ValueError, match="4 to 8 bytes"):
            batch.array("f8")
        with pytest.raises(TypeError, match="objects"):
            batch.array(object)


def test_a_tag_filter_keeps_that_tag_only_and_gathers_when_it_must(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        for n in range(1000):
            log.append(np.float64(n).tobytes(), n % 3)
        log.wait_committed()
        for tag in (0, 1, 2):
            batches = list(log.read_batches(tag=tag))
            assert {int(found) for batch in batches for found in batch.tag} == {tag}
            values = np.concatenate([batch.array("f8") for batch in batches])
            assert values.tolist() == [n for n in range(1000) if n % 3 == tag]
            with pytest.raises(ValueError, match="without a copy"):
                batches[0].array("f8", copy=False)
        assert list(log.read_batches(tag=3)) == []


def test_a_stop_inside_a_record_includes_that_record(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = append_some(log, 1, 100, most=3000)
        log.wait_committed()
        for n in (0, 1, 40, 98):
            for stop in {lsns[n] + 1, lsns[n] + 32, lsns[n + 1] - 1, lsns[n + 1]}:
                assert [record.lsn for record in log.read(lsns[0], stop)] == lsns[: n + 1]
                assert [record.lsn for record in log.read(lsns[n], stop)] == [lsns[n]]
        assert list(log.read(lsns[5], lsns[5])) == []
        assert list(log.read(lsns[5], lsns[2])) == []
        assert [record.lsn for record in log.read(lsns[90], 1 << 62)] == lsns[90:]


@pytest.mark.holds("V3")
def test_views_outlive_the_handle_the_processes_and_the_files(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        rows = np.arange(3000.0)
        log.append_array(rows)
        log.append(b"the last one", durable=True)
        arrays = [batch.array("f8", copy=False) for batch in log.read_batches() if batch.nbytes[-1] == 8]
        *_, last = log.read()
        count = sum(map(len, arrays))
    shutil.rmtree(log_path)
    gc.collect()
    assert bytes(last.data) == b"the last one"
    with pytest.raises(TypeError):
        last.data[0] = 1
    assert np.array_equal(np.concatenate(arrays), rows[:count])


@pytest.mark.holds("V1")
def test_a_reader_sees_a_prefix_while_others_write(log_path: Path) -> None:
    """At every look: whole records, in order, from the first on, and never fewer than before."""

    def write(wire: Any, writer: int) -> list[int]:
        with shmlog.open(log_path) as log:
            return append_some(log, writer, 1500, most=1500)

    with (
        shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log,
        shmlog.open_readonly(log_path) as readonly,
        Child(write, 1) as one,
        Child(write, 2) as two,
    ):
        seen: list[int] = []
        while len(seen) < 3000:
            reader = readonly if len(seen) % 2 else log
            now = [record.lsn for record in reader.read()]
            assert now[: len(seen)] == seen
            seen = now
        check_records(readonly, {1: one.result(), 2: two.result()})


def test_a_readonly_handle_of_a_live_log_takes_no_slot_and_follows_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, shmlog.open_readonly(log_path) as readonly:
        assert readonly.live and len(log.statistics().participants) <= 2
        lsn = log.append(b"x", durable=True)
        assert [record.lsn for record in readonly.read()] == [lsn]
        assert readonly.durable_lsn == log.durable_lsn
        assert not hasattr(readonly, "append")


def _session(path: Path, data: bytes) -> None:
    with shmlog.open(path) as log:
        log.append(data)


def test_a_tail_sees_the_sessions_that_begin_after_it(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    with shmlog.open_readonly(log_path) as readonly:
        tail = readonly.tail(timeout=20)
        for n in range(3):
            assert readonly.committed_lsn == 128 * n and not readonly.live
            with shmlog.open(log_path) as log:
                log.append(b"%d" % n)
                assert bytes(next(tail).data) == b"%d" % n
                assert readonly.live
                log.append(b"last")
            assert bytes(next(tail).data) == b"last"


def test_a_tail_sees_the_sessions_that_end_before_it_looks(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append(b"first", durable=True)
        readonly = shmlog.open_readonly(log_path)
        tail = readonly.tail(0, timeout=20)
        assert bytes(next(tail).data) == b"first"
    for n in range(5):
        _session(log_path, bytes([n]) * 30_000)  # some roll to another segment
        assert bytes(next(tail).data) == bytes([n]) * 30_000
        assert not readonly.live and readonly.recovery is not None
    with pytest.raises(TimeoutError):
        next(readonly.tail(timeout=0.1))
    readonly.close()


def test_an_open_readonly_handle_reads_what_later_sessions_wrote(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    with shmlog.open_readonly(log_path) as readonly:
        for n in range(3):
            _session(log_path, b"%d" % n)
            assert [bytes(record.data) for record in readonly.read()] == [b"%d" % m for m in range(n + 1)]
            assert readonly.durable_lsn == readonly.committed_lsn == (n + 1) * 64


@pytest.mark.holds("N1")
def test_a_record_being_written_is_no_hole_to_a_reader_that_lost_sight_of_the_block(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log, shmlog.open_readonly(log_path) as readonly:
        log.append(b"before", durable=True)
        tail = readonly.tail(0, timeout=0.3)
        assert bytes(next(tail).data) == b"before"
        path = block_path(log_path)
        hidden = path.with_name(path.name + "-hidden")
        with log.reserve(6) as slow:
            log.append(b"behind")
            path.rename(hidden)
            try:
                with pytest.raises(TimeoutError):
                    next(tail)
                assert readonly.committed_lsn == 64
                slow.buffer[:] = b"slowly"
                slow.publish()
                tail = readonly.tail(64, timeout=20)
                assert [bytes(next(tail).data) for _ in range(2)] == [b"slowly", b"behind"]
            finally:
                hidden.rename(path)


def test_a_reader_goes_on_after_the_block_was_lost_with_its_users(log_path: Path) -> None:
    def die(wire: Any) -> None:
        with shmlog.open(log_path) as log:
            log.append(b"kept")
            wire.say("appended")
            wire.hear()

    shmlog.open(log_path, create=True).close()
    with Child(die) as child, shmlog.open_readonly(log_path) as readonly:
        child.hear()
        tail = readonly.tail(0, timeout=20)
        assert bytes(next(tail).data) == b"kept" and readonly.live
        kill_everybody(log_path, [child])
        lose_shared_memory(log_path)
        assert readonly.committed_lsn == 64
        assert readonly.recovery is not None and readonly.recovery.case.value == "intact"
        _session(log_path, b"later")
        assert bytes(next(tail).data) == b"later"


@pytest.mark.holds("N2")
def test_a_tail_of_a_log_that_was_removed_replaced_or_cut_back_says_so(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    _session(log_path, b"x")
    with shmlog.open_readonly(log_path) as readonly:
        (segment,) = (log_path / "segments").iterdir()
        kept = segment.read_bytes()
        segment.unlink()
        with pytest.raises(shmlog.CorruptionError, match="have been lost"):
            next(readonly.tail(64, timeout=20))
        segment.write_bytes(kept)
        tail = readonly.tail(64, timeout=20)
        remove_live(log_path)
        with pytest.raises(FileNotFoundError, match="has been removed"):
            next(tail)
        shmlog.open(log_path, create=True).close()
        with pytest.raises(shmlog.FormatError, match="replaced by another log"):
            next(readonly.tail(64, timeout=20))


def test_a_flipped_bit_is_found_by_a_reader_unless_it_does_not_look(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = [log.append(bytes(100)) for _ in range(10)]
        log.wait_durable()
        with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
            file.seek(SEGMENT_HEADER_BYTES + lsns[4] + 32 + 50)
            file.write(b"\x01")
        seen = []
        with pytest.raises(shmlog.CorruptionError, match=rf"LSN {lsns[4]}: the checksum"):
            for record in log.read():
                seen.append(record.lsn)
        assert seen == lsns[:4]
        with pytest.raises(shmlog.CorruptionError):
            list(log.read(lsns[4]))
        assert len(list(log.read(verify=False))) == 10
        report = shmlog.verify(log_path)
        assert (report.ok, report.problem_lsn, report.records) == (False, lsns[4], 4)


def test_seek_time_finds_the_first_record_at_or_after_a_time(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 1, 500)
        log.wait_committed()
        records = list(log.read())
        for record in records[::50]:
            expected = next(each.lsn for each in records if each.time_ns >= record.time_ns)
            assert log.seek_time(record.time_ns) == expected
        assert log.seek_time(0) == records[0].lsn
        assert log.seek_time(records[-1].time_ns + 1) == log.committed_lsn


def test_records_one_by_one_are_those_of_the_batches(log_path: Path) -> None:
    """Over fillers, segment ends, records larger than the GIL is held for, and any bounds."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        for n in range(60):
            log.append(bytes([n]) * (n * 31 % 700), tag=n, timeout=30)
            if n % 7 == 0:
                log.reserve(100, tag=n).abort()
            if n % 20 == 0:
                log.append(bytes([n]) * 40_000, tag=n, timeout=30)
        log.wait_committed(timeout=30)
        by_batch = [record for batch in log.read_batches() for record in batch]
        assert len(by_batch) == 63
        assert list(log.read()) == list(log.read(verify=False)) == by_batch
        assert [bytes(record.data) for record in log.read()] == [bytes(record.data) for record in by_batch]
        for record in log.read():
            assert type(record) is shmlog.Record and record.data.readonly
        lsns = [record.lsn for record in by_batch]
        for start, stop in ((0, 10), (5, 5), (12, 50), (59, 63)):
            end = lsns[stop] if stop < len(lsns) else None
            assert [record.lsn for record in log.read(lsns[start], end)] == lsns[start:stop]
            if end is not None:
                assert [record.lsn for record in log.read(lsns[start], end + 1)] == lsns[start : stop + 1]


def test_read_checks_its_arguments_at_once(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        with pytest.raises(TypeError, match="start must be an LSN"):
            log.read("0")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must not be negative"):
            log.read(stop=-1)


def test_a_batch_becomes_an_arrow_batch(log_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with shmlog.open(log_path, create=True) as log:
        for n in range(50):
            log.append(bytes([n]) * (n * 37 % 300), tag=n % 3)
        log.wait_committed()
        for tag in (None, 1):
            (batch,) = log.read_batches(tag=tag)
            arrow = batch.to_arrow()
            arrow.validate(full=True)
            assert arrow.schema.names == ["lsn", "time_ns", "tag", "writer", "data"]
            assert arrow.schema.field("data").type == pyarrow.binary_view()
            expected = [(r.lsn, r.time_ns, r.tag, r.writer, bytes(r.data)) for r in batch]
            assert [tuple(row.values()) for row in arrow.to_pylist()] == expected
        del batch


def test_payloads_are_those_of_the_records_dense_sparse_taken_or_none(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsns = [log.append(bytes([n % 251]) * (n % 90)) for n in range(2000)]
        log.wait_durable()
        batch = next(log.read_batches())
        for part in (batch, batch[1:5], batch[::400], batch[::-1], batch[:0], log.take(lsns[::300])):
            assert part.payloads() == [bytes(record.data) for record in part]
        assert len(batch.payloads()) == len(batch) > 1000
