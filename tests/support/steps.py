"""The test build of the native core: the same C, with a scheduler's hook before each
store to shared memory, and with named mutations where a test wants to see a rule
missed.

    native = load()                              # the core, stepping
    native = load((Mutation("core/bitmap.h", old, new),))  # the core with a rule left out

    native.set_step_hook(hook)   # hook(label) is called before each store; returning
                                 # true makes the core act as if the process had died
                                 # there: SystemExit("died"), nothing more is stored

A mutation replaces text that must be there exactly once, so it cannot rot unseen.
Builds are kept in build/tests/, named by what went into them.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "shmlog" / "native"
BUILDS = ROOT / "build" / "tests"


@dataclass(frozen=True)
class Mutation:
    """Text of one file, named as below its root, to be replaced by other text."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        assert text.count(self.old) == 1, f"{self.file}: found {text.count(self.old)} times: {self.old!r}"
        return text.replace(self.old, self.new)


_loaded: dict[str, ModuleType] = {}


def load(mutations: tuple[Mutation, ...] = (), defines: tuple[str, ...] = ("SHMLOG_STEPS",)) -> ModuleType:
    """Build the core from its present sources and import it, beside the shipped one."""
    texts = {
        path.relative_to(SOURCES).as_posix(): path.read_text() for path in sorted(SOURCES.rglob("*.[ch]"))
    }
    for mutation in mutations:
        texts[mutation.file] = mutation.apply(texts[mutation.file])
    command = [
        *shlex.split(os.environ.get("CC") or "cc"),
        *(
            "-std=gnu11",
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wextra",
            "-Wno-missing-field-initializers",
        ),
        *(f"-D{define}" for define in defines),
        f"-I{sysconfig.get_path('include')}",
    ]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    digest = hashlib.sha256(repr((sorted(texts.items()), command, suffix)).encode()).hexdigest()[:24]
    if digest not in _loaded:
        library = BUILDS / digest / f"_native{suffix}"
        if not library.exists():
            _build(command, texts, library)
        loader = importlib.machinery.ExtensionFileLoader("_native", str(library))
        spec = importlib.util.spec_from_file_location("_native", library, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        _loaded[digest] = module
    return _loaded[digest]


def _build(command: list[str], texts: dict[str, str], library: Path) -> None:
    """Compile in a directory of our own, then put the result in its place at once."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=BUILDS))
    try:
        for name, text in texts.items():
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(text)
        sources = [name for name in texts if name.endswith(".c")]
        result = subprocess.run(
            [*command, *sources, "-o", library.name, "-lpthread"], cwd=work, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{shlex.join(command)}\n{result.stderr}"
        library.parent.mkdir(exist_ok=True)
        os.replace(work / library.name, library)
    finally:
        shutil.rmtree(work)


def load_python(module: str, mutations: tuple[Mutation, ...] = ()) -> ModuleType:
    """Execute a module of the package from its source, mutated, beside the shipped one."""
    path = ROOT / "shmlog" / f"{module.replace('.', '/')}.py"
    text = path.read_text()
    for mutation in mutations:
        text = mutation.apply(text)
    variant = ModuleType(f"variant_{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    sys.modules[variant.__name__] = variant  # dataclasses look their module up
    exec(compile(text, str(path), "exec"), variant.__dict__)
    return variant
