"""Engines: the verbs that take a log's records to other machines, and that read an archive.

This module knows integrations and when to end.  It may not know how records travel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shmlog.cli.arguments import check_place
from shmlog.cli.output import report, say
from shmlog.errors import CorruptionError, FencedError

if TYPE_CHECKING:
    from shmlog.integrations.archived import ArchivedLog
    from shmlog.integrations.collector import Collector
    from shmlog.integrations.configuration import Target
    from shmlog.integrations.forward import Forwarder
    from shmlog.integrations.ship import Shipper
    from shmlog.integrations.sinks import RecordSink, Sink

FENCED = 3
"""Exit status: another shipper has taken over, and this one must not be started again by itself."""
HEADERS = "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"
"""Where OpenTelemetry's own exporters look for them."""
TELL_S = 60.0
"""How often stderr is told how far it is, while it goes on."""


@contextlib.contextmanager
def told_to_end(stop: Callable[[], None]) -> Iterator[None]:
    """Call stop at the first Ctrl-C or SIGTERM; the second one is not waited for."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(*_: object) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop()

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """ValueError, with the remedy, for a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("shmlog"):
            raise
        raise ValueError(f"{error.name} is not installed: pip install 'shmlog[{name}]'") from None


def _sink(
    chosen: argparse.Namespace, target: Target, log_id: str, tables: dict[str, Any]
) -> Sink | RecordSink:
    """The place that a URL names, in the form that was asked for; None is the engine's own."""
    options = dict(target.options)
    settings = tables.get(target.scheme, {})
    if target.scheme == "nats":
        with extra("nats"):
            from shmlog.integrations.nats import REPLICAS, NatsRecordSink, NatsSink
        replicas = options.pop("replicas", str(REPLICAS))
        if options or not replicas.isdigit():
            chosen.refuse("argument URL: the only option is replicas=N")
        place = NatsRecordSink if chosen.form == "records" else NatsSink
        return place(target.hosts, target.place, log_id, replicas=int(replicas), settings=settings)
    if target.scheme == "valkey":
        with extra("valkey"):
            from shmlog.integrations.valkey import ValkeySink
        if options or len(target.hosts) != 1:
            chosen.refuse("argument URL: valkey:// takes one host and no options")
        if chosen.form == "records":
            chosen.refuse("argument --records: valkey:// takes chunks")
        return ValkeySink(target.hosts[0], target.place, log_id, settings=settings)
    if target.scheme == "kafka":
        return _kafka(chosen, target, log_id, settings)
    chosen.refuse(
        f"argument URL: {target.scheme}:// cannot be shipped to; nats://, kafka:// and valkey:// can"
    )
    raise AssertionError  # refuse() exits


def _kafka(chosen: argparse.Namespace, target: Target, log_id: str, settings: dict[str, Any]) -> Sink:
    with extra("kafka"):
        from shmlog.integrations.kafka import REPLICAS, KafkaSink
    options = dict(target.options)
    partition, replicas = options.pop("partition", "0"), options.pop("replicas", str(REPLICAS))
    if options or not (partition.isdigit() and replicas.isdigit()):
        chosen.refuse("argument URL: the only options are partition=N and replicas=N")
    return KafkaSink(
        target.hosts,
        target.place,
        log_id,
        partition=int(partition),
        replicas=int(replicas),
        records=chosen.form == "records",
        settings=settings,
    )


def _facts(shipper: Shipper | Forwarder) -> dict[str, Any]:
    lag = shipper.lag
    return asdict(shipper.statistics) | {
        "lag_bytes": lag.bytes,
        "lag_records": lag.records,
        "lag_seconds": lag.seconds,
    }


def _text(facts: dict[str, Any]) -> str:
    if "chunks" in facts:
        done = f"shipped {facts['records']} records in {facts['chunks']} chunks"
    else:
        done = f"forwarded {facts['records']} records in {facts['requests']} requests"
    more = {"errors of the engine": "retries", "items rejected": "rejected", "records set aside": "aside"}
    trouble = "".join(f"; {text}: {facts[name]}" for text, name in more.items() if facts.get(name))
    return (
        f"{done}, up to LSN {facts['position_lsn']};"
        f" {facts['lag_records']} records ({facts['lag_bytes']} bytes, {facts['lag_seconds']:.1f} s) behind"
        f"{trouble}"
    )


def _teller(shipper: Shipper | Forwarder) -> Callable[[], None]:
    """What tells stderr, when it moved, and not too often."""
    told_at, told_lsn = time.monotonic(), -1

    def tell() -> None:
        nonlocal told_at, told_lsn
        if time.monotonic() - told_at < TELL_S or shipper.statistics.position_lsn == told_lsn:
            return
        told_at, told_lsn = time.monotonic(), shipper.statistics.position_lsn
        with contextlib.suppress(OSError):
            print(f"shmlog: {_text(_facts(shipper))}", file=sys.stderr, flush=True)

    return tell


def ship(chosen: argparse.Namespace) -> int:
    import logging

    import shmlog
    from shmlog.integrations import configuration
    from shmlog.integrations.ship import Shipper

    try:
        target = configuration.parse_url(chosen.url)
    except ValueError as error:
        chosen.refuse(f"argument URL: {error}")
    tables = configuration.load(chosen.config)
    check_place(chosen.directory)
    logging.basicConfig(format="shmlog: %(message)s")  # warnings, to stderr
    with contextlib.ExitStack() as held:
        log = held.enter_context(shmlog.open(chosen.directory))
        sink = _sink(chosen, target, log.log_id, tables)
        try:
            shipper = Shipper(
                log,
                sink,
                name=chosen.name,
                tags=chosen.tag,
                chunk_bytes=chosen.chunk_bytes,
                max_held_bytes=chosen.max_held_bytes,
            )
        except BaseException:
            sink.close()
            raise
        held.enter_context(shipper)
        try:
            with told_to_end(shipper.stop):
                shipper.run(chosen.once, _teller(shipper))
        except FencedError as error:
            report(error, chosen.json)
            return FENCED
        facts = _facts(shipper)
    say(chosen, facts, _text(facts))
    return 0


def _collector(chosen: argparse.Namespace) -> Collector:
    from shmlog.integrations import configuration
    from shmlog.integrations.collector import Collector, check_url, headers_of

    try:
        check_url(chosen.otlp)
    except ValueError as error:
        chosen.refuse(f"argument --otlp: {error}")
    settings = dict(configuration.load(chosen.config).get("otlp", {}))
    if unknown := settings.keys() - {"headers", "ca_file", "timeout"}:
        raise ValueError(f"otlp.{min(unknown)} is no setting; headers, ca_file and timeout are")
    variable = next((name for name in HEADERS if os.environ.get(name)), "")
    try:
        headers = headers_of(os.environ.get(variable, "")) | dict(settings.pop("headers", {}))
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None
    settings.setdefault("ca_file", os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE"))
    return Collector(chosen.otlp, headers, **settings)


def forward(chosen: argparse.Namespace) -> int:
    import logging

    import shmlog

    with extra("otlp"):
        from shmlog.integrations.forward import SPANS, Forwarder, Signal
    what = SPANS
    if chosen.format == "logging":
        from shmlog.integrations.otlplogs import Encoder

        what = Signal("/v1/logs", None, Encoder())
    collector = _collector(chosen)
    check_place(chosen.directory)
    logging.basicConfig(format="shmlog: %(message)s")
    with contextlib.ExitStack() as held:
        log = held.enter_context(shmlog.open(chosen.directory))
        aside = None
        if chosen.aside is not None:
            aside = held.enter_context(shmlog.open(chosen.aside, create=True))
        forwarder = held.enter_context(Forwarder(log, collector, what, name=chosen.name, aside=aside))
        with told_to_end(forwarder.stop):
            forwarder.run(chosen.once, _teller(forwarder))
        facts = _facts(forwarder)
    say(chosen, facts, _text(facts))
    return 0


def archive(chosen: argparse.Namespace) -> int:
    import logging

    import shmlog

    settings = _store_settings(chosen, chosen.url)
    with extra("archive"):
        from shmlog.integrations.archive import Archiver
        from shmlog.integrations.objects import Store
    check_place(chosen.directory)
    logging.basicConfig(format="shmlog: %(message)s")
    with (
        shmlog.open(chosen.directory) as log,
        Archiver(
            log,
            Store(chosen.url, settings),
            name=chosen.name,
            trim=chosen.trim,
            keep_bytes=chosen.keep_bytes,
        ) as archiver,
        told_to_end(archiver.stop),
    ):
        archiver.run(chosen.once)
        facts = asdict(archiver.statistics) | {"lag_bytes": log.committed_lsn - archiver.position_lsn}
    text = f"archived {facts['records']} records in {facts['segments']} segments"
    say(chosen, facts, f"{text}, up to LSN {facts['position_lsn']}; {facts['lag_bytes']} bytes behind")
    return 0


def is_url(place: str) -> bool:
    """Whether a verb that reads a log was given an archive."""
    return "://" in place


def _store_settings(chosen: argparse.Namespace, url: str) -> dict[str, Any]:
    from shmlog.integrations import configuration

    if not is_url(url):
        chosen.refuse("argument URL: a store's is s3://BUCKET/PREFIX, gs://, az:// or file:///PATH")
    try:
        configuration.refuse_secrets(url)
    except ValueError as error:
        chosen.refuse(f"argument URL: {error}")
    settings: dict[str, Any] = configuration.load(chosen.config).get("store", {})
    return settings


def opened(chosen: argparse.Namespace, url: str) -> ArchivedLog:
    """The archive at a URL; errors as open_archive()."""
    settings = _store_settings(chosen, url)
    with extra("archive"):
        from shmlog.integrations.archived import open_archive
    return open_archive(url, chosen.log, settings)


def restore(chosen: argparse.Namespace) -> int:
    with opened(chosen, chosen.directory) as archived:
        facts = asdict(archived.restore(chosen.target))
    text = (
        f"{facts['path']}: a log of {facts['segments']} segments, [{facts['begin_lsn']}, {facts['end_lsn']})"
    )
    if facts["dropped_bytes"]:
        text += f"; {facts['dropped_bytes']} bytes of an atomic batch whose end was not archived are left out"
    say(chosen, facts, text)
    return 0


def info(chosen: argparse.Namespace) -> int:
    with opened(chosen, chosen.directory) as archived:
        sidecars = archived.sidecars
        facts = {
            "url": chosen.directory,
            "log_id": archived.log_id,
            "segments": len(sidecars),
            "records": sum(sidecar.records for sidecar in sidecars),
            "object_bytes": sum(sidecar.object_bytes for sidecar in sidecars),
            "begin_lsn": archived.trimmed_lsn,
            "end_lsn": archived.committed_lsn,
            "first_time_ns": min((s.first_time_ns for s in sidecars if s.records), default=None),
            "last_time_ns": max((s.last_time_ns for s in sidecars if s.records), default=None),
        }
    from shmlog.tools.info import text

    say(chosen, facts, text(facts))
    return 0


def verify(chosen: argparse.Namespace) -> int:
    """Every object is what its sidecar says, and every frame is valid."""
    records = 0
    with opened(chosen, chosen.directory) as archived:
        begin, end, problem = archived.trimmed_lsn, archived.committed_lsn, None
        try:
            for batch in archived.read_batches():
                records += len(batch)
        except CorruptionError as error:
            problem = error
    facts = {
        "url": chosen.directory,
        "ok": problem is None,
        "begin_lsn": begin,
        "end_lsn": end,
        "records": records,
        "problem_lsn": problem and problem.lsn,
        "problem": problem and str(problem),
    }
    text = f"{chosen.directory}: {records} records in [{begin}, {end})"
    say(chosen, facts, f"{text}: BAD: {problem}" if problem else f"{text}: every frame is valid")
    return int(problem is not None)
