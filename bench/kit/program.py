"""Peers that are not in Python: a program does the job and prints one line of JSON.

    bench      -->  program job=append peer=... dir=... record_bytes=...
               <--  ready
               -->  (a line; sent to all programs at once)
               <--  {"begin_ns": ..., "end_ns": ..., "records": ..., "counts": [...], ...}

`counts` has, for each writer, how many records it appended in all, warm-up
included; the digest comes from a second run of the program with job=read, or
from the line itself where nothing is kept. `begin_ns` and `end_ns` are
CLOCK_MONOTONIC, so the spans of several programs can be compared.

Programs are built on first use from a folder of `peers/` into `peers/.build`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.kit.harness import Outcome, throughput
from bench.kit.peer import Job, Peer
from bench.kit.records import Digest, expected_of_all
from bench.kit.workers import Skipped, WorkerError, time_limit_s

SOURCES = Path(__file__).resolve().parents[1] / "peers"
BUILD = SOURCES / ".build"
BUILD_LIMIT_S = 600.0


class ProgramPeer(Peer):
    """One peer inside a program; its writers are threads unless `several_programs`."""

    heavy = True
    program_name: str
    several_programs = False
    keeps_records = True
    has_batches = True

    def command(self) -> list[str]:
        """The program, built if need be; raises `Skipped` without its toolchain."""
        raise NotImplementedError

    def check(self, job: Job) -> None:
        self.version()

    def remark(self, durable: bool = False) -> str:
        return f"{super().remark(durable)}; writers are {'programs' if self.several_programs else 'threads'}"

    def append(self, job: Job) -> Outcome:
        return self._append(job, "append")

    def append_batch(self, job: Job) -> Outcome:
        if not self.has_batches:
            raise Skipped("has no batches")
        return self._append(job, "batch")

    def durable(self, job: Job) -> Outcome:
        if not self.durable_by:
            raise Skipped(f"is never durable ({self.durability})")
        return self._append(job, "durable")

    def read_all(self, job: Job) -> Outcome:
        line = self._run(job, ["read"])[0]
        return Outcome(throughput(line["records"], job.record_bytes, _seconds([line])))

    def reopen(self, job: Job) -> Outcome:
        return Outcome({"seconds": _seconds(self._run(job, ["open"]))})

    def _append(self, job: Job, what: str) -> Outcome:
        self.check(job)
        writers = job.processes * job.threads
        programs = job.processes if self.several_programs else 1
        lines = self._run(job, [what] * programs, writers // programs)
        counts = [count for line in lines for count in line["counts"]]
        expected = expected_of_all(enumerate(counts), job.record_bytes)
        found = self._run(job, ["read"])[0] if self.keeps_records else lines[0]
        values = throughput(sum(line["records"] for line in lines), job.record_bytes, _seconds(lines))
        return Outcome(values | lines[0]["latency"], Digest(found["count"], found["checksum"]), expected)

    def _run(self, job: Job, jobs: Sequence[str], threads: int = 1) -> list[dict[str, Any]]:
        command = self.command()
        records_max = max(1, job.records_max // len(jobs))
        warmup = job.durable_warmup_records if "durable" in jobs else job.warmup_records
        given = [
            [
                f"peer={self.program_name}",
                f"job={what}",
                f"dir={job.directory}",
                f"record_bytes={job.record_bytes}",
                f"records_max={records_max}",
                f"seconds={job.seconds}",
                f"threads={threads}",
                f"batch={job.batch}",
                f"warmup={warmup}",
                f"block={job.block_records}",
                f"first_writer={number * threads}",
            ]
            for number, what in enumerate(jobs)
        ]
        return run_programs([command + arguments for arguments in given])


def _seconds(lines: Sequence[dict[str, Any]]) -> float:
    seconds = (max(line["end_ns"] for line in lines) - min(line["begin_ns"] for line in lines)) / 1e9
    return float(seconds)


def run_programs(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Start all, wait until all are ready, let all go, and return the lines they print."""
    deadline = time.monotonic() + time_limit_s.get()
    with contextlib.ExitStack() as running:
        programs = [running.enter_context(_started(command)) for command in commands]
        for program in programs:
            _read_line(program, deadline, until="ready")
        for program in programs:
            program.stdin.write(b"go\n")
            program.stdin.flush()
        return [json.loads(_read_line(program, deadline, until="{")) for program in programs]


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[Any]:
    program = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    os.set_blocking(program.stdout.fileno(), False)  # type: ignore[union-attr]
    try:
        yield program
        program.wait(timeout=10.0)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if program.poll() is None:
            program.kill()
            program.wait()
        for pipe in (program.stdin, program.stdout, program.stderr):
            pipe.close()  # type: ignore[union-attr]


def _read_line(program: Any, deadline: float, until: str) -> str:
    """The first line that starts with `until`; others are the libraries' chatter."""
    text = ""
    while time.monotonic() < deadline:
        text += (program.stdout.read() or b"").decode()
        *lines, text = text.split("\n")
        for line in lines:
            if line.startswith(until):
                return line
        if program.poll() is not None:
            raise WorkerError(_last_words(program))
        time.sleep(0.002)
    raise WorkerError("ran out of time")


def _last_words(program: Any) -> str:
    os.set_blocking(program.stderr.fileno(), False)
    lines = (program.stderr.read() or b"").decode(errors="replace").strip().splitlines()
    return f"exit {program.returncode}: " + " | ".join(lines[-3:])


def built(tool: str, command: Sequence[str], source: Path, product: Path) -> Path:
    """`product`, made by `command` in `source` unless it is newer than every source file."""
    if shutil.which(tool) is None:
        raise Skipped(f"{tool} is not installed")
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [path for path in source.rglob("*") if path.is_file() and "target" not in path.parts]
        newest = max(path.stat().st_mtime for path in sources)
        if not product.exists() or product.stat().st_mtime < newest:
            _build(tool, command, source)
            product.touch()
    return product


def _build(tool: str, command: Sequence[str], source: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=source, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Skipped(f"{tool} did not finish building in {BUILD_LIMIT_S:.0f} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Skipped(f"{tool} failed: " + " | ".join(words[-3:]))


def pinned_version(path: Path, pattern: str) -> str:
    """The version that a build file pins, by a pattern with one group."""
    found = re.search(pattern, path.read_text())
    return found.group(1) if found else "unknown"
