"""Logging into a log: whole, from many processes, within the timeout, and read back as text."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, flusher_pid, stopped

import shmlog
from shmlog.integrations.logging import LoguruSink, ShmlogHandler, StructlogFactory

SIZES = {"segment_bytes": SEGMENT_BYTES, "window_bytes": SEGMENT_BYTES}
SMALL = {**SIZES, "timeout": 30.0}


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("app.test")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


def _messages(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with shmlog.open(path) as log:
        log.wait_committed()
        return [(record.tag, json.loads(bytes(record.data))) for record in log.read()]


def _cat(path: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "shmlog", "cat", str(path), "--format", "logging", *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout


def test_dict_config_makes_the_handler_and_a_message_has_its_level_as_tag(log_path: Path) -> None:
    handler = {"class": "shmlog.integrations.logging.ShmlogHandler", "path": str(log_path), **SMALL}
    config = {"version": 1, "handlers": {"log": handler}, "loggers": {"app.dict": {"handlers": ["log"]}}}
    logging.config.dictConfig({**config, "disable_existing_loggers": False})
    made = logging.getLogger("app.dict")
    try:
        made.warning("%s is %d", "x", 3, extra={"user": 7})
        try:
            raise KeyError("gone")
        except KeyError:
            made.exception("failed")
    finally:
        made.handlers[0].close()
        made.handlers.clear()
    (first, facts), (second, failed) = _messages(log_path)
    assert (first, second) == (30, 40)
    assert (facts["message"], facts["user"], facts["level"]) == ("x is 3", 7, "WARNING")
    assert (facts["logger"], facts["process"]) == ("app.dict", os.getpid())
    assert "KeyError: 'gone'" in failed["exception"]


def test_an_error_is_durable_when_the_call_returns_and_a_warning_need_not_be(
    log_path: Path, logger: logging.Logger
) -> None:
    logger.addHandler(ShmlogHandler(log_path, durable_level="ERROR", sync_interval=60.0, timeout=10.0))
    with shmlog.open(log_path, create=True, sync_interval=60.0) as log:
        logger.warning("w")
        log.wait_committed()
        assert log.durable_lsn < log.committed_lsn
        logger.error("e")
        assert log.durable_lsn == log.reserved_lsn


def test_a_call_never_blocks_longer_than_its_timeout_and_the_loss_goes_to_handle_error(
    log_path: Path, logger: logging.Logger
) -> None:
    handler = ShmlogHandler(log_path, timeout=0.3, **SIZES)
    lost: list[str] = []
    handler.handleError = lambda record: lost.append(record.msg)  # type: ignore[method-assign]
    logger.addHandler(handler)
    with shmlog.open(log_path, create=True, **SIZES) as log, stopped(flusher_pid(log)):
        longest, sent = 0.0, 0
        while len(lost) < 2:
            begun = time.monotonic()
            logger.info("x" * 5000)
            longest, sent = max(longest, time.monotonic() - begun), sent + 1
        assert 0.25 < longest < 2.0
        begun = time.monotonic()
        logger.error("not durable in time")
        assert time.monotonic() - begun < 2.0
        assert lost[-1] == "not durable in time"


def test_a_directory_that_cannot_be_made_is_handle_errors_business(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addHandler(ShmlogHandler(tmp_path / "no" / "log"))
    logger.error("x")
    assert "there is no such directory" in capsys.readouterr().err


def test_forked_workers_write_through_the_handler_of_their_parent(
    log_path: Path, logger: logging.Logger
) -> None:
    logger.addHandler(ShmlogHandler(log_path, **SMALL))
    logger.info("parent")

    def work(_: Wire, n: int) -> int:
        for i in range(100):
            logger.info("message", extra={"worker": n, "i": i})
        return os.getpid()

    children = [Child(work, n) for n in range(3)]
    pids = []
    for child in children:
        with child:
            pids.append(child.result())
    found = [facts for _, facts in _messages(log_path)]
    for n, pid in enumerate(pids):
        own = [facts for facts in found if facts.get("worker") == n]
        assert [facts["i"] for facts in own] == list(range(100))
        assert {facts["process"] for facts in own} == {pid}


def test_what_shmlog_itself_logs_while_the_handler_opens_does_not_come_back_to_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
    (log_path / "LOCK").rename(log_path / "LOCK.old")  # another place: recovered, with a warning
    handler = ShmlogHandler(log_path, timeout=20.0)
    own = logging.getLogger("shmlog")
    own.addHandler(handler)
    try:
        begun = time.monotonic()
        own.warning("hello")
        assert time.monotonic() - begun < 10
    finally:
        own.removeHandler(handler)
        handler.close()
    with shmlog.open(log_path) as log:
        assert json.loads(bytes(list(log.read())[-1].data))["message"] == "hello"


def test_a_handler_that_is_closed_writes_no_more(log_path: Path, logger: logging.Logger) -> None:
    handler = ShmlogHandler(log_path)
    lost: list[str] = []
    handler.handleError = lambda record: lost.append(record.msg)  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.info("one")
    handler.close()
    logger.info("two")
    assert lost == ["two"]
    assert len(_messages(log_path)) == 1


def test_structlog_events_become_records(log_path: Path) -> None:
    structlog = pytest.importorskip("structlog")
    factory = StructlogFactory(log_path, **SMALL)
    try:
        made = structlog.wrap_logger(
            factory("app"),
            processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        made.bind(user=7).warning("slow", seconds=1.5)
        made.error("gone")
    finally:
        factory.close()
    (first, facts), (second, _) = _messages(log_path)
    assert (first, second) == (30, 40)
    assert (facts["message"], facts["user"], facts["seconds"]) == ("slow", 7, 1.5)
    assert facts["logger"] == "app"


def test_loguru_messages_become_records(log_path: Path) -> None:
    loguru = pytest.importorskip("loguru")
    number = loguru.logger.add(LoguruSink(log_path, **SMALL))
    try:
        loguru.logger.bind(user=7).success("done")
        try:
            raise ValueError("bad")
        except ValueError:
            loguru.logger.exception("failed")
    finally:
        loguru.logger.remove(number)
    (first, facts), (second, failed) = _messages(log_path)
    assert (first, second) == (25, 40)
    assert (facts["message"], facts["user"], facts["level"]) == ("done", 7, "SUCCESS")
    assert "ValueError: bad" in failed["exception"]


def test_cat_prints_messages_of_a_level_and_time_and_nothing_that_commands_a_terminal(
    log_path: Path, logger: logging.Logger
) -> None:
    handler = ShmlogHandler(log_path, **SMALL)
    logger.addHandler(handler)
    logger.info("quiet")
    logger.warning("red \x1b[31m", extra={"user": 7})
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("failed")
    handler.close()
    with shmlog.open(log_path) as log:
        log.append(b"no message", 30)
    lines = _cat(log_path, "--level", "warning").splitlines()
    assert lines[0].endswith(rf"WARNING  app.test[{os.getpid()}] red \x1b[31m  user=7")
    assert "ERROR" in lines[1] and lines[2].startswith("Traceback")
    assert lines[-1] == "no message"
    assert "quiet" in _cat(log_path, "--since", "10m")
    assert _cat(log_path, "--since", "2100-01-01") == ""
