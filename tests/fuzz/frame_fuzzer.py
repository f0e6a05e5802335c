"""The frame fuzzer as a program: built from the present core, run, and what it said.

program = build()                       # gcc or clang, with ASan and UBSan where they link
found = fuzz(program, seconds=60)       # Fuzzed(executions, corpus, edges, violation)
replay(program, [path, ...])            # the same judge over inputs that were kept
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "shmlog" / "native" / "core"
BUILDS = HERE.parents[1] / "build" / "tests"
CORPUS = HERE / "corpus"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Wno-missing-field-initializers")
_SAID = re.compile(r"executions (\d+)(?: corpus (\d+) edges (\d+))?")


@dataclass(frozen=True)
class Fuzzed:
    """What one run came to."""

    executions: int
    corpus: int
    edges: int
    violation: str = ""


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "cc")


def build(sanitizers: tuple[str, ...] = SANITIZERS) -> Path:
    """The program, compiled again only if a source changed."""
    sources = [*sorted(HERE.glob("frames*.[ch]")), *sorted(CORE.glob("*.[ch]"))]
    command = [*_compiler(), *FLAGS, *sanitizers]
    text = repr([command, [(path.name, path.read_text()) for path in sources]])
    program = BUILDS / hashlib.sha256(text.encode()).hexdigest()[:24] / "fuzz_frames"
    if program.exists():
        return program
    BUILDS.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=BUILDS))
    try:
        parts = {  # only the core's own branches are counted
            "frames.o": ["-fsanitize-coverage=trace-pc", "-c", str(HERE / "frames.c")],
            "oracle.o": ["-c", str(HERE / "frames_oracle.c")],
            "crc.o": ["-c", str(CORE / "crc32c.c")],
        }
        for name, arguments in parts.items():
            _run([*command, *arguments, "-o", str(work / name)])
        _run([*command, *(str(work / name) for name in parts), "-o", str(work / "program"), "-lpthread"])
        program.parent.mkdir(exist_ok=True)
        os.replace(work / "program", program)
    finally:
        shutil.rmtree(work)
    return program


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"


def missing() -> str | None:
    """Why the program cannot be built here, or None."""
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch, "probe.c")
        probe.write_text("int main(void) { return 0; }\n")
        command = [*_compiler(), *SANITIZERS, str(probe), "-o", str(Path(scratch, "probe"))]
        try:
            done = subprocess.run(command, capture_output=True)
        except FileNotFoundError:
            return "needs a C compiler"
        return None if done.returncode == 0 else "the compiler cannot link ASan and UBSan"


def fuzz(
    program: Path,
    *,
    present: Path,
    seconds: float = 0,
    count: int = 0,
    seed: int = 0,
    save: Path | None = None,
) -> Fuzzed:
    """Mutate for so long or so often; the input that was judged last stays in `present`."""
    arguments = ["fuzz", str(seconds), str(count), str(seed), str(present), *([str(save)] if save else [])]
    return _judged(program, arguments)


def replay(program: Path, inputs: Sequence[Path]) -> Fuzzed:
    """Judge inputs that were kept."""
    return _judged(program, ["replay", *map(str, inputs)])


def race(program: Path, count: int) -> Fuzzed:
    """Walk a frame whose length another thread changes for ever."""
    return _judged(program, ["race", str(count)])


def _judged(program: Path, arguments: Sequence[str]) -> Fuzzed:
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    said = _SAID.search(done.stdout)
    if done.returncode or said is None:
        return Fuzzed(0, 0, 0, f"status {done.returncode}: {done.stderr[:2000]}")
    executions, corpus, edges = (int(number or 0) for number in said.groups())
    return Fuzzed(executions, corpus, edges)
