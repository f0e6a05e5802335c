"""The common harness: contenders of one job, interleaved, checked, compared.

    heat:  append 128 B, 2 writers          repetition   1      2      3
                                                         A B C  A B C  A B C

Invariants
  H1  Contenders of a heat take turns, the baseline first, so that a busy neighbour or a slow disk
      hits all of them; a ratio is taken within one repetition, never between
      runs, and the median of the ratios is reported.
  H2  What a contender read back is compared with what was appended. A mismatch
      is printed, recorded and makes the run fail.
  H3  A contender that cannot do a job is listed with the reason, never dropped.
  H4  Each contender works in a directory of its own, removed afterwards.

This module knows heats and contenders. It may not know what they measure.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench.kit.records import Digest
from bench.kit.workers import Skipped, WorkerError, time_limit_s

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What one run of one contender measured, and what it read back."""

    values: Mapping[str, float]
    digest: Digest | None = None
    expected: Digest | None = None
    remark: str = ""


@dataclass(frozen=True)
class Contender:
    """One system doing the job of a heat in the directory it is given."""

    name: str
    run: Callable[[Path], Outcome]
    remark: str = ""


@dataclass(frozen=True)
class Goal:
    """A bound on one contender's ratio to the baseline (or on its value, if `of` names one)."""

    contender: str
    at_least: float | None = None
    at_most: float | None = None
    of: str = ""

    def is_met(self, figure: float) -> bool:
        return (self.at_least is None or figure >= self.at_least) and (
            self.at_most is None or figure <= self.at_most
        )

    def __str__(self) -> str:
        bounds = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"≤ {self.at_most:g}"] if self.at_most is not None else []
        return f"{self.of or 'ratio'} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Heat:
    """Contenders that do the same job, what is shown of each and what is compared with the first."""

    title: str
    contenders: Sequence[Contender]
    columns: Sequence[str]
    compare: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    goals: Sequence[Goal] = ()

    @property
    def baseline(self) -> str:
        return self.contenders[0].name


@dataclass(frozen=True)
class Options:
    """The command line, the same for every workload."""

    toy: bool
    repeat: int
    only: tuple[str, ...]
    sizes: tuple[int, ...]
    processes: tuple[int, ...]
    seconds: float
    max_bytes: int
    time_limit_s: float
    json_path: Path | None
    directory: Path

    def wants(self, name: str) -> bool:
        return not self.only or any(fnmatch.fnmatch(name, pattern) for pattern in self.only)


def chosen(offered: Iterable[int], wanted: tuple[int, ...]) -> list[int]:
    """Of the sizes or counts a workload offers, those the command line asks for."""
    return [each for each in offered if not wanted or each in wanted]


def throughput(records: int, record_bytes: int, seconds: float) -> dict[str, float]:
    """Rate values of `records` records in `seconds`."""
    return {
        "records": records,
        "seconds": seconds,
        "records_per_s": records / seconds,
        "mb_per_s": records * record_bytes / seconds / 1e6,
        "ns_per_record": seconds * 1e9 / records,
    }


def latency(samples_ns: ArrayLike) -> dict[str, float]:
    """Percentile values, in microseconds, of latencies in nanoseconds."""
    samples = np.asarray(samples_ns, dtype=np.float64) / 1e3
    names = {"p50_us": 50, "p90_us": 90, "p99_us": 99, "p99.9_us": 99.9, "max_us": 100}
    return {name: float(np.percentile(samples, percent)) for name, percent in names.items()}


def main(
    name: str, heats: Callable[[Options], Iterable[Heat]], arguments: Sequence[str] | None = None
) -> int:
    """Run one workload from the command line; 0 unless a contender gave a wrong answer."""
    options = parse(name, arguments)
    result = run(name, heats(options), options)
    if options.json_path:
        options.json_path.parent.mkdir(parents=True, exist_ok=True)
        options.json_path.write_text(json.dumps(result, indent=1) + "\n")
    if result["wrong_answers"]:
        print("\nWRONG ANSWERS: " + "; ".join(result["wrong_answers"]), file=sys.stderr)
        return 1
    return 0


def parse(name: str, arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    add = parser.add_argument
    add("--toy", action="store_true", help="toy size: only to see that the workload still runs")
    add("--repeat", type=int, help="repetitions of each heat (default 3; 1 with --toy)")
    add("--only", default="", help="contenders to run beside the baseline, as patterns: 'shmlog*,sqlite'")
    add("--sizes", default="", help="record sizes in bytes, of those the workload offers: 128,65536")
    add("--processes", default="", help="numbers of processes, of those the workload offers: 1,4")
    add("--seconds", type=float, help="how long one contender appends at most (default 0.5; 0.02 with --toy)")
    add("--max-mb", type=float, help="how much one contender appends at most (default 256; 1 with --toy)")
    add(
        "--time-limit",
        type=float,
        help="seconds after which a contender is ended (default 120; 10 with --toy)",
    )
    add("--json", type=Path, help="write the results to this file")
    add("--dir", type=Path, default=Path(".bench-tmp"), help="where to work; a real disk, not tmpfs")
    given = parser.parse_args(arguments)
    return Options(
        toy=given.toy,
        repeat=given.repeat or (1 if given.toy else 3),
        only=tuple(filter(None, given.only.split(","))),
        sizes=tuple(int(size) for size in filter(None, given.sizes.split(","))),
        processes=tuple(int(count) for count in filter(None, given.processes.split(","))),
        seconds=given.seconds or (0.02 if given.toy else 0.5),
        max_bytes=int((given.max_mb or (1 if given.toy else 256)) * 1e6),
        time_limit_s=given.time_limit or (10.0 if given.toy else 120.0),
        json_path=given.json,
        directory=given.dir,
    )


def run(name: str, heats: Iterable[Heat], options: Options) -> dict[str, Any]:
    """Run every heat, print its table, and return everything as plain data."""
    time_limit_s.set(options.time_limit_s)
    options.directory.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "workload": name,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "toy": options.toy,
        "repeat": options.repeat,
        "machine": describe_machine(options.directory),
        "heats": [],
        "wrong_answers": [],
    }
    for heat in heats:
        measured = _run_heat(heat, options)
        result["heats"].append(measured)
        result["wrong_answers"] += [
            f"{heat.title}: {row['name']}: {row['wrong']}" for row in measured["rows"] if row["wrong"]
        ]
        print("\n" + format_heat(measured), flush=True)
    return result


def describe_machine(directory: Path) -> dict[str, Any]:
    """What the figures were taken on; without it they mean nothing."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "commit": _output_of("git", "-C", str(REPOSITORY), "rev-parse", "HEAD"),
        "cpu": cpu.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "filesystem": _output_of("df", "--output=fstype", str(directory)).rpartition("\n")[2],
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _run_heat(heat: Heat, options: Options) -> dict[str, Any]:
    entered = [each for each in heat.contenders if each.name == heat.baseline or options.wants(each.name)]
    rows = {each.name: _empty_row(each) for each in entered}
    for _ in range(options.repeat):
        for contender in entered:
            row = rows[contender.name]
            if not row["skipped"] and not row["wrong"]:
                _run_once(contender, row, options)
    _compare(heat, rows)
    return {
        "title": heat.title,
        "parameters": dict(heat.parameters),
        "columns": list(heat.columns),
        "compare": heat.compare,
        "baseline": heat.baseline,
        "rows": list(rows.values()),
        # A toy run shows that the workload works; its figures mean nothing.
        "goals": [_judge(goal, rows) for goal in heat.goals if goal.contender in rows and not options.toy],
    }


def _empty_row(contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "remark": contender.remark,
        "skipped": "",
        "wrong": "",
        "repetitions": [],
        "median": {},
        "ratio": None,
    }


def _run_once(contender: Contender, row: dict[str, Any], options: Options) -> None:
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory)).resolve()
    try:
        outcome = contender.run(directory)
    except Skipped as reason:
        row["skipped"] = str(reason)
    except WorkerError as error:
        row["skipped"] = "failed: " + str(error).strip().splitlines()[-1]
        print(f"{contender.name} failed:\n{error}", file=sys.stderr)
    else:
        row["repetitions"].append(dict(outcome.values))
        row["remark"] = row["remark"] or outcome.remark
        if outcome.digest != outcome.expected:
            row["wrong"] = f"read back {outcome.digest}, appended {outcome.expected}"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _compare(heat: Heat, rows: dict[str, dict[str, Any]]) -> None:
    baseline = rows.get(heat.baseline, {}).get("repetitions", [])
    for row in rows.values():
        runs = row["repetitions"]
        names = runs[0].keys() if runs else ()
        row["median"] = {name: statistics.median(each[name] for each in runs) for name in names}
        ratios = [
            ours[heat.compare] / theirs[heat.compare]
            for ours, theirs in zip(runs, baseline, strict=False)
            if heat.compare in ours and theirs.get(heat.compare)
        ]
        if ratios:
            row["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _judge(goal: Goal, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = rows[goal.contender]
    figure = row["median"].get(goal.of) if goal.of else (row["ratio"] or {}).get("median")
    met = None if figure is None else goal.is_met(figure)
    return {"contender": goal.contender, "goal": str(goal), "figure": figure, "met": met}


def format_heat(measured: Mapping[str, Any]) -> str:
    """One heat as a readable table."""
    heading = ["", *measured["columns"], f"{measured['compare']} / {measured['baseline']}", ""]
    lines = [heading] + [_format_row(row, measured["columns"]) for row in measured["rows"]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading) - 1)]
    table = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:], strict=True)]
            + [line[-1]]
        ).rstrip()
        for line in lines
    ]
    goals = [f"goal: {format_goal(goal)}" for goal in measured["goals"]]
    return "\n".join([f"## {measured['title']}", *table, *goals])


def format_goal(goal: Mapping[str, Any]) -> str:
    verdict = "not measured"
    if goal["met"] is not None:
        verdict = f"{goal['figure']:.2f}, {'met' if goal['met'] else 'MISSED'}"
    return f"{goal['contender']}: {goal['goal']}: {verdict}"


def _format_row(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    if row["wrong"]:
        return [row["name"], *[""] * len(columns), "WRONG", row["wrong"]]
    if not row["repetitions"]:
        return [row["name"], *[""] * len(columns), "skipped", row["skipped"]]
    cells = [format_value(row["median"].get(column)) for column in columns]
    ratio = f"{row['ratio']['median']:.2f}x" if row["ratio"] else ""
    return [row["name"], *cells, ratio, row["skipped"] or row["remark"]]


def format_value(value: float | None) -> str:
    """A figure with three significant digits, and thousands separated."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
