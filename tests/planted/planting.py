"""Plant a bug in a copy of the project, and run there only the test that has to see it.

    with Bed(scratch) as bed:
        found = bed.catch(bug)          # Caught(bug, True, "1 failed in 2.1s")

The copy's native core is compiled anew if a C source changed; compiled cores are kept in
build/tests/, named by what went into them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from planted.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "tests"
TIMEOUT_S = 300
TEST_S = 60
"""A bug that makes a test hang is seen by then."""
FAILED = 1
"""pytest's status when tests failed, and nothing else went wrong."""
_LAST = re.compile(r"^=* ?(\d+ (?:failed|passed|error|skipped|deselected|warning).*?)=*$", re.MULTILINE)


@dataclass(frozen=True)
class Caught:
    """What came of one planted bug."""

    bug: Bug
    caught: bool
    said: str


class Bed:
    """A copy of the package and its tests, in which one bug at a time is planted."""

    def __init__(self, scratch: Path) -> None:
        self._root = scratch / "project"
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        for name in ("shmlog", "tests"):
            shutil.copytree(ROOT / name, self._root / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", self._root)
        (self._root / "build").mkdir()
        BUILDS.mkdir(parents=True, exist_ok=True)
        (self._root / "build" / "tests").symlink_to(BUILDS)

    def catch(self, bug: Bug) -> Caught:
        """Plant it, run its test, and put everything back."""
        for change in bug.changes:
            file = self._root / change.file
            file.write_text(change.apply(file.read_text()))
        try:
            return self._run(bug)
        finally:
            for name in {change.file for change in bug.changes}:
                shutil.copy(ROOT / name, self._root / name)

    def passes(self, names: list[str]) -> str:
        """Without a bug: "" if all of these tests pass, or what was said."""
        done = self._pytest(names)
        return "" if done.returncode == 0 else done.stdout[-3000:]

    def _run(self, bug: Bug) -> Caught:
        try:
            done = self._pytest([bug.caught_by])
        except subprocess.TimeoutExpired:
            return Caught(bug, False, f"the test did not end within {TIMEOUT_S} s")
        summary = _LAST.findall(done.stdout)
        said = summary[-1].strip() if summary else done.stdout[-500:] + done.stderr[-500:]
        died = done.returncode < 0  # pytest itself, of a signal: a bug of the core may do that
        return Caught(bug, done.returncode == FAILED or died, said)

    def _pytest(self, names: list[str]) -> subprocess.CompletedProcess[str]:
        self._build()
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += [f"--timeout={TEST_S}"]
        environment = os.environ | {
            "PYTHONPATH": f"{self._root}{os.pathsep}{self._root / 'tests'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [*command, *(f"tests/{name}" for name in names)],
            cwd=self._root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            errors="replace",
        )

    def _build(self) -> None:
        """The native core of the sources as they are in the copy."""
        sources = sorted((self._root / "shmlog" / "native").rglob("*.[ch]"))
        compiler = shlex.split(os.environ.get("CC") or "cc")
        flags = ["-std=gnu11", "-O1", "-g", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        text = repr(([(path.name, path.read_text()) for path in sources], compiler, flags, suffix))
        kept = BUILDS / hashlib.sha256(text.encode()).hexdigest()[:24] / f"_native{suffix}"
        if not kept.exists():
            work = Path(tempfile.mkdtemp(dir=BUILDS))
            try:
                plain = [str(path) for path in sources if path.suffix == ".c"]
                command = [*compiler, *flags, *plain, "-o", str(work / kept.name), "-lpthread"]
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
                kept.parent.mkdir(exist_ok=True)
                os.replace(work / kept.name, kept)
            finally:
                shutil.rmtree(work)
        shutil.copy(kept, self._root / "shmlog")


def main() -> int:
    """Plant the bugs whose names hold one of the words on the command line; all without any."""
    words = sys.argv[1:]
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        bed = Bed(Path(scratch))
        for bug in chosen:
            found = bed.catch(bug)
            missed += not found.caught
            print(f"{'caught' if found.caught else 'MISSED'}  {bug.name}: {found.said}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
