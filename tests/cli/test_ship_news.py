"""What a shipper says of itself: info, statistics, metrics, doctor; and letting go of what is too much."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.shipping import SMALL, fill

import shmlog
from shmlog.cli.main import main
from shmlog.integrations import ship
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper
from shmlog.integrations.sinks import Tail


class Memory:
    """A sink in memory, which can be down."""

    chunk_bytes_max = 1 << 20

    def __init__(self) -> None:
        self.last: Tail | None = None
        self.chunks: list[bytes] = []
        self.down = ""

    def _check(self) -> None:
        if self.down:
            raise EngineError(self.down)

    def tail(self) -> Tail | None:
        self._check()
        return self.last

    def put(self, chunk: bytes, tail: Tail) -> None:
        self._check()
        self.chunks.append(chunk)
        self.last = tail

    def idle(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 60)
        yield log


def info(log: shmlog.Log, capfd: pytest.CaptureFixture[str]) -> Any:
    assert main(["info", log.path, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_a_shipper_that_is_behind_says_how_far_and_why(
    log: shmlog.Log, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "shippers" not in info(log, capfd)
    sink = Memory()
    with Shipper(log, sink) as shipper:
        shipper.run(once=True)
        assert info(log, capfd)["shippers"]["ship"]["lag_records"] == 0
        sink.down = "the engine\x1b[2Jis away"
        fill(log, 30, seed=2)
        missing = sum(map(len, log.read_batches(shipper.statistics.position_lsn)))
        for _ in range(2):
            with pytest.raises(EngineError):
                shipper.step()
        found = info(log, capfd)["shippers"]["ship"]
        assert (found["lag_records"], found["failing"]) == (missing, True)
        assert found["lag_bytes"] == log.committed_lsn - shipper.statistics.position_lsn
        assert found["last_error"] == "the engine [2Jis away" and found["lag_seconds"] > 0
        (place,) = log.statistics().cursors
        assert place.shipper == found and shipper.statistics.retries == 2
        metrics = {metric.name: metric for metric in log.statistics().metrics()}
        (sample,) = metrics["shmlog_shipper_lag_records"].samples
        assert (sample.labels, sample.value) == ({"cursor": "ship"}, missing)
        assert metrics["shmlog_shipper_failing"].samples[0].value == 1
        main(["info", log.path])
        assert "last error: the engine [2Jis away" in capfd.readouterr().out
        main(["doctor", log.path])
        assert "shipping fails: the engine" in capfd.readouterr().out
        sink.down = ""
        shipper.run(once=True)
        found = info(log, capfd)["shippers"]["ship"]
        assert (found["lag_records"], found["failing"], found["retries"]) == (0, False, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time_ns": "x"}', "[" * 60000, '{"pid": 1}'])
def test_a_report_that_is_none_is_none(log: shmlog.Log, capfd: pytest.CaptureFixture[str], text: str) -> None:
    with Shipper(log, Memory()) as shipper:
        shipper.run(once=True)
    Path(log.path, "shipping/ship.json").write_text(text)
    assert "shippers" not in info(log, capfd)
    assert [place.shipper for place in log.statistics().cursors] == [None]


def test_a_report_that_cannot_be_written_costs_the_report_alone(log: shmlog.Log) -> None:
    Path(log.path, "shipping").write_text("in the way")
    sink = Memory()
    with Shipper(log, sink) as shipper:
        shipper.run(once=True)
        assert shipper.statistics.position_lsn == log.durable_lsn


def test_without_a_limit_nothing_is_let_go_of_however_far_the_engine_is_behind(log: shmlog.Log) -> None:
    sink = Memory()
    sink.down = "away"
    with Shipper(log, sink) as shipper:
        for _ in range(3):
            fill(log, 100)
            with pytest.raises(EngineError):
                shipper.step()
        assert [c.lsn for c in log.cursors()] in ([], [0])


def test_beyond_its_limit_a_shipper_lets_go_and_says_so(
    log: shmlog.Log, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "COMMIT_S", 0.0)
    sink = Memory()
    with Shipper(log, sink, max_held_bytes=200_000, chunk_bytes=20_000) as shipper:
        shipper.run(once=True)
        sink.down = "away"
        while log.committed_lsn < 600_000:
            fill(log, 50)
        with caplog.at_level(logging.ERROR), pytest.raises(EngineError):
            shipper.step()
        (cursor,) = log.cursors()
        released = shipper.statistics.released_lsn
        assert cursor.lsn == released and log.committed_lsn - released <= 200_000
        assert f"let go of below LSN {released}" in caplog.text
        sink.down = ""
        shipper.step()
        assert shipper.statistics.position_lsn < released
        assert [c.lsn for c in log.cursors()] == [released], "it is not held again"
        shipper.run(once=True)  # nothing was trimmed, so nothing is missing
        assert sum(shmlog.chunk_info(chunk).records for chunk in sink.chunks) == sum(
            map(len, log.read_batches())
        )
        assert shipper.statistics.position_lsn == log.durable_lsn
        assert [c.lsn for c in log.cursors()] == [log.durable_lsn]


def test_what_was_let_go_of_and_trimmed_ends_the_shipper_instead_of_leaving_it_out(log: shmlog.Log) -> None:
    sink = Memory()
    with Shipper(log, sink, max_held_bytes=100_000) as shipper:
        shipper.run(once=True)
        sink.down = "away"
        while log.committed_lsn < 800_000:
            fill(log, 50)
        with pytest.raises(EngineError):
            shipper.step()
        log.trim(shipper.statistics.released_lsn)
        assert log.trimmed_lsn > shipper.statistics.position_lsn
        sink.down = ""
        count = len(sink.chunks)
        with pytest.raises(shmlog.TrimmedError):
            shipper.run(once=True)
        assert len(sink.chunks) == count
