"""The shmlog command, as a process: what it prints, and its exit status."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import block_path, flusher_of, lose_shared_memory, nobody_lives, until

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

COMMAND = [sys.executable, "-W", "error", "-m", "shmlog"]


def _run(*arguments: str | Path, stdin: bytes = b"", status: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=60)
    assert done.returncode == status, done
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def _json(*arguments: str | Path, stdin: bytes = b"", status: int = 0) -> Any:
    return json.loads(_run(*arguments, "--json", stdin=stdin, status=status).stdout)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The process's next line; AssertionError if none comes."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "no line within 30 s"
    return process.stdout.readline()


@contextlib.contextmanager
def _appending(log_path: Path, *arguments: str) -> Iterator[Any]:
    """shmlog append, as a process whose standard input is ours."""
    command = [*COMMAND, "append", str(log_path), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_append_takes_from_standard_input_cat_prints(log_path: Path) -> None:
    text = b"one\ntwo\n\nfour \xff\nno newline at the end"
    done = _run("append", log_path, "--create", stdin=text)
    assert done.stdout == b"appended 5 records, 33 bytes\n"
    assert _run("cat", log_path).stdout == text + b"\n"
    assert _run("cat", log_path, "--raw").stdout == text.replace(b"\n", b"")
    assert not block_path(log_path).exists(), "nothing is left running"


def test_append_whole_makes_one_record_and_says_where(log_path: Path) -> None:
    facts = _json("append", log_path, "--create", "--whole", "--tag", "7", stdin=b"a\nb\n")
    assert facts == {"records": 1, "bytes": 4, "first_lsn": 0, "last_lsn": 0, "durable": True}
    (line,) = _run("cat", log_path, "--json").stdout.splitlines()
    record = json.loads(line)
    assert (record["lsn"], record["tag"], record["bytes"], record["text"]) == (0, 7, 4, "a\nb\n")


def test_create_says_how_much_is_kept_also_of_a_log_that_is_there(log_path: Path) -> None:
    sizes = ("--segment-bytes", "64K", "--window-bytes", "64K")
    wrong = _run("create", log_path, *sizes, "--retain-bytes", "100K", status=1)
    assert b"too small a budget" in wrong.stderr and not log_path.exists(), "nothing is made"
    made = _json("create", log_path, *sizes, "--retain-bytes", "1M", "--cursors", "ignore")
    kept = {"bytes": 1 << 20, "age_s": None, "cursors": "ignore", "when_full": "wait"}
    assert made["retention"] == kept == _json("configure", log_path)
    again = _json("create", log_path, "--exist-ok", "--retain-age", "7d", "--when-full", "trim")
    assert (
        again["retention"] == kept | {"age_s": 604800.0, "when_full": "trim"} == _json("configure", log_path)
    )
    assert _json("create", log_path, "--exist-ok")["retention"] == again["retention"]
    assert _json("create", log_path, "--exist-ok", "--retain-bytes", "none")["retention"]["bytes"] is None


def test_handles_and_verbs_that_name_no_mode_have_that_which_the_log_was_made_with(log_path: Path) -> None:
    _run("create", log_path, "--mode", "640")
    with shmlog.open(log_path) as log:
        log.append(b"x", durable=True)
        _run("append", log_path, stdin=b"y\n")
        log.cursor("c").close()
        (segment,) = log_path.glob("segments/*0.seg")
        made = (segment, log_path / "cursors/c", log_path / "flusher.log", block_path(log_path))
        assert [path.stat().st_mode & 0o777 for path in made] == [0o640] * 4


def test_append_makes_each_line_readable_while_it_waits_for_the_next(log_path: Path) -> None:
    _run("create", log_path)
    with _appending(log_path) as process, shmlog.open_readonly(log_path) as readonly:
        tail = readonly.tail(0, timeout=30)
        for text, lines in ((b"one\n", [b"one"]), (b"two\n\nhal", [b"two", b""]), (b"f\nend", [b"half"])):
            os.write(process.stdin.fileno(), text)
            assert [bytes(next(tail).data) for _ in lines] == lines
        process.stdin.close()
        assert bytes(next(tail).data) == b"end"
        assert process.wait(30) == 0
        assert process.stdout.read() == b"appended 5 records, 13 bytes\n"


def test_append_interrupted_keeps_and_counts_what_it_has_read(log_path: Path) -> None:
    _run("create", log_path)
    with _appending(log_path, "--json") as process, shmlog.open_readonly(log_path) as readonly:
        os.write(process.stdin.fileno(), b"one\ntwo\nunfinished")
        tail = readonly.tail(0, timeout=30)
        assert [bytes(next(tail).data) for _ in range(2)] == [b"one", b"two"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        facts = json.loads(process.stdout.read())
        assert (facts["records"], facts["bytes"], facts["durable"]) == (2, 6, True)
        assert (
            process.stderr.read()
            == b"shmlog: interrupted: 10 bytes of an unfinished line were not appended\n"
        )
        assert readonly.committed_lsn == 128


def test_append_interrupted_under_load_loses_no_line_it_counts(log_path: Path) -> None:
    _run("create", log_path)
    with _appending(log_path, "--json") as process, shmlog.open_readonly(log_path) as readonly:

        def write() -> None:
            with contextlib.suppress(BrokenPipeError):
                for n in range(1 << 62):
                    process.stdin.write(b"%d\n" % n)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        assert sum(1 for _ in itertools.islice(readonly.tail(0, timeout=30), 10_000)) == 10_000
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        writer.join(30)
        appended = [bytes(record.data) for record in readonly.read()]
        assert json.loads(process.stdout.read())["records"] == len(appended) >= 10_000
        assert appended == [b"%d" % n for n in range(len(appended))]


def test_append_whole_interrupted_appends_nothing(log_path: Path) -> None:
    _run("create", log_path)
    with _appending(log_path, "--whole") as process, shmlog.open_readonly(log_path) as readonly:
        os.write(process.stdin.fileno(), b"half of it")
        until(lambda: readonly.committed_lsn == 0 and readonly.live, "it has opened the log")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert readonly.committed_lsn == 0


def test_append_of_nothing_appends_nothing(log_path: Path) -> None:
    facts = _json("append", log_path, "--create")
    assert (facts["records"], facts["first_lsn"]) == (0, None)
    assert _run("cat", log_path).stdout == b""


def test_many_lines_are_appended_in_batches_without_loss(log_path: Path) -> None:
    text = b"".join(b"line %d\n" % n for n in range(20_000))
    assert _json("append", log_path, "--create", "--no-sync", stdin=text)["records"] == 20_000
    assert _run("cat", log_path).stdout == text


def test_cat_bounds_tags_and_counts(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        lsns = [log.append(b"%d" % n, n % 2) for n in range(10)]
    assert _run("cat", log_path, "--start", str(lsns[7])).stdout == b"7\n8\n9\n"
    assert _run("cat", log_path, "--stop", str(lsns[2])).stdout == b"0\n1\n"
    assert _run("cat", log_path, "--tag", "1", "--count", "3").stdout == b"1\n3\n5\n"
    assert _run("cat", log_path, "--count", "0").stdout == b""
    with shmlog.open(log_path) as log:
        log.append(b"\xff\x00", durable=True)
    *_, line = _run("cat", log_path, "--json").stdout.splitlines()
    assert json.loads(line)["base64"] == "/wA="


def test_create_prints_what_it_made_and_refuses_a_second_time(log_path: Path) -> None:
    facts = _json("create", log_path, "--segment-bytes", "1MiB", "--window-bytes", "65536", "--mode", "640")
    assert (facts["segment_bytes"], facts["window_bytes"]) == (1 << 20, 1 << 16)
    assert facts["path"] == str(log_path)
    assert (log_path / "shmlog.json").stat().st_mode & 0o777 == 0o640
    done = _run("create", log_path, status=1)
    assert b"there is a log already" in done.stderr and not done.stdout
    assert _json("create", log_path, status=1)["error"] == "FileExistsError"


def test_info_of_a_dead_and_a_live_log(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"x\n")
    facts = _json("info", log_path)
    assert (facts["state"], facts["committed_lsn"], facts["durable_lsn"]) == ("clean", 64, 64)
    with shmlog.open(log_path) as log:
        log.append(b"y", durable=True)
        facts = _json("info", log_path)
        assert (facts["state"], facts["committed_lsn"], facts["epoch"]) == ("live", 128, 1)
        assert facts["participant_pids"] == [os.getpid()]
        assert facts["flusher_pid"] == log.statistics().flusher_pid
    text = _run("info", log_path).stdout.decode()
    assert "state" in text and "clean" in text and str(log_path) in text


def test_verify_passes_a_good_log_and_names_what_is_bad(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"one\ntwo\nthree\n")
    facts = _json("verify", log_path)
    assert (facts["ok"], facts["records"], facts["problem_lsn"]) == (True, 3, None)
    assert b"every frame is valid" in _run("verify", log_path).stdout
    path = log_path / "segments" / f"{0:020d}.seg"
    with path.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + 64 + 33)
        file.write(b"\xff")
    facts = _json("verify", log_path, status=1)
    assert (facts["ok"], facts["problem_lsn"]) == (False, 64)
    assert "checksum" in facts["problem"]
    assert b"BAD at LSN 64" in _run("verify", log_path, status=1).stdout
    assert _json("info", log_path)["state"] == "corrupt"
    assert b"damaged at LSN 64" in _run("cat", log_path, status=1).stderr


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("segment_no", [0, 1, 2])
def test_verify_reports_a_cut_replaced_or_missing_segment_file_and_where(
    log_path: Path, live: bool, segment_no: int
) -> None:
    size = 64 << 10
    with shmlog.open(log_path, create=True, segment_bytes=size) as log:
        log.append_many([bytes(1000)] * 150)
        log.wait_durable()
        path = log_path / "segments" / f"{segment_no * size:020d}.seg"
        if not live:
            log.close()
        whole = path.read_bytes()
        for damaged, why in (
            (whole[:20_000], "has 20000 bytes"),
            (whole[:50], "too short"),
            (bytes(len(whole)), "is not a segment"),
            (None, "missing"),
        ):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            elif not live and segment_no != 1:
                continue  # as if trimmed, or never written
            report = shmlog.verify(log_path)
            assert (report.ok, report.problem_lsn) == (False, segment_no * size), report
            assert report.state == ("live" if live else "corrupt")
            assert why in report.problem and path.name in report.problem
        path.write_bytes(whole[:-1])
        said = _run("verify", log_path, status=1).stdout.decode()
        assert f"BAD at LSN {segment_no * size}: " in said and path.name in said
        path.write_bytes(whole)
        assert shmlog.verify(log_path).ok


def test_verify_reports_a_stray_file_among_the_segments_of_a_dead_log(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"x\n")
    (log_path / "segments" / "stray").write_bytes(b"")
    assert "BAD: " in _run("verify", log_path, status=1).stdout.decode()
    assert _json("verify", log_path, status=1)["problem_lsn"] is None


def test_cursors_lists_where_each_is_and_who_has_it_open(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"one\ntwo\n")
    assert _run("cursors", log_path).stdout == b"no cursors\n"
    with shmlog.open(log_path) as log, log.cursor("reader"):
        (facts,) = _json("cursors", log_path)
        assert (facts["name"], facts["lsn"], facts["lag_records"], facts["pid"]) == (
            "reader",
            0,
            2,
            os.getpid(),
        )
        assert b"2 records (128 bytes" in _run("cursors", log_path).stdout
    assert _json("cursors", log_path)[0]["pid"] is None


def test_verify_of_a_log_that_is_trimmed_meanwhile_begins_again(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=64 << 10) as log:
        log.append_many([bytes(1000)] * 2000)
        log.wait_durable()
        trimmed: list[int] = []

        def progress(done: int, whole: int) -> None:
            if not trimmed:
                trimmed.append(log.trim(log.committed_lsn))

        report = shmlog.verify(log_path, progress)
        assert report.ok and (report.begin_lsn, report.end_lsn) == (*trimmed, log.committed_lsn)


@pytest.mark.parametrize("verb", ["append", "cat", "info", "verify", "flush"])
def test_a_log_that_is_not_there_is_an_error_with_status_1(log_path: Path, verb: str) -> None:
    done = _run(verb, log_path, status=1)
    assert done.stderr.startswith(b"shmlog: there is no log here: ") and b"`shmlog create`" in done.stderr
    assert b"create=" not in done.stderr and (b"`--create`" in done.stderr) == (verb == "append")
    assert _json(verb, log_path, status=1)["error"] == "FileNotFoundError"
    assert not log_path.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense", "x"],
        ["cat"],
        ["cat", "x", "--start", "here"],
        ["append", "x", "--tag", "t"],
        ["create", "x", "--segment-bytes", "many"],
        ["create", "x", "--mode", "9"],
        ["append", "x", "--tag", "-1"],
        ["append", "x", "--tag", "4294967296"],
        ["cat", "x", "--tag", "-5"],
        ["cat", "x", "--count", "-1"],
        ["cat", "x", "--raw", "--json"],
        ["cat", "x", "--follow", "--stop", "0"],
        ["flush", "x", "--sync-interval", "-1"],
        ["flush", "x", "--sync-interval", "nan"],
        ["flush", "x", "--sync-interval", "often"],
        [],
    ],
)
def test_wrong_usage_has_status_2_and_makes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = _run(*arguments, status=2)
    assert b"usage: shmlog" in done.stderr and not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["0", "400", "600", "606", "640", "664", "666", "755", "1600", "-600"])
def test_create_takes_the_modes_that_open_takes(tmp_path: Path, mode: str) -> None:
    try:
        shmlog.open(tmp_path / "opened", create=True, mode=int(mode, 8)).close()
    except (ValueError, PermissionError):
        assert b"--mode" in _run("create", tmp_path / "created", "--mode", mode, status=2).stderr
        assert not (tmp_path / "created").exists()
    else:
        _run("create", tmp_path / "created", "--mode", mode)
        made, opened = (tmp_path / name / "shmlog.json" for name in ("created", "opened"))
        assert made.stat().st_mode == opened.stat().st_mode


def test_a_directory_that_is_no_log_is_called_that_whoever_may_write_to_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for verb in ("append", "cat", "info", "verify", "flush"):
        assert b"is not a log: it has no shmlog.json" in _run(verb, tmp_path, status=1).stderr
    _run("create", tmp_path / "log")
    (tmp_path / "log").chmod(0o777)
    assert b"may be written by anybody" in _run("info", tmp_path / "log", status=1).stderr


def test_a_full_device_for_output_is_one_line_on_stderr(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"a line\n" * 10_000)
    for arguments in (
        ["cat"],
        ["cat", "--json"],
        ["verify"],
        ["verify", "--json"],
        ["info"],
        ["info", "--json"],
    ):
        with open("/dev/full", "wb") as full:
            command = [*COMMAND, *arguments, str(log_path)]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 1
        assert done.stderr == b"shmlog: standard output: No space left on device\n"


def test_closed_standard_streams_are_one_line_on_stderr(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"x\n")
    for arguments, closed in (("cat", ">&-"), ("append", "<&-")):
        command = f"exec {shlex.join([*COMMAND, arguments, str(log_path)])} {closed}"
        done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 1
        assert re.fullmatch(rb"shmlog: standard (out|in)put is closed\n", done.stderr)


def test_a_wrong_value_has_status_1(log_path: Path) -> None:
    assert b"power of two" in _run("create", log_path, "--segment-bytes", "1000", status=1).stderr
    assert b"power of two" in _run("create", log_path, "--segment-bytes", "0", status=1).stderr
    assert b"power of two" in _run("create", log_path, "--window-bytes", "0", status=1).stderr
    assert not log_path.exists(), "it is checked before anything is made"
    _run("create", log_path)
    assert b"must not be negative" in _run("cat", log_path, "--start", "-32", status=1).stderr
    assert b"is a file" in _run("info", log_path / "shmlog.json", status=1).stderr


def test_version_is_printed() -> None:
    assert _run("--version").stdout.decode() == f"shmlog {shmlog.__version__}\n"


def test_cat_into_a_closed_pipe_ends_without_a_traceback(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"a line of text\n" * 50_000)
    with subprocess.Popen(
        [*COMMAND, "cat", log_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"a line of text\n"
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


def test_cat_follow_prints_what_is_appended_until_ctrl_c(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"before", durable=True)
        command = [*COMMAND, "cat", str(log_path), "--follow"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None and process.stderr is not None
                assert process.stdout.readline() == b"before\n"
                for n in range(5):
                    log.append(b"%d" % n)
                    assert process.stdout.readline() == b"%d\n" % n
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 130
                assert process.stderr.read() == b""
            finally:
                process.kill()


def test_cat_follow_begun_before_any_writer_prints_what_every_later_session_appends(log_path: Path) -> None:
    _run("create", log_path)
    command = [*COMMAND, "cat", str(log_path), "--follow", "--count", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            for n in range(3):
                _run("append", log_path, stdin=b"%d\n" % n)
                assert _line(process) == b"%d\n" % n
            assert process.wait(30) == 0, "three were all it had to wait for"
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_flush_serves_external_handles_and_settles_when_told_to_end(
    log_path: Path, number: signal.Signals
) -> None:
    shmlog.open(log_path, create=True).close()
    with flusher_of(log_path) as process:
        with shmlog.open(log_path, flusher="external") as log:
            lsn = log.append(b"x", durable=True)
            assert log.statistics().flusher_pid == process.pid
        assert process.poll() is None, "it stays though nobody uses the log"
        with shmlog.open(log_path, flusher="external") as log:
            log.append(b"y")
        process.send_signal(number)
        assert process.wait(30) == 0
    assert nobody_lives(log_path) and not block_path(log_path).exists()
    with shmlog.open_readonly(log_path) as log:
        assert log.recovery is not None and log.recovery.case.value == "clean"
        assert [record.lsn for record in log.read()] == [lsn, lsn + 64]
        assert log.durable_lsn == lsn + 128


def test_flush_json_prints_at_its_end_what_info_would(log_path: Path) -> None:
    _run("create", log_path)
    command = [*COMMAND, "flush", str(log_path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: not nobody_lives(log_path), "it serves")
            with shmlog.open(log_path, flusher="external") as log:
                log.append(b"x", durable=True)
            process.terminate()
            assert process.wait(30) == 0
            assert process.stdout is not None
            facts = json.loads(process.stdout.read())
        finally:
            process.kill()
    assert facts == _json("info", log_path)
    assert (facts["state"], facts["durable_lsn"]) == ("clean", 64)


def test_a_second_flush_is_refused(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    with flusher_of(log_path) as process:
        assert b"has a flusher already" in _run("flush", log_path, status=1).stderr
        process.terminate()
        assert process.wait(30) == 0


def test_flush_killed_leaves_a_block_that_the_next_flush_joins(log_path: Path) -> None:
    shmlog.open(log_path, create=True).close()
    with shmlog.open(log_path, flusher="external") as log:
        with flusher_of(log_path) as process:
            lsn = log.append(b"x", durable=True)
            process.kill()
            process.wait()
        later = log.append(b"y")
        with flusher_of(log_path) as process:
            log.wait_durable(later, 30)
            assert log.statistics().flushers >= 2
            log.close()
            process.terminate()
            assert process.wait(30) == 0
    assert [json.loads(line)["lsn"] for line in _run("cat", log_path, "--json").stdout.splitlines()] == [
        lsn,
        later,
    ]


def test_info_and_cat_of_a_log_whose_users_were_killed(log_path: Path) -> None:
    program = (
        f"import shmlog, os; log = shmlog.open({str(log_path)!r}, create=True, flusher='external')\n"
        "print(flush=True); input(); [log.append(b'%d' % n, timeout=30) for n in range(3)]; os._exit(0)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        with flusher_of(log_path) as flusher:
            user.communicate(b"\n", timeout=30)
            flusher.kill()
            flusher.wait()
    lose_shared_memory(log_path)
    assert _json("info", log_path)["state"] in ("intact", "clean")
    assert _run("cat", log_path).stdout == b"0\n1\n2\n"
    assert _json("append", log_path, stdin=b"3\n")["records"] == 1
    assert _run("cat", log_path).stdout == b"0\n1\n2\n3\n"


def test_cat_from_beyond_the_end_is_an_error_and_from_the_end_prints_nothing(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"one\n")
    assert _run("cat", log_path, "--start", "64").stdout == b""
    for verb in ("cat", "tail"):
        done = _run(verb, log_path, "--start", "96", status=1)
        assert b"--start 96 is beyond the end of the log: it ends at LSN 64" in done.stderr


def test_tail_is_cat_that_goes_on(log_path: Path) -> None:
    _run("append", log_path, "--create", stdin=b"one\n")
    with shmlog.open(log_path) as log:
        command = [*COMMAND, "tail", str(log_path), "--count", "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert _line(process) == b"one\n"
            log.append(b"two")
            assert _line(process) == b"two\n"
            assert process.wait(30) == 0


def test_trim_gives_up_whole_segments_by_lsn_or_age(log_path: Path) -> None:
    _run("create", log_path, "--segment-bytes", "64k")
    with shmlog.open(log_path) as log:
        log.append_many([bytes(30_000)] * 10, durable=True)
    assert _json("trim", log_path, "--before", "65536")["trimmed_lsn"] == 65536
    facts = _json("trim", log_path, "--older-than", "0s")
    assert (facts["trimmed_lsn"], facts["trimmed_bytes"]) == (262144, 262144 - 65536)
    assert b"begins at LSN 262144, 0 bytes given up" in _run("trim", log_path, "--before", "0").stdout
    _run("trim", log_path, status=2)
    assert b"not committed" in _run("trim", log_path, "--before", "9999999999", status=1).stderr


def test_create_with_exist_ok_takes_a_log_of_the_same_sizes_only(log_path: Path) -> None:
    assert _json("create", log_path, "--exist-ok", "--segment-bytes", "1M")["created"] is True
    facts = _json("create", log_path, "--exist-ok")
    assert (facts["created"], facts["segment_bytes"]) == (False, 1 << 20)
    assert _json("create", log_path, "--exist-ok", "--segment-bytes", "1M")["created"] is False
    assert (
        b"segment_bytes=2097152"
        in _run("create", log_path, "--exist-ok", "--segment-bytes", "2M", status=1).stderr
    )
