"""Engines: the verbs that take a log's records to other machines.

This module knows integrations and when to end.  It may not know how records travel.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shmlog.cli.arguments import check_place
from shmlog.cli.output import report, say
from shmlog.errors import FencedError

if TYPE_CHECKING:
    from shmlog.integrations.configuration import Target
    from shmlog.integrations.ship import Shipper, Sink

FENCED = 3
"""Exit status: another shipper has taken over, and this one must not be started again by itself."""
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


def _sink(chosen: argparse.Namespace, target: Target, log_id: str, tables: dict[str, Any]) -> Sink:
    options = dict(target.options)
    if target.scheme != "nats":
        chosen.refuse(f"argument URL: {target.scheme}:// is no engine that can be shipped to; nats:// is")
    with extra("nats"):
        from shmlog.integrations.nats import REPLICAS, NatsSink
    replicas = options.pop("replicas", str(REPLICAS))
    if options or not replicas.isdigit():
        chosen.refuse("argument URL: the only option is replicas=N")
    settings = tables.get("nats", {})
    return NatsSink(target.hosts, target.place, log_id, replicas=int(replicas), settings=settings)


def _facts(shipper: Shipper) -> dict[str, Any]:
    lag = shipper.lag
    return asdict(shipper.statistics) | {
        "lag_bytes": lag.bytes,
        "lag_records": lag.records,
        "lag_seconds": lag.seconds,
    }


def _text(facts: dict[str, Any]) -> str:
    trouble = f"; errors of the engine: {facts['retries']}" if facts["retries"] else ""
    return (
        f"shipped {facts['records']} records in {facts['chunks']} chunks, up to LSN {facts['position_lsn']};"
        f" {facts['lag_records']} records ({facts['lag_bytes']} bytes, {facts['lag_seconds']:.1f} s) behind"
        f"{trouble}"
    )


def _teller(shipper: Shipper) -> Callable[[], None]:
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
            shipper = Shipper(log, sink, name=chosen.name, tags=chosen.tag, chunk_bytes=chosen.chunk_bytes)
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
