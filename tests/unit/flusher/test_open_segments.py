"""The flusher's open segments, where the file system answers badly."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmlog.disk import directory
from shmlog.flusher.open_segments import OpenSegments
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
