"""Shipping to Kafka: beside a client that sends the same messages in transactions and does nothing else.

The client has the messages in its memory, with the same headers, in transactions as large; with a position it
sends an offset in each, as whoever wants to know where to go on must, and is the baseline. The broker is one
Apache Kafka on this machine, the tests' own.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.kit.harness import Contender, Heat, Options, Outcome, throughput
from bench.kit.machine import REPOSITORY
from bench.kit.subject import append_rows, create_log, on_log, open_log
from bench.kit.workers import in_child

RECORD_BYTES = 128
RECORDS = {"chunks": 2_000_000, "records": 600_000}
RECORDS_TOY = 5_000
CHUNK_BYTES = 256 << 10
_FRAME_BYTES = RECORD_BYTES + 32


def heats(options: Options) -> Iterator[Heat]:
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from support import kafka as brokers

    if why := brokers.missing():
        print(f"not here: {why}")
        return
    held = contextlib.ExitStack()
    atexit.register(held.close)  # the heats are run when all of them are known
    directory = held.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
    broker = held.enter_context(brokers.broker(Path(directory).resolve()))
    for form in ("chunks", "records"):
        count = RECORDS_TOY if options.toy else RECORDS[form]

        def plain(_: Path, form: str = form, count: int = count) -> Outcome:
            return Outcome(in_child(_send, broker.address, form, count, False))

        def with_position(path: Path, form: str = form, count: int = count) -> Outcome:
            return Outcome(in_child(_send, broker.address, form, count, True))

        def ship(log: Path, form: str = form, count: int = count) -> Outcome:
            in_child(_fill, log, count)
            return Outcome(in_child(_ship, log, broker.address, form, count))

        yield Heat(
            title=f"to Kafka as {form}, {RECORD_BYTES} B",
            contenders=[
                Contender("client with position", with_position, "an offset in each transaction"),
                Contender("client", plain, "transactions alone"),
                on_log("shmlog ship", ship, "read, checked, sent, and the position"),
            ],
            columns=("records_per_s", "mb_per_s"),
            compare="records_per_s",
        )


def _fill(path: Path, count: int) -> None:
    with create_log(path, count * _FRAME_BYTES) as log:
        append_rows(log, RECORD_BYTES, count)
        log.wait_durable()


def _sink(address: str, log_id: str, form: str) -> Any:
    from shmlog.integrations.kafka import KafkaSink

    topic = f"bench-{secrets.token_hex(4)}"
    sink = KafkaSink([address], topic, log_id, replicas=1, records=form == "records")
    sink.tail()  # connects
    return sink


def _ship(path: Path, address: str, form: str, count: int) -> dict[str, float]:
    from shmlog.integrations.ship import Shipper

    with open_log(path) as log, Shipper(log, _sink(address, log.log_id, form)) as shipper:
        began = time.perf_counter()
        shipper.run(once=True)
        seconds = time.perf_counter() - began
        assert shipper.statistics.records == count
    return throughput(count, RECORD_BYTES, seconds)


def _send(address: str, form: str, count: int, position: bool) -> dict[str, float]:
    from confluent_kafka import TopicPartition

    from shmlog.integrations import ahead, kafka

    with contextlib.closing(_sink(address, "0" * 32, form)) as place:
        producer, offsets = place._producer, itertools.count(1)
        parts = min(kafka.GROUP, ahead.GROUP_BYTES // CHUNK_BYTES)  # as many as a shipper puts at once
        per_chunk = CHUNK_BYTES // _FRAME_BYTES
        left, now_ms = count, time.time_ns() // 1_000_000
        began = time.perf_counter()
        while left:
            producer.begin_transaction()
            for _ in range(parts):
                records = min(left, per_chunk)
                left -= records
                if form == "chunks" and records:
                    headers = [(name, "0" * 16) for name in ("Log", "Begin", "End", "Shipper")]
                    producer.produce(
                        place.topic, bytes(64 + records * _FRAME_BYTES), partition=0, headers=headers
                    )
                for _ in range(records if form == "records" else 0):
                    header = [("Shmlog", bytes(22))]
                    producer.produce(
                        place.topic,
                        bytes(RECORD_BYTES),
                        partition=0,
                        timestamp=now_ms,
                        headers=header,
                    )
            if position:
                offset = TopicPartition("shmlog-positions", 0, next(offsets))
                producer.send_offsets_to_transaction([offset], place._group.consumer_group_metadata(), 10)
            producer.commit_transaction(10)
        return throughput(count, RECORD_BYTES, time.perf_counter() - began)
