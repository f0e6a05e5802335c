"""The flusher's open segments, where the file system answers badly."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from shmlog.disk import directory
from shmlog.flusher.open_segments import OpenSegments
from shmlog.format.marks import Mark
from shmlog.tools.create import create


def test_a_segment_that_cannot_be_looked_at_is_not_taken_for_missing(log_path: Path) -> None:
    """It was: then an empty file was made over its records, or files were trimmed unmarked."""
    create(log_path, 1 << 16, 1 << 16, 0o600)
    segments = OpenSegments(directory.load(str(log_path)), 0o600)
    assert not segments.exists(0)
    log_path.joinpath("segments").rmdir()
    log_path.joinpath("segments").symlink_to("segments")  # ELOOP
    with pytest.raises(OSError, match="symbolic links"):
        segments.exists(0)


def test_a_segment_opened_while_those_to_close_are_looked_for_ends_nobody(log_path: Path) -> None:
    """By another thread, which gets its turn when the collector runs: here the collector opens it."""
    create(log_path, 1 << 16, 1 << 16, 0o600)
    segments = OpenSegments(directory.load(str(log_path)), 0o600)
    mark = Mark(
        epoch=1, durable_lsn=0, sequence=1, trimmed_lsn=0, clean=False, origin=segments.origin(bytes(16))
    )
    segments.get_or_create(0, mark)
    opened = iter(range(1, 40))

    def open_one(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and (number := next(opened, None)):
            segments.get_or_create(number << 16, mark)

    thresholds = gc.get_threshold()
    gc.callbacks.append(open_one)
    gc.set_threshold(1)
    try:
        for _ in range(200):
            segments.close_below(0)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(open_one)
    assert next(opened, None) is None, "the collector ran"
    segments.close_below(40 << 16)
    assert segments.opened(0) is None
