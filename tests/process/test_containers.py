"""Containers: other mounts, /dev/shm, pids and file systems than a log's other users have.
Refused, or correct; never two control blocks for one log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.namespaces import needs_namespaces, run_in_namespace
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    assert_healthy,
    block_path,
    check_records,
    payload,
)

import shmlog

pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"), needs_namespaces]

WORK = """
    import sys
    import shmlog
    from support.processes import append_some, check_records, assert_healthy, kill_flusher
    path = sys.argv[1]
    with shmlog.open(path, create=True, segment_bytes=65536, timeout=30) as log:
        lsns = append_some(log, 1, 200)
        log.wait_durable()
        kill_flusher(log)
        lsns += append_some(log, 1, 200, first=200, seed=1)
        check_records(log, {1: lsns})
        assert_healthy(log)
        log.trim(lsns[-1])
        with log.cursor("c") as cursor:
            cursor.commit(lsns[-1])
    with shmlog.open(path) as log:
        assert log.recovery.case.value == "clean", log.recovery
        assert_healthy(log)
    assert shmlog.verify(path).ok
    print("whole")
"""


@pytest.mark.parametrize(
    "shm", ["missing", *(pytest.param(shm, marks=pytest.mark.crash) for shm in ("read-only", "a file"))]
)
def test_a_dev_shm_that_cannot_be_used_is_an_os_error_that_names_what_is_wrong(
    log_path: Path, shm: str
) -> None:
    dev = "mknod -m 666 /dev/null c 1 3; ln -s /proc/self/fd /dev/fd"
    mounts = {
        "missing": f"mount -t tmpfs none /dev; {dev}",
        "read-only": "mount -t tmpfs -o ro none /dev/shm",
        "a file": f"mount -t tmpfs none /dev; {dev}; touch /dev/shm",
    }[shm]
    program = """
        import sys
        import shmlog
        for _ in range(2):
            try:
                shmlog.open(sys.argv[1], create=True, timeout=5)
                raise SystemExit("opened")
            except OSError as error:
                print(type(error).__name__, error)
        if sys.argv[2] != "a file":
            with shmlog.open_readonly(sys.argv[1]) as log:
                assert not list(log.read())
    """
    out = run_in_namespace(mounts, program, log_path, shm)
    assert len(out.splitlines()) == 2 and "Error" in out
    with shmlog.open(log_path) as log:
        assert_healthy(log, 10)


def test_a_dev_shm_that_others_fill_later_stops_nobody_who_is_in(tmp_path: Path) -> None:
    program = """
        import errno, os, sys
        import shmlog
        from support.processes import append_some, check_records, Child, kill_flusher
        path = sys.argv[1]
        with shmlog.open(path, create=True, segment_bytes=65536, window_bytes=65536) as log:
            log.append(b"", 0)
            fd = os.open("/dev/shm/ballast", os.O_CREAT | os.O_RDWR)
            try:
                while True:
                    os.write(fd, bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            def join(wire):
                with shmlog.open(path) as other:
                    return append_some(other, 2, 300)
            with Child(join) as child:
                lsns = {1: append_some(log, 1, 300), 2: child.result()}
            kill_flusher(log)
            lsns[1] += append_some(log, 1, 300, first=300, seed=1)
            log.wait_durable(timeout=30)
            log.trim(32)
        print("durable")
    """
    out = run_in_namespace("mount -t tmpfs -o size=2m none /dev/shm", program, tmp_path / "log")
    assert out == "durable\n"


def test_a_log_bound_to_a_second_place_is_one_log_with_one_block(log_path: Path, tmp_path: Path) -> None:
    """A bind mount has another path and the same files."""
    bound = tmp_path / "bound"
    bound.mkdir()
    program = """
        import sys
        import shmlog
        from support.processes import append_some, shared_names
        with shmlog.open(sys.argv[1]) as log:
            lsns = append_some(log, 2, 300)
            log.wait_durable()
            print(*lsns)
        assert len(shared_names(sys.argv[1])) == 3
    """
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        mine = [log.append(payload(1, 0, 100))]
        theirs = run_in_namespace(f"mount --bind {log_path} {bound}", program, bound)
        mine.append(log.append(payload(1, 1, 100), durable=True))
        check_records(log, {1: mine, 2: [int(lsn) for lsn in theirs.split()]})
        assert_healthy(log)


def test_processes_of_two_pid_namespaces_share_a_log_and_repair_each_others_holes(log_path: Path) -> None:
    """A pid of one names somebody else, or nobody, in the other: only locks tell who lives."""
    program = """
        import os, sys
        import shmlog
        from support.processes import append_some, Child
        path = sys.argv[1]
        def die(wire):
            log = shmlog.open(path)
            hold = log.reserve(1000)
            os._exit(0)
        assert os.getpid() < 100
        with shmlog.open(path) as log:
            lsns = append_some(log, 2, 50)
            with Child(die) as child:
                child.wait()
            lsns += append_some(log, 2, 50, first=50, seed=1)
            log.wait_durable(timeout=30)
            print(*lsns, flush=True)
        log = shmlog.open(path)
        hold = log.reserve(1000)  # and dies with its whole namespace
        os._exit(0)
    """
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        mine = [log.append(payload(1, 0, 100), durable=True)]
        pids = ("--pid", "--fork", "--mount-proc")
        theirs = run_in_namespace("true", program, log_path, unshare=pids)
        mine.append(log.append(payload(1, 1, 100)))
        log.wait_committed(mine[-1], 30)
        check_records(log, {1: mine, 2: [int(lsn) for lsn in theirs.split()]})
        assert log.statistics().holes_filled == 2
        assert_healthy(log)


@pytest.mark.crash
def test_two_containers_without_a_common_dev_shm_never_write_one_log_at_once(log_path: Path) -> None:
    """Whoever comes second is refused; when the first has gone, it is a clean log to the second."""
    program = """
        import os, sys
        import shmlog
        path, expected = sys.argv[1:]
        assert not [name for name in os.listdir("/dev/shm") if "shmlog-" in name]
        try:
            with shmlog.open(path, timeout=5) as log:
                log.append(b"second", durable=True)
                print(log.recovery.case.value)
        except shmlog.AttachError as error:
            assert "another container" in str(error), error
            print("refused")
        assert not [name for name in os.listdir("/dev/shm") if "shmlog-" in name]
    """
    own = "mount -t tmpfs none /dev/shm"
    pids = ("--pid", "--fork", "--mount-proc")

    def stand(wire: Wire) -> None:
        with shmlog.open(log_path) as log:
            log.append(b"first", durable=True)
            wire.say("open")
            wire.hear()

    shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES).close()
    with Child(stand) as first:
        first.hear()
        for unshare in ((), pids):
            assert run_in_namespace(own, program, log_path, "refused", unshare=unshare) == "refused\n"
        assert block_path(log_path).exists()
        first.say("close")
        first.result()
    assert run_in_namespace(own, program, log_path, "clean", unshare=pids) == "clean\n"
    with shmlog.open(log_path) as log:
        assert [bytes(record.data) for record in log.read()] == [b"first", b"second"]


def _overlay(root: Path) -> str:
    layers = " ".join(str(root / name) for name in ("lower", "upper", "work", "merged"))
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    return f"mount -t tmpfs none {root}; mkdir {layers}; mount -t overlay -o {options} none {root}/merged"


@pytest.mark.crash
@pytest.mark.parametrize("system", ["tmpfs", "overlay"])
def test_a_log_on_another_file_system_does_all_that_it_should(tmp_path: Path, system: str) -> None:
    mounts = f"mkdir {tmp_path}/merged; mount -t tmpfs none {tmp_path}/merged"
    out = run_in_namespace(
        _overlay(tmp_path) if system == "overlay" else mounts, WORK, f"{tmp_path}/merged/log"
    )
    assert out == "whole\n"


@pytest.mark.crash
def test_a_log_in_a_lower_layer_is_copied_up_and_its_original_is_untouched(tmp_path: Path) -> None:
    """What a container image with a log in it is: opening it makes the files others, once."""
    program = """
        import pathlib, shutil, sys
        import shmlog
        from support.processes import append_some, assert_healthy
        root = sys.argv[1]
        shutil.copytree(sys.argv[2], root + "/lower/log")
        def contents():
            found = pathlib.Path(root, "lower").rglob("*")
            return {path: path.read_bytes() for path in found if path.is_file()}
        before = contents()
        for first in (20, 40):
            with shmlog.open(root + "/merged/log") as log:
                append_some(log, 1, 20, first=first, seed=first)
                assert_healthy(log)
                assert sum(1 for record in log.read() if record.tag == 1) == first + 20
        assert contents() == before
        print("whole")
    """
    original = tmp_path / "original"
    layers = tmp_path / "layers"
    layers.mkdir()
    with shmlog.open(original, create=True, segment_bytes=SEGMENT_BYTES) as log:
        for n in range(20):
            log.append(payload(1, n, 100), 1)
    assert run_in_namespace(_overlay(layers), program, layers, original) == "whole\n"


def test_a_dead_writers_pid_that_is_somebody_elses_by_now_changes_nothing(log_path: Path) -> None:
    """The pid of a dead writer and of a dead flusher is given to a living process."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    program = """
        import os, signal, sys
        import shmlog
        from support.processes import append_some, Child, flusher_pid, kill_flusher
        path, last = sys.argv[1:]

        def hold(wire):
            log = shmlog.open(path, flusher="external")
            reservation = log.reserve(1000)
            wire.say(reservation.lsn)
            wire.hear()

        def again(pid):
            '''A living process that has this pid.'''
            for _ in range(100):
                with open(last, "w") as file:
                        file.write(str(pid - 1))
                other = Child(lambda wire: wire.hear())
                if other.pid == pid:
                    return other
                other.__exit__(None, None, None)
            raise SystemExit(f"pid {pid} could not be had again")

        with shmlog.open(path, create=True, segment_bytes=65536) as log:
            with Child(hold) as child:
                hole = child.hear()
                above = log.append(b"above")
                kill_flusher(log)
                child.kill()
                with again(child.pid):
                    log.wait_durable(above, timeout=30)
                    assert [record.lsn for record in log.read()] == [above]
                    assert log.statistics().holes_filled == 1
                    dead = kill_flusher(log)
                    os.waitpid(dead, 0)  # we are init here, and a zombie keeps its pid
                    with again(dead) as other:
                        lsn = log.append(b"more", durable=True, timeout=30)
                        assert flusher_pid(log) != dead
                        os.kill(other.pid, 0)
                        assert lsn > above
        print("fine")
    """
    if not os.access(last, os.W_OK):
        pytest.skip("this kernel does not let a pid be chosen")
    pids = ("--pid", "--fork", "--mount-proc")
    assert run_in_namespace("true", program, log_path, last, unshare=pids) == "fine\n"
