"""Kept: a state that broke a promise, in a file, to be seen again.

This module knows what is needed to check a state once more.  It may not know how it came to be.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from crash.power.lives import in_one_place
from crash.power.model import Image, write
from crash.power.promises import Promises, Violation, check


@dataclass
class Kept:
    """What a power cut left, and what should have been kept."""

    image: Image
    promises: Promises
    boot_id: bytes
    story: str
    problem: str

    def save(self, where: Path, name: str) -> None:
        where.mkdir(parents=True, exist_ok=True)
        _file(where, name).write_bytes(pickle.dumps(self))


def replay(where: Path, name: str, scratch: Path) -> tuple[str, str | None]:
    """Check a kept state once more: its story, and what is wrong with it, if anything still is."""
    kept: Kept = pickle.loads(_file(where, name).read_bytes())
    write(kept.image, scratch)
    try:
        with in_one_place():
            check(scratch / "log", kept.promises, kept.boot_id)
    except Violation as problem:
        return kept.story, str(problem)
    return kept.story, None


def _file(where: Path, name: str) -> Path:
    return where / f"{name.replace(':', '-')}.state"
