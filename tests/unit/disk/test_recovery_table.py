"""The table of recovery: complete, without contradiction, and the one that the design shows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shmlog.disk import recovery

DESIGN = Path(__file__).parents[3] / "docs/explanation/design.md"


@pytest.mark.parametrize("values", list(itertools.product((False, True), repeat=len(recovery.FACTS))))
def test_every_combination_of_facts_is_one_row_and_no_other(values: tuple[bool, ...]) -> None:
    facts = dict(zip(recovery.FACTS, values, strict=True))
    assert len(recovery.matching(**facts)) == 1


def test_every_case_has_one_row() -> None:
    assert [row.case for row in recovery.ROWS] == list(recovery.Case)


def test_the_design_shows_the_rows_of_recovery() -> None:
    section = DESIGN.read_text().partition("## Recovery\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    shown = [[cell.replace("`", "").replace("≥", ">=") for cell in row] for row in cells]
    rows = [[row.case.name, row.mark_and_p, row.machine, row.action] for row in recovery.ROWS]
    assert shown == [["case", "mark and p", "machine", "what is done"], *rows]
