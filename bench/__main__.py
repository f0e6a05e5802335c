"""Run workloads and write `bench/results/<stamp>.json` and a report beside it.

    python -m bench                     all of them
    python -m bench append durable      some
    python -m bench --budget 20m        the figures to hold, as often as there is time for
    python -m bench --toy               at toy size, to see that they work

With a budget every heat that a figure to hold stands on takes its turn, again and again, so that
the repetitions of each are spread over the whole time. Contenders of which no figure speaks take
part only in the first round.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.figures import BESIDE, FIGURES, SHIPPED
from bench.kit.harness import Options, Running
from bench.kit.judging import judged
from bench.kit.machine import describe_machine
from bench.kit.report import format_figures, format_heat, write_report
from bench.kit.workers import time_limit_s

WORKLOADS = (
    "append",
    "durable",
    "tail",
    "read",
    "recovery",
    "roll",
    "first",
    "idle",
    "growth",
    "sync_bytes",
    "tasks",
)
SHIPPING = "ship", "ship_kafka"
"""Those that start servers: only when they are named."""
RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS_MIN = 3
ROUNDS_BESIDE = 1


def main(arguments: Sequence[str]) -> int:
    """Run the workloads named in `arguments` (all without any); 0 unless an answer was wrong."""
    workloads, path, options = parse(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": list(arguments),
        "toy": options.toy,
        "machine": describe_machine(options.directory),
    }
    rounds = _each_in_turn if options.budget_s is None else _all_in_rounds
    for running in rounds(list(heats_of(workloads, options)), options):
        # Again and again, so that a long run that is ended keeps what it has.
        _write(result, running, path)
    print(f"\n## Figures to hold\n\n{format_figures(result['figures'])}\n\nwrote {path} and {path.stem}.md")
    if wrong := result["wrong_answers"]:
        print("\nWRONG ANSWERS: " + "; ".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def parse(arguments: Sequence[str]) -> tuple[list[str], Path, Options]:
    """The workloads, where the results go, and the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "workloads",
        nargs="*",
        choices=[[], *WORKLOADS, *SHIPPING],
        metavar="workload",
        help=", ".join((*WORKLOADS, *SHIPPING)),
    )
    add("--budget", type=_seconds, help="time for the figures to hold: 20m, 90s")
    add("--toy", action="store_true", help="toy size: only to see that the workload still runs")
    add("--repeat", type=int, help="repetitions of each heat (default 3; 1 with --toy)")
    add("--only", default="", help="contenders to run beside the baseline, as patterns: 'shmlog*,sqlite'")
    add("--sizes", default="", help="record sizes in bytes, of those the workload offers: 128,65536")
    add("--processes", default="", help="numbers of processes, of those the workload offers: 1,4")
    add("--seconds", type=float, help="how long one contender appends at most (default 0.5; 0.02 with --toy)")
    add("--max-mb", type=float, help="how much one contender appends at most (default 256; 1 with --toy)")
    add("--time-limit", type=float, help="seconds until a contender is ended (default 120; 10 with --toy)")
    add("--json", type=Path, help="where to write the results")
    add("--dir", type=Path, default=Path(".bench-tmp"), help="where to work; a real disk, not tmpfs")
    given = parser.parse_args(arguments)
    time_limit_s.set(given.time_limit or (10.0 if given.toy else 120.0))
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    options = Options(
        toy=given.toy,
        repeat=given.repeat or (1 if given.toy else 3),
        only=tuple(filter(None, given.only.split(","))),
        sizes=tuple(int(size) for size in filter(None, given.sizes.split(","))),
        processes=tuple(int(count) for count in filter(None, given.processes.split(","))),
        seconds=given.seconds or (0.02 if given.toy else 0.5),
        max_bytes=int((given.max_mb or (1 if given.toy else 256)) * 1e6),
        directory=given.dir,
        budget_s=given.budget,
    )
    return given.workloads or list(WORKLOADS), given.json or RESULTS / f"{stamp}.json", options


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+)(h|m|s|)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; say 20m")
    return float(found[1]) * {"h": 3600, "m": 60, "s": 1, "": 1}[found[2]]


def heats_of(workloads: Sequence[str], options: Options) -> Iterator[Running]:
    """Every heat, or with a budget those that figures stand on, with whom they name."""
    for name in workloads:
        for heat in importlib.import_module(f"bench.{name}").heats(options):
            if options.budget_s is None:
                yield Running(name, heat, options)
            elif fitting := [each for each in (*FIGURES, *SHIPPED) if fnmatchcase(heat.title, each.heat)]:
                beside = [names for title, names in BESIDE.items() if fnmatchcase(heat.title, title)]
                needed = set().union(*(each.names for each in fitting))
                running = Running(name, heat, options, needed, set().union(*beside))
                running.runs_min = max(each.every_run for each in fitting)
                yield running


def _each_in_turn(heats: list[Running], options: Options) -> Iterator[list[Running]]:
    for number, running in enumerate(heats, 1):
        for _ in range(options.repeat):
            running.repeat()
        print("\n" + format_heat(running.measured()), flush=True)
        yield heats[:number]


def _all_in_rounds(heats: list[Running], options: Options) -> Iterator[list[Running]]:
    """Rounds over all heats until another one would not fit into the budget."""
    rounds_min = 1 if options.toy else ROUNDS_MIN
    begin_s = before_s = now_s = time.monotonic()
    rounds = 0
    while rounds < rounds_min or 2 * now_s - before_s - begin_s < (options.budget_s or 0):
        for running in heats:
            running.repeat(with_beside=rounds < ROUNDS_BESIDE)
            print(f"{time.monotonic() - begin_s:6.0f} s  {running.heat.title}", flush=True)
        before_s, now_s, rounds = now_s, time.monotonic(), rounds + 1
        print(f"round {rounds}: {now_s - before_s:.0f} s, {now_s - begin_s:.0f} s in all", flush=True)
        yield heats
    for running in heats:  # those of which every one of several runs counts
        for _ in range(0 if options.toy else running.runs_min - rounds):
            running.repeat(with_beside=False)
    yield heats


def _write(result: dict[str, Any], running: list[Running], path: Path) -> None:
    heats = [each.measured() for each in running]
    result["heats"] = heats
    result["figures"] = judged((*FIGURES, *SHIPPED), heats, result["toy"])
    result["wrong_answers"] = [
        f"{heat['title']}: {row['name']}: {row['wrong']}"
        for heat in heats
        for row in heat["rows"]
        if row["wrong"]
    ]
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_report(result, path.with_suffix(".md"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
