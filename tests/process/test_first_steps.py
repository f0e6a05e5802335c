"""First steps: what goes wrong for a newcomer says what to do instead."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.files import remove_live
from support.processes import SEGMENT_BYTES, until

import shmlog
from shmlog.memory import participants


@pytest.mark.parametrize("tags", ["x", b"x", 1.5, [1, "x"], [[1], [2]], {None}])
def test_tags_that_are_none_are_told_what_is_taken(log_path: Path, tags: Any) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", 1, durable=True)
        for use in (
            lambda: log.read_batches(tag=tags),
            lambda: log.read(tags=tags),
            lambda: log.tail(tags=tags),
        ):
            with pytest.raises(TypeError, match="an int, or a range, set or list of ints"):
                next(iter(use()))
        assert [len(batch) for batch in log.read_batches(tag=[1, 2])] == [1]


@pytest.mark.parametrize("make", ["open", "create"])
def test_a_missing_parent_directory_is_named(tmp_path: Path, make: str) -> None:
    path = tmp_path / "nowhere" / "log"
    with pytest.raises(FileNotFoundError, match="no such directory to make it in") as caught:
        if make == "open":
            shmlog.open(path, create=True)
        else:
            from shmlog.tools.create import create

            create(path, None, None, 0o600)
    assert caught.value.filename == str(path.parent)
    assert not path.parent.exists()


def test_a_record_cannot_be_pickled_and_says_how_to_send_it(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"payload", 3, durable=True)
        (record,) = log.read()
        with pytest.raises(TypeError, match=r"bytes\(record.data\)"):
            pickle.dumps(record)
        own = record._replace(data=bytes(record.data))  # type: ignore[arg-type]
        assert pickle.loads(pickle.dumps(own)) == own
        assert pickle.loads(pickle.dumps(own)).next_lsn == record.next_lsn
        assert copy.copy(record) is record


def test_a_clone_whose_core_is_not_compiled_says_how_to_compile_it(tmp_path: Path) -> None:
    package = Path(shmlog.__file__).parent
    shutil.copytree(package, tmp_path / "shmlog", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for use in ("import shmlog; shmlog.open('x')", "from shmlog.cli.main import main; main(['cat', '.'])"):
        code = f"import sys; sys.meta_path = [at for at in sys.meta_path if 'itable' not in repr(at)]; {use}"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: shmlog's compiled core is not in")
        assert "`make native`" in last


def test_a_table_that_is_full_is_an_attach_error_of_the_public_kind(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shmlog.open(log_path, create=True).close()
    with shmlog.open(log_path):
        monkeypatch.setattr(participants, "PARTICIPANT_COUNT", participants.FLUSHER_SLOTS + 1)
        with pytest.raises(shmlog.AttachError, match=f"{log_path}: all 1 participant slots") as caught:
            shmlog.open(log_path, timeout=0.3)
        assert type(caught.value) is shmlog.AttachError


@pytest.mark.holds("S5")
def test_a_log_whose_directory_was_removed_acknowledges_nothing_more(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        log.append(b"x", durable=True)
        remove_live(log_path)
        with pytest.raises(shmlog.LogFailedError, match="No such file or directory") as caught:
            log.append(b"y", durable=True)
        assert caught.value.lsn == 64
        with pytest.raises(shmlog.LogFailedError):
            log.append(b"z")


def test_a_log_that_is_removed_fails_within_its_sync_interval_though_nobody_waits(log_path: Path) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"x", durable=True)
        remove_live(log_path)
        log.append(b"y")
        until(lambda: log.statistics().failed, "the flusher has noticed")
