"""shmlog export: what is in the file is what is in the log."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.tools.export import MissingPackageError, export, parse_dtype

ROW = np.dtype([("n", "<i4"), ("x", "<f8")])


def _has(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def texts(log_path: Path) -> list[tuple[int, int, bytes]]:
    """(lsn, tag, payload) of what the log holds: text and not."""
    payloads = [b"plain", '\u00e4\u00f6, "quoted"\nline'.encode(), b"\xff\x00\xfe", b""] * 50
    with shmlog.open(log_path, create=True) as log:
        return [(log.append(data, n % 3), n % 3, data) for n, data in enumerate(payloads)]


@pytest.fixture
def rows(log_path: Path) -> np.ndarray[Any, Any]:
    """What the log holds: structured rows."""
    table = np.zeros(3000, ROW)
    table["n"] = np.arange(3000)
    table["x"] = np.arange(3000) / 7
    with shmlog.open(log_path, create=True, segment_bytes=64 << 10, window_bytes=64 << 10) as log:
        log.append_array(table)
    return table


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shmlog", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def _payload(facts: dict[str, Any]) -> bytes:
    return base64.b64decode(facts["base64"]) if facts.get("base64") else facts["text"].encode()


def test_jsonl_holds_every_record(
    log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    done = _run("export", log_path, target, "--json")
    assert done.returncode == 0, done
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(line["lsn"], line["tag"], _payload(line)) for line in lines] == texts
    report = json.loads(done.stdout)
    assert (report["records"], report["file_bytes"]) == (len(texts), target.stat().st_size)


def test_csv_holds_every_record(log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    assert export(log_path, target).records == len(texts)
    with target.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(int(line["lsn"]), int(line["tag"]), _payload(line)) for line in lines] == texts


def test_ranges_by_lsn_time_and_tag_narrow_what_is_written(
    log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    wanted = [lsn for lsn, tag, _ in texts[10:150] if tag in (0, 2)]
    done = _run(
        "export", log_path, tmp_path / "out.jsonl",
        "--start", texts[10][0], "--stop", texts[150][0], "--tag", "0,2", "--since", "10m",
    )  # fmt: skip
    assert done.returncode == 0, done
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["lsn"] for line in lines] == wanted
    assert export(log_path, tmp_path / "none.csv", since_ns=time.time_ns() + 10**9).records == 0


def test_fields_of_a_dtype_become_columns_of_csv(
    log_path: Path, rows: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    done = _run("export", log_path, tmp_path / "out.csv", "--dtype", '[["n", "<i4"], ["x", "<f8"]]')
    assert done.returncode == 0, done
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["n"]) for line in lines] == rows["n"].tolist()
    assert [float(line["x"]) for line in lines] == rows["x"].tolist()


@pytest.mark.parametrize(
    "package", [pytest.param("duckdb", marks=_has("duckdb")), pytest.param("polars", marks=_has("polars"))]
)
def test_parquet_holds_the_fields_of_every_row(
    package: str, log_path: Path, rows: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "polars":
        monkeypatch.setitem(sys.modules, "duckdb", None)
    target = tmp_path / "it's out.parquet"
    assert export(log_path, target, dtype=ROW).records == len(rows)
    if package == "polars":
        frame = importlib.import_module("polars").read_parquet(target)
        assert frame["n"].to_list() == rows["n"].tolist()
    else:
        duckdb = importlib.import_module("duckdb")
        with duckdb.connect() as database:
            found = database.execute("SELECT n, x FROM read_parquet(?)", [str(target)]).fetchall()
        assert found == [(int(row["n"]), float(row["x"])) for row in rows]


@_has("mcap")
def test_mcap_holds_a_message_a_record_on_a_channel_a_tag(
    log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    from mcap.reader import make_reader

    export(log_path, tmp_path / "out.mcap")
    with (tmp_path / "out.mcap").open("rb") as file:
        found = [(channel.topic, message.data) for _, channel, message in make_reader(file).iter_messages()]
    assert sorted(found) == sorted((f"tag/{tag}", data) for _, tag, data in texts)


@pytest.mark.parametrize("kind", ["parquet", "mcap"])
def test_package_that_is_missing_is_named(
    kind: str,
    log_path: Path,
    texts: list[tuple[int, int, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("duckdb", "polars", "mcap.writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"shmlog\[{kind}\]"):
        export(log_path, tmp_path / f"out.{kind}")
    assert os.listdir(tmp_path) == ["log"]


def test_export_that_fails_leaves_nothing_and_replaces_nothing(
    log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("mine")
    done = _run("export", log_path, target)
    assert (done.returncode, target.read_text()) == (1, "mine")
    assert "there already" in done.stderr
    with pytest.raises(ValueError, match="are not all of"):
        export(log_path, target, dtype="<f8", force=True)
    assert target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["log", "out.jsonl"]
    assert _run("export", log_path, target, "--force").returncode == 0
    assert len(target.read_text().splitlines()) == len(texts)
    wrong = _run("export", log_path, tmp_path / "out.xyz")
    assert (wrong.returncode, "the ending names the format" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("kind", ["jsonl", "csv", pytest.param("mcap", marks=_has("mcap"))])
def test_export_that_is_interrupted_leaves_no_file(
    kind: str, log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(log_path, tmp_path / f"out.{kind}", progress=lambda *_: signal.raise_signal(signal.SIGINT))
    assert os.listdir(tmp_path) == ["log"]


_SAYS_AND_EXPORTS = """
import resource, sys
import shmlog.cli.main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(shmlog.cli.main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["jsonl", "csv", pytest.param("parquet", marks=_has("duckdb"))])
def test_disk_that_takes_no_more_is_an_error_and_leaves_no_file(
    kind: str, log_path: Path, texts: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    with shmlog.open(log_path) as log:
        log.append(np.random.default_rng(0).bytes(60_000))
    command = [sys.executable, "-c", _SAYS_AND_EXPORTS, "export", str(log_path), str(tmp_path / f"o.{kind}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr, done.stderr
    assert os.listdir(tmp_path) == ["log"]


@_has("duckdb")
def test_parquet_says_what_reading_says_and_is_interrupted_as_the_others(
    log_path: Path, rows: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.parquet"
    with pytest.raises(ValueError, match="are not all of"):
        export(log_path, target, dtype="<f8")
    with pytest.raises(ValueError, match="has no Arrow type"):
        export(log_path, target, dtype="c8")
    with (log_path / "segments" / f"{0:020d}.seg").open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + 64 + 32)
        file.write(b"\xff")
    with pytest.raises(shmlog.CorruptionError, match="LSN 64: the checksum"):
        export(log_path, target, dtype=ROW)
    duckdb = importlib.import_module("duckdb")

    def connect() -> Any:
        raise RuntimeError("Query interrupted")  # what Ctrl-C becomes there

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(duckdb, "connect", connect)
        export(log_path, target, dtype=ROW)
    assert os.listdir(tmp_path) == ["log"]


def test_times_and_complex_numbers_are_text_in_json(log_path: Path, tmp_path: Path) -> None:
    kind = np.dtype([("at", "<M8[us]"), ("z", "<c16")])
    with shmlog.open(log_path, create=True) as log:
        log.append_array(np.array([("2026-11-24T12:00:00", 1 + 2j)], kind))
    export(log_path, tmp_path / "out.jsonl", dtype=kind)
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert (line["at"], line["z"]) == ("2026-11-24T12:00:00", "(1+2j)")


@pytest.mark.parametrize("text", ["", "O", "no such", '[["a"]]', '[["a", "O"]]', "[", '{"a": 1}'])
def test_text_that_is_no_dtype_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no dtype"):
        parse_dtype(text)
