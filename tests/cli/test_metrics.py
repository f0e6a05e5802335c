"""Metrics, the page and top: what they say, and what the page refuses."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child, Wire, until

import shmlog
from shmlog.tools import metrics, page

COMMAND = [sys.executable, "-W", "error", "-m", "shmlog"]


def _get(
    port: int, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


@pytest.fixture
def served(log_path: Path) -> Iterator[tuple[shmlog.Log, page.Server]]:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x" * 100, durable=True)
        log.cursor("etl").close()
        server = page.Server(str(log_path), "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield log, server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def test_the_text_is_what_prometheus_reads_and_has_the_logs_figures(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    path = tmp_path / 'a "log"'
    with shmlog.open(path, create=True) as log:
        for _ in range(3):
            log.append(b"x" * 100, durable=True)
        log.cursor("etl").close()
        text = subprocess.run(
            [*COMMAND, "metrics", str(path)], capture_output=True, check=True
        ).stdout.decode()
        now = log.statistics()
    found = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert {sample.labels["log"] for family in found.values() for sample in family.samples} == {str(path)}
    marks = {sample.labels["watermark"]: sample.value for sample in found["shmlog_watermark_bytes"].samples}
    assert (marks["committed"], marks["durable"]) == (now.committed_lsn, now.durable_lsn)
    assert found["shmlog_records"].type == "counter"
    assert found["shmlog_records"].samples[0].value == 3
    syncs = {sample.name: sample.value for sample in found["shmlog_sync_seconds"].samples}
    assert syncs["shmlog_sync_seconds_count"] == now.syncs >= 3
    assert syncs["shmlog_sync_seconds_sum"] > 0
    (lag,) = found["shmlog_cursor_lag_bytes"].samples
    assert (lag.labels["cursor"], lag.value) == ("etl", now.committed_lsn)
    assert "shmlog_flusher_up" in metrics.metrics_text(path), "of a dead log, too"


def test_the_page_and_its_state_and_the_metrics_are_served_and_nothing_else(
    served: tuple[shmlog.Log, page.Server],
) -> None:
    log, server = served
    port = server.server_port
    status, headers, body = _get(port, "/")
    assert status == 200 and b"<svg" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    found = re.findall(rb"""(?:src|href|url)\s*[=(]\s*["']?([^"']*)""", body)
    assert {each for each in found if not each.startswith(b"data:")} == {b"metrics", b"state.json"}
    state = json.loads(_get(port, "/state.json")[2])
    assert (state["committed_lsn"], state["live"], state["failed"]) == (log.committed_lsn, True, None)
    assert [place["name"] for place in state["cursors"]] == ["etl"]
    until(lambda: json.loads(_get(port, "/state.json")[2])["history"], "a look is kept")
    assert b"shmlog_records_total" in _get(port, "/metrics")[2]
    for path in ("/shmlog.json", "/../../etc/passwd", "//etc/passwd", "/index.html", "/%2e%2e/LOCK", "/?x"):
        assert _get(port, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert _get(port, "/", method)[0] == 501
    assert len(log.statistics().participants) == 2, "it has joined nothing"


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:9464", 200), ("evil.example", 421), ("", 421)],
)
def test_who_asks_by_a_foreign_name_is_refused(
    served: tuple[shmlog.Log, page.Server], host: str, status: int
) -> None:
    assert _get(served[1].server_port, "/state.json", host=host)[0] == status


def test_who_sends_nothing_or_little_by_little_is_cut_off_and_hinders_nobody(
    served: tuple[shmlog.Log, page.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "SECONDS", 0.3)
    port = served[1].server_port
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(page.REQUESTS_MAX - 1)]
    try:
        assert _get(port, "/state.json")[0] == 200
        for connection in slow:
            connection.settimeout(20)
            assert connection.recv(1) == b"", "it was cut off"
    finally:
        for connection in slow:
            connection.close()


def test_a_log_that_goes_and_comes_back_is_told_and_found_again(log_path: Path, tmp_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    server = page.Server(str(log_path), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        log_path.rename(tmp_path / "aside")
        _, _, body = until(lambda: (found := _get(server.server_port, "/metrics"))[0] == 503 and found)
        assert json.loads(body)["error"] == "FileNotFoundError"
        (tmp_path / "aside").rename(log_path)
        until(lambda: _get(server.server_port, "/metrics")[0] == 200, "it is looked at again")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_metrics_listen_says_where_and_ends_with_ctrl_c(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    command = [*COMMAND, "metrics", str(log_path), "--listen", ":0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        assert _get(int(url.rstrip("/").rpartition(":")[2]), "/metrics")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == b""


def test_top_without_a_terminal_prints_each_look_and_with_one_ends_cleanly(log_path: Path) -> None:
    def write(wire: Wire) -> None:
        with shmlog.open(log_path, create=True) as log:
            wire.say("open")
            while not wire._connection.poll(0.001):
                log.append(b"x" * 100)

    with Child(write) as child:
        assert child.hear() == "open"
        top = [*COMMAND, "top", str(log_path), "--interval", "0.2"]
        text = subprocess.run([*top, "--count", "2"], capture_output=True, check=True, text=True).stdout
        assert text.count("appends") == 2 and f"(pid {child.pid})" in text and "\x1b" not in text
        looks = subprocess.run([*top, "--count", "2", "--json"], capture_output=True, check=True).stdout
        first, second = map(json.loads, looks.splitlines())
        assert second["records"] > first["records"]
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            top, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
        ) as process:
            os.close(theirs)
            seen = b""
            while b"appends" not in seen:
                assert select.select([ours], [], [], 20)[0]
                seen += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        os.set_blocking(ours, False)
        seen += os.read(ours, 65536)
        os.close(ours)
        assert b"Traceback" not in seen
        child.say("end")
        child.result()


def test_the_collectors_give_what_statistics_gives(log_path: Path) -> None:
    client = pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from shmlog.integrations.metrics import ShmlogCollector, observe

    registry = client.CollectorRegistry()
    registry.register(ShmlogCollector(log_path))
    up = {"log": str(log_path)}
    assert registry.get_sample_value("shmlog_up", up) == 0, "there is no log yet"
    with shmlog.open(log_path, create=True) as log:
        for _ in range(3):
            log.append(b"x" * 100, durable=True)
        log.cursor("etl").close()
        value = registry.get_sample_value
        assert value("shmlog_up", up) == 1
        assert value("shmlog_records_total", up) == 3
        assert value("shmlog_sync_seconds_count", up) == log.statistics().syncs
        assert value("shmlog_cursor_lag_bytes", {**up, "cursor": "etl"}) == log.committed_lsn
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        observe(log_path, provider.get_meter("test"))
        data: Any = reader.get_metrics_data()
        found = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}
        assert found["shmlog_records"].data.data_points[0].value == 3
        assert found["shmlog_syncs"].data.data_points[0].value == log.statistics().syncs
        assert {
            point.attributes["watermark"] for point in found["shmlog_watermark_bytes"].data.data_points
        } >= {"durable"}
        assert found["shmlog_payload_bytes"].unit == "By"
        provider.shutdown()
    shutil.rmtree(log_path)
    assert registry.get_sample_value("shmlog_up", up) == 0
