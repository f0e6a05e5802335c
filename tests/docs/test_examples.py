"""The pages' examples run as written.

The ```python blocks of a page, joined, are one script, and the ```text blocks, joined,
are what it prints.  It prints the same when it is run again where it has been run, for
readers do that.  ```pycon and ```console blocks are not run.
"""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/tutorial.md",
    *(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/how-to/*.md")),
]
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def headings(page: pathlib.Path) -> set[str]:
    """The names by which a page's headings are linked: lower case, dashes for spaces."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES)
def test_page_runs_as_written_and_again_over_what_it_left(page: str, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks(page, "python")))
    assert script.stat().st_size, "the page has an example"
    for name in re.findall(r"^import (\w+)", script.read_text(), re.MULTILINE):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    for time in ("the first time", "the second time"):
        run = subprocess.run(
            [sys.executable, "-W", "error", script.name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert run.returncode == 0, f"{time}: {run.stderr}"
        assert run.stdout == "".join(blocks(page, "text")), time
        assert not run.stderr, time


@pytest.mark.parametrize(
    "page", [str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target, heading in LINK.findall((ROOT / page).read_text()):
        if "://" in target:
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not heading or heading in headings(file), f"{target}#{heading}"
