"""The native core's shape: charters, lengths, and state only where it may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shmlog

NATIVE = Path(shmlog.__file__).parent / "native"
FILES = sorted(path.relative_to(NATIVE).as_posix() for path in NATIVE.rglob("*.[ch]"))
LINES_MAX = 400
FUNCTION_LINES_MAX = 50


@pytest.mark.parametrize("name", FILES)
def test_a_native_file_opens_with_its_charter_and_is_not_too_long(name: str) -> None:
    text = (NATIVE / name).read_text()
    assert text.startswith("/* "), f"{name} does not begin with a comment"
    assert len(text.splitlines()) <= LINES_MAX, f"{name} has more than {LINES_MAX} lines"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".h")])
def test_a_header_holds_no_state(name: str) -> None:
    """With a static table in a header, each translation unit would get one of its own."""
    text = re.sub(r"/\*.*?\*/", "", (NATIVE / name).read_text(), flags=re.S)
    wrong = [line for line in text.splitlines() if re.match(r"static (?!inline )", line)]
    assert not wrong, wrong


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("core/")])
def test_the_core_knows_no_python(name: str) -> None:
    text = (NATIVE / name).read_text()
    assert "Python.h" not in text
    assert not re.findall(r'#include "(?!\w+\.h")', text), "the core includes only its own headers"


@pytest.mark.parametrize("name", FILES)
def test_a_function_fits_on_a_screen(name: str) -> None:
    begun, lines = "", 0
    for line in (NATIVE / name).read_text().splitlines():
        lines += 1
        if re.match(r"\w.*[^;]\{$", line) and "(" in line:
            begun, lines = line, 0
        elif line == "}" and begun:
            assert lines <= FUNCTION_LINES_MAX, f"{lines} lines: {begun}"
            begun = ""
