"""Workers: run what cuts the power in processes of their own, and add up what they counted.

This module knows how workers are started and seen off.  It may not know what they do.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crash.kit import Tally
from crash.power.mounts import in_namespace
from crash.power.recorder import build_shim
from support.processes import lose_shared_memory

TESTS = Path(__file__).resolve().parents[2]
BUILDS = TESTS.parent / "build" / "tests"
KEPT = TESTS.parent / "build" / "crash" / "power"
"""What broke a promise, to be seen again."""
MEMORY = Path("/dev/shm")
GRACE_S = 120.0
"""After its time a worker only ends what it has begun: so long, and then it is ended."""
SAYS_S = 2.0


@dataclass
class Cuts:
    """What workers counted."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def tally(self, tried: Sequence[str], figures: Sequence[str]) -> Tally:
        """As a recipe reports it: the sum of some counts was tried."""
        tally = Tally()
        tally.survive(max(0, sum(self.counts[name] for name in tried) - len(self.violations)))
        for violation in self.violations:
            tally.violate(violation)
        tally.figures.update({name: self.counts[name] for name in figures})
        return tally


def missing() -> str | None:
    if shutil.which((os.environ.get("CC") or "cc").split()[0]) is None:
        return "needs a C compiler"
    return None if os.access(MEMORY, os.W_OK) else f"needs {MEMORY}, to keep the files in memory"


def cut(
    seed: int,
    seconds: float,
    *,
    least: dict[str, int] | None = None,
    workers: int = 1,
    package: Path = TESTS.parent,
    keep: Path = KEPT,
    canary: bool = True,
) -> Cuts:
    """Cut recorded lives (cutting) for so many seconds, or until the workers have seen so
    many states of each kind.  package: the directory that holds the shmlog to be tested."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "crash.power.cutting"]
    for kind, count in (least or {}).items():
        command += [f"--{kind}", str(-(-count // workers))]
    command += ["--keep", str(keep)]
    command += [] if canary else ["--no-canary"]
    shim = {"LD_PRELOAD": str(build_shim(BUILDS))}
    return run([command] * workers, seed, seconds, package, shim)


def run(
    commands: Sequence[Sequence[str]],
    seed: int,
    seconds: float,
    package: Path = TESTS.parent,
    environment: dict[str, str] | None = None,
) -> Cuts:
    """Run the commands side by side, each with a seed, a time and a directory of its own."""
    paths = os.pathsep.join([str(package), str(TESTS)])
    cuts, running = Cuts(), []
    with tempfile.TemporaryDirectory(prefix="power-", dir=MEMORY, ignore_cleanup_errors=True) as scratch:
        try:
            for n, command in enumerate(commands):
                own = Path(scratch, str(n))
                own.mkdir()
                options = ["--seed", str(seed + n), "--seconds", str(seconds), "--scratch", str(own)]
                process = subprocess.Popen(
                    [*command, *options],
                    cwd=package,
                    env=os.environ | {"PYTHONPATH": paths} | (environment or {}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
                running.append(process)
            for process in running:
                _gather(process, seconds, package, cuts)
        finally:
            for process in running:
                _end(process)
            for identity in Path(scratch).glob("*/*/log/shmlog.json"):  # a life that was cut short
                lose_shared_memory(identity.parent)
    return cuts


def _gather(process: subprocess.Popen[str], seconds: float, package: Path, cuts: Cuts) -> None:
    try:
        output, said = process.communicate(timeout=seconds + GRACE_S)
    except subprocess.TimeoutExpired:
        stuck = ", ".join(_waits(process.pid))
        process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SAYS_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said = ""
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel
            _, said = process.communicate(timeout=SAYS_S)
        cuts.violations.append(
            f"a worker did not end within {seconds + GRACE_S:g} s: {stuck}\n{said[-3000:]}"
        )
        return
    if process.returncode != 0:
        cuts.violations.append(f"a worker ended with {process.returncode}: {said[-3000:]}")
        return
    report = json.loads(output)
    assert Path(report["package"]).parent == package, f"{report['package']} was tested"
    cuts.counts.update(report["counts"])
    cuts.violations += report["violations"]
    cuts.seen.update(report["seen"])


def _waits(session: int) -> Iterator[str]:
    """What each process of a session waits for in the kernel."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, ProcessLookupError):
            if os.getsid(int(entry.name)) == session:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                yield f"pid {entry.name} ({state}) in {(entry / 'wchan').read_text()}"


def _end(process: subprocess.Popen[str]) -> None:
    """The worker, and whatever of its lives is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def replay_image(name: str) -> Tally:
    """See a violation of power_disk or power_live again."""
    return run([in_namespace("crash.power.images", "--name", name)], 0, 60.0).tally(("images",), ())


def ends_at(seconds: float) -> float:
    """Until when a worker that has just begun may begin something new.  It says where it is when it
    is asked; a watch of faulthandler's own would hang every flusher that is forked from here."""
    faulthandler.register(signal.SIGUSR1)
    return time.monotonic() + seconds


def worker_arguments() -> argparse.ArgumentParser:
    """What every worker is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--keep", type=Path, default=KEPT)
    return parser


def report(counts: Counter[str], violations: list[str], seen: Iterable[bytes] = ()) -> None:
    """A worker's last words.  seen: digests of its states, to be told from those of the others."""
    import shmlog

    package = os.path.dirname(shmlog.__file__)
    found = {"package": package, "counts": counts, "violations": violations}
    json.dump(found | {"seen": [digest.hex() for digest in seen]}, sys.stdout)
