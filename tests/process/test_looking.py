"""Looking at another user's log: for root, and for a group that its mode lets in; no more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import arrow
from support.processes import Child, Wire, block_path, shared_names, until

import shmlog
from shmlog.errors import FormatError
from shmlog.tools import info
from shmlog.tools.doctor import examine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to another user")

OWNER, STRANGER, GROUP = 65534, 65533, 65432


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A log's place that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="shmlog-looking-") as root:
        os.chmod(root, 0o755)
        yield Path(root, "log")


def _give(path: Path, user: int, group: int, mode: int) -> None:
    """What a log of this user's would be, had it been made with this mode."""
    names = [path, *(name for name in path.rglob("*") if name.suffix != ".tmp"), *shared_names(path)]
    for name in names:
        os.chown(name, user, group)
        if name.name != "LOCK":  # it is nobody else's, whatever the mode
            name.chmod(mode | (mode & 0o444) >> 2 if name.is_dir() else mode)


def _as(user: int, groups: list[int], do: Callable[[], Any]) -> Any:
    def become(_: Wire) -> Any:
        os.setgroups(groups)
        os.setgid(user)
        os.setuid(user)
        return do()

    with Child(become) as child:
        return child.result()


def _look(path: Path) -> list[bytes]:
    with shmlog.open_readonly(path) as log:
        found = [bytes(record.data) for record in log.read()]
        assert log.statistics().durable_lsn == log.durable_lsn
        assert shmlog.verify(path).records == len(found)
        assert len(arrow.rows(log.scan())) == len(found)
        assert info.describe(str(path))["committed_lsn"] == log.committed_lsn
        assert not [check for check in examine(path) if check.verdict == "wrong"]
        assert [cursor.name for cursor in log.cursors()] == ["etl"]
        return found


@pytest.mark.parametrize("live", [True, False])
def test_root_and_a_group_that_the_mode_lets_in_may_look_and_nobody_else(open_path: Path, live: bool) -> None:
    log = shmlog.open(open_path, create=True, mode=0o640)
    try:
        log.append(b"x", durable=True)
        log.cursor("etl").close()
        until(lambda: len(list(open_path.glob("segments/*.seg"))) >= 1, "the first one is made")
        if not live:
            log.close()
        _give(open_path, OWNER, GROUP, 0o640)
        assert _look(open_path) == [b"x"], "root"
        assert _as(STRANGER, [GROUP], lambda: _look(open_path)) == [b"x"]
        for group in ([], [GROUP + 1]):
            with pytest.raises(PermissionError, match="not to 65533 or a group of theirs"):
                _as(STRANGER, group, lambda: _look(open_path))
        for user in (STRANGER, 0):
            with pytest.raises(PermissionError, match="belongs to user 65534"):
                _as(user, [GROUP], lambda: shmlog.open(open_path).close())
        _give(open_path, OWNER, GROUP, 0o600)
        with pytest.raises(PermissionError, match="its group may not look into it"):
            _as(STRANGER, [GROUP], lambda: _look(open_path))
    finally:
        _give(open_path, 0, 0, 0o600)
        log.close()


@pytest.mark.parametrize("name", ["LOCK", "segments/00000000000000000000.seg", "cursors/etl", "segments"])
def test_a_file_in_another_users_log_that_is_not_theirs_is_refused_to_root(
    open_path: Path, name: str
) -> None:
    with shmlog.open(open_path, create=True) as log:
        log.append(b"x")
        log.cursor("etl").close()
    _give(open_path, OWNER, OWNER, 0o600)
    os.chown(open_path / name, 0, 0)

    def look() -> None:
        with shmlog.open_readonly(open_path) as log:
            list(log.read())
            log.cursors()

    with pytest.raises(PermissionError, match="belongs to user 0, not to 65534"):
        look()


def test_a_control_block_that_is_not_the_owners_is_refused_to_root(open_path: Path) -> None:
    with shmlog.open(open_path, create=True) as log:
        log.append(b"x", durable=True)
        until(lambda: len(list(open_path.glob("segments/*.seg"))) >= 1, "the first one is made")
        _give(open_path, OWNER, OWNER, 0o600)
        os.chown(block_path(open_path), STRANGER, STRANGER)
        with pytest.raises(shmlog.AttachError, match="belongs to user 65533, not to 65534"):
            shmlog.open_readonly(open_path)
        _give(open_path, 0, 0, 0o600)


def test_a_group_that_may_not_read_the_control_block_is_told_so(open_path: Path) -> None:
    with shmlog.open(open_path, create=True, mode=0o640) as log:
        log.append(b"x", durable=True)
        _give(open_path, OWNER, GROUP, 0o640)
        os.chown(block_path(open_path), OWNER, GROUP + 1)
        with pytest.raises(shmlog.AttachError, match="may not be read by user 65533"):
            _as(STRANGER, [GROUP], lambda: shmlog.open_readonly(open_path).close())
        _give(open_path, 0, 0, 0o600)


def test_a_link_in_another_users_log_is_refused_to_root(open_path: Path) -> None:
    with shmlog.open(open_path, create=True) as log:
        log.append(b"x")
    _give(open_path, OWNER, OWNER, 0o600)
    (open_path / "segments").rename(open_path / "aside")
    (open_path / "segments").symlink_to("aside")
    with pytest.raises(FormatError, match="segments is a symbolic link"):
        shmlog.open_readonly(open_path)
