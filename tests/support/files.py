"""Files: a log's directory copied or removed while its flusher works there.

The flusher makes the next segment under another name and renames it, at any moment: a
name that was listed may be gone, and a directory that was emptied may not stay empty.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from support.processes import until


def _copy_file(source: str, target: str) -> str:
    with contextlib.suppress(FileNotFoundError):  # half made when it was listed
        shutil.copy2(source, target)
    return target


def copy_live(source: Path, target: Path) -> None:
    """Copy a log's directory as `cp -r` does, whatever its flusher renames meanwhile."""
    shutil.copytree(source, target, copy_function=_copy_file)


def remove_live(path: Path) -> None:
    """Remove a log's directory, whatever its flusher makes in it meanwhile."""

    def gone() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    until(gone, f"{path} is gone")
