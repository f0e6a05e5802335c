"""Take: records by their LSNs, in any order, out of any segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import SEGMENT_BYTES, Child, append_some, kill_everybody, lose_shared_memory

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

POINT = np.dtype([("x", "<f4"), ("n", "<u2"), ("when", "<M8[ns]"), ("v", "<i8", (2, 3))])


class Tensor:
    """What of torch's tensors counts here: numpy() shares their memory."""

    def __init__(self, rows: int, columns: int) -> None:
        self.memory = np.zeros((rows, columns), np.float32)

    def numpy(self) -> Any:
        return self.memory


def numbered(log: shmlog.Log, count: int = 3000) -> Any:
    """So many records of two numbers each, over several segments; their LSNs."""
    lsns = log.append_array(np.arange(2.0 * count).reshape(count, 2), tag=1, timeout=30)
    log.wait_committed(timeout=30)
    return lsns


def test_rows_come_in_the_order_of_the_lsns(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = numbered(log)
        pick = np.random.default_rng(1).integers(0, len(lsns), 5000)
        for handle in (log, shmlog.open_readonly(log_path)):
            rows = handle.take(lsns[pick], ("f8", (2,)))
            assert rows.shape == (5000, 2) and rows.flags.writeable
            assert np.array_equal(rows[:, 0], 2.0 * pick)
            assert handle.take(lsns[pick].astype(np.int64).tolist()[:3], "V16").shape == (3,)
        assert log.take([], "f8").shape == (0,) and log.take([], POINT).dtype == POINT


def test_a_batch_of_any_sizes_is_taken_with_everything_that_records_have(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 3, 200, most=3000)
        log.append(b"")
        log.wait_committed()
        records = list(log.read())
        pick = np.random.default_rng(2).integers(0, len(records), 300).tolist()
        batch = log.take([records[n].lsn for n in pick])
        assert isinstance(batch, shmlog.RecordBatch)
        assert list(batch) == [records[n] for n in pick]
        assert batch.next_lsn == max(records[n].next_lsn for n in pick)
        assert all(record.data.readonly for record in batch)
        assert list(batch[batch.nbytes > 100]) == [record for record in batch if len(record.data) > 100]
        empty = log.take([])
        assert len(empty) == 0 and list(empty) == [] and empty.array("f8").shape == (0,)


def test_a_batch_of_equal_records_is_an_array_without_another_copy(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = numbered(log)
        batch = log.take(lsns[[5, 2, 2, 2999]])
        view = batch.array(("f8", (2,)), copy=False)
        assert view[:, 0].tolist() == [10, 4, 4, 5998] and not view.flags.writeable
        assert batch[::-1].array(("f8", (2,)))[:, 0].tolist() == [5998, 4, 4, 10]
    del batch
    assert view[:, 1].tolist() == [11, 5, 5, 5999]


def test_rows_of_a_structured_dtype_round_trip(log_path: Path) -> None:
    rows = np.frombuffer(np.random.default_rng(3).bytes(400 * POINT.itemsize), POINT)
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = log.append_array(rows)
        log.wait_committed()
        assert log.take(lsns[::-1], POINT).tobytes() == rows[::-1].tobytes()


def test_out_is_filled_in_place_whatever_it_is(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = log.append_array(np.arange(1000, dtype=np.float32).reshape(250, 4))
        log.wait_committed()
        pick = lsns[[7, 249, 0]]
        expected = [[28, 29, 30, 31], [996, 997, 998, 999], [0, 1, 2, 3]]
        array = np.zeros((3, 4), np.float32)
        assert log.take(pick, out=array) is array and array.tolist() == expected
        tensor = Tensor(3, 4)
        assert log.take(pick, out=tensor) is tensor and tensor.memory.tolist() == expected
        part = np.zeros((10, 4), np.float32)
        log.take(pick, out=part[4:7])
        assert part[4:7].tolist() == expected and not part[:4].any() and not part[7:].any()
        raw = bytearray(48)
        log.take(pick, ("f4", (4,)), out=memoryview(raw).cast("B", (3, 16)))
        assert np.frombuffer(raw, "f4").reshape(3, 4).tolist() == expected
        readonly = np.zeros((3, 4), np.float32)
        readonly.flags.writeable = False
        for wrong in (
            readonly,
            np.zeros((4, 3), np.float32).T,
            np.zeros((2, 4), np.float32),
            np.zeros((3, 3), np.float32),
            np.zeros((3, 4), object),
            bytes(48),
            [0.0] * 12,
        ):
            with pytest.raises((ValueError, TypeError)):
                log.take(pick, out=wrong)
        with pytest.raises(ValueError, match="48 bytes, not 3 times 8"):
            log.take(pick, "f8", out=array)


def test_an_lsn_where_no_record_begins_is_named(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        good = log.append(b"12345678", tag=1)
        with log.reserve(100) as given_up:
            fill = given_up.lsn
            given_up.abort()
        long = log.append(bytes(200))
        log.append(b"12345678")
        log.wait_committed()
        end = log.committed_lsn
        for wrong in (fill, long + 32, long + 64, good + 1, end, end + 32, 1 << 50, 1 << 63):
            for dtype in (None, "S8"):
                with pytest.raises(ValueError, match=f"no record begins at LSN {wrong}\\b"):
                    log.take(np.array([good, wrong, good], np.uint64), dtype)
        with pytest.raises(ValueError, match="must not be negative: -32"):
            log.take([good, -32])
        with pytest.raises(ValueError, match=f"LSN {long} is not of the dtype's 8 bytes"):
            log.take([good, long], "S8")
        for kind in ([0.5], ["x"], [None]):
            with pytest.raises(TypeError):
                log.take(kind)
        with pytest.raises(ValueError, match="one dimension"):
            log.take([[good]])
        with pytest.raises(TypeError, match="objects"):
            log.take([good], object)


@pytest.mark.parametrize("nothing", ["V0", ("f4", (0,))])
def test_rows_of_no_bytes_are_looked_at_as_others_are(log_path: Path, nothing: Any) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        empty, full = log.append(b""), log.append(b"12345678")
        log.wait_committed()
        assert len(log.take([empty, empty], nothing)) == 2
        with pytest.raises(ValueError, match=f"LSN {full} is not of the dtype's 0 bytes"):
            log.take([empty, full], nothing)
        with pytest.raises(ValueError, match=f"no record begins at LSN {full + 32}"):
            log.take([full + 32], nothing)


def test_a_trimmed_lsn_is_refused_and_its_file_let_go_of(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = numbered(log)
        log.wait_durable()
        assert log.take(lsns, ("f8", (2,))).shape == (3000, 2)
        trimmed = log.trim(int(lsns[2500]))
        with pytest.raises(shmlog.TrimmedError) as raised:
            log.take(lsns[[2999, 4]], ("f8", (2,)))
        assert (raised.value.lsn, raised.value.trimmed_lsn) == (lsns[4], trimmed)
        del raised  # its traceback
        log.take(lsns[-1:])
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert not [line for line in maps if str(log_path) in line and "(deleted)" in line and "r--s" in line]
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(log_path) in line]


@pytest.mark.parametrize("dtype", [None, "V100"])
def test_a_flipped_bit_is_found_and_named(log_path: Path, dtype: Any) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = [log.append(bytes(100)) for _ in range(10)]
        log.wait_durable()
        with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
            file.seek(SEGMENT_HEADER_BYTES + lsns[4] + 32 + 50)
            file.write(b"\x01")
        with pytest.raises(shmlog.CorruptionError, match=rf"LSN {lsns[4]}: the checksum"):
            log.take(lsns[::-1], dtype)
        assert len(log.take(lsns[5:], dtype)) == 5


def test_a_file_that_is_cut_under_a_take_is_an_error(log_path: Path) -> None:
    def cut(wire: Any) -> str:
        with shmlog.open_readonly(log_path) as log:
            log.take(lsns[:1])
            with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
                file.truncate(SEGMENT_HEADER_BYTES + (1 << 20))
            try:
                log.take(lsns[-1:])
            except shmlog.CorruptionError as error:
                return str(error)
            return "taken"

    with shmlog.open(log_path, create=True, segment_bytes=4 << 20) as log:
        lsns = numbered(log, 40_000)
    with Child(cut) as child:
        assert "the file was changed or lost under the reader" in child.result()


def test_a_forked_child_and_later_lives_of_the_log_take_too(log_path: Path) -> None:
    def take(wire: Any) -> list[float]:
        found = log.take(lsns[:3], ("f8", (2,)))[:, 0].tolist()
        wire.say(found)
        wire.hear()
        return []

    log = shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES)
    lsns = numbered(log)
    log.take(lsns[:5])
    log.close()
    with pytest.raises(shmlog.ClosedError):
        log.take(lsns[:1])
    log = shmlog.open_readonly(log_path)
    assert log.take(lsns[-2:], ("f8", (2,)))[:, 0].tolist() == [5996, 5998]
    with Child(take) as child:
        assert child.hear() == [0, 2, 4]
        kill_everybody(log_path, [child])
    lose_shared_memory(log_path)
    with shmlog.open(log_path) as again:
        assert len(again.take(lsns)) == 3000


def test_more_segments_than_are_kept_are_taken_from_all_the_same(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        lsns = numbered(log, 12_000)
        log.take(lsns[:1])
        assert log._taker is not None
        log._taker._most = 4
        for _ in range(2):
            assert np.array_equal(log.take(lsns, ("f8", (2,)))[:, 0], 2.0 * np.arange(12_000))
            assert len(log._taker._kept) <= 4
