"""What a caller may do wrong: each time a clear error, and the log unharmed."""

from __future__ import annotations

import array
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import SEGMENT_BYTES, assert_healthy

import shmlog


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    """A log that must be as good after the test as before."""
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        first = log.append(b"first", 3)
        yield log
        log.wait_committed()
        assert [record.lsn for record in log.read()] == [first], "a refused call appended something"
        assert log.statistics().holes_filled == 0
        assert_healthy(log, 10)


def _short(value: Any) -> str:
    return repr(value)[:9]


GRID = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("data", ["text", 5, None, 1.5, ["a"], object(), {1: 2}])
def test_append_refuses_what_is_no_buffer(log: shmlog.Log, data: Any) -> None:
    with pytest.raises(TypeError):
        log.append(data)
    with pytest.raises(TypeError):
        log.append_many([b"fine", data])


@pytest.mark.parametrize("data", [memoryview(b"abcdef")[::2], GRID.T, GRID[:, 1], np.asfortranarray(GRID)])
def test_append_refuses_a_buffer_that_is_not_contiguous(log: shmlog.Log, data: Any) -> None:
    with pytest.raises((BufferError, ValueError, TypeError), match=r"(?i)contiguous"):
        log.append(data)
    if isinstance(data, np.ndarray):
        with pytest.raises(ValueError, match="C-contiguous"):
            log.append_array(data)


@pytest.mark.parametrize("rows", [np.array([object()]), np.array([(1, None)], [("a", "i4"), ("b", "O")])])
def test_append_array_refuses_python_objects(log: shmlog.Log, rows: Any) -> None:
    with pytest.raises(TypeError, match="objects"):
        log.append_array(rows)


@pytest.mark.parametrize("rows", [[1, 2], b"abc", np.float64(3), np.array(3.0), array.array("d", [1.0])])
def test_append_array_refuses_what_is_no_array_of_rows(log: shmlog.Log, rows: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        log.append_array(rows)


@pytest.mark.parametrize("tag", [-1, 1 << 32, 1 << 64, -(1 << 70)])
def test_a_tag_out_of_range_is_a_value_error(log: shmlog.Log, tag: int) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: log.append(b"x", tag),
        lambda: log.append(b"x", tag=tag),
        lambda: log.append_many([b"x"], tag),
        lambda: log.append_array(np.zeros(3), tag),
        lambda: log.reserve(4, tag),
        lambda: next(log.read_batches(tag=tag)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="tag"):
            call()


@pytest.mark.parametrize(
    "timeout",
    [-1, -0.5, float("nan"), "1", True, -(10**400), np.int64(-1), [1]],
    ids=lambda value: repr(value)[:9],
)
@pytest.mark.holds("A3")
def test_a_wrong_timeout_is_refused_before_anything_is_appended(log: shmlog.Log, timeout: Any) -> None:
    before = log.reserved_lsn
    rows = np.zeros((3, 4))
    for call in (
        lambda: log.append(b"x", durable=True, timeout=timeout),
        lambda: log.append(b"x", timeout=timeout),
        lambda: log.append_many([b"x"], durable=True, timeout=timeout),
        lambda: log.append_array(rows, durable=True, timeout=timeout),
        lambda: log.reserve(4, timeout=timeout),
        lambda: log.wait_durable(timeout=timeout),
    ):
        with pytest.raises((ValueError, TypeError), match="timeout must"):
            call()
    assert log.reserved_lsn == before


@pytest.mark.parametrize(
    "timeout", [5, 5.0, np.int64(5), np.float32(5), 10**400, float("inf")], ids=lambda value: repr(value)[:9]
)
def test_any_real_number_is_a_timeout(log_path: Path, timeout: Any) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsn = log.append(b"x", 3, durable=True, timeout=timeout)
        log.wait_durable(lsn, timeout)


def test_an_error_after_the_append_says_how_many_records_are_in(log_path: Path) -> None:
    rows = np.zeros((10_000, 32), np.uint8)
    at_once = SEGMENT_BYTES // 2 // 64
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        with log.reserve(8):  # nothing is committed before it is published
            with pytest.raises(shmlog.LogFullError) as caught:
                log.append_array(rows, timeout=0.5)
            assert caught.value.appended == at_once  # type: ignore[attr-defined]
        log.wait_committed()
        with log.reserve(8):
            with pytest.raises(shmlog.LogFullError) as caught:
                log.append_many(list(rows), timeout=0.5)
            assert caught.value.appended == at_once  # type: ignore[attr-defined]
        log.wait_committed()
        assert sum(1 for _ in log.read()) == 2 * (1 + at_once)
        with log.reserve(8), pytest.raises(TimeoutError, match="appended at LSN") as late:
            log.append(b"x", durable=True, timeout=0.2)
        assert late.value.appended == 1  # type: ignore[attr-defined]


def test_arrays_of_python_objects_are_refused_by_every_append(log: shmlog.Log) -> None:
    for data in (
        np.array([object()]),
        np.zeros(2, [("n", "i4"), ("what", "O")]),
        np.zeros(2, [("when", "M8[ns]"), ("what", "O")]),  # has no format
        np.zeros(2, [("a:b", "O")]),
    ):
        with pytest.raises(TypeError, match="Python objects"):
            log.append(data)
        with pytest.raises(TypeError, match="Python objects"):
            log.append_many([b"x", data])


def test_arrays_of_any_other_kind_are_taken(log_path: Path) -> None:
    names = np.ones(2, [("ORIGIN", "S3"), ("O", "i4")])  # a name is no format
    when = np.array(["2013-01-01"], "M8[s]")  # has no format at all
    with shmlog.open(log_path, create=True) as log:
        for fine in (names, when):
            lsn = log.append(fine)
            log.wait_committed(lsn)
            assert bytes(next(iter(log.read(lsn))).data) == fine.tobytes()


@pytest.mark.parametrize("tag", [1.0, "1", None, b"1"])
def test_a_tag_that_is_no_integer_is_a_type_error(log: shmlog.Log, tag: Any) -> None:
    for call in (
        lambda: log.append(b"x", tag),
        lambda: log.append_many([b"x"], tag),
        lambda: log.reserve(1, tag),
    ):
        with pytest.raises(TypeError, match="tag"):
            call()


def test_a_record_too_large_is_refused_and_the_limit_is_named_and_true(log: shmlog.Log) -> None:
    most = log.record_bytes_max
    assert most == SEGMENT_BYTES - 32
    big = bytes(most + 1)
    calls: list[Callable[[], Any]] = [
        lambda: log.append(big),
        lambda: log.append_many([b"x", big]),
        lambda: log.append_array(np.zeros((2, most + 1), np.uint8)),
        lambda: log.reserve(most + 1),
        lambda: log.reserve(1 << 40),
        lambda: log.append_many([bytes(1000)] * 200, atomic=True),
    ]
    for call in calls:
        with pytest.raises(shmlog.RecordTooLargeError, match=rf"{most}|limit"):
            call()
    with pytest.raises((ValueError, OverflowError)):
        log.reserve(1 << 70)
    with pytest.raises(ValueError, match="negative"):
        log.reserve(-1)
    with pytest.raises(TypeError):
        log.reserve(1.5)  # type: ignore[arg-type]


def test_the_largest_record_fits_and_an_empty_one_too(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=256 << 10) as log:
        data = [os.urandom(log.record_bytes_max), b"", os.urandom(log.record_bytes_max), b"x"]
        lsns = [log.append(item, timeout=30) for item in data]
        log.wait_committed()
        assert [(record.lsn, bytes(record.data)) for record in log.read()] == list(
            zip(lsns, data, strict=True)
        )
        assert log.append_many([]).tolist() == []
        assert log.append_array(np.zeros((0, 4))).tolist() == []
        assert_healthy(log)


def test_wrong_keywords_and_counts_of_arguments_are_type_errors(log: shmlog.Log) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: log.append(),  # type: ignore[call-arg]
        lambda: log.append(b"x", 1, 2),  # type: ignore[misc]
        lambda: log.append(b"x", 1, tag=1),  # type: ignore[misc]
        lambda: log.append(b"x", durabel=True),  # type: ignore[call-arg]
        lambda: log.append(data=b"x"),  # type: ignore[call-arg]
        lambda: log.append_many(5),  # type: ignore[arg-type]
        lambda: log.append_many([b"x"], atomic=True, flags=1),  # type: ignore[call-arg]
        lambda: log.reserve(4, durable=True),  # type: ignore[call-arg]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("start", [32, 1, 33, 4096, 1 << 62])
def test_a_start_that_is_no_record_is_a_value_error_or_reads_nothing(log: shmlog.Log, start: int) -> None:
    log.wait_committed()
    if start >= log.committed_lsn:
        assert list(log.read(start)) == []
    else:
        with pytest.raises(ValueError, match=f"no record begins at LSN {start}"):
            list(log.read(start))


@pytest.mark.parametrize("name", ["start", "stop"])
def test_a_bound_that_is_no_lsn_is_refused(log: shmlog.Log, name: str) -> None:
    for wrong in (-1, -(1 << 70)):
        with pytest.raises(ValueError, match="negative"):
            log.read_batches(**{name: wrong})
    for other in ("0", 1.5, b""):
        with pytest.raises(TypeError, match=name):
            log.read_batches(**{name: other})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="records"):
        log.read_batches(records=0)
    with pytest.raises(ValueError, match="above every LSN"):
        log.tail(1 << 70, timeout=0.05)


def test_a_reservation_may_be_ended_once(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        reservation = log.reserve(4)
        reservation.buffer[:] = b"once"
        assert reservation.publish() == reservation.lsn
        with pytest.raises(ValueError, match="has been published"):
            reservation.publish()
        reservation.abort()
        with pytest.raises(BufferError, match="published"):
            reservation.buffer  # noqa: B018
        with pytest.raises((ValueError, TypeError, BufferError)):
            reservation.array("O")
        log.wait_committed()
        assert [bytes(record.data) for record in log.read()] == [b"once"]


def test_every_method_of_a_closed_handle_raises_closed(log_path: Path) -> None:
    log = shmlog.open(log_path, create=True)
    lsn = log.append(b"x", durable=True)
    log.close()
    log.close()
    calls: list[Callable[[], Any]] = [
        lambda: log.append(b"x"),
        lambda: log.append(b"x", durable=True),
        lambda: log.append_many([b"x"]),
        lambda: log.append_array(np.zeros(3)),
        lambda: log.reserve(1),
        lambda: log.wait_durable(lsn),
        lambda: log.wait_committed(),
        lambda: list(log.read()),
        lambda: list(log.read_batches()),
        lambda: next(log.tail()),
        lambda: log.seek_time(0),
        lambda: log.trim(0),
        lambda: log.statistics(),
        lambda: log.reserved_lsn,
        lambda: log.committed_lsn,
        lambda: log.durable_lsn,
        lambda: log.trimmed_lsn,
    ]
    for call in calls:
        with pytest.raises(shmlog.ClosedError):
            call()
    assert "closed" in repr(log)
    readonly = shmlog.open_readonly(log_path)
    readonly.close()
    for call in (
        lambda: list(readonly.read()),
        lambda: readonly.committed_lsn,
        lambda: next(readonly.tail()),
    ):
        with pytest.raises(shmlog.ClosedError):
            call()


def test_a_path_with_no_log_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"I am no log")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_bytes(b"mine")
    uses: list[Callable[[Path], Any]] = [shmlog.open, shmlog.open_readonly, shmlog.verify, shmlog.recover]
    for use in uses:
        with pytest.raises(FileNotFoundError, match="no log here"):
            use(tmp_path / "absent")
        for name in ("file", "empty", "full"):
            with pytest.raises(shmlog.FormatError, match=name):
                use(tmp_path / name)
    for name in ("file", "full"):
        with pytest.raises(shmlog.FormatError, match=name):
            shmlog.open(tmp_path / name, create=True)
    with pytest.raises(FileNotFoundError):
        shmlog.open(tmp_path / "absent" / "deep", create=True)
    assert (tmp_path / "file").read_bytes() == b"I am no log"
    assert os.listdir(tmp_path / "full") == ["notes"] or sorted(os.listdir(tmp_path / "full")) == [
        "LOCK",
        "notes",
    ]
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 1, "version 1; this is version 2"),
        ("version", None, "version None"),
        ("format", "other", "does not describe"),
        ("segment_bytes", 12345, "damaged"),
        ("segment_bytes", "64", "damaged"),
        ("window_bytes", 1 << 40, "damaged"),
        ("log_id", "nonsense", "damaged"),
        ("log_id", 5, "damaged"),
        ("created_ns", "late", "damaged"),
    ],
)
def test_an_identity_of_another_version_or_damaged_is_refused(
    log_path: Path, field: str, value: Any, message: str
) -> None:
    shmlog.open(log_path, create=True).close()
    path = log_path / "shmlog.json"
    good = path.read_bytes()
    path.write_text(json.dumps(json.loads(good) | {field: value}))
    with pytest.raises(shmlog.FormatError, match=message):
        shmlog.open(log_path)
    for garbage in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"{" * 100_000):
        path.write_bytes(garbage)
        with pytest.raises(shmlog.FormatError, match=r"shmlog\.json"):
            shmlog.open(log_path)
    path.write_bytes(good)
    shmlog.open(log_path).close()


def test_a_second_geometry_is_refused_and_the_own_one_accepted(log_path: Path) -> None:
    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=1 << 20).close()
    for create in (True, False):
        with pytest.raises(ValueError, match="segment_bytes=131072, but"):
            shmlog.open(log_path, create=create, segment_bytes=128 << 10)
        with pytest.raises(ValueError, match="window_bytes=65536, but"):
            shmlog.open(log_path, create=create, window_bytes=64 << 10)
        shmlog.open(log_path, create=create, segment_bytes=SEGMENT_BYTES, window_bytes=1 << 20).close()


@pytest.mark.parametrize(
    "options",
    [
        {"segment_bytes": 1000},
        {"segment_bytes": 1 << 40},
        {"segment_bytes": 1 << 15},
        {"segment_bytes": -(1 << 16)},
        {"segment_bytes": 65536.0},
        {"window_bytes": 0},
        {"window_bytes": True},
        {"window_bytes": "64K"},
        {"flusher": "maybe"},
        {"flusher": None},
        {"mode": 0o400},
        {"mode": 0o777},
        {"mode": "600"},
        {"timeout": -1},
        {"timeout": "1"},
        {"timeout": float("nan")},
        {"sync_interval": -0.1},
        {"sync_interval": None},
    ],
)
def test_a_wrong_option_is_refused_and_makes_no_log(log_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        shmlog.open(log_path, create=True, **options)
    assert not log_path.exists()
