"""Namespaces: a Python program where mounts, pids or clocks are its own.

Nothing of it is seen outside, and all of it is gone when the program has ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def _may_unshare() -> bool:
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True) if os.geteuid() == 0 else None
    return done is not None and done.returncode == 0


needs_namespaces = pytest.mark.skipif(not _may_unshare(), reason="needs root and unshare -m to mount")


def run_in_namespace(mounts: str, program: str, *arguments: str | Path, unshare: tuple[str, ...] = ()) -> str:
    """Run a Python program where `mounts` (shell) were made, for it alone; its output.
    unshare: more options, for other namespaces than that of mounts."""
    source = textwrap.dedent(program)
    shell = f'set -e; mount --make-rprivate /; {mounts.strip()}; exec "$0" "$@"'
    command = ["unshare", "-m", *unshare, "sh", "-c", shell, sys.executable, "-W", "error", "-c", source]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
