"""The page for people in a real browser: it shows a real log as it moves, and says what is wrong.

A served log is looked at by headless Chromium; what is in the DOM is compared with the log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.browser import CHROMIUM, Browser
from support.processes import Child, Wire, until

import shmlog

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (apt install chromium-headless-shell)"
)

MARKS = ("durable_lsn", "committed_lsn", "reserved_lsn")
COMMAND = [sys.executable, "-W", "error", "-m", "shmlog", "metrics"]


@contextmanager
def served(path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Where `shmlog metrics --listen` serves the log, and its process."""
    with subprocess.Popen(
        [*COMMAND, str(path), "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


@contextmanager
def looked_at(url: str) -> Iterator[Browser]:
    """A browser that shows the page; in the end it must have asked nobody else, and complained of nothing."""
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as browser:
        browser.go(url)
        browser.until("document.getElementById('state')?.textContent.length > 1")
        yield browser
        assert browser.asked[0] == url
        assert {asked for asked in browser.asked if not asked.startswith((url, "data:"))} == set()
        assert browser.said == []


def shown(browser: Browser, name: str) -> int:
    """A watermark, as the page has it."""
    return int(browser.evaluate(f"document.getElementById('{name}').textContent").replace(",", ""))


def text(browser: Browser, name: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{name}').innerText"))


def append_when_told(wire: Wire, path: Path) -> None:
    """Appends a hundred records at each word, until the word is "end"."""
    with shmlog.open(path) as log:
        while wire.hear() != "end":
            log.append_many([b"x" * 100] * 100)
            log.wait_durable()
            wire.say("done")


def hold_a_reservation(wire: Wire, path: Path) -> None:
    with shmlog.open(path) as log, log.reserve(100):
        wire.say("held")
        wire.hear()


def test_the_page_shows_the_watermarks_moves_with_them_and_names_who_blocks(log_path: Path) -> None:
    with (
        shmlog.open(log_path, create=True) as log,
        served(log_path) as (url, _),
        looked_at(url) as browser,
        Child(append_when_told, log_path) as writer,
    ):
        log.cursor("etl").close()
        browser.until("document.getElementById('state').textContent === 'live'")
        for _ in range(2):
            writer.say("more")
            assert writer.hear() == "done"
            until(lambda: all(shown(browser, name) == getattr(log, name) for name in MARKS), "it has moved")
        assert f"pid {writer.pid}" in text(browser, "writers")
        assert "etl" in text(browser, "cursors") and f"{log.committed_lsn:,}" not in text(browser, "cursors")
        assert browser.evaluate("document.querySelectorAll('#picture rect').length") > 1
        browser.until("document.querySelector('#records-line polyline') !== null")
        assert text(browser, "trouble") == ""
        with Child(hold_a_reservation, log_path) as holder:
            assert holder.hear() == "held"
            holder.stop()
            browser.until("document.getElementById('state').textContent === 'blocked'")
            assert f"pid {holder.pid} " in text(browser, "trouble")
            assert f"pid {holder.pid}, blocks" in text(browser, "writers")
            holder.resume()
            holder.say("end")
            holder.result()
        browser.until("document.getElementById('state').textContent === 'live'")
        writer.say("end")
        writer.result()


def test_a_log_at_rest_and_one_that_is_gone_and_a_server_that_is_gone_are_told(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x" * 100, durable=True)
        end = log.committed_lsn
    assert CHROMIUM is not None
    with served(log_path) as (url, server), Browser(CHROMIUM, width=380) as browser:
        browser.go(url)
        browser.until("document.getElementById('state')?.textContent === 'at rest'")
        assert shown(browser, "durable_lsn") == end
        assert browser.evaluate("document.documentElement.scrollWidth") <= 380, "it fits a phone"
        for dark in (False, True):
            browser.prefer(dark)
            ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(ground.removeprefix("rgb(").split(",")[0]) < 128) is dark
        log_path.rename(log_path.with_name("aside"))
        browser.until("document.getElementById('state').textContent === 'no log'")
        assert "FileNotFoundError" in text(browser, "trouble")
        assert browser.evaluate("document.querySelector('.stale') !== null"), "what is shown is marked as old"
        log_path.with_name("aside").rename(log_path)
        browser.until("document.getElementById('state').textContent === 'at rest'")
        assert browser.evaluate("document.querySelector('.stale') === null")
        os.kill(server.pid, signal.SIGKILL)
        browser.until("document.getElementById('state').textContent === 'no answer'")
        assert "does not answer" in text(browser, "trouble")
