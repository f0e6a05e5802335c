"""Completions: a script by which a shell completes verbs, options, directories and files.

shtab makes it of the parser.  It is imported for this verb alone: what an argument is, its
metavar says.

This module knows metavars.  It may not know verbs.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from shmlog.cli.engines import extra
from shmlog.cli.output import put, say

SHELLS: Final = ("bash", "zsh", "fish", "tcsh")
DIRECTORIES: Final = ("DIR", "DIR2", "DIR|URL", "TARGET")
FILES: Final = ("FILE", "OUT")


def print_script(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    with extra("cli"):
        import shtab
    if chosen.shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"shtab {shtab.__version__} makes no script for {chosen.shell}; a later one may")
    _mark(parser, {**dict.fromkeys(DIRECTORIES, shtab.DIRECTORY), **dict.fromkeys(FILES, shtab.FILE)})
    script = shtab.complete(parser, chosen.shell)
    if chosen.json:
        say(chosen, {"shell": chosen.shell, "script": script}, "")
    else:
        put(script.encode())
    return 0


def _mark(parser: argparse.ArgumentParser, kinds: dict[str, Any]) -> None:
    """Tell shtab which arguments are paths."""
    for action in parser._actions:  # argparse has no public way to them
        if action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _mark(each, kinds)
