"""The package's shape: rooms import leftwards only, and every public name is explained."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import shmlog

PACKAGE = Path(shmlog.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
ROWS = """
errors, _native  <-  format | system  <-  memory | disk  <-  flusher | records  <-  session  <-  handle
                 <-  tools  <-  shmlog  <-  integrations  <-  cli
"""
"""Who may import whom: what is to its left.  Rooms on both sides of | never see each other, nor
do those on both sides of a comma."""

NEVER = {"records": {"memory"}, "session": {"records"}}
"""Closed doors beside the rows."""

OPEN = {"cli": {"shmlog", "tools", "session.sidecar", "errors", "integrations"}, "integrations": {"shmlog"}}
"""The only doors of a room; of session.sidecar that module alone."""

STEPS = [{name.strip() for name in step.replace("|", ",").split(",")} for step in ROWS.split("<-")]
LEVEL = {name: level for level, names in enumerate(STEPS) for name in names}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")
)
LINES_MAX = 400


def room_of(module: str) -> str:
    """The room that a module is in, or the module where it has none."""
    name = module.removesuffix(".__init__").partition(".")[0]
    return {"__init__": "shmlog", "__main__": "cli"}.get(name, name)


def imports(module: str) -> set[str]:
    """The package's modules that a module imports when it runs, by their names in the package."""
    path = PACKAGE / f"{module.replace('.', '/')}.py"
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
            assert node.level == 0, f"{module}: imports are absolute"
            package, _, inner = (node.module or "").partition(".")
            if package != "shmlog":
                return
            for alias in node.names:
                name = f"{inner}.{alias.name}".removeprefix(".")
                if name in MODULES or name in ("_native", "errors"):
                    found.add(name)
                else:
                    found.add(inner or "shmlog")

    Visitor().visit(ast.parse(path.read_text()))
    return found


def may_import(room: str, other: str) -> bool:
    """Whether the rows let a module of one room import `other`, a module of another."""
    if room in OPEN:
        return other in OPEN[room] or room_of(other) in OPEN[room]
    return LEVEL[room_of(other)] < LEVEL[room] and room_of(other) not in NEVER.get(room, set())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/explanation/design.md"])
def test_a_page_shows_the_rows_that_are_held(page: str) -> None:
    assert f"```\n{ROWS.strip()}\n```" in (ROOT / page).read_text()


def test_every_room_is_explained_to_contributors() -> None:
    rooms = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert sorted(rooms) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_every_room_is_in_the_rows() -> None:
    assert {room_of(module) for module in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__init__")])
def test_a_module_imports_only_rooms_to_the_left_of_its_own(module: str) -> None:
    room = room_of(module)
    wrong = {other for other in imports(module) if room_of(other) != room and not may_import(room, other)}
    assert not wrong, f"{module} imports {sorted(wrong)}, which {room} may not see"


@pytest.mark.parametrize("room", sorted({room_of(module) for module in MODULES}))
def test_no_circle_runs_through_a_room(room: str) -> None:
    inside = {m: {o for o in imports(m) if room_of(o) == room} for m in MODULES if room_of(m) == room}
    while inside:
        free = {module for module, others in inside.items() if not others & set(inside)}
        assert free, f"a circle of imports: {sorted(inside)}"
        inside = {module: others for module, others in inside.items() if module not in free}


@pytest.mark.parametrize("room", [name for name in MODULES if name.endswith(".__init__")])
def test_a_room_opens_with_one_line_of_charter_and_imports_nothing(room: str) -> None:
    text = (PACKAGE / f"{room.replace('.', '/')}.py").read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(ast.parse(text).body) == 1, f"{room} holds more than its charter"
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_its_charter_and_is_not_too_long(module: str) -> None:
    text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text()
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    assert len(text.splitlines()) <= LINES_MAX, f"{module} has more than {LINES_MAX} lines"


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
