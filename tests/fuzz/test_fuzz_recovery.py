"""Hostile directories meet recovery and everything that looks at a dead log: what was kept, and
a few of those that the recipe makes by the thousand."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from fuzz import recovering
from fuzz.hostile import Change
from fuzz.recovering import Judge, Progress

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

KEPT = Path(__file__).resolve().parent / "corpus" / "directories"
TURNS = 80
SEED = 20260101


def test_hostile_directories_end_in_a_typed_error_or_in_what_was_written(tmp_path: Path) -> None:
    progress, known = Progress(), recovering.renamed(recovering.models(), os.getpid())
    status = recovering.child(known, SEED, range(TURNS), tmp_path, progress)
    assert status == 0, f"turn {progress['at']}: {progress.text()}"
    assert min(progress["accepted"], progress["refused"]) > TURNS // 10


def test_directories_that_were_kept_are_judged_again(tmp_path: Path) -> None:
    model = recovering.models()[0]
    for kept in sorted(KEPT.glob("*.tar.xz")):
        for number, seen in enumerate(recovering.SEEN):
            at = tmp_path / f"{kept.stem}-{number}"
            with tarfile.open(kept) as archive:
                archive.extractall(at, filter="fully_trusted")
            here = seen(recovering.Lenient(at / "log").newest_mark().origin)
            with recovering.seen_from(here):
                Judge(at / "log", Change.kept(model), here).run(opened=True)


def test_the_judge_sees_a_record_that_nobody_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recovering.recovery.Walker.walk

    def credulous(self: object, begin: int, stop: int) -> object:
        found = real(self, begin, stop)  # type: ignore[arg-type]
        return type(found)(stop, stop, type(found.problem)(0), found.records)

    monkeypatch.setattr(recovering.recovery.Walker, "walk", credulous)
    known = recovering.renamed(recovering.models(), os.getpid())
    with pytest.raises(recovering.Violation):
        for turn in range(20):
            recovering.judge_turn(known, SEED, turn, tmp_path)
