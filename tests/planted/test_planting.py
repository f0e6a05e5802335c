"""The list of planted bugs is one of today's sources and tests, and planting finds what it should."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from planted.bugs import BUGS, MENDED, WORST, Bug
from planted.planting import ROOT, Bed
from support.processes import kill_everybody, lose_shared_memory

TESTS = ROOT / "tests"


def test_the_list_is_as_long_as_it_should_be_and_names_each_bug_once() -> None:
    assert len(WORST) >= 26
    assert len(MENDED) >= 14
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_bug_can_be_planted_and_the_test_that_must_see_it_exists(bug: Bug) -> None:
    texts: dict[str, str] = {}
    for change in bug.changes:
        before = texts.get(change.file) or (ROOT / change.file).read_text()
        texts[change.file] = change.apply(before)
        assert texts[change.file] != before
    for name, text in texts.items():
        if name.endswith(".py"):
            ast.parse(text)
    file, function = bug.caught_by.split("::")
    tree = ast.parse((TESTS / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function.partition("[")[0] in functions


def test_a_planted_bug_is_caught_and_the_copy_is_whole_again(tmp_path: Path) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == "a segment is made under its own name")
    bed = Bed(tmp_path)
    assert bed.catch(bug).caught
    for identity in tmp_path.rglob("shmlog.json"):  # what a log with a bug leaves
        if tmp_path / "project" not in identity.parents:
            kill_everybody(identity.parent, [])
            lose_shared_memory(identity.parent)
    for change in bug.changes:
        assert (tmp_path / "project" / change.file).read_text() == (ROOT / change.file).read_text()
