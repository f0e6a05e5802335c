"""No space: a full disk, a full /dev/shm, files cut under their users.  Always an error,
never a signal, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

import pytest
from support.namespaces import needs_namespaces, run_in_namespace
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    block_path,
    check_records,
    flusher_of,
    flusher_pids,
    is_alive,
    lose_shared_memory,
    payload,
    until,
)

import shmlog
from shmlog.format.layout import SEGMENT_HEADER_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@needs_namespaces
def test_a_full_disk_refuses_appends_and_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    program = """
        import os, sys
        import shmlog
        from support.processes import check_records, payload, append_some
        root = sys.argv[1]
        ballast = os.open(root + "/ballast", os.O_CREAT | os.O_RDWR)
        os.posix_fallocate(ballast, 0, 1 << 20)
        with shmlog.open(root + "/log", create=True, segment_bytes=65536, window_bytes=1 << 20) as log:
            lsns = []
            for round in range(2):
                try:
                    while True:
                        lsns.append(log.append(payload(1, len(lsns), 1000), timeout=20))
                except shmlog.LogFullError as error:
                    assert "No space left on device" in str(error), error
                tail = log.reserved_lsn
                for n in range(3):
                    try:
                        log.append(bytes(60_000), timeout=5)
                        raise SystemExit("appended to a full disk")
                    except shmlog.LogFullError:
                        pass
                assert log.reserved_lsn == tail
                log.wait_durable(timeout=20)
                check_records(log, {1: lsns})
                if not round:
                    os.ftruncate(ballast, 0)
                    lsns.append(log.append(payload(1, len(lsns), 1000), timeout=20))
            assert log.statistics().failed is None and log.statistics().holes_filled == 0
        assert shmlog.verify(root + "/log").ok
        with shmlog.open(root + "/log") as log:
            check_records(log, {1: lsns})
        print(len(lsns))
    """
    out = run_in_namespace(f"mount -t tmpfs -o size=4m none {small}", program, small)
    assert int(out) > 2000


@needs_namespaces
def test_a_disk_too_full_to_make_a_log_is_an_os_error(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    program = """
        import errno, os, sys
        import shmlog
        root = sys.argv[1]
        fd = os.open(root + "/ballast", os.O_CREAT | os.O_RDWR)
        at = 0
        try:
            while True:
                at += os.write(fd, bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        try:
            shmlog.open(root + "/log", create=True)
            raise SystemExit("made")
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        os.ftruncate(fd, 0)
        with shmlog.open(root + "/log", create=True, segment_bytes=65536) as log:
            log.append(b"now there is room", durable=True, timeout=20)
    """
    run_in_namespace(f"mount -t tmpfs -o size=1m none {small}", program, small)


@needs_namespaces
@pytest.mark.parametrize("size", ["4k", "64k", "200k"])
@pytest.mark.holds("M1")
def test_a_full_dev_shm_is_an_os_error_at_open_and_never_a_signal(log_path: Path, size: str) -> None:
    program = """
        import errno, os, sys
        import shmlog
        try:
            shmlog.open(sys.argv[1], create=True, timeout=20)
            raise SystemExit("opened")
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.ENOMEM), error
        print(os.listdir("/dev/shm"))
    """
    out = run_in_namespace(f"mount -t tmpfs -o size={size} none /dev/shm", program, log_path)
    assert out.strip() == "[]", "nothing half made is left"
    with shmlog.open(log_path) as log:
        log.append(b"elsewhere it works", durable=True)


@needs_namespaces
def test_a_dev_shm_of_another_container_is_refused_while_the_log_is_in_use(log_path: Path) -> None:
    program = """
        import sys
        import shmlog
        try:
            shmlog.open(sys.argv[1])
            raise SystemExit("opened")
        except shmlog.AttachError as error:
            print(error)
    """
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        out = run_in_namespace("mount -t tmpfs none /dev/shm", program, log_path)
        assert "another container" in out
        log.append(b"y", durable=True)


@needs_namespaces
def test_a_full_disk_refuses_a_cursors_commit_and_keeps_its_place(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    program = """
        import errno, os, sys
        import shmlog
        root = sys.argv[1]
        with shmlog.open(root + "/log", create=True, segment_bytes=65536) as log:
            lsns = [log.append(b"x" * 100) for _ in range(50)]
            log.wait_committed()
            with log.cursor("old") as cursor:
                cursor.commit(lsns[10])
                fd = os.open(root + "/ballast", os.O_CREAT | os.O_RDWR)
                try:
                    while True:
                        os.write(fd, bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                try:
                    cursor.commit(lsns[20])
                    place = lsns[20]  # its file had room
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    place = lsns[10]
                assert cursor.lsn == place
            try:
                log.cursor("new").close()
                raise SystemExit("made")
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
            os.ftruncate(fd, 0)
            with log.cursor("old") as cursor, log.cursor("new") as new:
                assert cursor.lsn == place and new.lsn == 0
                cursor.commit(lsns[30])
        print("kept")
    """
    assert run_in_namespace(f"mount -t tmpfs -o size=2m none {small}", program, small) == "kept\n"


def test_a_flusher_with_a_file_size_limit_reports_it_to_writers(log_path: Path) -> None:
    """RLIMIT_FSIZE: EFBIG instead of ENOSPC, and no SIGXFSZ kills the flusher."""

    def flush(wire: Wire) -> int:
        from shmlog.session import sidecar

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT_BYTES // 2, resource.RLIM_INFINITY))
        return sidecar.run(str(log_path), 0.01, 0o600, False)

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with shmlog.open(log_path, flusher="external") as log:
        with Child(flush) as child:
            lsns = []
            with pytest.raises(shmlog.LogFullError, match="File too large"):
                while True:
                    lsns.append(log.append(payload(1, len(lsns), 5000), timeout=20))
            assert len(lsns) > 5, "the first segment was there already"
            child.signal(signal.SIGTERM)
            assert child.result() == 0
        with flusher_of(log_path) as process:
            lsns.append(log.append(payload(1, len(lsns), 5000), durable=True, timeout=30))
            check_records(log, {1: lsns})
            log.close()
            process.terminate()
            assert process.wait(30) == 0


def _cut(path: Path) -> None:
    oldest = min((path / "segments").glob("*.seg"))
    os.truncate(oldest, SEGMENT_HEADER_BYTES)


def _write_into_cut_segment(wire: Wire, path: Path) -> tuple[str, str]:
    log = shmlog.open(path, timeout=0.5)
    log.append(bytes(50_000), timeout=30)
    wire.say("mapped")
    wire.hear()
    outcomes = []
    for call in (lambda: [log.append(bytes(50_000), timeout=5) for _ in range(100)], log.close):
        try:
            call()
            outcomes.append("returned")
        except (shmlog.ShmlogError, OSError) as error:
            outcomes.append(type(error).__name__)
    return outcomes[0], outcomes[1]


def _cut_under_a_writer(log_path: Path) -> tuple[str, str]:
    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        log.append(b"served", durable=True)  # else a flusher would open what is cut already
        with Child(_write_into_cut_segment, log_path) as child:
            child.hear()
            _cut(log_path)
            child.say("go on")
            outcomes: tuple[str, str] = child.result()
        with pytest.raises(shmlog.LogFailedError):
            log.append(b"x" * 1000, timeout=5)
    return outcomes


@pytest.mark.holds("G3")
def test_a_segment_cut_under_a_writer_fails_the_log_and_kills_nobody(log_path: Path) -> None:
    assert _cut_under_a_writer(log_path)[0] == "LogFailedError"


def test_a_handle_whose_segment_was_cut_can_be_closed(log_path: Path) -> None:
    assert _cut_under_a_writer(log_path)[1] == "returned"


def test_a_segment_cut_under_a_reader_is_corruption_and_kills_nobody(log_path: Path) -> None:
    def read(wire: Wire) -> str:
        with shmlog.open_readonly(log_path) as log:
            records = log.read()
            next(records)
            batches = log.read_batches(records=1)
            next(batches)
            wire.say("mapped")
            wire.hear()
            try:
                for batch in log.read_batches():
                    bytes(batch[0].data)
            except shmlog.ShmlogError as error:
                return type(error).__name__
            return "read"

    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        lsns = append_some(log, 1, 200)
        log.wait_durable()
    with Child(read) as child:
        child.hear()
        _cut(log_path)
        child.say("go on")
        assert child.result() in ("CorruptionError", "FormatError")
    assert lsns


def test_a_view_of_a_segment_that_was_cut_reads_as_zeros_and_kills_nobody(log_path: Path) -> None:
    def look(wire: Wire) -> int:
        with shmlog.open_readonly(log_path) as log:
            (record,) = log.read()
            wire.say("mapped")
            wire.hear()
            return len(bytes(record.data))

    with shmlog.open(log_path, create=True, segment_bytes=1 << 20) as log:
        log.append(b"v" * 100_000, durable=True)
    with Child(look) as child:
        child.hear()
        _cut(log_path)
        child.say("look")
        assert child.result() == 100_000


@pytest.mark.parametrize("fault", ["cut", "zeroed"])
@pytest.mark.holds("F3")
def test_a_damaged_control_block_never_costs_a_record(log_path: Path, fault: str) -> None:
    def use(wire: Wire) -> None:
        log = shmlog.open(log_path, timeout=2)
        wire.say(append_some(log, 0, 300))
        log.wait_durable()
        wire.say("durable")
        wire.hear()
        with contextlib.suppress(shmlog.ShmlogError, OSError):
            log.append(bytes(100), timeout=1)
        with contextlib.suppress(shmlog.ShmlogError, OSError):
            log.close()

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(use) as child:
        lsns = child.hear()
        assert child.hear() == "durable"
        size = block_path(log_path).stat().st_size
        os.truncate(block_path(log_path), 0)
        if fault == "zeroed":
            os.truncate(block_path(log_path), size)
        child.say("go on")
        child.result()
    until(lambda: not any(is_alive(pid) for pid in flusher_pids(log_path)), "the flusher gives up")
    with shmlog.open(log_path) as log:
        check_records(log, {0: lsns})


def test_a_control_block_cut_under_its_users_fails_and_kills_nobody(log_path: Path) -> None:
    def use(wire: Wire) -> str:
        log = shmlog.open(log_path, flusher="external", timeout=1)
        log.append(b"x")
        wire.say("attached")
        wire.hear()
        try:
            for _ in range(1000):
                log.append(bytes(1000), timeout=1)
        except (shmlog.ShmlogError, OSError) as error:
            return type(error).__name__
        return "appended"

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with flusher_of(log_path) as flusher:
        with Child(use) as child:
            child.hear()
            os.truncate(block_path(log_path), 0)
            child.say("go on")
            assert child.hear() != "appended"
            assert child.wait() == 0
        assert flusher.poll() is None or flusher.returncode >= 0, "no signal"
        flusher.kill()
    until(lambda: not any(is_alive(pid) for pid in flusher_pids(log_path)))
    lose_shared_memory(log_path)
