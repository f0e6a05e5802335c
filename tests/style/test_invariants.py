"""Every invariant that a charter states is held by a test that says so."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import shmlog

PACKAGE = Path(shmlog.__file__).parent
TESTS = Path(__file__).resolve().parents[1]

NOT_TESTED = {
    "G1": "a race of two stores against a signal: the order is read in guard.c",
    "G2": "what may be called in a handler is read, not run",
    "I18": "a follower that lags cannot be had on demand: the request's subject says who answers it",
    "K2": "a fork within one open(): the mutex around both is read in fork.c",
    "L2": "which descriptor is told of an error is the kernel's: read in open_segments",
}
"""Those that no test can hold, and why."""


def stated() -> dict[str, list[str]]:
    """Where each invariant is stated: lines of a charter such as `  B1  A bit is set by ...`."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".c", ".h"):
            for name in re.findall(r"^(?: \*)?  +([A-Z][0-9]+)  \S", path.read_text(), re.M):
                found[name].append(path.relative_to(PACKAGE).as_posix())
    return found


def held() -> dict[str, list[str]]:
    """The tests that say they hold each: @pytest.mark.holds("B1", ...)."""
    found = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.holds":
                    for name in mark.args:
                        assert isinstance(name, ast.Constant)
                        found[name.value].append(node.name)
    return found


def test_an_invariant_has_its_name_for_itself() -> None:
    twice = {name: where for name, where in stated().items() if len(where) > 1}
    assert not twice


def test_every_invariant_is_held_by_a_test() -> None:
    uncited = sorted(set(stated()) - set(held()) - set(NOT_TESTED))
    assert not uncited, f"no test holds {uncited}"


def test_no_test_holds_what_nobody_states() -> None:
    assert not sorted((set(held()) | set(NOT_TESTED)) - set(stated()))
