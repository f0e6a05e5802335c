"""The site's pages, in build/docs: those of docs/, and what the docstrings say.

    docs/*.md                      as they are
    reference/api.md               after each line that begins with **Names:** the docstrings of those names
    CHANGELOG, CONTRIBUTING, SECURITY, bench/README    in project/, so that links to them hold
    llms.txt                       the list of pages in index.md, for programs that read (llmstxt.org)
    SUMMARY.md                     the same as the site's navigation, and the decisions one by one

A fact about one name stands in its docstring, and only there; griffe reads them from the
source, those of the core are asked for at run time.  `make docs` runs this, then zensical.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README.md", "bench/README.md")
NAMES = "**Names:**"
CODE = re.compile(
    r"""`[^`]*`                          # it is marked already
      | [\w.]*\w\(\)                     # a call
      | \w+=(?:"[^"]*"|[\w.]+)           # an argument
      | \*?\b[\w.]*[a-z]\w*\.\w+\b       # an attribute
      | \w*_\w+ | [A-Z]\w*Error\b""",
    re.VERBOSE,
)


def names_of(page: str) -> list[str]:
    """The names whose docstrings a page is given."""
    lines = [line for line in page.splitlines() if line.startswith(NAMES)]
    return [name for line in lines for name in re.findall(r"`([\w.]+)`", line)]


def pages(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target, ignore=shutil.ignore_patterns("__pycache__", "pages.py"))
    for name in PROJECT:
        (target / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / "project" / name)
    for page in target.rglob("*.md"):
        page.write_text(_links(page, target))
    api = target / "reference/api.md"
    api.write_text("\n".join(_expanded(api.read_text().splitlines())) + "\n")
    index = (ROOT / "docs/index.md").read_text()
    (target / "llms.txt").write_text(llms(index))
    (target / "SUMMARY.md").write_text("\n".join(navigation(index)) + "\n")


def llms(index: str) -> str:
    """What the project is, in a paragraph, and the pages: as the index has them, without pictures."""
    title, what, *rest = [part for part in index.split("\n\n") if not part.startswith("![")]
    quoted = "> " + what.replace("**", "").replace("\n", "\n> ")
    text = "\n\n".join([title, quoted, *rest]).replace("README.md)", "index.html)")
    return text.replace(".md)", ".html)")


def navigation(index: str) -> Iterator[str]:
    """The index as nested lists, one section below the other."""
    yield "- [Overview](index.md)"
    for line in index.splitlines():
        if line.startswith("## "):
            yield f"- {line.removeprefix('## ')}"
        elif line.startswith("- ["):
            title = line.rpartition("): ")[0] + ")"
            if "(decisions/" not in line:
                yield f"    {title}"
            else:
                yield "    - The decisions"
                yield "        - [All of them](decisions/README.md)"
                for page in sorted((ROOT / "docs/decisions").glob("0*.md")):
                    title = page.read_text().partition("\n")[0].removeprefix("# ")
                    yield f"        - [{title}](decisions/{page.name})"
    yield "- Project"
    for name in PROJECT[:3]:
        yield f"    - [{name.partition('.')[0].capitalize()}](project/{name})"
    yield "    - [Benchmarks](project/bench/README.md)"


def _links(page: Path, target: Path) -> str:
    """A page's text; links to what has another place here lead there, those to code to nowhere."""
    inside = page.relative_to(target)
    source = ROOT / inside.relative_to("project") if inside.parts[0] == "project" else ROOT / "docs" / inside

    def moved(found: re.Match[str]) -> str:
        mark, words, link, rest = found.groups()
        if "://" in link or not link:
            return found[0]
        to = (source.parent / link).resolve()
        if to.is_relative_to(ROOT / "docs"):
            place = target / to.relative_to(ROOT / "docs")
        else:
            place = target / "project" / to.relative_to(ROOT)
        if not place.is_file() and not (place / "README.md").is_file():
            return str(words)
        place = place / "README.md" if place.is_dir() else place
        up = len(inside.parts) - 1
        return f"{mark}[{words}]({'../' * up}{place.relative_to(target)}{rest or ''})"

    return re.sub(r"(!?)\[([^\]\[]*)\]\(([^)#\s]*)(#[^)]*)?\)", moved, page.read_text())


def _expanded(lines: list[str]) -> Iterator[str]:
    package = griffe.load("shmlog", search_paths=[ROOT])
    told: set[str] = set()
    depth = "#"
    for line in lines:
        if line.startswith("#"):
            depth = line.partition(" ")[0] + "#"
        if not line.startswith(NAMES):
            yield line
            continue
        for name in names_of(line):
            found = package[_home(name)]
            yield f"{depth} {name} {{ #{name} }}\n"
            if found.is_class:
                yield from _class(name, found, told, depth + "#")
            else:
                yield from _function(name, found)


def _home(name: str) -> str:
    """Where a public name is made, below shmlog."""
    if name.startswith("integrations."):
        return name
    import shmlog

    return f"{shmlog._HOME[name]}.{name}"


def _function(name: str, found: griffe.Object) -> Iterator[str]:
    yield _signature(name, found)
    yield _text(name, found)


def _class(name: str, found: griffe.Object, told: set[str], depth: str) -> Iterator[str]:
    if name == "Retention" or name.startswith("integrations."):
        yield _signature(name.rpartition(".")[2], found)
    yield _text(name, found)
    members = [_target(found.all_members[each]) for each in sorted(found.all_members) if each[0] != "_"]
    own = [each for each in members if each.canonical_path not in told and ".BaseException" not in each.path]
    again = [each for each in members if each.canonical_path in told]
    fields = [each for each in own if _is_field(each)]
    if fields:
        order = {each: number for number, each in enumerate(found.all_members)}
        yield "| | type | |\n|---|---|---|"
        for each in sorted(fields, key=lambda each: order[each.name]):
            kind = str(getattr(each, "annotation", None) or "").replace("|", r"\|")
            words = _marked(_doc(f"{name}.{each.name}", each)).replace("\n", " ")
            yield f"| `{each.name}` | {f'`{kind}`' if kind else ''} | {words} |"
        yield ""
    for each in own:
        if not _is_field(each):
            yield f"{depth} {each.name} {{ #{name}.{each.name} }}\n"
            yield from _function(f"{name}.{each.name}", each)
    if again:
        yield f"Also, as above: {', '.join(f'`{each.name}`' for each in again)}.\n"
    told |= {each.canonical_path for each in own}


def _target(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if found.is_alias else found  # type: ignore[union-attr, return-value]


def _is_field(found: griffe.Object) -> bool:
    return bool(found.is_attribute)


def _signature(name: str, found: griffe.Object) -> str:
    assert isinstance(found, (griffe.Function, griffe.Class))
    text = found.signature() if found.is_function else found.signature(return_type=False)
    assert text is not None
    begin, _, _ = text.partition("(")
    text = text.replace(begin, name.rpartition(".")[2], 1).replace("mode: int = 384", "mode: int = 0o600")
    text = re.sub(r"\((?:self|cls)(?:, )?", "(", text, count=1)
    if len(text) > 90:
        head, _, rest = text.partition("(")
        inner, end, result = rest.rpartition(")")
        parts = re.split(r", (?![^\[]*\])", inner)
        text = f"{head}(\n    " + ",\n    ".join(parts) + f",\n{end}{result}"
    return f"```python\n{text}\n```\n"


def _doc(name: str, found: griffe.Object) -> str:
    if found.docstring is not None:
        return found.docstring.value
    value = importlib.import_module("shmlog")  # of the core, whose stubs say nothing
    for part in name.split("."):
        if not hasattr(value, part):
            return ""
        value = getattr(value, part)
    if isinstance(value, (str, int, float, tuple, type(None))) or type(value).__name__ in (
        "member_descriptor",
        "_tuplegetter",
    ):
        return ""
    return inspect.getdoc(value) or ""


def _text(name: str, found: griffe.Object) -> str:
    """A docstring as Markdown: indented lines are code, names are marked as such."""
    paragraphs = _doc(name, found).split("\n\n")
    shown = [
        "```python\n" + textwrap.dedent(each) + "\n```" if each.startswith("    ") else _marked(each)
        for each in paragraphs
    ]
    return "\n\n".join(shown) + "\n"


def _marked(text: str) -> str:
    parts, at = [], 0
    for found in CODE.finditer(text):
        parts.append(re.sub(r"([*<])", r"\\\1", text[at : found.start()]))
        word = found[0]
        parts.append(word if word.startswith("`") else f"`{word}`")
        at = found.end()
    return "".join(parts) + re.sub(r"([*<])", r"\\\1", text[at:])


if __name__ == "__main__":
    pages(Path(sys.argv[1]))
