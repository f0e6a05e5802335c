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

import shmlog

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/tutorial.md",
    *(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/how-to/*.md")),
]
EXAMPLES = ROOT / "docs/examples"
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


def test_example_programs_print_what_their_first_lines_say_and_again_over_what_they_left(
    tmp_path: pathlib.Path,
) -> None:
    programs = {}
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        needed = re.findall(r"^import (\w+)", text, re.MULTILINE)
        if all(importlib.util.find_spec(name) for name in needed):
            said = re.findall(r"^    (.*\n)", text.split('"""')[1], re.MULTILINE)
            assert said, f"the first lines of {path.name} say what it prints"
            programs[path] = "".join(said)
    assert len(programs) >= 5
    for time in ("the first time", "the second time"):
        runs = {
            path: subprocess.Popen(
                [sys.executable, "-W", "error", str(path)],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for path in programs  # all at once: each has a log of its own, and mostly waits
        }
        found = {path: (*run.communicate(timeout=100), run.returncode) for path, run in runs.items()}
        for path, said in programs.items():
            assert found[path] == (said, "", 0), f"{path.name}, {time}"


def test_every_example_program_is_in_the_list_and_uses_public_names_alone() -> None:
    programs = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text())) == set(programs)
    for text in programs.values():
        assert not re.findall(r"^\s*(?:from|import) shmlog\.", text, re.MULTILINE)
        assert set(re.findall(r"\bshmlog\.(\w+)", text)) <= set(shmlog.__all__)
