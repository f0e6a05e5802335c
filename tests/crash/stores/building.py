"""What the recipes compile: a C tool of their own, and the package with a bug planted in it.

    library(source)              a shared library
    planted(mutations)           a directory to put in front of PYTHONPATH: the whole package,
                                 with text of its sources replaced, Python and C

Builds are kept in build/tests/, named by what went into them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.steps import BUILDS, ROOT, Mutation, load


def library(source: Path) -> Path:
    """Compile one C file; where the result is."""
    text = source.read_bytes()
    built = BUILDS / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:24]}.so"
    if not built.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as work:
            command = [*shlex.split(os.environ.get("CC") or "cc"), "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
            command += ["-shared", "-fPIC", str(source), "-o", f"{work}/built", "-ldl"]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, f"{shlex.join(command)}\n{result.stderr}"
            os.replace(f"{work}/built", built)
    return built


def planted(mutations: tuple[Mutation, ...]) -> Path:
    """Make the package again with a bug in it.  Files are named as below shmlog/, or for C as
    below shmlog/native/."""
    core = tuple(mutation for mutation in mutations if mutation.file.endswith((".c", ".h")))
    package = ROOT / "shmlog"
    texts = {path.relative_to(package): path.read_text() for path in sorted(package.rglob("*.py"))}
    for mutation in mutations:
        if mutation not in core:
            texts[Path(mutation.file)] = mutation.apply(texts[Path(mutation.file)])
    if core:
        native = Path(str(load(core, defines=()).__file__))
    else:
        (native,) = package.glob("_native.*.so")
    stamp = (
        native.stat().st_mtime_ns,
        sorted((str(path), text) for path, text in texts.items()),
        str(native),
    )
    root = BUILDS / f"planted-{hashlib.sha256(repr(stamp).encode()).hexdigest()[:24]}"
    if not root.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=BUILDS))
        try:
            for path, text in texts.items():
                (work / "shmlog" / path).parent.mkdir(parents=True, exist_ok=True)
                (work / "shmlog" / path).write_text(text)
            shutil.copy2(native, work / "shmlog")
            os.replace(work, root)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return root
