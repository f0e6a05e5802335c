"""Golden files: logs that earlier versions of the code made must read as they did then.

tests/golden/make.py makes them and says what each is.  Every log is read by the library
and by the second reader, and both are held against expected.json.  The same is asked of
logs made on the spot (`new-...`): where only those fail the code writes something else
than it did, where only the old ones fail it reads something else.

A golden log lies elsewhere than where it died, and on another machine: what it is to be
judged with is given wherever it is judged.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from make import (
    HERE,
    MAKERS,
    SUMS,
    checksums,
    make,
    plain_frames,
    plain_mark,
    plain_payload,
    plain_segments,
    readable,
)
from support.pyreader import FILL, BadFrame, Origin, PyLog, happened

import shmlog
from shmlog.disk.directory import load
from shmlog.disk.recovery import inspect, recover
from shmlog.format.layout import FORMAT_VERSION
from shmlog.system import files, machine

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

VERSIONS = sorted(path.name for path in HERE.glob("v[0-9]*"))
EVERY = sorted(path.parent.relative_to(HERE).as_posix() for path in HERE.glob("v*/*/expected.json"))
GOLDEN = [each for each in EVERY if not each.startswith("v1/")]  # never released
ALL = [*GOLDEN, *(f"new/{name}" for name in MAKERS)]


@dataclass(frozen=True)
class Golden:
    """One log and what is known of it."""

    place: Path
    expected: dict[str, Any]

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """Those by which the log goes on."""
        return [each for each in self.expected["judged"] if "end_lsn" in each]

    @property
    def refusals(self) -> list[dict[str, Any]]:
        return [each for each in self.expected["judged"] if "bad_lsn" in each]

    def copy(self, to: Path) -> Path:
        """The log where it may be changed, with the rights that it was made with."""
        shutil.copytree(self.place / "log", to, copy_function=shutil.copyfile)
        for path in (to, *to.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        return to

    def records(self, verdict: dict[str, Any]) -> list[dict[str, Any]]:
        """What a log judged so holds."""
        return [each for each in self.expected["records"] if each["lsn"] < verdict["end_lsn"]]


@pytest.fixture(scope="session")
def new_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("new")


@pytest.fixture
def golden(request: pytest.FixtureRequest, new_logs: Path) -> Golden:
    version, name = request.param.split("/")
    place = HERE / request.param
    if version == "new":
        place = new_logs / f"v{FORMAT_VERSION}" / name
        if not place.exists():
            make(new_logs, FORMAT_VERSION, name)
    return Golden(place, json.loads((place / "expected.json").read_bytes()))


def of(*names: str) -> pytest.MarkDecorator:
    """Run a test on the logs of these names, of every version and new ones."""
    found = [each for each in ALL if each.split("/")[1] in names]
    return pytest.mark.parametrize(
        "golden", found, indirect=True, ids=[each.replace("/", "-") for each in found]
    )


whole = of(*(name for name in MAKERS if name != "corrupt"))


def judge(path: Path, verdict: dict[str, Any]) -> shmlog.Recovery:
    """What recovery finds, seen from where the verdict is about."""
    with pytest.MonkeyPatch.context() as patch:
        see_from(verdict, patch)
        return inspect(load(str(path)), files.boot_id(), whole=True)


def see_from(verdict: dict[str, Any], patch: pytest.MonkeyPatch) -> Origin:
    """Make this the machine and the place that the verdict is about, for this process."""
    here = Origin(**{**verdict["here"], "boot_id": bytes.fromhex(verdict["here"]["boot_id"])})
    patch.setattr(files, "boot_id", lambda: here.boot_id)
    patch.setattr(machine, "has_kernels_boot_id", lambda: here.kernels)
    patch.setattr(machine, "clocks", lambda: (here.started_ns, here.up_ns))
    patch.setattr(machine, "place", lambda _: (here.file_system, here.inode, here.born_ns))
    return here


def as_expected(records: Iterable[shmlog.Record]) -> list[dict[str, Any]]:
    return [
        {"lsn": each.lsn, "time_ns": each.time_ns, "tag": each.tag, "writer": each.writer}
        | plain_payload(bytes(each.data))
        for each in records
    ]


def without_flags(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the library tells of a record: that a batch goes on is no reader's business."""
    return [{key: value for key, value in each.items() if key != "flags"} for each in records]


def snapshot(path: Path) -> dict[str, tuple[int, str]]:
    sums = checksums(path)
    return {name: ((path / name).stat().st_mtime_ns, digest) for name, digest in sums.items()}


# ------------------------------------------------------------------ the files


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_are_those_that_were_added_and_none_was_edited(version: str) -> None:
    lines = (HERE / version / SUMS).read_text(encoding="ascii").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert len(listed) == len(lines), "a file is listed twice"
    assert checksums(HERE / version) == listed


def test_todays_format_has_a_golden_log_of_every_kind() -> None:
    assert {f"v{FORMAT_VERSION}/{name}" for name in MAKERS} <= set(GOLDEN)


def test_the_maker_overwrites_nothing_and_makes_no_other_version_than_the_librarys(tmp_path: Path) -> None:
    place = make(tmp_path, FORMAT_VERSION, "corrupt")
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="never edited"):
        make(tmp_path, FORMAT_VERSION, "corrupt")
    with pytest.raises(ValueError, match=f"makes format version {FORMAT_VERSION}, not 99"):
        make(tmp_path, 99, "corrupt")
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [place.parent.name]


# ---------------------------------------------------------------- the library


@whole
def test_recovery_judges_a_golden_log_as_when_it_was_made_and_touches_nothing(
    golden: Golden, tmp_path: Path
) -> None:
    path = golden.copy(tmp_path / "log")
    before = snapshot(path)
    for verdict in golden.verdicts:
        found = judge(path, verdict)
        assert {
            "seen": verdict["seen"],
            "here": verdict["here"],
            "case": found.case.value,
            "end_lsn": found.end_lsn,
            "epoch": found.epoch,
            "trimmed_lsn": found.trimmed_lsn,
            "holes": [list(hole) for hole in found.holes],
            "dropped_bytes": found.dropped_bytes,
        } == verdict
        assert found.vouched_lsn == golden.expected["newest_mark"]["durable_lsn"]
    assert snapshot(path) == before


@whole
def test_a_dead_golden_log_reads_and_verifies_as_what_recovery_would_keep(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = golden.copy(tmp_path / "log")
    before = snapshot(path)
    for verdict in golden.verdicts:
        see_from(verdict, monkeypatch)
        expected = golden.records(verdict)
        with shmlog.open_readonly(path) as log:
            assert as_expected(log.read()) == without_flags(expected)
            assert (log.trimmed_lsn, log.committed_lsn) == (verdict["trimmed_lsn"], verdict["end_lsn"])
            assert log.durable_lsn == golden.expected["newest_mark"]["durable_lsn"]
        report = shmlog.verify(path)
        assert (report.ok, report.state, report.records) == (True, verdict["case"], len(expected))
        assert (report.begin_lsn, report.end_lsn) == (verdict["trimmed_lsn"], verdict["end_lsn"])
    assert snapshot(path) == before


@whole
def test_a_golden_log_is_recovered_opened_read_whole_and_goes_on(golden: Golden, tmp_path: Path) -> None:
    for verdict in golden.verdicts:
        path = golden.copy(tmp_path / verdict["seen"])
        with pytest.MonkeyPatch.context() as patch:
            see_from(verdict, patch)
            recover(load(str(path)), files.boot_id())
        with shmlog.open(path) as log:
            check_open(log, golden, verdict)
            assert log.append(b"goes on", durable=True) == verdict["end_lsn"]
        assert shmlog.verify(path).ok
        check_filled(PyLog(path), golden, verdict)


def check_open(log: shmlog.Log, golden: Golden, verdict: dict[str, Any]) -> None:
    sizes = golden.expected["segment_bytes"], golden.expected["window_bytes"]
    assert (log.segment_bytes, log.window_bytes) == sizes
    bounds = verdict["trimmed_lsn"], verdict["end_lsn"]
    assert (log.trimmed_lsn, log.committed_lsn) == bounds == (log.trimmed_lsn, log.reserved_lsn)
    expected = golden.records(verdict)
    assert as_expected(log.read()) == without_flags(expected)
    for tag in {each["tag"] for each in expected}:
        batches = log.read_batches(tag=tag)
        assert [int(lsn) for batch in batches for lsn in batch.lsn] == [
            each["lsn"] for each in expected if each["tag"] == tag
        ]
    for time_ns, alike in itertools.groupby(expected, key=lambda each: each["time_ns"]):
        lsns = [each["lsn"] for each in alike]
        assert log.seek_time(time_ns) == lsns[0]
        assert as_expected(log.read(lsns[-1]))[0]["lsn"] == lsns[-1]
    assert log.seek_time(expected[-1]["time_ns"] + 1) == verdict["end_lsn"]


def check_filled(second: PyLog, golden: Golden, verdict: dict[str, Any]) -> None:
    """The second reader finds one tiling: the records, the fillers of then, and the holes filled
    exactly, cut at a segment's end at the most."""
    begin, end = verdict["trimmed_lsn"], verdict["end_lsn"]
    frames = list(second.frames(begin, end))
    fillers = [each["lsn"] for each in golden.expected["fillers"] if each["lsn"] < end]
    records = [each["lsn"] for each in golden.records(verdict)]
    filled = []
    for hole_begin, hole_end in verdict["holes"]:
        inside = [frame for frame in frames if hole_begin <= frame.lsn < hole_end]
        assert {frame.kind for frame in inside} == {FILL}
        assert (inside[0].lsn, inside[-1].end_lsn) == (hole_begin, hole_end)
        filled += [frame.lsn for frame in inside]
    assert [frame.lsn for frame in frames] == sorted(records + fillers + filled)
    assert [frame.payload for frame in second.records(end, second.newest_mark().durable_lsn)] == [b"goes on"]
    assert second.newest_mark().clean


# ---------------------------------------------------------- the second reader


@of(*MAKERS)
def test_the_second_reader_finds_what_was_written_then(golden: Golden) -> None:
    log, expected = PyLog(golden.place / "log"), golden.expected
    assert [log.log_id.hex(), log.segment_bytes, log.window_bytes, log.created_ns] == [
        expected[key] for key in ("log_id", "segment_bytes", "window_bytes", "created_ns")
    ]
    assert plain_segments(log) == expected["segments"]
    assert plain_mark(log.newest_mark()) == expected["newest_mark"]
    frames = [
        frame for begin, end in readable(log, expected["judged"][0]) for frame in log.frames(begin, end)
    ]
    assert plain_frames(frames) == (expected["records"], expected["fillers"])


@whole
def test_the_second_reader_judges_as_recovery_does(golden: Golden) -> None:
    log = PyLog(golden.place / "log")
    for verdict in golden.verdicts:
        with pytest.MonkeyPatch.context() as patch:
            here = see_from(verdict, patch)
        kept = log.kept(happened(log.newest_mark().origin, here))
        assert (kept.end_lsn, kept.dropped_bytes) == (verdict["end_lsn"], verdict["dropped_bytes"])
        assert [list(hole) for hole in kept.holes] == verdict["holes"]


# -------------------------------------------------------------------- cursors


@of("cursor")
@pytest.mark.parametrize("copy", ["both", "newer spoilt", "older spoilt"])
def test_a_cursor_goes_on_where_its_newest_whole_copy_says(golden: Golden, tmp_path: Path, copy: str) -> None:
    known = golden.expected["cursors"]["etl"]
    older, newer = sorted((each["sequence"], each["lsn"]) for each in known["copies"])
    assert newer[1] == known["lsn"]
    place = (older if copy == "newer spoilt" else newer)[1]
    path = golden.copy(tmp_path / "log")
    if copy != "both":
        spoilt = newer if copy == "newer spoilt" else older
        file = path / "cursors" / "etl"
        data = bytearray(file.read_bytes())
        data[spoilt[0] % 2 * 512 + 16] ^= 1
        file.write_bytes(data)
    assert max(each for each in PyLog(path).cursor("etl") if each).lsn == place
    with shmlog.open(path) as log, log.cursor("etl") as cursor:
        assert cursor.lsn == place
        assert [int(lsn) for batch in cursor.batches() for lsn in batch.lsn] == [
            each["lsn"] for each in golden.expected["records"] if each["lsn"] >= place
        ]
        assert cursor.commit() == log.committed_lsn
    copies = PyLog(path).cursor("etl")
    assert None not in copies, "the next commit goes over the spoilt copy, or the older one"
    assert max(each for each in copies if each).lsn == golden.verdicts[0]["end_lsn"]


# --------------------------------------------------------------------- damage


@of("corrupt")
def test_a_flipped_bit_below_the_mark_is_named_by_everything_and_nothing_is_touched(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = golden.copy(tmp_path / "log")
    before = snapshot(path)
    assert golden.refusals == golden.expected["judged"]
    for verdict in golden.refusals:
        assert verdict["case"] == "corrupt"
        see_from(verdict, monkeypatch)
        for use in (lambda _: judge(path, verdict), shmlog.open, shmlog.open_readonly):  # noqa: B023
            with pytest.raises(shmlog.CorruptionError) as raised:
                use(path)
            assert raised.value.lsn == verdict["bad_lsn"]
            assert raised.value.path == str(path / "segments" / f"{0:020d}.seg")
        report = shmlog.verify(path)
        assert (report.ok, report.problem_lsn) == (False, verdict["bad_lsn"])
    assert snapshot(path) == before


@of("killed")
def test_a_hole_is_refused_in_a_copy_and_where_a_restart_is_unclear(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, second = golden.copy(tmp_path / "log"), PyLog(golden.place / "log")
    before = snapshot(path)
    assert [verdict["case"] for verdict in golden.refusals] == ["unclear", "copy"]
    for verdict in golden.refusals:
        here = see_from(verdict, monkeypatch)
        expected = shmlog.CorruptionError if verdict["case"] == "copy" else shmlog.RestartUnclearError
        for use in (shmlog.open, shmlog.open_readonly, shmlog.recover):
            with pytest.raises(expected) as raised:
                use(path)
            assert raised.value.lsn == verdict["bad_lsn"]
            assert raised.value.path == str(path / "segments" / f"{0:020d}.seg")
        with pytest.raises(BadFrame, match=f"at {verdict['bad_lsn']}"):
            second.kept(happened(second.newest_mark().origin, here))
    assert snapshot(path) == before


def test_a_log_of_format_1_is_refused_and_both_versions_are_named(tmp_path: Path) -> None:
    path = Golden(HERE / "v1" / "cursor", {}).copy(tmp_path / "log")
    for use in (shmlog.open, shmlog.open_readonly, shmlog.recover, shmlog.verify):
        with pytest.raises(shmlog.FormatError, match="format version 1; this is version 2"):
            use(path)
    identity = path / "shmlog.json"  # a segment says it too
    identity.write_text(identity.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(shmlog.FormatError, match=r"\.seg has format version 1; this is version 2"):
        shmlog.open(path)


@of("corrupt")
def test_the_second_reader_stops_at_a_flipped_bit(golden: Golden) -> None:
    log, bad = PyLog(golden.place / "log"), golden.refusals[0]["bad_lsn"]
    with pytest.raises(BadFrame, match=f"{bad}.*vouches"):
        log.kept("same boot")
    found = []
    with pytest.raises(BadFrame, match=f"at {bad}: the checksum"):
        for frame in log.frames(0, log.newest_mark().durable_lsn):
            found.append(frame.lsn)
    assert found == [each["lsn"] for each in golden.expected["records"] if each["lsn"] < bad] != []
