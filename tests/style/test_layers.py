"""The package's shape: imports go downwards only, and every public name is explained.

A layer may import the layers above it in the list below, never its own and never one
further down.  Imports inside functions count; those for annotations alone do not.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import shmlog

PACKAGE = Path(shmlog.__file__).parent
LAYERS = (
    "_native errors",
    "layout",
    "geometry files",
    "directory participants segment semaphores",
    "control segments",
    "waiting holes live scan statistics cursor",
    "writer reader preparing syncing recovery verification",
    "flusher attachment readonly",
    "sidecar",
    "log info",
    "operations",
    "shmlog",  # the public names
    "cli demo_flights",
    "demo __main__",
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
LINES_MAX = 400


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports when it runs."""
    found = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            for alias in node.names:
                if alias.name.split(".")[0] == "shmlog":
                    found.add(alias.name.partition(".")[2] or "shmlog")

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path.name}: imports are absolute"
            module = node.module or ""
            if module == "shmlog":
                found.update(alias.name if alias.name in LEVEL else "shmlog" for alias in node.names)
            elif module.startswith("shmlog."):
                found.add(module.split(".")[1])

    Visitor().visit(ast.parse(path.read_text()))
    return found


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    assert sorted(LEVEL) == sorted([*MODULES, "_native", "shmlog"])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    wrong = {name for name in imports(PACKAGE / f"{module}.py") if LEVEL[name] >= LEVEL[module]}
    assert not wrong, f"{module} imports {sorted(wrong)}, beside or above it"


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_a_module_opens_with_its_charter_and_is_not_too_long(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    assert len(text.splitlines()) <= LINES_MAX, f"{module} has more than {LINES_MAX} lines"


@pytest.mark.parametrize("header", sorted(path.name for path in (PACKAGE / "native" / "core").glob("*.h")))
def test_a_header_opens_with_its_charter_and_is_not_too_long(header: str) -> None:
    text = (PACKAGE / "native" / "core" / header).read_text()
    assert text.startswith("/* "), f"{header} does not begin with a comment"
    assert len(text.splitlines()) <= LINES_MAX, f"{header} has more than {LINES_MAX} lines"


def public() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name in shmlog.__all__:
        value = getattr(shmlog, name)
        found.append((name, value))
        if isinstance(value, type):
            for attribute in dir(value):
                if not attribute.startswith("_") and attribute not in dir(BaseException):
                    found.append((f"{name}.{attribute}", inspect.getattr_static(value, attribute)))
    return found


def test_every_public_name_is_explained() -> None:
    exempt = (str, int, bytes, type(None))
    silent = []
    for name, value in public():
        kind = type(value).__name__
        if kind in ("member_descriptor", "_tuplegetter") or isinstance(value, exempt):
            continue  # a field: its class explains it
        function = getattr(value, "__func__", value)
        if not (getattr(function, "__doc__", None) or "").strip():
            silent.append(name)
    assert not silent, f"no docstring: {silent}"


def test_all_public_names_are_listed_once_and_sorted_into_homes() -> None:
    assert len(set(shmlog.__all__)) == len(shmlog.__all__)
    assert set(shmlog.__all__) == set(shmlog._HOME)
