"""Run every workload and write `bench/results/<stamp>.json` and a report beside it.

    python -m bench                     all of them
    python -m bench append durable      some
    python -m bench --toy               at toy size, to see that they work

All other options are those of the workloads, for each of them.
"""

from __future__ import annotations

import datetime
import importlib
import json
import sys
from pathlib import Path

from bench.kit.harness import parse, run
from bench.kit.report import write_report

WORKLOADS = [
    *("append", "durable", "tail", "read", "recovery", "roll", "first", "idle", "growth", "sync_bytes"),
    *("tasks", "ship"),
]
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str]) -> int:
    """Run the workloads named in `arguments` (all without any); 0 unless an answer was wrong."""
    named = [each for each in arguments if each in WORKLOADS]
    options = parse("all", [each for each in arguments if each not in WORKLOADS])
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = options.json_path or RESULTS / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for name in named or WORKLOADS:
        print(f"\n# {name}", flush=True)
        workload = importlib.import_module(f"bench.{name}")
        results.append(run(name, workload.heats(options), options))
        # After each, so that a long run that is ended keeps what it has.
        path.write_text(json.dumps(results, indent=1) + "\n")
        write_report(results, path.with_suffix(".md"))
    print(f"\nwrote {path} and {path.with_suffix('.md').name}")
    wrong = [each for result in results for each in result["wrong_answers"]]
    if wrong:
        print("\nWRONG ANSWERS: " + "; ".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
