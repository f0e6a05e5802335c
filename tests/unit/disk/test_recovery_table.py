"""The table of recovery: complete, without contradiction, and the one that the design shows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shmlog.disk import cases
from shmlog.disk.cases import Above, Case, judge
from shmlog.format.origin import Since

DESIGN = Path(__file__).parents[3] / "docs/explanation/design.md"


BOTH = (False, True)


@pytest.mark.holds("J1")
def test_every_combination_of_facts_is_one_row_and_no_other() -> None:
    seen = set()
    for facts in itertools.product(BOTH, BOTH, BOTH, Since, Above):
        (row,) = cases.matching(*facts)
        seen.add(row)
    assert seen == set(cases.ROWS), "a row that nothing comes to"


def test_every_case_has_a_row_in_the_order_of_cases() -> None:
    assert list(dict.fromkeys(row.case for row in cases.ROWS)) == list(Case)


@pytest.mark.holds("J2")
@pytest.mark.parametrize("happened", list(Since))
def test_frames_above_a_hole_are_dropped_only_after_a_restart_and_kept_only_without_one(
    happened: Since,
) -> None:
    expected = {
        Since.SAME_BOOT: Case.HOLES,
        Since.RESTARTED: Case.TORN,
        Since.UNCLEAR: Case.UNCLEAR,
        Since.COPIED: Case.COPY,
    }
    assert judge(happened=happened, above=Above.FRAMES) is expected[happened]


@pytest.mark.parametrize("happened", list(Since))
def test_a_log_that_was_closed_goes_on_wherever_it_is(happened: Since) -> None:
    assert judge(left_clean=True, happened=happened) is Case.CLEAN


@pytest.mark.parametrize("happened", list(Since))
def test_damage_below_the_mark_is_corrupt_whatever_happened(happened: Since) -> None:
    for above in Above:
        assert judge(below_mark=True, happened=happened, above=above) is Case.CORRUPT


def test_the_design_shows_the_rows_of_recovery() -> None:
    section = DESIGN.read_text().partition("## Recovery\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    shown = [[cell.replace("`", "").replace("≥", ">=") for cell in row] for row in cells]
    rows = [[row.case.name, row.mark_and_p, row.since, row.action] for row in cases.ROWS]
    assert shown == [["case", "mark and p", "since then", "what is done"], *rows]
