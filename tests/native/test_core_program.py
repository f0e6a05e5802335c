"""The native core by itself: a small C program without Python, plain and under sanitizers.

Threads stand for processes: ThreadSanitizer sees the orderings that a process would rely on.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "shmlog" / "native" / "core"
TESTS = ("crc", "bitmap", "frames", "guard", "sent", "fork", "writers", "scan", "publication")
SANITIZERS = {
    "plain": (),
    "address-undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-Wno-missing-field-initializers")


def build(where: Path, sanitizer: str, source: str | None = None) -> Path:
    """Compile the program; a skip where the sanitizer cannot be linked."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    flags = (*SANITIZERS[sanitizer], "-std=gnu11", "-O1", "-g")
    probe = where / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    linked = subprocess.run([*compiler, *flags, str(probe), "-o", str(where / "probe")], capture_output=True)
    if linked.returncode:
        pytest.skip(f"{shlex.join(compiler)} cannot link {sanitizer}")
    program = where / "core_test"
    sources = [HERE / "core_test.c", HERE / "core_other.c", *sorted(CORE.glob("*.c"))]
    command = [*compiler, *flags, *WARNINGS, *map(str, sources), "-o", str(program), "-lpthread"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return program


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("core"), request.param)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.holds("B1", "G4", "K1", "K3")
def test_the_core_alone_does_what_it_says(program: Path, name: str) -> None:
    done = subprocess.run([program, name], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_check_that_fails_is_seen(tmp_path: Path) -> None:
    program = build(tmp_path, "plain")
    assert subprocess.run([program, "no such test"], capture_output=True).returncode == 2
