"""The pages are whole: every public name, verb and option is on its page, every page is in the lists."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import shmlog
from shmlog.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = DOCS / "reference/api.md"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def listed() -> list[str]:
    """The names whose docstrings the API page is given."""
    lines = re.findall(r"^\*\*Names:\*\*(.*)$", API.read_text(), re.M)
    return [name for line in lines for name in re.findall(r"`([\w.]+)`", line)]


def test_every_public_name_is_on_the_api_page_once() -> None:
    names = listed()
    assert len(set(names)) == len(names)
    assert {name for name in names if "." not in name} == set(shmlog.__all__)


def test_every_class_of_an_integration_that_the_how_tos_use_is_on_the_api_page() -> None:
    text = "".join(page.read_text() for page in (DOCS / "how-to").glob("*.md"))
    used = set(re.findall(r"^\s*from shmlog\.(integrations\.\w+) import (\w+(?:, \w+)*)", text, re.M))
    names = {f"{module}.{name}" for module, found in used for name in found.split(", ")}
    assert len(names) >= 3
    assert names <= set(listed())


def verbs() -> dict[str, argparse.ArgumentParser]:
    (found,) = (
        action for action in main._parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(found.choices)


def section(verb: str) -> str:
    found = re.search(rf"^## {verb}\n(.*?)(?=^## |\Z)", (DOCS / "reference/cli.md").read_text(), re.M | re.S)
    assert found, f"the page has no section on {verb}"
    return found[1]


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_a_verb_of_the_command_line_and_each_of_its_options_are_on_the_page(verb: str) -> None:
    text = section(verb) + (section("cat") if verb == "tail" else "")
    if any("--log" in action.option_strings for action in verbs()[verb]._actions):
        text += section("archive")  # the options of whoever takes an archive's URL for a directory
    options = [action for action in verbs()[verb]._actions if action.help != argparse.SUPPRESS]
    names = {name for action in options for name in action.option_strings[-1:]} - {"--help", "--json"}
    missing = {name for name in names if not re.search(rf"{name}(?![\w-])", text)}
    assert not missing


def test_the_index_names_every_page_once() -> None:
    links = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\): ", (DOCS / "index.md").read_text(), re.M)
    assert sorted(links) == [page for page in PAGES if not re.match(r"decisions/\d|index", page)]


def pages_script() -> ModuleType:
    pytest.importorskip("griffe", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sites_api_page_has_what_the_docstrings_say(tmp_path: Path) -> None:
    pages_script().pages(tmp_path / "docs")
    text = (tmp_path / "docs/reference/api.md").read_text()
    plain = text.replace("`", "").replace("\\", "")
    for name in shmlog.__all__:
        assert f"{{ #{name} }}" in text
        first = (inspect.getdoc(getattr(shmlog, name)) or "").splitlines()[0]
        assert first.replace("`", "") in plain, name
    for name in ("Log.append", "Log.read", "Cursor.commit", "Reservation.publish", "ReadonlyLog.close"):
        assert f"{{ #{name} }}" in text
    assert "mode: int = 0o600" in text and "**Names:**" not in text


def test_llms_txt_says_what_the_project_is_and_links_to_pages_of_the_site(tmp_path: Path) -> None:
    pages_script().pages(tmp_path / "docs")
    text = (tmp_path / "docs/llms.txt").read_text()
    assert text.startswith("# shmlog\n\n> A durable")
    links = re.findall(r"^- \[[^\]]+\]\(([^)]+)\.html\)", text, re.M)
    assert len(links) > 25
    for link in links:
        page = link.removesuffix("index") + "README" if link.endswith("/index") else link  # as zensical does
        assert (tmp_path / "docs" / f"{page}.md").is_file(), link
