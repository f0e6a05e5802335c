"""The page that says what survives what names tests and recipes that there are."""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

from crash import recipes

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs/explanation/durability.md").read_text()
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| [A-Z]{2}[0-9]+ \|", line)]


def test_every_test_and_recipe_that_the_page_names_exists() -> None:
    there = set()
    for path in TESTS.rglob("test_*.py"):
        there |= {
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 80
    assert not named - there
    known = {module.name for module in pkgutil.iter_modules(recipes.__path__)}
    assert not set(re.findall(r"recipe `(\w+)`", PAGE)) - known


def test_every_fault_of_the_page_has_a_number_of_its_own_and_a_test() -> None:
    numbers = [row.split("|")[1].strip() for row in ROWS]
    assert len(numbers) == len(set(numbers)) > 60
    for row in ROWS:
        assert "`test_" in row.split("|")[4] or "recipe `" in row.split("|")[4], row
