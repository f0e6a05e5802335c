"""Shipping to a real Valkey server: the same promises, held by the ids of its entries."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import valkey as servers
from support.processes import Child, Wire
from support.shipping import SMALL, Faulty, assert_shipped, fill

import shmlog
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper

if why := servers.missing():
    pytest.skip(why, allow_module_level=True)

from shmlog.integrations.valkey import ValkeyReader, ValkeySink

CHUNK = 8 << 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        yield log


def ship_all(server: servers.Server, log: shmlog.Log) -> None:
    with Shipper(log, ValkeySink(server.address, "logs", log.log_id), chunk_bytes=CHUNK) as shipper:
        shipper.run(once=True)


def assert_arrived(server: servers.Server, log: shmlog.Log) -> None:
    with ValkeyReader(server.address, "logs", log.log_id) as reader:
        assert_shipped(log, reader.batches())


def test_every_kind_of_frame_arrives_once_and_in_order(server: servers.Server, log: shmlog.Log) -> None:
    for seed in (1, 2):
        fill(log, 100, seed)
        ship_all(server, log)
        assert_arrived(server, log)


def _ship(wire: Wire, path: Path, address: str, die_at: int) -> None:
    with shmlog.open(path, flusher="external") as log:
        faulty = Faulty(ValkeySink(address, "logs", log.log_id), die_at)
        with Shipper(log, faulty, chunk_bytes=CHUNK) as shipper:
            while shipper.step():
                pass


@pytest.mark.crash
def test_a_shipper_killed_at_every_step_loses_nothing_and_ships_nothing_twice(
    server: servers.Server, log: shmlog.Log
) -> None:
    fill(log, 40)
    killed, die_at = 0, 1
    while True:
        with Child(_ship, Path(log.path), server.address, die_at) as child:
            if child.wait() != -signal.SIGKILL:
                break
        killed, die_at = killed + 1, die_at % 7 + 1
    assert killed >= 7
    ship_all(server, log)
    assert_arrived(server, log)


def test_a_lost_acknowledgement_is_settled_and_a_second_shipper_fences_the_first(
    server: servers.Server, log: shmlog.Log
) -> None:
    fill(log, 60)
    count = 0

    def every_third_is_lost(_: int, at: str) -> None:
        nonlocal count
        count += at == "after put"
        if at == "after put" and count % 3 == 1:
            raise EngineError("lost")

    sink = Faulty(ValkeySink(server.address, "logs", log.log_id), happen=every_third_is_lost)
    other_sink = ValkeySink(server.address, "logs", log.log_id)
    with (
        Shipper(log, sink, chunk_bytes=CHUNK) as one,
        Shipper(log, other_sink, name="other", chunk_bytes=3 * CHUNK) as other,
    ):
        with pytest.raises(EngineError):
            one.step()
        for _ in range(2):
            assert one.step()
        assert other.step()
        with pytest.raises(shmlog.FencedError):
            while True:
                try:
                    one.step()
                except EngineError:
                    continue
        while other.step():
            pass
    assert_arrived(server, log)


def test_a_server_that_lost_its_end_gets_it_again_also_from_a_shipper_that_runs(
    log: shmlog.Log, tmp_path: Path
) -> None:
    fill(log, 40)
    with servers.server(tmp_path / "valkey") as server:
        with Shipper(log, ValkeySink(server.address, "logs", log.log_id), chunk_bytes=CHUNK) as shipper:
            for _ in range(3):
                assert shipper.step()
            server.kill()
            shutil.copytree(tmp_path / "valkey/appendonlydir", tmp_path / "old")
            server.start()
            errors = 0
            for _ in range(20):
                try:
                    shipper.step()
                except EngineError:
                    errors += 1
            assert errors
            server.kill()
            shutil.rmtree(tmp_path / "valkey/appendonlydir")
            shutil.copytree(tmp_path / "old", tmp_path / "valkey/appendonlydir")
            server.start()
            fill(log, 40, seed=2)
            errors, more = 0, True
            while more:
                try:
                    more = shipper.step()
                except EngineError:
                    errors += 1
            assert errors
        assert_arrived(server, log)
