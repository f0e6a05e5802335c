"""Completions, in a real shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shmlog.cli.completions import SHELLS
from shmlog.cli.main import main

COMPLETE = """
source "$1"; shift
COMP_WORDS=(shmlog "$@"); COMP_CWORD=$#
"$(complete -p shmlog | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Path:
    pytest.importorskip("shtab")
    assert main(["completions", "bash"]) == 0
    made = tmp_path / "shmlog.bash"
    made.write_bytes(capfdbinary.readouterr().out)
    return made


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), *words]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, timeout=30)
    assert not done.stderr, done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_options_their_values_and_directories(script: Path) -> None:
    (script.parent / "events").mkdir()
    (script.parent / "events.txt").touch()
    assert {"cat", "create", "forward", "completions"} <= completed(script, "")
    assert completed(script, "comp") == {"completions"}
    assert completed(script, "create", "events", "--retain") == {"--retain-bytes", "--retain-age"}
    assert completed(script, "create", "events", "--when-full", "") == {"wait", "trim"}
    assert {word.rstrip("/") for word in completed(script, "cat", "ev")} == {"events"}
    assert "events.txt" in completed(script, "ship", "events", "nats://h/S", "--config", "ev")


def test_every_shell_that_shtab_knows_gets_a_script(capfd: pytest.CaptureFixture[str]) -> None:
    shtab = pytest.importorskip("shtab")
    for shell in SHELLS:
        if shell in shtab.SUPPORTED_SHELLS:
            assert main(["completions", shell, "--json"]) == 0
            facts = json.loads(capfd.readouterr().out)
            assert facts["shell"] == shell and "when-full" in facts["script"]


def test_without_shtab_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completions", "bash"]) == 1
    assert "pip install 'shmlog[cli]'" in capfd.readouterr().err


def test_no_other_verb_imports_shtab() -> None:
    code = (
        "import sys; from shmlog.cli.main import main; main(['--version']); sys.exit('shtab' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=30).returncode == 0
