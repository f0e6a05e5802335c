"""shmlog ship, as a process, to a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import nats as servers
from support import valkey
from support.processes import until
from support.serving import free_ports
from support.shipping import SMALL, assert_shipped, fill

import shmlog
from shmlog.cli.main import main

if why := servers.missing():
    pytest.skip(why, allow_module_level=True)

from shmlog.integrations.nats import NatsReader, NatsSink
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper

COMMAND = [sys.executable, "-W", "error", "-m", "shmlog", "ship"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.server(tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 30)
        yield log


def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SECRET": "hunter2"},
    )
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr and "hunter2" not in done.stderr + done.stdout
    return done


def test_ship_once_ships_what_is_there_and_says_how_far(server: servers.Server, log: shmlog.Log) -> None:
    url = f"nats://{server.address}/CLI-{log.log_id}?replicas=1"
    facts = json.loads(run(log.path, url, "--once", "--chunk-bytes", "4K", "--json").stdout)
    assert facts["position_lsn"] == log.durable_lsn
    assert facts["records"] == sum(map(len, log.read_batches()))
    assert (facts["lag_bytes"], facts["lag_records"], facts["retries"]) == (0, 0, 0)
    with NatsReader([server.address], f"CLI-{log.log_id}", log.log_id) as found:
        assert_shipped(log, found.batches())
    assert "shipped 0 records" in run(log.path, url, "--once").stdout


def test_ship_ships_a_message_a_record_if_it_is_asked_to(server: servers.Server, log: shmlog.Log) -> None:
    stream = f"CLI-{log.log_id}"
    count = sum(map(len, log.read_batches()))
    facts = json.loads(
        run(log.path, f"nats://{server.address}/{stream}?replicas=1", "--once", "--records", "--json").stdout
    )
    assert (facts["records"], facts["lag_records"]) == (count, 0)
    about = servers.request(server, f"$JS.API.STREAM.INFO.{stream}")
    assert about["state"]["messages"] == count  # type: ignore[index]
    with NatsReader([server.address], stream, log.log_id) as found:
        assert_shipped(log, found.batches())
    for wrong in (["valkey://host/x", "--records"], ["nats://host/x", "--records", "--chunks"]):
        with pytest.raises(SystemExit) as ended:
            main(["ship", log.path, *wrong, "--once"])
        assert ended.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ship_goes_on_until_it_is_told_to_end(server: servers.Server, log: shmlog.Log, number: int) -> None:
    url = f"nats://{server.address}/CLI-{log.log_id}?replicas=1"
    command = [*COMMAND, log.path, url, "--name", "mine", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            with NatsReader([server.address], f"CLI-{log.log_id}", log.log_id) as found:

                def arrived(data: bytes) -> bool:
                    return any(bytes(r.data) == data for batch in found.batches() for r in batch)

                log.append(b"first")
                until(lambda: server_has(found, log) and arrived(b"first"))
                log.append(b"second")
                until(lambda: arrived(b"second"))
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["position_lsn"] == log.durable_lsn
    with shmlog.open_readonly(log.path) as look:
        assert [(c.name, c.lsn) for c in look.cursors()] == [("mine", log.durable_lsn)]


def server_has(found: NatsReader, log: shmlog.Log) -> bool:
    try:
        return any(True for _ in found.batches())
    except EngineError:
        return False


def test_a_ship_that_was_overtaken_ends_with_status_3(server: servers.Server, log: shmlog.Log) -> None:
    stream = f"CLI-{log.log_id}"
    url = f"nats://{server.address}/{stream}?replicas=1"
    command = [*COMMAND, log.path, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            with NatsReader([server.address], stream, log.log_id) as found:
                until(lambda: server_has(found, log))
            os.kill(process.pid, signal.SIGSTOP)
            with Shipper(log, NatsSink([server.address], stream, log.log_id, replicas=1), name="b") as other:
                other.run(once=True)
                log.append(b"more")
                other.run(once=True)
            os.kill(process.pid, signal.SIGCONT)
            log.append(b"and more", durable=True)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 3
    assert "has taken over" in err


def test_wrong_usage_and_what_cannot_go_on_say_so(
    server: servers.Server, log: shmlog.Log, capfd: pytest.CaptureFixture[str]
) -> None:
    urls = (
        "nats://host",
        "ftp://host/x",
        "valkey://a,b/x",
        "nats://host/x?retain=1",
        "nats://me:hunter2@host/S",
    )
    for url in urls:
        with pytest.raises(SystemExit) as ended:
            main(["ship", log.path, url, "--once"])
        assert ended.value.code == 2
    assert "hunter2" not in "".join(capfd.readouterr())
    url = f"nats://{server.address}/CLI-{log.log_id}"
    assert "replicas=1 must be asked for" in run(log.path, url, "--once", status=1).stderr
    assert main(["ship", log.path + "-none", url, "--once"]) == 1
    assert "no log here" in capfd.readouterr().err
    with log.cursor("ship"):
        assert main(["ship", log.path, url, "--once"]) == 1
    assert "open elsewhere" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["env", "file", "written out", "missing"])
def test_secrets_come_from_files_and_the_environment(log: shmlog.Log, tmp_path: Path, kind: str) -> None:
    guarded = servers.Server(tmp_path / "guarded", *free_ports(1))
    settings = guarded.path / "server.conf"
    settings.write_text(settings.read_text() + '\nauthorization { user: "me", password: "hunter2" }')
    (tmp_path / "secret").write_text("hunter2\n")
    password = {
        "env": '{ env = "SECRET" }',
        "file": f'{{ file = "{tmp_path}/secret" }}',
        "written out": '"hunter2"',
        "missing": '{ env = "NO_SUCH" }',
    }[kind]
    config = tmp_path / "ship.toml"
    config.write_text(f'[nats]\nuser = "me"\npassword = {password}\n')
    try:
        guarded.start()
        url = f"nats://{guarded.address}/S?replicas=1"
        done = run(log.path, url, "--once", "--config", config, status=0 if kind in ("env", "file") else 1)
    finally:
        guarded.kill()
    if kind == "written out":
        assert "nats.password is a secret" in done.stderr
    elif kind == "missing":
        assert "no NO_SUCH in the environment" in done.stderr


def test_ship_ships_to_valkey_too(log: shmlog.Log, tmp_path: Path) -> None:
    if why := valkey.missing():
        pytest.skip(why)
    from shmlog.integrations.valkey import ValkeyReader

    with valkey.server(tmp_path / "valkey") as server:
        run(log.path, f"valkey://{server.address}/logs", "--once")
        with ValkeyReader(server.address, "logs", log.log_id) as found:
            assert_shipped(log, found.batches())
