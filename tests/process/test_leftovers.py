"""Leftovers: what logs left in /dev/shm goes only if nobody can be using it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    append_some,
    assert_healthy,
    block_path,
    check_records,
    flusher_of,
    kill_everybody,
    lose_shared_memory,
    shared_names,
    until,
)

import shmlog
from shmlog.format.layout import CB
from shmlog.tools import leftovers
from shmlog.tools.leftovers import Leftover


def _of(path: Path, remove: bool = False) -> list[Leftover]:
    """Asked for by its name, so that no other test's log is touched."""
    return leftovers.leftovers([block_path(path).name], remove)


def _unsettled(path: Path) -> dict[int, list[int]]:
    """A log whose users were all killed before its last records were durable."""

    def write(wire: Wire) -> None:
        log = shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES, sync_interval=60.0)
        lsns = append_some(log, 1, 5)
        wire.say(lsns)
        wire.hear()

    with Child(write) as child:
        lsns = child.hear()
        kill_everybody(path, [child])
    return {1: lsns}


@pytest.mark.holds("Y8")
@pytest.mark.parametrize("how", ["a handle", "a look", "a flusher"])
def test_a_block_is_never_removed_while_somebody_has_it_mapped(log_path: Path, how: str) -> None:
    lsns = _unsettled(log_path)
    with ExitStack() as using:
        if how == "a handle":
            using.enter_context(shmlog.open(log_path, flusher="external"))
        elif how == "a look":
            using.enter_context(shmlog.open_readonly(log_path))
        else:
            using.enter_context(flusher_of(log_path))
        (found,) = _of(log_path, remove=True)
        assert (found.state, found.removed, len(found.names)) == ("used", False, 3)
        assert len(shared_names(log_path)) == 3
    with shmlog.open(log_path) as log:
        assert log.recovery is None, "the block has survived"
        check_records(log, lsns)


@pytest.mark.holds("Y9")
def test_what_a_block_alone_knows_goes_only_by_its_name_and_costs_no_record(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lsns = _unsettled(log_path)
    name = block_path(log_path).name
    own = {name: [path.name for path in sorted(shared_names(log_path), key=lambda path: path.name == name)]}
    with monkeypatch.context() as patch:  # as if no other log were on this machine
        patch.setattr(leftovers, "_names", lambda: own)
        (found,) = leftovers.leftovers(remove=True)
    assert (found.state, found.removed) == ("unsettled", False)
    assert found.why.startswith("durable up to 0 of ")
    assert _of(log_path)[0].removed is False, "it is listed, no more"
    assert _of(log_path, remove=True)[0].removed
    assert not shared_names(log_path)
    with shmlog.open(log_path) as log:
        assert log.recovery is not None
        check_records(log, lsns)


def test_semaphores_whose_block_is_gone_are_removed(log_path: Path) -> None:
    _unsettled(log_path)
    block_path(log_path).unlink()
    (found,) = _of(log_path, remove=True)
    assert (found.state, found.removed, len(found.names)) == ("unused", True, 2)
    assert not shared_names(log_path)


def test_semaphores_that_a_handle_has_open_stay_though_their_block_lost_its_name(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        block = block_path(log_path)
        kept = block.with_suffix(".kept")
        block.rename(kept)
        try:
            (found,) = _of(log_path, remove=True)
            assert (found.state, found.removed) == ("used", False)
            assert not block.exists(), "nor is a block left that was made for the purpose"
        finally:
            kept.rename(block)
        assert_healthy(log)


@pytest.mark.holds("M3")
def test_who_opens_a_block_that_is_being_removed_waits_and_then_takes_it_for_missing(log_path: Path) -> None:
    lsns = _unsettled(log_path)

    def open_it(wire: Wire) -> bool:
        wire.say("here")
        with shmlog.open(log_path) as log:
            check_records(log, lsns)
            assert_healthy(log)
            return log.recovery is not None

    import fcntl

    with ExitStack() as held:
        fds = [held.enter_context(leftovers._lease(path.name)) for path in shared_names(log_path)]
        child = held.enter_context(Child(open_it))
        assert child.hear() == "here"

        def waits() -> bool:
            return any(fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK for fd in fds)

        until(waits, "the child waits for the lease")
        lose_shared_memory(log_path)
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert child.result() is True


def test_a_block_of_another_build_that_nobody_uses_is_a_leftover(log_path: Path) -> None:
    _unsettled(log_path)
    with block_path(log_path).open("r+b") as file:
        file.seek(CB.MAGIC)
        file.write(bytes(8))
    assert _of(log_path)[0].state == "unused"
    lose_shared_memory(log_path)


def test_names_that_are_not_of_this_shape_are_left_alone(tmp_path: Path) -> None:
    other = Path("/dev/shm", f"shmlog-0123456789abcdef-{os.getpid()}")
    other.touch()
    try:
        assert all(other.name not in found.names for found in leftovers.leftovers())
    finally:
        other.unlink()
