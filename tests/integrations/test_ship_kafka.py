"""Shipping to a real Kafka broker: nothing lost, nothing twice, whatever happens to whom."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import kafka as brokers
from support.processes import Child, Wire, until
from support.serving import free_ports
from support.shipping import (
    SMALL,
    assert_joined,
    assert_shipped,
    fill,
    records,
    ship_a_copy,
    ship_logs_made_anew,
    ship_through_losses,
    ship_to_one_killed,
    ship_to_one_rolled_back,
)

import shmlog
from shmlog.cli.main import main
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper
from shmlog.integrations.sinks import Tail, last_of

if why := brokers.missing():
    pytest.skip(why, allow_module_level=True)

from confluent_kafka import Consumer, Producer, TopicPartition

import shmlog.integrations.kafka as engine
from shmlog.integrations.kafka import KafkaReader, KafkaSink

CHUNK = 8 << 10
LONG = pytest.mark.crash
COMMAND = [sys.executable, "-W", "error", "-m", "shmlog", "ship"]
SHORT = {"transaction.timeout.ms": 1000}
_numbers = itertools.count()
Place = tuple[brokers.Broker, str]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    with brokers.broker(tmp_path_factory.mktemp("kafka")) as one:
        yield one


@pytest.fixture
def topic(broker: brokers.Broker) -> Place:
    return broker, f"T{next(_numbers)}"


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        yield log


def sink(place: Place, log: shmlog.Log, kind: type[KafkaSink] = KafkaSink, **options: Any) -> KafkaSink:
    """One that takes a chunk at a time, so that there are steps to count."""
    made = kind([place[0].address], place[1], log.log_id, replicas=1, **options)
    made.chunks_max = 1
    return made


def reader(place: Place, log: shmlog.Log, **options: Any) -> KafkaReader:
    return KafkaReader([place[0].address], place[1], log.log_id, **options)


def assert_arrived(place: Place, log: shmlog.Log, tag: int | None = None) -> None:
    with reader(place, log) as found:
        assert_shipped(log, found.batches(), tag)


def ship_all(place: Place, log: shmlog.Log, **options: Any) -> None:
    grouping = KafkaSink([place[0].address], place[1], log.log_id, replicas=1)
    with Shipper(log, grouping, chunk_bytes=CHUNK, **options) as shipper:
        shipper.run(once=True)


def end_offset(place: Place, topic: str | None = None) -> int:
    """The offset behind everything in partition 0, markers of transactions included."""
    client = Consumer({"bootstrap.servers": place[0].address, "group.id": "look", "log_level": 0})
    try:
        return int(client.get_watermark_offsets(TopicPartition(topic or place[1], 0), 10)[1])
    finally:
        client.close()


# ------------------------------------------------------------------ as it should be


@pytest.mark.holds("I23")
def test_every_kind_of_frame_arrives_once_and_in_order_with_the_position(
    topic: Place, log: shmlog.Log
) -> None:
    for seed in (1, 2):
        fill(log, 60, seed)
        ship_all(topic, log)
        assert_arrived(topic, log)
    with reader(topic, log) as found:
        assert_joined(log, found.batches())
    with Shipper(log, sink(topic, log)) as shipper:
        assert not shipper.step() and shipper.statistics.position_lsn == log.durable_lsn
    with shmlog.open_readonly(log.path) as look:
        (cursor,) = look.cursors()
    assert cursor.lsn == log.durable_lsn


def test_ship_as_records_puts_each_in_a_message_with_its_time_and_header(
    topic: Place, log: shmlog.Log
) -> None:
    fill(log, 60)
    url = f"kafka://{topic[0].address}/{topic[1]}?partition=1&replicas=1"
    command = [*COMMAND, log.path, url, "--records", "--once", "--json", "--chunk-bytes", "64K"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["records"] == sum(map(len, log.read_batches())) and facts["lag_bytes"] == 0
    with reader(topic, log, partition=1) as found:
        arrived = list(found.records())
        assert [(r.lsn, r.time_ns, r.tag, bytes(r.data)) for r in arrived] == records(log.read_batches())
        assert [r.writer for r in arrived] == [r.writer for r in log.read()]
        message = next(found._messages(False, None))
    assert message.key() is None and message.timestamp()[1] == arrived[0].time_ns // 1_000_000
    assert [len(value) for _, value in message.headers()] == [22]


@LONG
def test_logs_that_share_a_partition_or_are_made_anew_have_positions_of_their_own(
    topic: Place, log_path: Path
) -> None:
    ship_logs_made_anew(log_path, partial(ship_all, topic), partial(assert_arrived, topic))


def test_several_chunks_in_one_transaction_are_read_in_order(topic: Place, log: shmlog.Log) -> None:
    fill(log, 60)
    chunks, begin = [], 0
    for batch in log.read_batches(records=20):
        chunk = shmlog.encode_chunk(batch, log.log_id, begin, batch.next_lsn)
        chunks.append((chunk, Tail(batch.next_lsn, "me", last_of(batch))))
        begin = batch.next_lsn
    with contextlib.closing(sink(topic, log)) as place:
        assert place.tail() is None
        place.put_chunks(chunks)
        assert place.tail() == chunks[-1][1]
    assert len(chunks) > 2
    assert_arrived(topic, log)


@LONG
def test_with_tags_the_position_moves_over_what_is_left_out(topic: Place, log: shmlog.Log) -> None:
    fill(log, 60)
    ship_all(topic, log, tags=1)
    for _ in range(100):
        log.append(bytes(100), tag=2)
    log.append(b"last", tag=1)
    ship_all(topic, log, tags=1)
    assert_arrived(topic, log, tag=1)


@pytest.mark.parametrize("as_records", [False, pytest.param(True, marks=LONG)])
def test_a_record_that_the_broker_does_not_take_stops_the_shipper_before_it(
    topic: Place, log_path: Path, as_records: bool
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=4 << 20, window_bytes=4 << 20) as log:
        log.append(b"small")
        largest = log.append(bytes((1 << 20) - 1300))
        lsn = log.append(bytes(1 << 20))
        log.append(b"behind it")
        with (
            Shipper(log, sink(topic, log, records=as_records)) as shipper,
            pytest.raises(shmlog.RecordTooLargeError, match=f"LSN {lsn} "),
        ):
            shipper.run(once=True)
        assert shipper.statistics.position_lsn == lsn > largest
        with reader(topic, log) as found:
            if as_records:
                assert [len(r.data) for r in found.records()] == [5, (1 << 20) - 1300]
            else:
                assert [len(r[3]) for r in records(found.batches())] == [5, (1 << 20) - 1300]


def test_the_position_is_committed_again_before_the_broker_forgets_it(
    topic: Place, log: shmlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, 5)
    with Shipper(log, sink(topic, log)) as shipper:
        while shipper.step():
            pass
        assert shipper._sink.tail() == shipper._tail  # the broker has ended the transaction
        before = end_offset(topic, "__consumer_offsets")
        assert not shipper.step()
        monkeypatch.setattr(engine, "RECOMMIT_S", 0.0)
        assert not shipper.step()
        until(lambda: end_offset(topic, "__consumer_offsets") > before)
        assert shipper._sink.tail() == shipper._tail  # type: ignore[comparison-overlap]
    assert_arrived(topic, log)


# ------------------------------------------------------------------ who dies, and when


class _Watched:
    """A producer with something that happens before and after each call that goes to the broker."""

    def __init__(self, producer: Producer, happen: Callable[[str], None]) -> None:
        self._producer, self._happen = producer, happen

    def __getattr__(self, name: str) -> Any:
        what = getattr(self._producer, name)
        if name not in ("begin_transaction", "send_offsets_to_transaction", "commit_transaction"):
            return what

        def call(*arguments: Any) -> Any:
            if name == "commit_transaction":
                self._producer.flush()  # so that the broker has the records then
            self._happen(f"before {name}")
            result = what(*arguments)
            self._happen(f"after {name}")
            return result

        return call


class _Sink(KafkaSink):
    chunks_max = 1
    happen: Callable[[str], None]

    def _take_over(self) -> None:
        self.happen("before taking over")
        super()._take_over()
        self._producer = _Watched(self._producer, self.happen)  # type: ignore[assignment]
        self.happen("after taking over")


def _ship(wire: Wire, path: Path, address: str, topic: str, as_records: bool, die_at: int) -> None:
    count = 0

    def happen(_: str) -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with shmlog.open(path, flusher="external") as log:
        dying = _Sink([address], topic, log.log_id, replicas=1, records=as_records)
        dying.happen = happen
        with Shipper(log, dying, chunk_bytes=CHUNK) as shipper:
            while shipper.step():
                pass


@LONG
@pytest.mark.holds("I12", "I23", "I24")
@pytest.mark.parametrize("as_records", [False, True])
def test_a_shipper_killed_at_every_step_loses_nothing_and_ships_nothing_twice(
    topic: Place, log: shmlog.Log, as_records: bool
) -> None:
    fill(log, 60)
    killed = 0
    for die_at in itertools.count(1):
        with Child(_ship, Path(log.path), topic[0].address, topic[1], as_records, die_at) as child:
            if child.wait() != -signal.SIGKILL:
                break
        killed += 1
        if die_at <= 8:
            continue  # there may be nothing to read from yet
        with shmlog.open_readonly(log.path) as look, reader(topic, log) as found:
            cursor = next((c.lsn for c in look.cursors()), 0)
            have = sum(1 for _ in found.records()) if as_records else sum(map(len, found.batches()))
            assert sum(map(len, log.read_batches(0, cursor))) <= have
    assert killed > 14
    with reader(topic, log) as found:
        if as_records:
            assert [bytes(r.data) for r in found.records()] == [bytes(r.data) for r in log.read()]
        else:
            assert_shipped(log, found.batches())


@pytest.mark.holds("I12", "I24")
@pytest.mark.parametrize(
    "name", [pytest.param("before send_offsets_to_transaction", marks=LONG), "after commit_transaction"]
)
def test_a_call_that_is_lost_is_settled_by_the_next_producer(
    topic: Place, log: shmlog.Log, name: str
) -> None:
    fill(log, 40)
    count = 0

    def every_third(at: str) -> None:
        nonlocal count
        count += at == name
        if at == name and count % 3 == 2:
            losing._drop()
            raise EngineError("lost")

    losing = sink(topic, log, _Sink)
    assert isinstance(losing, _Sink)
    losing.happen = every_third
    with Shipper(log, losing, chunk_bytes=CHUNK) as shipper:
        ship_through_losses(shipper, CHUNK, lambda: count)
        assert shipper.statistics.retries > 1 and shipper.statistics.last_error == "lost"
    assert_arrived(topic, log)


@pytest.mark.holds("I13", "I24", "I25")
def test_of_two_shippers_the_older_is_fenced(topic: Place, log: shmlog.Log) -> None:
    fill(log, 60)
    with (
        Shipper(log, sink(topic, log), name="a", chunk_bytes=CHUNK) as one,
        Shipper(log, sink(topic, log), name="b", chunk_bytes=CHUNK) as other,
    ):
        for _ in range(3):
            assert one.step()
        other._resume()  # it has taken over, and written nothing yet
        assert one.step()  # refused: it asks where to go on
        with pytest.raises(shmlog.FencedError) as fenced:
            one.step()
        assert isinstance(other._sink, KafkaSink) and fenced.value.shipper == other._sink._owner
        while other.step():
            pass
    assert_arrived(topic, log)


@LONG
def test_of_two_shippers_that_begin_at_once_one_stays(topic: Place, log: shmlog.Log) -> None:
    fill(log, 60)
    with (
        Shipper(log, sink(topic, log), name="a", chunk_bytes=CHUNK) as one,
        Shipper(log, sink(topic, log), name="b", chunk_bytes=CHUNK) as other,
    ):
        one._resume()
        other._resume()
        fenced, left = 0, [one, other]
        while left:
            for shipper in list(left):
                try:
                    if not shipper.step():
                        left.remove(shipper)
                except shmlog.FencedError:
                    fenced += 1
                    left.remove(shipper)
        assert fenced == 1
    assert_arrived(topic, log)


def _stop_within(wire: Wire, path: Path, address: str, topic: str) -> str:
    count = 0

    def happen(at: str) -> None:
        nonlocal count
        count += at == "before commit_transaction"
        if count == 3 and at == "before commit_transaction":
            wire.say("within")
            wire.hear()

    with shmlog.open(path, flusher="external") as log:
        slow = _Sink([address], topic, log.log_id, replicas=1, settings=SHORT)
        slow.happen = happen
        with Shipper(log, slow, name="slow", chunk_bytes=CHUNK) as shipper:
            try:
                while shipper.step():
                    pass
            except shmlog.FencedError as error:
                return str(error)
            return f"shipped all, and asked {shipper.statistics.resyncs} times"


@pytest.mark.holds("I25")
@pytest.mark.parametrize("overtaken", [False, True])
def test_a_shipper_stopped_longer_than_its_transaction_goes_on_unless_it_was_overtaken(
    topic: Place, log: shmlog.Log, overtaken: bool
) -> None:
    fill(log, 60)
    with Child(_stop_within, Path(log.path), topic[0].address, topic[1]) as child:
        assert child.hear() == "within"
        child.stop()
        before = end_offset(topic)
        if overtaken:
            ship_all(topic, log)
        else:
            until(lambda: end_offset(topic) > before, "the coordinator ends the transaction")
        child.resume()
        child.say("go on")
        said = child.result()
    assert ("fenced" in said) == overtaken and ("shipped all" in said) == (not overtaken)
    assert "asked 0 times" not in said
    assert_arrived(topic, log)


@LONG
def test_a_broker_that_is_killed_and_comes_back_is_waited_for(log: shmlog.Log, tmp_path: Path) -> None:
    with brokers.broker(tmp_path / "kafka") as broker:
        place = broker, "T"
        ship_to_one_killed(broker, log, sink(place, log), partial(assert_arrived, place))


@LONG
def test_a_broker_that_was_rolled_back_gets_again_what_it_lost(
    log: shmlog.Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with brokers.broker(tmp_path / "kafka") as broker:
        place = broker, "T"
        ship, arrived = partial(ship_all, place), partial(assert_arrived, place)
        ship_to_one_rolled_back(broker, log, tmp_path / "old", ship, arrived, caplog)


# ------------------------------------------------------------------ the log changes


@pytest.mark.holds("I16")
@pytest.mark.parametrize("longer", [False, pytest.param(True, marks=LONG)])
def test_a_copy_of_the_log_that_went_its_own_way_is_refused(
    topic: Place, log_path: Path, tmp_path: Path, longer: bool
) -> None:
    ship, arrived = partial(ship_all, topic), partial(assert_arrived, topic)
    ship_a_copy(log_path, tmp_path / "copy", longer, ship, arrived)


@pytest.mark.holds("I15")
def test_retention_stops_at_what_the_broker_has_not_acknowledged(topic: Place, log_path: Path) -> None:
    kept = shmlog.Retention(bytes=8 * SMALL["segment_bytes"])
    appended = 0
    with (
        shmlog.open(log_path, create=True, retention=kept, **SMALL) as log,
        Shipper(log, sink(topic, log), chunk_bytes=CHUNK) as shipper,
    ):
        log.append(b"%8d" % appended * 100, durable=True)
        assert shipper.step()
        shipper._commit(0.0)
        with pytest.raises(shmlog.LogFullError):
            while True:
                log.append(b"%8d" % (appended + 1) * 100, timeout=0.5)
                appended += 1
        assert appended > 100 and log.trimmed_lsn <= shipper.statistics.position_lsn
        shipper.run(once=True)
        for _ in range(400):
            log.append(b"%8d" % (appended + 1) * 100, timeout=30.0)
            appended += 1
            if not appended % 100:
                shipper.run(once=True)
        shipper.run(once=True)
        until(lambda: log.trimmed_lsn > 0)
        with reader(topic, log) as found:
            assert [int(r[3][:8]) for r in records(found.batches())] == list(range(appended + 1))


# ------------------------------------------------------------------ controls


class _Loose(KafkaSink):
    """Without transactions: what a client does that sends, and commits its position by itself."""

    first = "records"

    def _take_over(self) -> None:
        self._producer = Producer({"bootstrap.servers": self._settings["bootstrap.servers"], "log_level": 0})

    def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
        tail = chunks[-1][1]

        def send() -> None:
            assert self._producer is not None
            for chunk, part in chunks:
                self._send(self._producer, chunk, part)
            self._producer.flush()

        def commit() -> None:
            assert self._group is not None
            offset = TopicPartition(
                engine.POSITIONS, 0, tail.end_lsn, f"{self._owner} {tail.last[0]}:{tail.last[1]:x}"
            )  # type: ignore[index]
            self._group.commit(offsets=[offset], asynchronous=False)

        one, other = (send, commit) if self.first == "records" else (commit, send)
        one()
        self.puts = getattr(self, "puts", 0) + 1
        if self.puts == 3:
            raise EngineError("here it would have been killed")
        other()
        self._shipper = tail.shipper


@pytest.mark.holds("I23")
@pytest.mark.parametrize("first", ["records", pytest.param("position", marks=LONG)])
def test_control_without_transactions_a_chunk_comes_twice_or_never_and_the_reader_says_so(
    topic: Place, log: shmlog.Log, first: str
) -> None:
    fill(log, 60)
    loose = sink(topic, log, _Loose)
    loose.first = first  # type: ignore[attr-defined]
    with Shipper(log, loose, chunk_bytes=CHUNK) as shipper:
        with pytest.raises(EngineError):
            while shipper.step():
                pass
        while shipper.step():
            pass
    with reader(topic, log) as found, pytest.raises(shmlog.CorruptionError, match="holds the log"):
        list(found.batches())


@pytest.mark.holds("I23")
def test_control_who_reads_what_is_not_committed_sees_what_a_killed_shipper_left(
    topic: Place, log: shmlog.Log
) -> None:
    fill(log, 40)
    with Child(_ship, Path(log.path), topic[0].address, topic[1], False, 13) as child:
        assert child.wait() == -signal.SIGKILL
    until(lambda: end_offset(topic) > 0)
    ship_all(topic, log)
    assert_arrived(topic, log)
    careless = reader(topic, log)
    ours = careless._consumer
    careless._consumer = lambda group, **more: ours(  # type: ignore[method-assign]
        group, **more, **{"isolation.level": "read_uncommitted"}
    )
    with pytest.raises(shmlog.CorruptionError, match="holds the log"):
        list(careless.batches())


# ------------------------------------------------------------------ usage


def test_a_ship_that_was_overtaken_ends_with_status_3(topic: Place, log: shmlog.Log) -> None:
    fill(log, 20)
    url = f"kafka://{topic[0].address}/{topic[1]}?replicas=1"
    with subprocess.Popen([*COMMAND, log.path, url], stderr=subprocess.PIPE, text=True) as process:
        try:

            def shipped() -> bool:
                with shmlog.open_readonly(log.path) as look:
                    return any(c.name == "ship" and c.lsn == log.durable_lsn for c in look.cursors())

            until(shipped)
            ship_all(topic, log, name="other")
            log.append(b"more", durable=True)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 3, err
    assert "has taken over" in err


def test_wrong_usage_and_what_cannot_go_on_say_so(
    topic: Place, log: shmlog.Log, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for url in (
        "kafka://host",
        "kafka://host/T?partition=x",
        "kafka://host/T?acks=0",
        "kafka://me:hunter2@h/T",
    ):
        with pytest.raises(SystemExit) as ended:
            main(["ship", log.path, url, "--once"])
        assert ended.value.code == 2
    with pytest.raises(SystemExit):
        main(["ship", log.path, "valkey://host/S", "--records", "--once"])
    url = f"kafka://{topic[0].address}/{topic[1]}"
    assert main(["ship", log.path, url, "--once"]) == 1
    assert "replicas=1 must be asked for" in capfd.readouterr().err
    config = tmp_path / "ship.toml"
    for text, message in (
        ('"sasl.password" = "hunter2"', "is a secret"),
        ('ssl.key.pem = "hunter2"', "is a secret"),
        ('acks = "hunter2"', "acks cannot be set"),
        ('"no.such" = "hunter2"', "no.such"),
    ):
        config.write_text(f"[kafka]\n{text}\n")
        assert main(["ship", log.path, url + "?replicas=1", "--once", "--config", str(config)]) == 1
        err = capfd.readouterr().err
        assert message in err and "hunter2" not in err
    config.write_text('[kafka]\n"compression.type" = "zstd"\nlinger.ms = 0\n')
    fill(log, 5)
    assert main(["ship", log.path, url + "?replicas=1", "--once", "--config", str(config)]) == 0
    assert_arrived(topic, log)


def test_a_broker_that_is_not_there_is_an_error_to_try_again(
    log: shmlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmlog.integrations.kafka_places.TIMEOUT_S", 0.3)
    (port,) = free_ports(1)
    with Shipper(log, KafkaSink([f"127.0.0.1:{port}"], "S", log.log_id, replicas=1)) as shipper:
        log.append(b"x", durable=True)
        for _ in range(2):
            with pytest.raises(EngineError, match="kafka: "):
                shipper.step()
        assert shipper.statistics.retries == 2
