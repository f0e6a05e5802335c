"""shmlog archive, restore, and cat, verify and info of an archive, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import objects
from support.processes import until
from support.shipping import SMALL, fill

import shmlog
from shmlog.cli.main import main

if why := objects.missing():
    pytest.skip(why, allow_module_level=True)

COMMAND = [sys.executable, "-W", "error", "-m", "shmlog"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def log(log_path: Path) -> Iterator[shmlog.Log]:
    with shmlog.open(log_path, create=True, **SMALL) as log:
        fill(log, 100)
        yield log


def run(*arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done
    assert b"Traceback" not in done.stderr and b"hunter2" not in done.stderr + done.stdout
    return done


def test_what_is_archived_can_be_looked_at_and_restored(log: shmlog.Log, url: str, tmp_path: Path) -> None:
    facts = json.loads(
        run("archive", log.path, url, "--once", "--trim", "--keep-bytes", "64K", "--json").stdout
    )
    end = facts["position_lsn"]
    assert end == log.durable_lsn // 65536 * 65536 and facts["segments"] >= 2
    assert facts["trimmed_lsn"] == log.trimmed_lsn == end - 65536
    about = json.loads(run("info", url, "--json").stdout)
    assert (about["log_id"], about["begin_lsn"], about["end_lsn"]) == (log.log_id, 0, end)
    report = json.loads(run("verify", url, "--json").stdout)
    assert report["ok"] and report["records"] == about["records"]
    made = tmp_path / "made"
    assert b"a log of" in run("restore", url, made).stdout
    log.close()
    printed = run("cat", url, "--json", "--log", log.log_id, "--tag", "1").stdout
    assert printed == run("cat", made, "--json", "--tag", "1").stdout
    assert json.loads(run("verify", made, "--json").stdout)["records"] == report["records"]
    assert b"there already" in run("restore", url, made, status=1).stderr


def test_archive_goes_on_until_it_is_told_to_end(log: shmlog.Log, url: str) -> None:
    command = [*COMMAND, "archive", log.path, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            for seed in (2, 3):
                fill(log, 60, seed=seed)
                goal = log.durable_lsn // 65536 * 65536 - 65536
                sidecar = Path(url[7:], log.log_id, "segments", f"{goal:020d}.json")
                until(sidecar.exists, "it is archived")
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, b""), out


def test_a_damaged_archive_fails_verify(log: shmlog.Log, url: str) -> None:
    run("archive", log.path, url, "--once")
    path = Path(url[7:], log.log_id, "segments", f"{65536:020d}.seg")
    data = bytearray(path.read_bytes())
    data[20000] ^= 1
    path.write_bytes(data)
    done = run("verify", url, status=1)
    assert b"BAD" in done.stdout and b"not what its sidecar says" in done.stdout


def test_s3_is_spoken_to_with_settings_and_secrets_from_a_file(log: shmlog.Log, tmp_path: Path) -> None:
    if objects.moto() is None:
        pytest.skip("moto_server is not installed (moto[server])")
    with objects.s3() as (url, settings):
        config = tmp_path / "store.toml"
        config.write_text(
            f'[store]\nendpoint = "{settings["endpoint"]}"\nregion = "us-east-1"\naccess_key_id = "test"\n'
            'secret_access_key = { env = "SECRET" }\n[store.client_options]\nallow_http = true\n'
        )
        run("archive", log.path, url, "--once", "--config", config, SECRET="hunter2")
        done = run("verify", url, "--config", config, "--log", log.log_id, SECRET="hunter2")
        assert b"every frame is valid" in done.stdout


def test_wrong_usage_of_the_verbs_of_an_archive_says_so(
    log: shmlog.Log, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["archive", log.path, str(tmp_path / "store"), "--once"],
        ["archive", log.path, "s3://me:hunter2@bucket", "--once"],
        ["cat", url, "--follow"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "hunter2" not in "".join(capfd.readouterr())
    assert main(["verify", url]) == 1
    assert "holds 0 logs" in capfd.readouterr().err
    assert main(["archive", str(tmp_path / "none"), url, "--once"]) == 1
    assert "no log here" in capfd.readouterr().err
