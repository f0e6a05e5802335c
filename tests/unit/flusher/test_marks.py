"""What the flusher writes into a mark, when the control block has been overwritten."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import lose_shared_memory

import shmlog
from shmlog.disk import directory
from shmlog.flusher.open_segments import OpenSegments
from shmlog.flusher.syncing import Syncer
from shmlog.format.layout import CB, ROLE_SIDECAR
from shmlog.session.attachment import attach
from shmlog.system import files


@pytest.mark.holds("S4")
@pytest.mark.parametrize(
    ("word", "write"),
    [
        *[(word, lambda syncer: syncer.sync_mark(clean=False)) for word in ("TRIMMED_LSN", "DURABLE_LSN")],
        *[(word, lambda syncer: syncer.sync(4096)) for word in ("TRIMMED_LSN", "COMMITTED_LSN")],
    ],
    ids=["mark, trimmed", "mark, durable", "sync, trimmed", "sync, committed"],
)
def test_no_mark_is_written_from_watermarks_that_are_out_of_order(
    log_path: Path, word: str, write: Callable[[Syncer], None]
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=64 << 10) as log:
        log.append(b"durable", durable=True)
    where, boot = directory.load(str(log_path)), files.boot_id()
    joined = attach(where, 0o600, ROLE_SIDECAR, time.monotonic() + 10)
    segments = OpenSegments(where, 0o600)
    (path,) = (log_path / "segments").glob("*.seg")
    before = path.read_bytes()
    try:
        syncer = Syncer(joined.control, segments, where.identity.geometry, boot, 1.0)
        joined.control.native.store(vars(CB)[word], 1 << 62)
        with pytest.raises(shmlog.LogFailedError, match="damaged"):
            write(syncer)
    finally:
        segments.close()
        joined.lock.close()
        lose_shared_memory(log_path)
    assert path.read_bytes() == before
