"""Spans through a log to a collector that fails, is slow, dies, refuses: every span arrives at least once."""

from __future__ import annotations

import contextlib
import email.utils
import importlib.util
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, flusher_pid, stopped, until

import shmlog
from shmlog.cli.main import main

if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("google.protobuf") is None:
    pytest.skip("the extra otlp is not installed", allow_module_level=True)

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.collector import Answer, Collector, names_in, partial

import shmlog.integrations.collector as other_end
from shmlog.integrations.collector import headers_of
from shmlog.integrations.forward import CollectorError, Forwarder, RefusedError, Signal
from shmlog.integrations.logging import ShmlogHandler
from shmlog.integrations.opentelemetry import TRACES, ShmlogSpanExporter
from shmlog.integrations.otlplogs import Encoder, severity
from shmlog.integrations.repeating import EngineError

SIZES: dict[str, Any] = {"segment_bytes": SEGMENT_BYTES, "window_bytes": SEGMENT_BYTES}
COMMAND = [sys.executable, "-W", "error", "-m", "shmlog", "forward"]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SIZES) as made:
        yield made


def ended(*names: str) -> tuple[Any, ...]:
    """Spans of these names that have ended."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "test"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test")
    for name in names:
        with tracer.start_as_current_span(name):
            pass
    return kept.get_finished_spans()


def export(path: object, *batches: tuple[str, ...]) -> None:
    """Export each batch as a record, and wait until all are durable."""
    exporter = ShmlogSpanExporter(str(path), **{"timeout": 30.0, **SIZES})
    for names in batches:
        assert exporter.export(ended(*names)) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    exporter.shutdown()


def forwarder(log: shmlog.Log, collector: Collector, **options: Any) -> Forwarder:
    return Forwarder(log, other_end.Collector(collector.url, timeout=10.0), **options)


def place(log: shmlog.Log, name: str = "forward") -> int:
    return next(cursor.lsn for cursor in log.cursors() if cursor.name == name)


# -------------------------------------------------------------------- exporter


def test_a_batch_is_one_record_that_otlp_knows(log: shmlog.Log) -> None:
    export(log.path, ("a", "b"), ("c",))
    records = list(log.read())
    assert [record.tag for record in records] == [TRACES, TRACES]
    assert [names_in(bytes(record.data)) for record in records] == [["a", "b"], ["c"]]


def test_a_batch_larger_than_a_record_becomes_several_and_a_span_too_large_is_lost_loudly(
    log: shmlog.Log, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{n:02}" + "x" * 8000 for n in range(20)]
    export(log.path, tuple(names))
    records = list(log.read())
    assert len(records) > 1
    assert [name for record in records for name in names_in(bytes(record.data))] == names
    exporter = ShmlogSpanExporter(log.path)
    assert exporter.export(ended("y" * 70_000)) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert "1 spans are lost" in caplog.text


def test_an_export_never_blocks_longer_than_its_timeout(
    log: shmlog.Log, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = ShmlogSpanExporter(log.path, timeout=0.3)
    spans = ended("x" * 5000)
    log.append(b"")  # there is a flusher
    with stopped(flusher_pid(log)):
        while exporter.export(spans) is SpanExportResult.SUCCESS:
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
        assert not exporter.force_flush(100)
    exporter.shutdown()
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert "has been closed" in caplog.text


def _trace(wire: Wire, provider: TracerProvider, number: int, count: int) -> None:
    tracer = provider.get_tracer("child")
    for n in range(count):
        with tracer.start_as_current_span(f"{number}-{n}"):
            pass
    provider.shutdown()


def test_forked_processes_go_on_with_the_exporter_of_their_parent(log: shmlog.Log) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(ShmlogSpanExporter(log.path, timeout=30.0)))
    with provider.get_tracer("parent").start_as_current_span("parent"):
        pass
    children = [Child(_trace, provider, number, 50) for number in range(3)]
    for child in children:
        child.result()
    provider.shutdown()
    log.wait_committed()
    found = [name for record in log.read() for name in names_in(bytes(record.data))]
    wanted = ["parent", *(f"{number}-{n}" for number in range(3) for n in range(50))]
    assert set(found) == set(wanted)


# ------------------------------------------------------------------- forwarding


def test_records_are_joined_into_requests_and_what_is_not_a_span_is_passed_over(
    log: shmlog.Log, collector: Collector
) -> None:
    export(log.path, ("a",), ("b", "c"))
    log.append(b"something else", tag=7)
    export(log.path, ("d",))
    with forwarder(log, collector) as forward:
        forward.run(once=True)
        assert (forward.statistics.requests, forward.statistics.records) == (1, 3)
    assert collector.spans == ["a", "b", "c", "d"]
    assert [path for path, _ in collector.requests] == ["/v1/traces"]
    assert place(log) == log.durable_lsn


def test_a_request_holds_no_more_than_it_may_unless_one_record_does(
    log: shmlog.Log, collector: Collector
) -> None:
    export(log.path, *((f"{n}" + "x" * 500,) for n in range(5)))
    with forwarder(log, collector, request_bytes=1500) as forward:
        forward.run(once=True)
        assert forward.statistics.requests == 3
    with forwarder(log, collector, name="again", request_bytes=1) as forward:
        forward.run(once=True)
        assert forward.statistics.requests == 5
    assert [name[0] for name in collector.spans] == list("01234") * 2


@pytest.mark.holds("I31")
def test_nothing_leaves_the_host_before_it_is_durable(log_path: Path, collector: Collector) -> None:
    with shmlog.open(log_path, create=True, sync_interval=60.0, **SIZES) as log:
        log.append(b"", durable=True)
        exporter = ShmlogSpanExporter(log_path, sync_interval=60.0)
        assert exporter.export(ended("early")) is SpanExportResult.SUCCESS
        log.wait_committed()
        with forwarder(log, collector) as forward:
            while forward.step():
                pass
            assert log.durable_lsn < log.committed_lsn and not collector.spans
            assert exporter.force_flush()
            assert forward.step()
        exporter.shutdown()
    assert collector.spans == ["early"]


@pytest.mark.holds("I30")
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_the_cursor_waits_while_the_collector_is_overloaded(
    log: shmlog.Log, collector: Collector, status: int
) -> None:
    export(log.path, ("a",))
    before = log.trimmed_lsn
    collector.answers += [Answer(status)] * 2
    with forwarder(log, collector) as forward:
        for _ in range(2):
            with pytest.raises(EngineError, match=str(status)):
                forward.step()
            assert (forward.statistics.position_lsn, place(log)) == (before, before)
        forward.run(once=True)
        assert forward.statistics.retries == 2
    assert (collector.spans, place(log)) == (["a"], log.durable_lsn)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("7", 7, 7),
        ("999999", 3600, 3600),
        ("a date", 500, 1000),
        (email.utils.formatdate(0), 0, 0),
        ("soon", 0, 0),
        (None, 0, 0),
    ],
)
def test_retry_after_is_honoured_as_seconds_and_as_a_date(
    log: shmlog.Log, collector: Collector, text: str | None, low: float, high: float
) -> None:
    if text == "a date":
        text = email.utils.formatdate(time.time() + 1000, usegmt=True)
    export(log.path, ("a",))
    collector.answers.append(Answer(503, {} if text is None else {"Retry-After": text}))
    with forwarder(log, collector) as forward, pytest.raises(EngineError) as raised:
        forward.step()
    assert low <= raised.value.pause_s <= high


def test_a_pause_that_the_collector_asks_for_is_made_and_once_does_not_wait_for_an_hour(
    log: shmlog.Log, collector: Collector
) -> None:
    export(log.path, ("a",))
    pauses: list[float] = []
    with forwarder(log, collector) as forward:
        forward._sleep = lambda seconds, *_: pauses.append(seconds)  # type: ignore[method-assign]
        collector.answers += [Answer(429, {"Retry-After": "21"}), Answer(429), Answer(503)]
        forward.run(once=True)
        assert pauses[:3] == [21.0, 0.2, 0.4]
    export(log.path, ("b",))
    with forwarder(log, collector) as forward:
        collector.answers.append(Answer(429, {"Retry-After": "3600"}))
        with pytest.raises(EngineError):
            forward.run(once=True)
    assert collector.spans == ["a"]


@pytest.mark.parametrize("accepted", [False, True])
def test_a_collector_that_dies_before_its_answer_is_asked_again(
    log: shmlog.Log, collector: Collector, accepted: bool
) -> None:
    export(log.path, ("a",))
    collector.answers.append(Answer(accept=accepted, cut=True))
    with forwarder(log, collector) as forward:
        with pytest.raises(EngineError):
            forward.step()
        forward.run(once=True)
        collector.die()
        export(log.path, ("b",))
        with pytest.raises(EngineError, match="Refused"):
            forward.step()
        collector.start()
        forward.run(once=True)
        export(log.path, ("c",))
        collector.die()  # between two requests, on a connection that is kept open
        collector.start()
        assert forward.step()
    assert collector.spans == ["a"] * (1 + accepted) + ["b", "c"]


def test_an_answer_that_takes_too_long_is_none(log: shmlog.Log, collector: Collector) -> None:
    export(log.path, ("a",))
    late = threading.Event()
    collector.answers.append(Answer(accept=True, after=late))
    with Forwarder(log, other_end.Collector(collector.url, timeout=0.2)) as forward:
        with pytest.raises(EngineError, match="Timeout"):
            forward.step()
        late.set()
        until(lambda: collector.spans)
    with forwarder(log, collector) as forward:
        forward.run(once=True)
    assert collector.spans == ["a", "a"]


def test_spans_that_an_accepted_request_lost_are_reported(
    log: shmlog.Log, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    export(log.path, ("a", "b"))
    collector.answers.append(Answer(accept=True, body=partial(1, "too old")))
    with forwarder(log, collector) as forward:
        forward.run(once=True)
        assert forward.statistics.rejected == 1
    assert "rejected 1 items of the records from LSN 0 to 0: too old" in caplog.text
    export(log.path, ("c",))
    collector.answers.append(Answer(accept=True, body=b"<html>\xff"))
    with forwarder(log, collector) as forward:
        forward.run(once=True)
        assert forward.statistics.rejected == 0


@pytest.mark.holds("I30")
@pytest.mark.parametrize("bad", range(5))
def test_a_record_that_is_refused_for_good_is_named_and_kept_and_stops_no_earlier_one(
    log: shmlog.Log, collector: Collector, bad: int
) -> None:
    export(log.path, *((f"{n}",) for n in range(5)))
    lsns = [record.lsn for record in log.read()]
    collector.refuse = lambda names: f"{bad}" in names
    with forwarder(log, collector) as forward, pytest.raises(RefusedError, match="bad span") as raised:
        forward.run(once=True)
    assert raised.value.lsn == lsns[bad] == place(log)
    assert collector.spans == [f"{n}" for n in range(bad)]
    collector.refuse = lambda names: False
    with forwarder(log, collector) as forward:
        forward.run(once=True)
    assert collector.spans == [f"{n}" for n in range(5)]


@pytest.mark.holds("I30")
def test_a_refused_record_is_set_aside_durably_and_the_others_arrive(
    log: shmlog.Log, collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(log.path, *((f"{n}",) for n in range(7)))
    lsns = [record.lsn for record in log.read()]
    collector.refuse = lambda names: bool({"2", "5"} & set(names))
    with (
        shmlog.open(tmp_path / "aside", create=True, sync_interval=60.0, **SIZES) as aside,
        forwarder(log, collector, aside=aside) as forward,
    ):
        forward.run(once=True)
        assert (forward.statistics.aside, forward.statistics.records) == (2, 5)
        assert aside.durable_lsn == aside.reserved_lsn
        assert [names_in(bytes(record.data)) for record in aside.read()] == [["2"], ["5"]]
        collector.refuse = lambda names: False
        with forwarder(aside, collector) as later:
            later.run(once=True)
    assert collector.spans == ["0", "1", "3", "4", "6", "2", "5"]
    assert f"refuses the record at LSN {lsns[2]}: 400 Bad Request: bad span" in caplog.text
    assert place(log) == log.durable_lsn


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_an_answer_about_no_record_sets_none_aside(
    log: shmlog.Log, collector: Collector, tmp_path: Path, status: int
) -> None:
    export(log.path, ("a",))
    collector.answers.append(Answer(status, {"Location": "/elsewhere"}))
    with (
        shmlog.open(tmp_path / "aside", create=True, **SIZES) as aside,
        forwarder(log, collector, aside=aside) as forward,
    ):
        with pytest.raises(CollectorError, match=str(status)):
            forward.run(once=True)
        assert not list(aside.read()) and place(log) == 0
        forward.run(once=True)
    assert collector.spans == ["a"]


def test_headers_are_read_as_opentelemetry_writes_them() -> None:
    assert headers_of("a=1, b = x%20y=z ,") == {"a": "1", "b": "x y=z"}
    for text in ("secret", "=secret"):
        with pytest.raises(ValueError) as raised:
            headers_of(text)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x": "hunter2\nb"}},
        {"headers": {"x": "hunter2\u20ac"}},
        {"headers": {"x y": "hunter2"}},
        {"headers": {"x": 2}},
        {"timeout": "long"},
        {"timeout": 0},
        {"ca_file": "/no/such.pem"},
    ],
)
def test_settings_that_are_none_are_named_and_not_shown(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"header|timeout|/no/such.pem: No such file") as raised:
        other_end.Collector("https://127.0.0.1", **options)
    assert "hunter2" not in str(raised.value)


def test_messages_of_logging_are_forwarded_as_log_records(log: shmlog.Log, collector: Collector) -> None:
    logger = logging.Logger("app.db")
    logger.addHandler(ShmlogHandler(log.path, timeout=30.0))
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("lost %d", 3, extra={"user": 7, "big": 1 << 70, "ok": True, "tree": {"a": [1]}})
    log.append(b"\xff no message", tag=0)
    with shmlog.open(log.path) as other:
        other.wait_durable()
    logger.handlers[0].close()
    bodies: list[bytes] = []
    collector.read = lambda data: bodies.append(data) or []  # type: ignore[func-returns-value]
    with forwarder(log, collector, signal=Signal("/v1/logs", None, Encoder())) as forward:
        forward.run(once=True)
    assert [path for path, _ in collector.requests] == ["/v1/logs"]
    request = ExportLogsServiceRequest.FromString(bodies[0])
    (first, scope), (second, _) = [
        (record, scope.scope.name)
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    assert (scope, first.body.string_value, first.severity_text) == ("app.db", "lost 3", "ERROR")
    assert (first.severity_number, second.severity_number) == (17, 0)
    assert abs(first.time_unix_nano - first.observed_time_unix_nano) < 60e9
    found = {pair.key: pair.value for pair in first.attributes}
    assert (found["user"].int_value, found["ok"].bool_value) == (7, True)
    assert (found["big"].string_value, found["tree"].string_value) == (str(1 << 70), '{"a": [1]}')
    assert "KeyError: 'gone'" in found["exception.stacktrace"].string_value
    assert found["process.pid"].int_value == os.getpid()
    assert second.body.string_value == "\ufffd no message"
    assert any(pair.key == "service.name" for pair in request.resource_logs[0].resource.attributes)


@pytest.mark.parametrize(
    ("level", "number"), [(0, 0), (5, 3), (10, 5), (20, 9), (25, 11), (30, 13), (40, 17), (50, 21), (99, 24)]
)
def test_levels_between_those_of_logging_lie_between_those_of_opentelemetry(level: int, number: int) -> None:
    assert severity(level) == number


# ---------------------------------------------------------------- command line


def run(*arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr and "hunter2" not in done.stderr + done.stdout
    return done


def test_forward_once_says_how_far_and_sends_the_headers_of_files_and_the_environment(
    log: shmlog.Log, collector: Collector, tmp_path: Path
) -> None:
    export(log.path, ("a",))
    secret, config = tmp_path / "secret", tmp_path / "otlp.toml"
    secret.write_text("hunter2\n")
    config.write_text(f'[otlp.headers]\nAuthorization = {{ file = "{secret}" }}\n')
    environment = {"OTEL_EXPORTER_OTLP_HEADERS": "x-scope=hunter2%21"}
    options = (log.path, "--otlp", collector.url, "--once", "--config", config)
    facts = json.loads(run(*options, "--json", **environment).stdout)
    assert (facts["position_lsn"], facts["records"], facts["lag_bytes"]) == (log.durable_lsn, 1, 0)
    _, headers = collector.requests[0]
    assert (headers["authorization"], headers["x-scope"]) == ("hunter2", "hunter2!")
    assert headers["content-type"] == "application/x-protobuf"
    assert "forwarded 0 records" in run(*options).stdout
    collector.read = lambda data: ["message"] * len(ExportLogsServiceRequest.FromString(data).resource_logs)
    run(log.path, "--otlp", collector.url, "--once", "--format", "logging", "--name", "messages")
    assert (collector.spans, collector.requests[-1][0]) == (["a", "message"], "/v1/logs")


def test_wrong_usage_and_what_cannot_go_on_say_so(
    log: shmlog.Log, collector: Collector, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(log.path, ("a",))
    for url in (
        "host:4318",
        "ftp://host",
        "http://me:hunter2@host",
        "http://host?token=hunter2",
        "http://h:x",
    ):
        with pytest.raises(SystemExit) as usage:
            main(["forward", log.path, "--otlp", url, "--once"])
        assert usage.value.code == 2
    with pytest.raises(SystemExit) as usage:
        main(["forward", log.path])
    assert usage.value.code == 2
    assert main(["forward", f"{log.path}-none", "--otlp", collector.url]) == 1
    config = tmp_path / "otlp.toml"
    config.write_text('[otlp.headers]\nauthorization = "hunter2"\n')
    assert main(["forward", log.path, "--otlp", collector.url, "--config", str(config)]) == 1
    config.write_text("[otlp]\nretries = 3\n")
    assert main(["forward", log.path, "--otlp", collector.url, "--config", str(config)]) == 1
    err = capfd.readouterr().err
    assert "hunter2" not in err and "no log here" in err and "is a secret" in err and "no setting" in err
    collector.answers += [Answer(400, body=b"bad span"), Answer(401)]
    assert "refuses the record at LSN 0" in run(log.path, "--otlp", collector.url, "--once", status=1).stderr
    assert "401" in run(log.path, "--otlp", collector.url, "--once", status=1).stderr
    options = ("--otlp", collector.url, "--once", "--aside", tmp_path / "aside")
    collector.answers += [Answer(400)]
    assert "records set aside: 1" in run(log.path, *options).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_forward_goes_on_until_it_is_told_to_end(log: shmlog.Log, collector: Collector, number: int) -> None:
    command = [*COMMAND, log.path, "--otlp", collector.url, "--name", "mine", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            export(log.path, ("first",))
            until(lambda: collector.spans == ["first"])
            export(log.path, ("second",))
            until(lambda: collector.spans == ["first", "second"])
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["position_lsn"] == log.durable_lsn == place(log, "mine")


def _export_many(wire: Wire, path: str, number: int, count: int, collector: Collector) -> None:
    collector.forget()
    exporter = ShmlogSpanExporter(path, timeout=30.0)
    for n in range(count):
        assert exporter.export(ended(f"{number}-{n}")) is SpanExportResult.SUCCESS
        if n % 20 == 0:
            wire.say(n)
            wire.hear()
    exporter.shutdown()


@pytest.mark.holds("I30")
def test_every_span_arrives_though_forwarder_collector_and_exporters_are_killed(
    log: shmlog.Log, collector: Collector
) -> None:
    dice = random.Random(1)
    command = [*COMMAND, log.path, "--otlp", collector.url]
    children = [Child(_export_many, log.path, number, 100, collector) for number in range(3)]
    exported = [0] * 3
    with contextlib.ExitStack() as held:
        for child in children:
            held.enter_context(child)
        for life in range(5):
            for number, child in enumerate(children):
                exported[number] = child.hear()
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                for child in children:
                    child.say("go on")
                seen = len(collector.requests)
                collector.answers += dice.choice([[], [Answer(503)], [Answer(accept=True, cut=True)]])
                until(lambda seen=seen: len(collector.requests) > seen)  # type: ignore[misc]
                if life % 2:
                    collector.die()
                process.kill()
            if life % 2:
                collector.start()
        children[2].kill()
        for child in children[:2]:
            child.result()
    collector.answers.clear()
    run(log.path, "--otlp", collector.url, "--once")
    wanted = {f"{number}-{n}" for number in range(2) for n in range(100)}
    wanted |= {f"2-{n}" for n in range(exported[2])}
    assert wanted <= set(collector.spans)
