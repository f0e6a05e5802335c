"""Arrow: what consumers of the Arrow C interfaces are handed, and that it outlives everything."""

from __future__ import annotations

import ctypes
import errno
import gc
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import arrow
from support.processes import SEGMENT_BYTES, Child

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

RECORD = [("lsn", "L"), ("time_ns", "l"), ("tag", "I"), ("writer", "S"), ("data", "vz")]
TICK = np.dtype([("symbol", "S6"), ("price", "<f8"), ("size", "<u4")])


def fill(log: shmlog.Log, count: int = 300) -> None:
    """Records of every length around that of an inline view, over several segments."""
    for n in range(count):
        size = n % 30 if n % 3 else n * 37 % 900
        log.append(bytes([n % 251]) * size, tag=n % 5, timeout=30)
        if n % 40 == 0:
            log.reserve(50).abort()
    log.wait_committed(timeout=30)


def expected(source: Any) -> list[tuple[Any, ...]]:
    return [(r.lsn, r.time_ns, r.tag, r.writer, bytes(r.data)) for r in source]


def mapped(path: Path) -> int:
    """How often segments of the log are mapped into this process."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count(f"{path}/segments/")


def test_a_scan_and_a_batch_are_handed_over_as_they_are_read(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log)
        for scan in (log.scan(), log.scan(verify=False), log.scan(tags={1, 3}), log.scan(tags=range(4, 5))):
            with arrow.stream(scan) as consumer:
                assert consumer.columns == RECORD
            wanted = [record for batch in scan for record in batch]
            assert arrow.rows(scan) == arrow.rows(scan) == expected(wanted)
        lsns = [record.lsn for record in log.read()]
        for part in (log.scan(lsns[9], lsns[200] + 1), log.scan(lsns[9], lsns[9])):
            assert arrow.rows(part) == expected(log.read(part.start, part.stop))
        for batch in log.scan():
            assert arrow.batch_rows(batch) == expected(batch)
            odd = batch[batch.tag == 1][::-1]
            assert arrow.batch_rows(odd) == expected(odd)
        taken = log.take(lsns[::-7])
        assert arrow.batch_rows(taken) == expected(taken)
        assert arrow.batch_rows(log.take([])) == []


@pytest.mark.holds("D1", "O1")
def test_what_was_handed_over_outlives_trim_close_and_removal(log_path: Path) -> None:
    """The batch after its stream, and one column after the batch, each with the file's pages."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log)
        log.wait_durable()
        wanted = expected(log.read())
        assert mapped(log_path), "the reader's own, until it is closed"
        consumer = arrow.Consumer(log.scan().__arrow_c_stream__())
        batch = consumer.next()
        assert batch is not None
        fields = arrow.move(consumer.schema.children[4].contents)
        consumer.close()
        log.trim(log.committed_lsn)
    shutil.rmtree(log_path)
    assert mapped(log_path) == 1
    payloads = arrow.move(batch.children[4].contents)
    arrow.release(batch)
    assert mapped(log_path) == 1, "the column that was taken out holds it still"
    found = arrow.values(fields, payloads)
    assert len(found) > 50 and found == [row[4] for row in wanted[: len(found)]]
    arrow.release(payloads)
    arrow.release(fields)
    assert mapped(log_path) == 0


def test_capsules_that_nobody_consumes_let_go_of_everything(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log)
        batch = next(iter(log.scan()))
        before = mapped(log_path)
        capsules = [log.scan().__arrow_c_stream__(), batch.__arrow_c_array__()]
        del batch
        opened = arrow.inside(capsules[0], b"arrow_array_stream", arrow.Stream)
        array = arrow.Array()
        assert opened.get_next(ctypes.byref(opened), ctypes.byref(array)) == 0
        arrow.release(array)
        assert mapped(log_path) == before + 1, "the stream's own"
        del opened, capsules
        assert mapped(log_path) == before - 1
    assert mapped(log_path) == 0


@pytest.mark.holds("D2")
def test_threads_without_an_interpreter_may_consume_and_release(log_path: Path) -> None:
    """ctypes gives the GIL up for each call, so these run at once with a thread that holds it."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log)
        scan, wanted = log.scan(), expected(log.read())
        found: list[list[tuple[Any, ...]]] = []
        threads = [threading.Thread(target=lambda: found.append(arrow.rows(scan))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [wanted] * 4


def test_a_forked_child_goes_on_with_its_parents_stream(log_path: Path) -> None:
    def go_on(wire: Any) -> int:
        return sum(1 for _ in consumer.rows())

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log)
        with arrow.stream(log.scan()) as consumer:
            first = consumer.next()
            assert first is not None
            with Child(go_on) as child:
                assert child.result() == sum(1 for _ in consumer.rows()) == 300 - first.length
            arrow.release(first)


@pytest.mark.holds("D3")
def test_damage_comes_after_what_is_before_it_and_again_at_every_call(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = [log.append(bytes(100)) for _ in range(10)]
        log.wait_durable()
        path = log_path / "segments" / f"{0:020d}.seg"
        with path.open("r+b") as file:
            file.seek(SEGMENT_HEADER_BYTES + lsns[4] + 32 + 50)
            file.write(b"\x01")
        with arrow.stream(log.scan()) as consumer:
            batch = consumer.next()
            assert batch is not None and batch.length == 4
            arrow.release(batch)
            for _ in range(2):
                with pytest.raises(arrow.StreamError) as raised:
                    consumer.next()
                number, text = raised.value.args
                assert number == errno.EIO
                assert text == f"{path}: damaged at LSN {lsns[4]}: the checksum does not match"
        assert len(arrow.rows(log.scan(verify=False))) == 10


def test_a_file_that_is_cut_trimmed_or_foreign_is_the_streams_error(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        fill(log, 900)
        log.wait_durable()
        path = log_path / "segments" / f"{0:020d}.seg"
        scan, kept = log.scan(), path.read_bytes()

        def error() -> tuple[int, str]:
            with pytest.raises(arrow.StreamError) as raised:
                arrow.rows(scan)
            return raised.value.args[0], raised.value.args[1]

        path.write_bytes(kept[:-1])
        assert error() == (errno.EINVAL, f"{path} has another size")
        path.write_bytes(b"X" + kept[1:])
        assert len(arrow.rows(scan)) == 900, "the header is there twice"
        path.write_bytes(bytes(SEGMENT_HEADER_BYTES) + kept[SEGMENT_HEADER_BYTES:])
        assert error() == (errno.EINVAL, f"{path} is no segment of this log")
        path.write_bytes(kept)
        (log_path / "again").hardlink_to(path)
        assert error() == (errno.EINVAL, f"{path} is no regular file with one name")
        (log_path / "again").unlink()
        with arrow.stream(scan) as consumer:
            batch = consumer.next()
            assert batch is not None
            arrow.release(batch)
            second = log_path / "segments" / f"{SEGMENT_BYTES:020d}.seg"
            second.rename(log_path / "away")
            with pytest.raises(arrow.StreamError, match=f"LSN {SEGMENT_BYTES} has been trimmed"):
                consumer.next()
            (log_path / "away").rename(second)
        log.trim(log.committed_lsn)
        assert error()[0] == errno.ENOENT


def test_a_file_that_is_cut_under_the_stream_is_no_death(log_path: Path) -> None:
    """In a process of its own: a mapping that faulted stays so."""

    def cut(wire: Any) -> tuple[int, str]:
        with shmlog.open_readonly(log_path) as log, arrow.stream(log.scan(verify=False)) as consumer:
            first = consumer.next()
            assert first is not None
            arrow.release(first)
            with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
                file.truncate(SEGMENT_HEADER_BYTES + (1 << 20))
            try:
                for _ in consumer.rows():
                    pass
            except arrow.StreamError as error:
                return error.args[0], error.args[1]
            return 0, ""

    with shmlog.open(log_path, create=True, segment_bytes=16 << 20) as log:
        for _ in range(30):
            log.append_many([b"x" * 20] * 4000, timeout=30)
    with Child(cut) as child:
        number, text = child.result()
    assert number == errno.EIO and "the file was changed or lost under the reader" in text


# ------------------------------------------------------------------- columns

KINDS = np.dtype(
    [
        ("i1", "i1"),
        ("u2", "<u2"),
        ("i4", ">i4"),
        ("u8", "<u8"),
        ("f2", "<f2"),
        ("f4", ">f4"),
        ("f8", "<f8"),
        ("flag", "?"),
        ("when", "<M8[ns]"),
        ("took", "<m8[us]"),
        ("name", "S5"),
        ("raw", "V3"),
        ("vector", "<f4", (3,)),
        ("matrix", "<i2", (2, 2)),
        ("flags", "?", (3,)),
        ("inner", [("x", "<f8"), ("deep", [("y", "u1")])]),
    ],
    align=True,
)
FORMATS = [
    ("i1", "c"),
    ("u2", "S"),
    ("i4", "i"),
    ("u8", "L"),
    ("f2", "e"),
    ("f4", "f"),
    ("f8", "g"),
    ("flag", "b"),
    ("when", "tsn:"),
    ("took", "tDu"),
    ("name", "vz"),
    ("raw", "w:3"),
    ("vector", "+w:3", [("item", "f")]),
    ("matrix", "+w:2", [("item", "+w:2", [("item", "s")])]),
    ("flags", "+w:3", [("item", "b")]),
    ("inner", "+s", [("x", "g"), ("deep", "+s", [("y", "C")])]),
]


def _plain(row: Any) -> list[Any]:
    """A structured row as Arrow has it."""
    found: list[Any] = []
    for name in row.dtype.names:
        value = row[name]
        if name in ("when", "took"):
            found.append(None if np.isnat(value) else int(value.astype("i8")))
        elif name == "raw":
            found.append(value.tobytes())
        elif name == "inner":
            found.append({"x": float(value["x"]), "deep": {"y": int(value["deep"]["y"])}})
        else:
            found.append(value.tolist())
    return found


def _random_rows(count: int) -> Any:
    made = np.frombuffer(np.random.default_rng(3).bytes(count * KINDS.itemsize), KINDS).copy()
    for name in ("f2", "f4", "f8", "vector"):
        made[name] = np.random.default_rng(4).integers(-9, 9, made[name].shape)
    made["inner"]["x"] = np.arange(count)
    made["name"] = [b"", b"a\0b", b"abcde", b"x"] * (count // 4)
    for name in ("flag", "flags"):
        made[name] = np.random.default_rng(5).integers(0, 2, made[name].shape)
    made["when"][::3] = np.datetime64("NaT", "ns")
    return made


def test_a_structured_dtype_becomes_columns_of_every_kind(log_path: Path) -> None:
    made = _random_rows(2100)
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append_array(made)
        log.wait_committed()
        with arrow.stream(log.scan().arrow(KINDS)) as consumer:
            assert consumer.columns == [*RECORD[:4], *FORMATS]
            found = [list(row.values())[4:] for row in consumer.rows()]
        assert found == [_plain(row) for row in made]
        some = log.scan().arrow(KINDS, ["matrix", "lsn", "flag", "nbytes"])
        with arrow.stream(some) as consumer:
            assert [column[0] for column in consumer.columns] == ["matrix", "lsn", "flag", "nbytes"]
        again = arrow.rows(pickle.loads(pickle.dumps(some)))
        assert [(row[0], row[2], row[3]) for row in again] == [
            (row["matrix"].tolist(), bool(row["flag"]), KINDS.itemsize) for row in made
        ]
        assert arrow.rows(log.scan().arrow(KINDS, [])) == [()] * len(made)


PLAIN = ["<i8", ">f8", "?", "<M8[s]", "V12", "S12", ("<f4", (3,)), ("<i2", (2, 3))]


def test_a_plain_dtype_is_the_column_data(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        for tag, kind in enumerate(PLAIN):
            dtype = np.dtype(kind)
            made = np.ones((100, *dtype.shape), dtype.base)
            log.append_array(made, tag=tag)
            log.wait_committed()
            found = [row[4] for row in arrow.rows(log.scan(tags=tag).arrow(kind))]
            if dtype.kind == "V" and not dtype.shape:
                assert found == [each.tobytes() for each in made]
            else:
                assert found == (made.astype("i8") if dtype.kind == "M" else made).tolist(), kind


def test_a_field_goes_before_the_records_own_column_of_its_name(log_path: Path) -> None:
    dtype = np.dtype([("tag", "f8"), ("data", "u4")])
    with shmlog.open(log_path, create=True) as log:
        log.append_array(np.array([(0.5, 7)], dtype), tag=3)
        log.wait_committed()
        with arrow.stream(log.scan().arrow(dtype)) as consumer:
            assert consumer.columns == [
                ("lsn", "L"),
                ("time_ns", "l"),
                ("writer", "S"),
                ("tag", "g"),
                ("data", "I"),
            ]
        assert arrow.rows(log.scan().arrow(dtype, ["data", "tag"])) == [(7, 0.5)]


def test_a_payload_of_another_size_than_the_dtype_is_an_error_that_names_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append_array(np.zeros(10, TICK), tag=1)
        wrong = log.append(b"short", tag=2, durable=True)
        with arrow.stream(log.scan().arrow(TICK)) as consumer:
            batch = consumer.next()
            assert batch is not None and batch.length == 10
            arrow.release(batch)
            with pytest.raises(arrow.StreamError, match=f"LSN {wrong} has 5 bytes, and the dtype 18"):
                consumer.next()
        assert len(arrow.rows(log.scan(tags=1).arrow(TICK))) == 10


def test_what_has_no_arrow_type_or_name_is_refused_by_the_call(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        scan = log.scan()
        for kind in (
            "O",
            "c16",
            "U4",
            "<M8[D]",
            ">M8[ns]",
            "<M8[7s]",
            ("S3", (2,)),
            ([("x", "i4")], (2,)),
            "g",
        ):
            with pytest.raises(TypeError):
                scan.arrow([("field", kind)] if not isinstance(kind, tuple) else [("field", *kind)])
        mixed = np.dtype([("name", "U4"), ("price", "f8")])
        scan.arrow(mixed, ["price"])  # who does not ask for it does not meet it
        with pytest.raises(TypeError, match="name"):
            scan.arrow(mixed)
        with pytest.raises(ValueError, match="no column 'prices'"):
            scan.arrow(mixed, ["prices"])
        with pytest.raises(TypeError, match="one string"):
            scan.arrow(mixed, "price")


def test_a_requested_schema_is_left_aside_unless_it_cannot_be_of_this_data(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        scan, (batch,) = log.scan(), log.scan()
        alike, _ = batch.__arrow_c_array__()
        fewer = arrow.inside(alike, b"arrow_schema", arrow.Schema)
        assert len(arrow.rows(scan)) == 1
        assert scan.__arrow_c_stream__(alike) is not None and batch.__arrow_c_array__(requested_schema=alike)
        with pytest.raises(ValueError, match="not one of 1 columns"):
            scan.arrow(columns=["lsn"]).__arrow_c_stream__(alike)
        arrow.release(fewer)
        with pytest.raises(ValueError):
            scan.__arrow_c_stream__(alike)
        for wrong in (scan.__arrow_c_stream__(), 7, "schema"):
            with pytest.raises(TypeError, match="arrow_schema"):
                scan.__arrow_c_stream__(wrong)
            with pytest.raises(TypeError, match="arrow_schema"):
                batch.__arrow_c_array__(wrong)


EXIT = """
import shmlog, sys
sys.path.insert(0, {tests!r})
from support import arrow
log = shmlog.open({path!r})
scan = log.scan()
batch = next(iter(scan))
capsules = [scan.__arrow_c_stream__(), batch.__arrow_c_array__()]
consumer = arrow.Consumer(scan.__arrow_c_stream__())
array = consumer.next()
capsules.append(capsules)
batch_cycle = [batch, log.take(batch.lsn[:3]), scan.arrow()]
batch_cycle.append(batch_cycle)
views = [batch.array("V20"), batch[3].data, memoryview(batch[5].data)]
"""


def test_an_interpreter_ends_with_everything_still_held(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append_many([b"x" * 20] * 100, durable=True)
    code = EXIT.format(tests=str(Path(__file__).parents[1]), path=str(log_path))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
