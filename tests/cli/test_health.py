"""doctor and gc, as processes: each fault is named, with what to do about it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.files import copy_live
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    block_path,
    flusher_pid,
    flusher_pids,
    kill_everybody,
    lose_shared_memory,
    shared_names,
    stopped,
    until,
)

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES
from shmlog.system import surroundings
from shmlog.tools import doctor

COMMAND = [sys.executable, "-W", "error", "-m", "shmlog"]


def _run(*arguments: str | Path, status: int = 0) -> str:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, timeout=60, text=True)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return done.stdout


def _doctor(path: Path, status: int = 0) -> dict[str, dict[str, Any]]:
    """By its name, each check that is not ok; of those with one name the worst."""
    checks = json.loads(_run("doctor", path, "--json", status=status))
    assert all(check["advice"] for check in checks if check["verdict"] != "ok")
    bad = {check["name"]: check for check in checks if check["verdict"] == "warning"}
    bad |= {check["name"]: check for check in checks if check["verdict"] == "wrong"}
    bad.pop("leftovers", None)  # other tests' may lie there
    return bad


def _appending(wire: Wire, path: Path) -> None:
    log = shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES)
    log.append(b"x", durable=True)
    wire.say("appended")
    wire.hear()
    with log.reserve(10):
        wire.say("reserved")
        wire.hear()


def test_doctor_finds_nothing_wrong_with_a_log_that_is_new_in_use_or_closed(log_path: Path) -> None:
    _run("create", log_path)
    assert _doctor(log_path) == {}
    with shmlog.open(log_path) as log:
        log.append(b"x", durable=True)
        log.cursor("etl").close()
        assert _doctor(log_path) == {}
    assert _doctor(log_path) == {}
    text = _run("doctor", log_path)
    assert "\x1b" not in text and "clean: goes on at LSN 64" in text


def test_doctor_names_the_stopped_writer_that_everybody_waits_for(log_path: Path) -> None:
    with Child(_appending, log_path) as child:
        assert child.hear() == "appended"
        child.say("go on")
        assert child.hear() == "reserved"
        bad = _doctor(log_path)
        assert "between reserve() and publish()" in bad["participant"]["advice"]
        child.stop()
        bad = _doctor(log_path, status=1)
        assert f"pid {child.pid}" in bad["participant"]["text"]
        assert "[64, 128)" in bad["participant"]["text"]
        assert f"kill -CONT {child.pid}" in bad["participant"]["advice"]
        child.resume()
        child.say("end")
        child.result()
    with shmlog.open(log_path):
        pass


def test_doctor_names_a_stopped_flusher(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        pid = flusher_pid(log)
        with stopped(pid):
            bad = _doctor(log_path, status=1)
        assert bad["flusher"]["advice"].endswith(f"kill -CONT {pid}")


def test_doctor_tells_a_block_that_was_left_from_one_that_is_missing_and_one_of_no_use(
    log_path: Path,
) -> None:
    with Child(_appending, log_path) as child:
        assert child.hear() == "appended"
        kill_everybody(log_path, [child])
    bad = _doctor(log_path)
    assert "is left of users that were killed" in bad["control block"]["text"]
    assert "has died" in bad["participant"]["text"]
    with block_path(log_path).open("r+b") as file:
        file.write(bytes(8))
    bad = _doctor(log_path)
    assert "its magic is another" in bad["control block"]["text"]
    lose_shared_memory(log_path)
    assert _doctor(log_path) == {}
    with shmlog.open(log_path) as log:
        log.append(b"y", durable=True)
        kept = block_path(log_path).read_bytes()
        names = {path: path.with_name(path.name + ".kept") for path in shared_names(log_path)}
        for path, aside in names.items():
            path.rename(aside)
        assert kept
        try:
            bad = _doctor(log_path, status=1)
            assert "is in use, but its control block" in bad["control block"]["text"]
        finally:
            for path, aside in names.items():
                aside.rename(path)


def test_doctor_says_that_a_block_is_of_the_log_in_another_place(log_path: Path, tmp_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        copy_live(log_path, tmp_path / "copy")
        bad = _doctor(tmp_path / "copy")
        assert "in another place" in bad["control block"]["text"]


def _latch(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        log.append(b"x", durable=True)
        log._joined.control.fail(errno.EIO, log.durable_lsn)
        bad = _doctor(log_path, status=1)
        assert "Input/output error" in bad["failure"]["text"]


def _damage(log_path: Path) -> None:
    path = log_path / "segments" / f"{0:020d}.seg"
    with path.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + 33)
        file.write(b"\xff")
    assert "checksum" in _doctor(log_path, status=1)["files"]["text"]


def _spoil_cursor(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        log.cursor("etl").close()
    (log_path / "cursors" / "etl").write_bytes(b"\xff" * 1024)
    assert "no valid copy" in _doctor(log_path, status=1)["cursor"]["text"]


def _spoil_retention(log_path: Path) -> None:
    (log_path / "retention.json").write_bytes(b"{")
    assert "retention.json" in _doctor(log_path, status=1)["retention"]["text"]


def _cut_live_segment(log_path: Path) -> None:
    path = log_path / "segments" / f"{0:020d}.seg"
    with shmlog.open(log_path) as log:
        log.wait_durable()
        whole = path.stat().st_size
        os.truncate(path, whole - 4096)
        try:
            assert "has" in _doctor(log_path, status=1)["files"]["text"]
        finally:
            os.truncate(path, whole)


def _without_lock(log_path: Path) -> None:
    until(lambda: not flusher_pids(log_path), "no flusher that came late makes it again")
    (log_path / "LOCK").unlink()
    assert "has no LOCK" in _doctor(log_path, status=1)["place"]["text"]


@pytest.mark.parametrize(
    "fault",
    [_latch, _damage, _spoil_cursor, _spoil_retention, _cut_live_segment, _without_lock],
    ids=lambda f: f.__name__,
)
def test_doctor_names_a_fault_of_the_files_or_a_failed_log(
    log_path: Path, fault: Callable[[Path], None]
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append(b"x" * 10, durable=True)
    fault(log_path)


@pytest.mark.parametrize(
    ("name", "broken", "verdict"),
    [
        ("file system", ("file_system", lambda _: "nfs4"), "warning"),
        ("file system", ("file_system", lambda _: "tmpfs"), "warning"),
        ("disk room", ("room", lambda _: surroundings.Room(1000, None)), "wrong"),
        ("disk room", ("room", lambda _: surroundings.Room(1 << 40, 0)), "wrong"),
        ("shared memory", ("room", lambda _: surroundings.Room(1000, None)), "wrong"),
    ],
)
def test_doctor_looks_at_what_the_log_lives_on(
    log_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, broken: tuple[str, Any], verdict: str
) -> None:
    shmlog.open(log_path, create=True).close()
    monkeypatch.setattr(surroundings, *broken)
    found = [check for check in doctor.examine(log_path) if check.name == name]
    assert [check.verdict for check in found] == [verdict]


def test_the_file_system_of_a_path_is_that_of_the_mount_it_is_in(tmp_path: Path) -> None:
    assert surroundings.file_system("/dev/shm") == "tmpfs"
    assert surroundings.file_system("/proc/self") == "proc"
    assert surroundings.file_system(str(tmp_path))


def test_gc_lists_by_default_and_removes_what_is_named(log_path: Path) -> None:
    with Child(_appending, log_path) as child:
        assert child.hear() == "appended"
        name = block_path(log_path).name
        text = _run("gc", name, "--yes")
        assert f"{name}  used" in text and "removed" not in text
        kill_everybody(log_path, [child])
    (left,) = json.loads(_run("gc", name, "--json"))
    assert (left["state"], left["removed"], len(left["names"])) == ("unused", False, 3)
    assert "--yes removes" in _run("gc", name)
    assert _run("gc", f"/dev/shm/{name}", "--yes").endswith("; removed\n")
    assert not shared_names(log_path)
    done = subprocess.run([*COMMAND, "gc", name], capture_output=True)
    assert done.returncode == 1 and b"/dev/shm has no control block" in done.stderr
    with shmlog.open(log_path) as log:
        assert [bytes(record.data) for record in log.read()] == [b"x"]


def test_colour_is_for_terminals_that_want_it(log_path: Path) -> None:
    import pty

    _run("create", log_path)

    def shown(**environment: str) -> bytes:
        ours, theirs = pty.openpty()
        try:
            subprocess.run(
                [*COMMAND, "doctor", str(log_path)],
                stdout=theirs,
                env={**os.environ, "TERM": "xterm", **environment},
                check=True,
            )
            os.close(theirs)
            text = b""
            with contextlib.suppress(OSError):
                while chunk := os.read(ours, 4096):
                    text += chunk
            return text
        finally:
            os.close(ours)

    assert b"\x1b[32mok" in shown()
    assert b"\x1b" not in shown(NO_COLOR="1")
