"""Arrow's consumers: pyarrow, polars, duckdb and pandas take a log directly."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import SEGMENT_BYTES

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

TICK = np.dtype(
    [("symbol", "S4"), ("price", "<f8"), ("size", ">u4"), ("when", "<M8[ns]"), ("at", "<f4", (2,))]
)


@pytest.fixture
def log(log_path: Path) -> Any:
    """A thousand ticks of tag 1 over several segments, and texts of many lengths of tag 2."""
    ticks = np.zeros(1000, TICK)
    ticks["symbol"] = [b"AB", b"CDEF", b"", b"X"] * 250
    ticks["price"] = np.arange(1000) / 4
    ticks["size"] = np.arange(1000)
    ticks["when"] = np.datetime64("2026-01-01", "ns") + np.arange(1000)
    ticks["when"][5] = np.datetime64("NaT")
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append_array(ticks, tag=1)
        log.append_many([b"t" * n for n in range(40)], tag=2)
        log.wait_durable()
        yield log


def rows(log: Any, **options: Any) -> list[tuple[Any, ...]]:
    return [(r.lsn, r.time_ns, r.tag, r.writer, bytes(r.data)) for r in log.read(**options)]


def test_pyarrow_takes_a_scan_and_a_batch_and_finds_nothing_wrong(log: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    scan = log.scan()
    table = pyarrow.table(scan)
    table.validate(full=True)
    assert table.schema.names == ["lsn", "time_ns", "tag", "writer", "data"]
    assert table.schema.field("data").type == pyarrow.binary_view()
    assert [tuple(row.values()) for row in table.to_pylist()] == rows(log)
    assert pyarrow.table(scan) == table == pyarrow.RecordBatchReader.from_stream(scan).read_all()
    batch = next(iter(scan))
    arrow = pyarrow.record_batch(batch)
    arrow.validate(full=True)
    assert arrow.to_pylist() == table.slice(0, len(batch)).to_pylist()
    ticks = pyarrow.table(log.scan(tags=1).arrow(TICK))
    ticks.validate(full=True)
    assert ticks.column("when").null_count == 1 and ticks.column("size").to_pylist() == list(range(1000))
    assert ticks.column("symbol").to_pylist()[:4] == [b"AB", b"CDEF", b"", b"X"]
    with pytest.raises(ValueError, match="not one of 5 columns"):
        scan.__arrow_c_stream__(pyarrow.schema([("lsn", pyarrow.uint64())]).__arrow_c_schema__())
    with pytest.raises((pyarrow.ArrowInvalid, OSError), match="has 0 bytes, and the dtype 32"):
        pyarrow.table(log.scan().arrow(TICK))


def test_what_pyarrow_has_outlives_the_log(log: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table, wanted = pyarrow.table(log.scan()), rows(log)
    column = table.column("data").chunk(0)
    log.trim(log.committed_lsn)
    log.close()
    shutil.rmtree(log.path)
    assert [tuple(row.values()) for row in table.to_pylist()] == wanted
    del table
    assert column.to_pylist() == [row[4] for row in wanted[: len(column)]]


def test_polars_takes_a_scan_and_a_batch(log: Any) -> None:
    polars = pytest.importorskip("polars")
    scan = log.scan()
    frame = polars.DataFrame(scan)
    assert frame.rows() == rows(log) == polars.DataFrame(scan).rows()
    assert polars.DataFrame(next(iter(scan))).rows() == frame.rows()[: len(next(iter(scan)))]
    ticks = polars.DataFrame(log.scan(tags=1).arrow(TICK, ["price", "when", "at", "symbol"]))
    assert ticks["price"].sum() == sum(range(1000)) / 4 and ticks["when"].null_count() == 1
    assert ticks.filter(polars.col("symbol") == b"CDEF").height == 250
    log.close()
    shutil.rmtree(log.path)
    assert frame["data"].bin.size().sum() == 1000 * TICK.itemsize + sum(range(40))


def test_duckdb_asks_for_a_scan_again_and_again(log: Any) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.register("everything", log.scan())
        for _ in range(2):
            found = connection.sql(
                "select tag, count(*), sum(octet_length(data)) from everything group by tag order by tag"
            )
            assert found.fetchall() == [(1, 1000, 1000 * TICK.itemsize), (2, 40, sum(range(40)))]
        connection.register("ticks", log.scan(tags=1).arrow(TICK, ["price", "size"]))
        assert connection.sql("select sum(price), max(size) from ticks where size < 10").fetchall() == [
            (11.25, 9)
        ]


def test_pandas_takes_a_scan_where_pyarrow_is_there(log: Any) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    if not hasattr(pandas.DataFrame, "from_arrow"):
        pytest.skip("this pandas has no DataFrame.from_arrow")
    frame = pandas.DataFrame.from_arrow(log.scan(tags=1).arrow(TICK, ["lsn", "price", "when"]))
    assert frame["price"].tolist() == (np.arange(1000) / 4).tolist()
    assert frame["when"].isna().sum() == 1 and frame["lsn"].is_monotonic_increasing


def test_damage_reaches_whoever_consumes_as_an_error_that_names_it(log: Any) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    pyarrow = pytest.importorskip("pyarrow")
    lsn = rows(log)[3][0]
    with (Path(log.path) / "segments" / f"{0:020d}.seg").open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + lsn + 40)
        file.write(b"\xff")
    scan = log.scan()
    for consume in (
        lambda: pyarrow.table(scan),
        lambda: polars.DataFrame(scan),
        lambda: duckdb.from_arrow(scan).fetchall(),
    ):
        with pytest.raises(Exception, match=f"damaged at LSN {lsn}: the checksum does not match"):
            consume()


ALONE = """
import sys
from importlib.machinery import PathFinder

class WithoutPyarrow(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "pyarrow" else super().find_spec(name, path, target)

sys.meta_path = [WithoutPyarrow if finder is PathFinder else finder for finder in sys.meta_path]
import {consumer}
import shmlog
log = shmlog.open_readonly({path!r})
scan = log.scan()
batch = next(iter(scan))
print({expression})
assert "pyarrow" not in sys.modules
held = [scan, batch, log, scan.__arrow_c_stream__()]
held.append(held)
"""


@pytest.mark.parametrize(
    ("consumer", "expression"),
    [
        ("polars", "polars.DataFrame(scan).height, polars.DataFrame(batch).height == len(batch)"),
        ("duckdb", "duckdb.sql('select count(*) from scan').fetchall()[0][0], True"),
    ],
)
def test_polars_and_duckdb_take_a_log_where_pyarrow_is_not_installed(
    log: Any, consumer: str, expression: str
) -> None:
    pytest.importorskip(consumer)
    code = ALONE.format(consumer=consumer, expression=expression, path=log.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1040 True\n"), done.stderr


AT_EXIT = """
import {consumer}
import shmlog
log = shmlog.open_readonly({path!r})
scan = log.scan()
held = [{expression}, scan]
held.append(held)
"""


@pytest.mark.parametrize(
    ("consumer", "expression"),
    [
        ("pyarrow", "pyarrow.table(scan), pyarrow.RecordBatchReader.from_stream(scan)"),
        ("polars", "polars.DataFrame(scan)"),
        ("duckdb", "duckdb.sql('select * from scan'), duckdb.connect().sql('select 1')"),
    ],
)
def test_an_interpreter_ends_while_a_consumer_holds_batches(log: Any, consumer: str, expression: str) -> None:
    pytest.importorskip(consumer)
    code = AT_EXIT.format(consumer=consumer, expression=expression, path=log.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
