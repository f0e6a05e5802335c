"""Shipping to a real JetStream server: nothing lost, nothing twice, whatever happens to whom."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import nats as servers
from support.processes import Child, Wire, until
from support.serving import free_ports
from support.shipping import (
    SMALL,
    Faulty,
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
import shmlog.integrations
from shmlog.integrations import ahead
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper
from shmlog.integrations.sinks import Tail

if why := servers.missing():
    pytest.skip(why, allow_module_level=True)

from shmlog.integrations.nats import NatsReader, NatsSink

CHUNK = 8 << 10
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.server(tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture
def stream(server: servers.Server) -> Iterator[tuple[servers.Server, str]]:
    name = f"S{next(_numbers)}"
    yield server, name
    servers.request(server, f"$JS.API.STREAM.DELETE.{name}")


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        yield log


def sink(place: tuple[servers.Server, str], log: shmlog.Log) -> NatsSink:
    return NatsSink([place[0].address], place[1], log.log_id, replicas=1)


def reader(place: tuple[servers.Server, str], log: shmlog.Log) -> NatsReader:
    return NatsReader([place[0].address], place[1], log.log_id)


def assert_arrived(place: tuple[servers.Server, str], log: shmlog.Log, tag: int | None = None) -> None:
    with reader(place, log) as found:
        assert_shipped(log, found.batches(), tag)


def ship_all(place: tuple[servers.Server, str], log: shmlog.Log, **options: Any) -> None:
    with Shipper(log, sink(place, log), chunk_bytes=CHUNK, **options) as shipper:
        shipper.run(once=True)


@pytest.mark.holds("I14")
def test_every_kind_of_frame_arrives_once_and_in_order(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    fill(log)
    ship_all(stream, log)
    assert_arrived(stream, log)
    fill(log, seed=2)
    ship_all(stream, log)
    assert_arrived(stream, log)
    with reader(stream, log) as found:
        assert_joined(log, found.batches())
    with shmlog.open_readonly(log.path) as look:
        (cursor,) = look.cursors()
    assert cursor.lsn == log.durable_lsn and cursor.lag.records == 0


@pytest.mark.holds("I11")
def test_what_is_committed_and_not_durable_stays_on_the_host(
    stream: tuple[servers.Server, str], log_path: Path
) -> None:
    with shmlog.open(log_path, create=True, sync_interval=60.0, **SMALL) as log:
        log.append(b"durable", durable=True)
        lsn = log.append(b"not yet")
        log.wait_committed(lsn)
        assert log.durable_lsn <= lsn
        with Shipper(log, sink(stream, log)) as shipper:
            assert shipper.step()
            assert not shipper.step() and not shipper.step()
            assert log.durable_lsn <= lsn, "it was synced meanwhile"
            with reader(stream, log) as found:
                assert [r[3] for r in records(found.batches())] == [b"durable"]
            log.wait_durable()
            assert shipper.step()
        assert_arrived(stream, log)


def _ship(wire: Wire, path: Path, address: str, name: str, die_at: int) -> int:
    with shmlog.open(path, flusher="external") as log:
        faulty = Faulty(NatsSink([address], name, log.log_id, replicas=1), die_at)
        with Shipper(log, faulty, chunk_bytes=CHUNK) as shipper:
            while shipper.step():
                pass
        return faulty.events


@pytest.mark.holds("I12", "I15")
def test_a_shipper_killed_at_every_step_loses_nothing_and_ships_nothing_twice(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    fill(log, 40)
    killed, die_at = 0, 1
    while True:
        with Child(_ship, Path(log.path), stream[0].address, stream[1], die_at) as child:
            if child.wait() != -signal.SIGKILL:
                break
        killed += 1
        die_at = die_at % 7 + 1
        with reader(stream, log) as found:
            have = sum(map(len, found.batches())) if killed > 2 else 0
        with shmlog.open_readonly(log.path) as look:
            cursor = next((c.lsn for c in look.cursors()), 0)
            assert cursor <= log.trimmed_lsn or sum(map(len, look.read_batches(0, cursor))) <= have
    assert killed >= 7
    ship_all(stream, log)
    assert_arrived(stream, log)


@pytest.mark.holds("I12")
@pytest.mark.parametrize("name", ["before put", "after put", "after tail"])
def test_an_acknowledgement_that_is_lost_is_settled_by_the_tail(
    stream: tuple[servers.Server, str], log: shmlog.Log, name: str
) -> None:
    fill(log, 100)
    count = 0

    def every_third(_: int, at: str) -> None:
        nonlocal count
        count += at == name
        if at == name and count % 3 == 1:
            raise EngineError("lost")

    with Shipper(log, Faulty(sink(stream, log), happen=every_third), chunk_bytes=CHUNK) as shipper:
        ship_through_losses(shipper, CHUNK, lambda: count)
        assert shipper.statistics.retries > 0 and shipper.statistics.last_error == "lost"
        assert shipper.lag == (0, 0, 0.0)
    assert_arrived(stream, log)


@pytest.mark.holds("I13", "I17")
def test_of_two_shippers_the_one_that_was_overtaken_is_fenced(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    fill(log, 100)
    with (
        Shipper(log, sink(stream, log), name="a", chunk_bytes=CHUNK) as one,
        Shipper(log, sink(stream, log), name="b", chunk_bytes=CHUNK) as other,
    ):
        for _ in range(3):
            assert one.step()
        for _ in range(2):
            assert other.step()
        assert one.step()  # refused: it asks where to go on
        with pytest.raises(shmlog.FencedError) as fenced:
            one.step()
        assert fenced.value.shipper == other.shipper_id
        while other.step():
            pass
    assert_arrived(stream, log)


class _Unconditional(NatsSink):
    chunks_max = 1

    def _condition(self) -> dict[str, str]:
        return {}


class _ByMsgId(_Unconditional):
    def _chunk(self, chunk: bytes, tail: Tail) -> tuple[bytes, dict[str, str]]:
        data, headers = super()._chunk(chunk, tail)
        return data, {**headers, "Nats-Msg-Id": headers["Shmlog-Begin"]}


@pytest.mark.holds("I13")
def test_control_without_the_condition_two_shippers_ship_twice_and_the_reader_says_so(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    fill(log, 60)
    with (
        Shipper(log, _Unconditional([stream[0].address], stream[1], log.log_id, replicas=1), name="a") as one,
        Shipper(
            log, _Unconditional([stream[0].address], stream[1], log.log_id, replicas=1), name="b"
        ) as other,
    ):
        one._ahead._chunk_bytes = other._ahead._chunk_bytes = CHUNK
        one.step()
        other.step()
        for _ in range(3):
            one.step()
            other.step()
    with reader(stream, log) as found, pytest.raises(shmlog.CorruptionError, match="holds the log"):
        list(found.batches())


@pytest.mark.holds("I19")
def test_control_with_message_ids_a_chunk_that_is_cut_otherwise_is_lost_and_the_reader_says_so(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    fill(log, 60)
    by_id = _ByMsgId([stream[0].address], stream[1], log.log_id, replicas=1)
    with Shipper(log, by_id, chunk_bytes=CHUNK) as shipper:
        shipper.step()
        before = shipper._tail, shipper._position
        shipper.step()  # its acknowledgement is lost ...
        shipper._tail, shipper._position = before
        shipper._ahead.forget()
        shipper._ahead._chunk_bytes = 4 * CHUNK
        shipper.step()  # ... and more is sent under the same id: "duplicate", dropped
        shipper.step()
    with reader(stream, log) as found, pytest.raises(shmlog.CorruptionError, match="holds the log"):
        list(found.batches())


@pytest.mark.holds("I16")
@pytest.mark.parametrize("longer", [False, True])
def test_a_copy_of_the_log_that_went_its_own_way_is_refused(
    stream: tuple[servers.Server, str], log_path: Path, tmp_path: Path, longer: bool
) -> None:
    ship, arrived = partial(ship_all, stream), partial(assert_arrived, stream)
    ship_a_copy(log_path, tmp_path / "copy", longer, ship, arrived)


def test_a_log_that_was_made_anew_has_a_subject_of_its_own(
    stream: tuple[servers.Server, str], log_path: Path
) -> None:
    ship_logs_made_anew(log_path, partial(ship_all, stream), partial(assert_arrived, stream))


def test_a_server_that_was_rolled_back_gets_again_what_it_lost(
    log: shmlog.Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.server(tmp_path / "nats") as server:
        place = server, "S"
        ship, arrived = partial(ship_all, place), partial(assert_arrived, place)
        ship_to_one_rolled_back(server, log, tmp_path / "old", ship, arrived, caplog)


def test_a_server_that_is_killed_and_comes_back_is_waited_for(log: shmlog.Log, tmp_path: Path) -> None:
    with servers.server(tmp_path / "nats") as server:
        place = server, "S"
        ship_to_one_killed(server, log, sink(place, log), partial(assert_arrived, place))


def _take_over(wire: Wire, path: Path, address: str, name: str) -> str:
    with (
        shmlog.open(path, flusher="external") as log,
        Shipper(
            log, NatsSink([address], name, log.log_id, replicas=1), name="other", chunk_bytes=CHUNK
        ) as it,
    ):
        for _ in range(4):
            it.step()
        wire.say("shipped")
        wire.hear()
        try:
            while it.step():
                pass
        except shmlog.FencedError as error:
            return str(error)
    return "not fenced"


def test_a_shipper_that_was_stopped_and_continued_is_fenced(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    fill(log, 100)
    with Child(_take_over, Path(log.path), stream[0].address, stream[1]) as child:
        assert child.hear() == "shipped"
        child.stop()
        ship_all(stream, log)
        child.resume()
        fill(log, 20, seed=2)
        child.say("go on")
        assert "fenced" in child.result()
    ship_all(stream, log)
    assert_arrived(stream, log)


@pytest.mark.parametrize("gap_bytes", [1 << 30, 1 << 12])
def test_with_tags_the_position_moves_over_what_is_left_out(
    stream: tuple[servers.Server, str], log: shmlog.Log, monkeypatch: pytest.MonkeyPatch, gap_bytes: int
) -> None:
    monkeypatch.setattr(ahead, "GAP_BYTES", gap_bytes)
    fill(log, 100)
    ship_all(stream, log, tags=1)
    assert_arrived(stream, log, tag=1)
    for _ in range(200):
        log.append(bytes(100), tag=2)
    ship_all(stream, log, tags=1)
    log.append(b"last", tag=1)
    ship_all(stream, log, tags=1)
    assert_arrived(stream, log, tag=1)
    with reader(stream, log) as found:
        sizes = [len(batch) for batch in found.batches()]
    assert (0 in sizes) == (gap_bytes < 1 << 20)


def test_a_record_that_the_server_does_not_take_stops_the_shipper_before_it(
    stream: tuple[servers.Server, str], log_path: Path
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=4 << 20, window_bytes=4 << 20) as log:
        log.append(b"small")
        lsn = log.append(bytes(1 << 20))
        log.append(b"behind it")
        with pytest.raises(shmlog.RecordTooLargeError, match=f"LSN {lsn} "):
            ship_all(stream, log)
        with reader(stream, log) as found:
            assert [r[3] for r in records(found.batches())] == [b"small"]


def test_an_idle_shipper_sends_what_comes_at_once(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    with (
        Shipper(log, sink(stream, log)) as shipper,
        reader(stream, log) as found,
    ):
        loop = threading.Thread(target=shipper.run)
        loop.start()
        try:
            log.append(b"first")
            batches = found.batches(follow=True, timeout=20)
            until(lambda: shipper.statistics.chunks == 1)
            assert [bytes(r.data) for r in next(batches)] == [b"first"]
            for n in range(5):
                log.append(b"%d" % n)
                assert [bytes(r.data) for r in next(batches)] == [b"%d" % n]
        finally:
            shipper.stop()
            loop.join()


def test_a_stream_that_lets_messages_go_or_has_too_few_copies_is_refused(
    stream: tuple[servers.Server, str], log: shmlog.Log
) -> None:
    server, name = stream
    with (
        Shipper(log, NatsSink([server.address], name, log.log_id)) as shipper,
        pytest.raises(ValueError, match="replicas=1 must be asked for"),
    ):
        shipper.run(once=True)
    servers.request(server, f"$JS.API.STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.>"]})
    with pytest.raises(ValueError, match="deny_delete and deny_purge"):
        ship_all(stream, log)


def test_an_engine_that_is_not_there_is_an_error_to_try_again(
    log: shmlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shmlog.integrations.jetstream, "CONNECT_S", 0.3)
    (port,) = free_ports(1)
    with Shipper(log, NatsSink([f"127.0.0.1:{port}"], "S", log.log_id, replicas=1)) as shipper:
        log.append(b"x", durable=True)
        for _ in range(2):
            with pytest.raises(EngineError):
                shipper.step()
        assert shipper.statistics.retries == 2
