"""Archiving to real stores: whole, once, and only then given up by the log."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import objects
from support.shipping import SMALL, fill, records

import shmlog

if why := objects.missing():
    pytest.skip(why, allow_module_level=True)

import obstore

from shmlog.integrations.archive import Archiver
from shmlog.integrations.archived import open_archive
from shmlog.integrations.objects import Store
from shmlog.integrations.repeating import EngineError


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, dict[str, Any]]]:
    if objects.moto() is None:
        pytest.skip("moto_server is not installed (moto[server])")
    with objects.s3() as found:
        yield found


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 150)
        yield log


def archive(log: shmlog.Log, store: Store, **options: Any) -> Archiver:
    with Archiver(log, store, **options) as archiver:
        archiver.run(once=True)
    return archiver


def assert_archived(log: shmlog.Log, url: str, settings: dict[str, Any] | None = None) -> None:
    """All that is sealed is there, and nothing else."""
    with open_archive(url, log.log_id, settings) as found:
        assert found.committed_lsn == log.durable_lsn // log.segment_bytes * log.segment_bytes
        begin = max(found.trimmed_lsn, log.trimmed_lsn)
        assert records(found.read_batches(begin)) == records(log.read_batches(begin, found.committed_lsn))


def objects_of(url: str) -> dict[str, bytes]:
    root = Path(url.removeprefix("file://"))
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_what_is_sealed_is_archived_to_s3_and_read_back(
    log: shmlog.Log, s3: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    store = Store(*s3)
    done = archive(log, store)
    assert done.statistics.segments >= 3 and done.position_lsn == log.durable_lsn // 65536 * 65536
    assert_archived(log, *s3)
    fill(log, 100, seed=2)
    archive(log, store)
    assert_archived(log, *s3)
    with open_archive(s3[0], log.log_id, s3[1]) as found:
        record = next(found.read(tags=1))
        assert record.tag == 1
        assert found.seek_time(record.time_ns) <= record.lsn
        assert found.seek_time(1 << 62) == found.committed_lsn
        (one,) = found.read(record.lsn, record.lsn + 1)
        assert bytes(one.data) == bytes(record.data)
        made = found.restore(tmp_path / "made")
        expected = records(found.read_batches(0, made.end_lsn))
    log.close()
    assert shmlog.verify(made.path).ok
    with shmlog.open(made.path) as again:
        assert records(again.read_batches()) == expected


class _Dying(Store):
    """Kills its process at a step."""

    def __init__(self, url: str, die_at: int) -> None:
        super().__init__(url)
        self._left = die_at

    def _step(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: str, data: bytes | bytearray) -> bool:
        self._step()
        found = super().create(path, data)
        self._step()
        return found

    def get(self, path: str) -> bytes | None:
        self._step()
        return super().get(path)

    def holds(self, path: str, data: bytes | bytearray) -> bool | None:
        self._step()
        return super().holds(path, data)


def _archive(path: str, url: str, die_at: int) -> None:
    with (
        shmlog.open(path, flusher="external") as log,
        Archiver(log, _Dying(url, die_at), trim=True) as archiver,
    ):
        while archiver.step():
            pass


def _kill_at_every_step(path: str, url: str, steps: int) -> None:
    """Exits with the number of the killed.  In a process of its own: obstore's threads are not there in a
    fork of one that has used it."""
    killed = 0
    for die_at in range(1, steps):
        pid = os.fork()
        if not pid:
            _archive(path, url, die_at)
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        end, found = 0, objects_of(url)
        for name in found:
            if name.endswith(".json") and "segments" in name:
                sidecar = json.loads(found[name])
                assert len(found[name[:-5] + ".seg"]) == sidecar["object_bytes"]
                end = max(end, sidecar["end_lsn"])
        with shmlog.open_readonly(path) as log:
            assert log.trimmed_lsn <= end
    os._exit(killed)


@pytest.mark.holds("I21", "I22")
def test_an_archiver_killed_at_every_step_leaves_no_segment_half_and_trims_none_that_is_not_there(
    log: shmlog.Log, url: str
) -> None:
    everything = records(log.read_batches())
    process = get_context("spawn").Process(target=_kill_at_every_step, args=(log.path, url, 30))
    process.start()
    process.join(60)
    assert process.exitcode is not None and process.exitcode > 10
    archive(log, Store(url))
    with open_archive(url) as found:
        got = records(found.read_batches())
        assert got == [r for r in everything if r[0] < found.committed_lsn]
    assert log.trimmed_lsn > 0


def test_two_archivers_of_one_log_make_the_same_objects(log: shmlog.Log, url: str) -> None:
    with Archiver(log, Store(url), name="a") as one, Archiver(log, Store(url), name="b") as other:
        while one.step() | other.step():
            pass
        assert one.position_lsn == other.position_lsn > 0
    assert_archived(log, url)
    assert not any("probe" in name for name in objects_of(url))


class _Careless(Store):
    """Puts over what is there, and says that it was not."""

    def create(self, path: str, data: bytes | bytearray) -> bool:
        obstore.put(self._store, path, bytes(data))
        return True


@pytest.mark.holds("I20")
def test_a_store_that_puts_over_what_is_there_is_found_out_before_anything_is_put(
    log: shmlog.Log, url: str
) -> None:
    with pytest.raises(ValueError, match="does not honour create-only"):
        archive(log, _Careless(url))
    assert not objects_of(url)


@pytest.mark.holds("I20")
def test_an_object_that_is_there_and_differs_is_never_replaced(log: shmlog.Log, url: str) -> None:
    path = f"{log.log_id}/segments/{65536:020d}.seg"
    obstore.put(Store(url)._store, path, b"another's")
    with pytest.raises(shmlog.SourceDivergedError, match="holds something else"):
        archive(log, Store(url), trim=True)
    assert objects_of(url)[path] == b"another's"
    assert log.trimmed_lsn <= 65536


def test_a_copy_of_the_log_that_went_its_own_way_is_not_archived_there(
    log_path: Path, tmp_path: Path, url: str
) -> None:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 5)
    shutil.copytree(log_path, tmp_path / "copy")
    with shmlog.open(log_path) as log:
        fill(log, 100, seed=2)
        archive(log, Store(url))
    before = objects_of(url)
    for count in (60, 150):  # the last archived segment is not there, and is another
        with shmlog.open(tmp_path / "copy") as log:
            fill(log, count, seed=3)
            with pytest.raises(shmlog.SourceDivergedError):
                archive(log, Store(url))
    assert objects_of(url) == before


@pytest.mark.holds("I22")
def test_trimming_never_passes_what_is_archived_or_another_cursor(log: shmlog.Log, url: str) -> None:
    with log.cursor("reader") as cursor:
        cursor.commit(next(b for b in log.read_batches() if b.lsn[0] > 70000).next_lsn)
    with Archiver(log, Store(url), trim=True) as archiver:
        while archiver.step():
            assert log.trimmed_lsn <= min(archiver.position_lsn, cursor.lsn)
    assert log.trimmed_lsn == cursor.lsn // 65536 * 65536 > 0
    log.remove_cursor("reader")
    fill(log, 100, seed=2)
    kept = archive(log, Store(url), trim=True, keep_bytes=100_000)
    assert kept.position_lsn - log.trimmed_lsn >= 100_000
    assert kept.position_lsn - log.trimmed_lsn < 100_000 + 2 * 65536
    assert_archived(log, url)


@pytest.mark.parametrize("what", ["segment damaged", "segment missing", "sidecar missing", "sidecar damaged"])
def test_a_damaged_archive_is_said_to_be_one(log: shmlog.Log, url: str, what: str) -> None:
    archive(log, Store(url))
    root = Path(url.removeprefix("file://"), log.log_id, "segments")
    path = root / f"{65536:020d}.{'seg' if 'segment' in what else 'json'}"
    if "missing" in what:
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    with pytest.raises((shmlog.CorruptionError, shmlog.FormatError)), open_archive(url) as found:
        list(found.read())


def test_what_the_archive_lost_is_archived_again_or_said_to_be_gone(
    log: shmlog.Log, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    archive(log, Store(url))
    root = Path(url.removeprefix("file://"), log.log_id, "segments")
    lost = root / f"{65536:020d}.json"
    lost.unlink()
    archive(log, Store(url))
    assert "archiving it again" in caplog.text
    assert_archived(log, url)
    lost.unlink()
    log.trim(log.durable_lsn)
    with pytest.raises(shmlog.TrimmedError):
        archive(log, Store(url))


def test_a_store_that_is_away_is_an_error_to_try_again(log: shmlog.Log, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store(f"file://{tmp_path}/store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("in the way")
    with Archiver(log, store) as archiver:
        for _ in range(2):
            with pytest.raises(EngineError) as error:
                archiver.step()
            assert "\n" not in str(error.value)
        (tmp_path / "store").unlink()
        (tmp_path / "store").mkdir()
        assert archiver.step()


def test_of_several_archived_logs_one_must_be_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(shmlog.FormatError, match="holds 0 logs"):
        open_archive(url)
    ids = []
    for n in range(2):
        with shmlog.open(tmp_path / f"log{n}", create=True, **SMALL) as log:
            fill(log, 40)
            archive(log, Store(url))
            ids.append(log.log_id)
    with pytest.raises(shmlog.FormatError, match="holds 2 logs"):
        open_archive(url)
    with open_archive(url, ids[1]) as found:
        assert found.log_id == ids[1] and found.committed_lsn


def _lsns(part: Any) -> list[int]:
    return [lsn for batch in part for lsn in batch.lsn.tolist()]


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_the_parts_of_an_archive_are_all_of_it_wherever_they_arrive(
    log: shmlog.Log, s3: tuple[str, dict[str, Any]], count: int
) -> None:
    done = archive(log, Store(*s3))
    end = done.position_lsn
    more = {"log_id": log.log_id, "settings": s3[1]}
    lsns = [lsn for lsn in _lsns(log.read_batches()) if lsn < end]
    for begin, stop, tags in ((None, None, None), (lsns[7], end - 32, {1}), (lsns[-3], end, None)):
        parts = shmlog.splits(s3[0], count, start=begin, stop=stop, tags=tags, **more)
        assert len(parts) <= min(count, done.statistics.segments)
        assert all(one.stop == two.start for one, two in itertools.pairwise(parts))
        with get_context("spawn").Pool(1) if count == 2 else contextlib.nullcontext() as pool:
            found = pool.map(_lsns, parts) if pool else [_lsns(part) for part in parts]
        wanted = log.read_batches(tag=tags)
        expected = [lsn for lsn in _lsns(wanted) if (begin or 0) <= lsn < (end if stop is None else stop)]
        assert list(itertools.chain(*found)) == expected


def test_each_part_fetches_its_own_segments_and_nothing_else(
    log: shmlog.Log, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(log, Store(url))
    parts = shmlog.splits(url, 3)
    fetched: list[str] = []
    get = Store.get

    def counted(store: Store, path: str) -> bytes | None:
        fetched.append(path)
        return get(store, path)

    monkeypatch.setattr(Store, "get", counted)
    for part in parts:
        assert _lsns(part) == _lsns(part), "it can be read again"
    assert all(name.endswith(".seg") for name in fetched)
    assert len(set(fetched)) * 2 == len(fetched)


def test_an_archive_is_arrow_with_and_without_a_dtype(log_path: Path, url: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    row = np.dtype([("number", "<u4"), ("name", "S3")])
    with shmlog.open(log_path, create=True, **SMALL) as log:
        for begin in range(0, 6000, 1000):
            rows = np.zeros(1000, row)
            rows["number"], rows["name"] = np.arange(begin, begin + 1000), b"abc"
            log.append_array(rows, tag=1)
        archive(log, Store(url))
    with shmlog.open_archive(url) as found:
        scan = found.scan(tags=1)
        count = sum(map(len, found.read_batches()))
        assert found.scan(found.seek_time(0)).start == 0
        with pytest.raises(shmlog.TrimmedError):
            found.scan(-32)
    columns = pyarrow.table(pickle.loads(pickle.dumps(scan)).arrow(row))
    assert columns["number"].to_pylist() == list(range(count)) and columns["name"][0].as_py() == b"abc"
    assert pyarrow.table(scan)["data"][5].as_py() == pyarrow.table(scan)["data"].to_pylist()[5]
    assert pyarrow.table(scan)["lsn"].to_pylist() == _lsns(scan)
    with shmlog.open_archive(url) as found:
        nothing = pyarrow.table(found.scan(0, 0).arrow(row))
    assert (nothing.num_rows, nothing.column_names[-1]) == (0, "name")
    with pytest.raises(TypeError, match="structured"):
        scan.arrow("u4")


def test_what_the_archive_needs_is_named_where_it_is_not_installed() -> None:
    program = "import sys; sys.modules['obstore'] = None; import shmlog; shmlog.open_archive"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'shmlog[archive]'" in done.stderr
