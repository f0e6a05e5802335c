"""Several messages in one write to a real JetStream server, all or none: a message a record, and more than
one chunk."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import nats as servers
from support.processes import Child, Wire
from support.shipping import SMALL, Faulty, FaultyGroups, FaultyRecords, assert_shipped, fill

import shmlog
from shmlog.integrations import ahead
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper
from shmlog.integrations.sinks import Tail

if why := servers.missing():
    pytest.skip(why, allow_module_level=True)

from shmlog.integrations import messages
from shmlog.integrations.jetstream import Connection
from shmlog.integrations.nats import NatsReader, NatsRecordSink, NatsSink

CHUNK = 8 << 10
FORMS = {"records": FaultyRecords, "groups": FaultyGroups}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.server(tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture
def stream(server: servers.Server) -> Iterator[str]:
    name = f"R{next(_numbers)}"
    yield name
    servers.request(server, f"$JS.API.STREAM.DELETE.{name}")


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        yield log


def sink(server: servers.Server, stream: str, log: shmlog.Log, form: str = "records") -> Any:
    return made(server.address, stream, log, form)


def made(address: str, stream: str, log: shmlog.Log, form: str) -> Any:
    if form == "records":
        return NatsRecordSink([address], stream, log.log_id, replicas=1)
    return NatsSink([address], stream, log.log_id, replicas=1, group=8)


def ship_all(server: servers.Server, stream: str, log: shmlog.Log, form: str = "records", **more: Any) -> Any:
    with Shipper(log, sink(server, stream, log, form), chunk_bytes=CHUNK, **more) as shipper:
        shipper.run(once=True)
    return shipper.statistics


def assert_arrived(server: servers.Server, stream: str, log: shmlog.Log, tag: int | None = None) -> None:
    with NatsReader([server.address], stream, log.log_id) as found:
        assert_shipped(log, found.batches(), tag)


def stored(server: servers.Server, stream: str) -> int:
    about: Any = servers.request(server, f"$JS.API.STREAM.INFO.{stream}")
    return int(about["state"]["messages"])


def test_a_message_a_record_holds_the_log_and_nothing_else(
    server: servers.Server, stream: str, log: shmlog.Log
) -> None:
    fill(log)
    assert ship_all(server, stream, log).position_lsn == log.durable_lsn
    records = list(log.read())
    assert stored(server, stream) == len(records)
    connection = Connection([server.address], stream, {})
    try:
        first = connection.next(f"{stream}.{log.log_id}", 1)[0]
    finally:
        connection.close()
    assert first.data == bytes(records[0].data)
    assert (int(first.headers["Shmlog-Tag"]), int(first.headers["Shmlog-Time"])) == (
        records[0].tag,
        records[0].time_ns,
    )
    assert_arrived(server, stream, log)


def test_a_stream_may_hold_records_after_chunks_and_chunks_after_records(
    server: servers.Server, stream: str, log: shmlog.Log
) -> None:
    for seed, form in enumerate(["groups", "records", "groups", "records"]):
        fill(log, 40, seed)
        ship_all(server, stream, log, form)
        assert_arrived(server, stream, log)


@pytest.mark.parametrize("gap_bytes", [1 << 30, 1 << 12])
def test_with_tags_the_position_of_records_moves_over_what_is_left_out(
    server: servers.Server, stream: str, log: shmlog.Log, monkeypatch: pytest.MonkeyPatch, gap_bytes: int
) -> None:
    monkeypatch.setattr(ahead, "GAP_BYTES", gap_bytes)
    fill(log, 60)
    ship_all(server, stream, log, tags=1)
    for _ in range(200):
        log.append(bytes(100), tag=2)
    ship_all(server, stream, log, tags=1)
    log.append(b"last", tag=1)
    ship_all(server, stream, log, tags=1)
    assert_arrived(server, stream, log, tag=1)
    wanted = sum(map(len, log.read_batches(tag=1)))
    assert (stored(server, stream) > wanted) == (gap_bytes < 1 << 20)


def _ship(wire: Wire, path: Path, address: str, stream: str, form: str, die_at: int) -> int:
    with shmlog.open(path, flusher="external") as log:
        faulty: Faulty = FORMS[form](made(address, stream, log, form), die_at)
        with Shipper(log, faulty, chunk_bytes=CHUNK) as shipper:
            while shipper.step():
                pass
        return faulty.events


@pytest.mark.holds("I12", "I17")
@pytest.mark.parametrize("form", FORMS)
def test_a_shipper_of_several_killed_at_every_step_ships_each_record_once(
    server: servers.Server, stream: str, log: shmlog.Log, form: str
) -> None:
    fill(log, 60)
    killed = 0
    for die_at in itertools.cycle(range(1, 7)):
        with Child(_ship, Path(log.path), server.address, stream, form, die_at) as child:
            if child.wait() != -signal.SIGKILL:
                break
        killed += 1
    assert killed >= 4
    ship_all(server, stream, log, form)
    assert_arrived(server, stream, log)


@pytest.mark.holds("I17")
@pytest.mark.parametrize("form", FORMS)
def test_a_write_that_is_cut_off_after_some_of_its_messages_stores_none(
    server: servers.Server, stream: str, log: shmlog.Log, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, 60)
    whole = Connection._publish
    cut = itertools.count()

    async def some(connection: Any, subject: str, several: Sequence[Any], meanwhile: Any) -> Any:
        if next(cut) % 2 or len(several) < 3:
            return await whole(connection, subject, several, meanwhile)
        before = stored(server, stream)
        for number, (data, headers) in enumerate(several[:-1], 1):
            headers["Nats-Batch-Id"], headers["Nats-Batch-Sequence"] = "cut-off", str(number)
            await connection.publish(subject, data, headers=headers)
        await connection.flush()
        assert stored(server, stream) == before
        raise EngineError("cut off")

    monkeypatch.setattr(Connection, "_publish", staticmethod(some))
    with Shipper(log, sink(server, stream, log, form), chunk_bytes=CHUNK) as shipper:
        while shipper.statistics.position_lsn < log.durable_lsn:
            try:
                shipper.step()
            except EngineError as error:
                assert "cut off" in str(error)
        assert shipper.statistics.retries > 1
    assert_arrived(server, stream, log)


@pytest.mark.holds("I13", "I17")
@pytest.mark.parametrize("form", FORMS)
def test_of_two_shippers_of_several_one_is_refused_whole_and_fenced(
    server: servers.Server, stream: str, log: shmlog.Log, form: str
) -> None:
    fill(log)
    with (
        Shipper(log, sink(server, stream, log, form), name="a", chunk_bytes=CHUNK) as one,
        Shipper(log, sink(server, stream, log, form), name="b", chunk_bytes=CHUNK) as other,
    ):
        assert one.step() and other.step()
        assert one.step()  # refused: it asks where to go on
        with pytest.raises(shmlog.FencedError):
            one.step()
        while other.step():
            pass
    assert_arrived(server, stream, log)


class _Unconditional(NatsRecordSink):
    def _condition(self) -> dict[str, str]:
        return {}


@pytest.mark.holds("I13")
def test_control_without_the_condition_records_come_twice_and_the_reader_says_so(
    server: servers.Server, stream: str, log: shmlog.Log
) -> None:
    fill(log, 60)
    place = [server.address], stream, log.log_id
    with (
        Shipper(log, _Unconditional(*place, replicas=1), name="a", chunk_bytes=CHUNK) as one,
        Shipper(log, _Unconditional(*place, replicas=1), name="b", chunk_bytes=CHUNK) as other,
    ):
        one.step()
        other.step()
        other.step()
        one.step()
    with NatsReader(*place) as found, pytest.raises(shmlog.CorruptionError):
        list(found.batches())


def test_where_more_is_waiting_several_chunks_are_one_write(
    server: servers.Server, stream: str, log: shmlog.Log
) -> None:
    fill(log)
    sizes: list[int] = []

    class Counting(NatsSink):
        def put(self, chunk: bytes, tail: Tail) -> None:
            sizes.append(1)
            super().put(chunk, tail)

        def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
            sizes.append(len(chunks))
            super().put_chunks(chunks)

    with Shipper(
        log, Counting([server.address], stream, log.log_id, replicas=1, group=8), chunk_bytes=CHUNK
    ) as shipper:
        shipper.run(once=True)
        assert shipper.statistics.chunks == sum(sizes) and max(sizes) == 8
        log.append(b"alone", durable=True)
        shipper.run(once=True)
    assert sizes[-1] == 1
    assert_arrived(server, stream, log)


def test_a_stream_that_takes_messages_one_by_one_takes_chunks_and_no_records(
    server: servers.Server, stream: str, log: shmlog.Log
) -> None:
    fill(log)
    config = {"name": stream, "subjects": [f"{stream}.>"], "deny_delete": True, "deny_purge": True}
    servers.request(server, f"$JS.API.STREAM.CREATE.{stream}", {**config, "allow_direct": True})
    with pytest.raises(ValueError, match="allow_atomic"):
        ship_all(server, stream, log)
    ship_all(server, stream, log, "groups")
    assert_arrived(server, stream, log)


@pytest.mark.parametrize("form", FORMS)
def test_a_record_that_the_server_does_not_take_stops_the_shipper_after_what_is_before_it(
    server: servers.Server, stream: str, log_path: Path, form: str
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=4 << 20, window_bytes=4 << 20) as log:
        log.append(b"small")
        lsn = log.append(bytes(1 << 20))
        log.append(b"behind it")
        with pytest.raises(shmlog.RecordTooLargeError, match=f"LSN {lsn} "):
            ship_all(server, stream, log, form)
        with NatsReader([server.address], stream, log.log_id) as found:
            assert [bytes(r.data) for batch in found.batches() for r in batch] == [b"small"]


@pytest.mark.parametrize("what", ["payload", "Shmlog-Tag", "Shmlog-Time", "Shmlog-Lsn", "missing"])
def test_a_record_of_which_anything_was_changed_is_noticed(log: shmlog.Log, what: str) -> None:
    log.append_many([b"one", b"two", b"three"], tag=3, durable=True)
    batch = next(log.read_batches())
    made = messages.of_records(batch, 0, Tail(batch.next_lsn, "me", None))
    (chunk,) = messages.joined(made, log.log_id)
    assert bytes(shmlog.decode_chunk(chunk).frames()) == bytes(batch.frames())
    _, headers = made[1]
    if what == "payload":
        made[1] = b"twp", headers
    elif what == "missing":
        del made[1]
        assert len(list(messages.joined(made, log.log_id))) == 2, (
            "it begins where the one before does not end"
        )
        return
    else:
        headers[what] = str(int(headers[what]) + 32)
    with pytest.raises(shmlog.CorruptionError):
        for chunk in messages.joined(made, log.log_id):
            shmlog.decode_chunk(chunk)
